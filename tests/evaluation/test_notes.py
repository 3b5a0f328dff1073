"""What tables must say of the images: copies of each other, and ink and paper the other way round."""

from __future__ import annotations

import dataclasses

import torch

from fewshot.backbones import create_backbone, save_weights
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.run import Run
from fewshot.features.source import FeatureSource
from fewshot.training import TrainConfig, train

SMALL = {"ways": 3, "shots": 1, "queries": 3, "episodes": 10}


class Given(FeatureSource):
    """Images that are there already."""

    def __init__(self, images, cache):
        super().__init__(cache=cache)
        self.given = images

    def images(self, subject):
        return self.given


def drawings(seed=0):
    """Light ink on dark: mean 0.15."""
    generator = torch.Generator().manual_seed(seed)
    images = (torch.rand(60, 1, 28, 28, generator=generator) < 0.15).to(torch.uint8) * 255
    return ImageBank(images, torch.arange(60) % 6, name="toy", split="train")


def test_copies_are_a_note(tmp_path):
    bank = drawings()
    copied = dataclasses.replace(bank, images=bank.images[[*range(58), 0, 0]])  # 58 is of class 4, 59 of class 5
    notes = evaluate(Run(backbone="pixels", **SMALL), source=Given(copied, tmp_path)).notes
    assert any("3 of 60 images are identical to one of another class" in note for note in notes)
    assert evaluate(Run(backbone="pixels", **SMALL), source=Given(bank, tmp_path)).notes == ()
    features = torch.eye(6)[torch.arange(60) % 6]
    assert any("54 of 60 rows of features are identical to another one of their class" in note
               for note in evaluate(Run(**SMALL), FeatureBank(features, torch.arange(60) % 6)).notes)


def test_ink_and_paper_the_other_way_round_are_a_note(tmp_path):
    bank = drawings()
    network = create_backbone("conv4", channels=1, image_size=28, width=8)
    config = TrainConfig(ways=3, shots=1, queries=3, steps=1, validate_every=0)
    weights = train(config, bank, None, network, out=tmp_path / "out").weights
    run = Run(weights=str(weights), **SMALL)
    assert not any("brightness" in note for note in evaluate(run, source=Given(drawings(1), tmp_path)).notes)
    negative = dataclasses.replace(bank, images=255 - drawings(1).images)
    assert any("mean brightness is 0.85, that of the images that the weights were trained on 0.15" in note
               and "invert=True" in note for note in evaluate(run, source=Given(negative, tmp_path)).notes)
    save_weights(network, tmp_path / "unknown.safetensors")
    run = Run(weights=str(tmp_path / "unknown.safetensors"), **SMALL)
    assert not any("brightness" in note for note in evaluate(run, source=Given(negative, tmp_path)).notes)
