"""Supervised training: batches, augmentation, objectives and what they learn."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fewshot.backbones import create_backbone
from fewshot.core.errors import FewshotError
from fewshot.core.registry import UnknownName
from fewshot.data.banks import ImageBank
from fewshot.datasets import load_dataset
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.features.extract import embed
from fewshot.methods import create_method
from fewshot.training import Objective, SupervisedConfig, train_supervised
from fewshot.training.augment import CropFlip
from fewshot.training.checkpoint import load_checkpoint
from fewshot.training.objectives import CosineHead, CrossEntropy
from fewshot.training.supervised import ClassificationTask, Classifier
from tests.training.boards import check_tensorboard
from tests.training.runs import bank, run, run_supervised, supervised_config, tiny


def numbered(images: int = 50, classes: int = 7) -> ImageBank:
    """Image i is filled with i; one label in the middle has no images."""
    labels = torch.arange(images) % classes
    pixels = torch.arange(images, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    return ImageBank(pixels, labels + (labels > 3), name="numbers", split="train")


def task(images: ImageBank, augment=None, **changes) -> ClassificationTask:
    settings = supervised_config(**changes)
    return ClassificationTask(settings, images, None, Classifier(tiny(), CrossEntropy(settings, 7, 192)), augment)


def head_of(out) -> dict:
    return load_checkpoint(out / "checkpoints")["learner"]


# -- learning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_a_few_glyph_classes_are_fitted_to_near_zero_loss(tmp_path, head):
    glyphs = load_dataset("glyphs", "train")
    few = glyphs.labels < 4
    images = ImageBank(glyphs.images[few], glyphs.labels[few], name="few glyphs", split="train")
    settings = SupervisedConfig(epochs=40, batch_size=32, lr=0.03, weight_decay=0.0, head=head, validate_every=0,
                                log_every=5)
    network = create_backbone("conv4", channels=1, image_size=20, width=16)
    result = train_supervised(settings, images, None, network, out=tmp_path, progress=False)
    assert result.history[0]["loss"] > 0.4 and result.history[-1]["loss"] < 0.02
    assert result.history[-1]["accuracy"] == 1.0


def test_it_learns_new_classes(tmp_path):
    changes = {"validation_episodes": 200, "ema_decay": 0.0, "lr": 0.05, "backbone": tiny(dropout=0.0), "flip": False,
               "crop_padding": 0}
    start = run_supervised(tmp_path / "start", **{**changes, "epochs": 1, "lr": 1e-12})
    result = run_supervised(tmp_path / "run", epochs=20, **changes)
    assert result.validation.low > start.validation.high > 1 / 4
    assert result.history[-1]["accuracy"] > result.history[0]["accuracy"] + 0.2


def test_bfloat16_learns_about_the_same(tmp_path):
    changes = {"epochs": 2, "ema_decay": 0.0, "validate_every": 0, "backbone": tiny(dropout=0.0)}
    full, half = (run_supervised(tmp_path / p, precision=p, **changes) for p in ("float32", "bfloat16"))
    assert half.history[-1]["loss"] == pytest.approx(full.history[-1]["loss"], rel=0.05)
    assert half.history[-1]["loss"] != full.history[-1]["loss"]


# -- batches -----------------------------------------------------------------------------------------------------------


def test_an_epoch_holds_every_image_once():
    images = numbered()
    made = task(images, batch_size=12, accumulate=3)
    assert made.interval == 5  # batches of 10, none larger than 12
    orders = []
    for epoch in range(2):
        rows, steps = [], range(5 * epoch, 5 * epoch + 5)
        for step in steps:
            parts = [made.part(step, number) for number in range(3)]
            assert sum(share for _, _, share in parts) == pytest.approx(1)
            assert sorted(len(labels) for _, labels, _ in parts) == [3, 3, 4]
            for pixels, labels, _ in parts:
                assert torch.equal(labels, pixels[:, 0, 0, 0].long() % 7)  # 0 .. 6, without the gap
                rows += pixels[:, 0, 0, 0].tolist()
        assert sorted(rows) == list(range(50))
        orders.append(rows)
    assert orders[0] != orders[1]
    again, other = (task(images, batch_size=12, seed=seed).part(7, 0)[0][:, 0, 0, 0].tolist() for seed in (0, 1))
    assert again == orders[1][20:30] != other


def test_uneven_passes_make_the_gradient_of_the_whole_batch(tmp_path):
    """Batches of 16 in three passes; without BatchNorm, which would see other batches."""
    changes = {"epochs": 1, "accumulate": 1, "validate_every": 0, "ema_decay": 0.0, "batch_size": 17, "log_every": 1,
               "backbone": tiny(dropout=0.0, batch_norm=False)}
    whole, parts = (run_supervised(tmp_path / str(n), **{**changes, "accumulate": n}) for n in (1, 3))
    assert len(whole.history) == 9
    for a, b in zip(whole.history, parts.history, strict=True):
        assert [b["loss"], b["accuracy"], b["gradient_norm"]] == \
            pytest.approx([a["loss"], a["accuracy"], a["gradient_norm"]], rel=1e-4)
    torch.testing.assert_close(parts.backbone.state_dict(), whole.backbone.state_dict(), rtol=1e-4, atol=1e-6)


def test_intervals_are_epochs(tmp_path):
    result = run_supervised(tmp_path, epochs=4, validate_every=2, schedule="step", step_size=3, gamma=0.1, log_every=4)
    assert [row["step"] for row in result.history if row["validation_accuracy"] is not None] == [16, 32]
    assert {row["step"]: round(row["lr"], 9) for row in result.history if row["step"] in (24, 28)} == {24: 0.02, 28: 0.002}
    assert result.steps == 32


# -- augmentation ------------------------------------------------------------------------------------------------------


def test_crops_and_flips_equal_a_loop():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (200, 3, 5, 6), generator=generator, dtype=torch.uint8)
    draws = torch.rand(200, 3, generator=generator, dtype=torch.float64)
    found = CropFlip(2, True)(images, draws)
    assert found.dtype == torch.uint8 and found.shape == images.shape
    kinds = set()
    for image, numbers, result in zip(images, draws, found, strict=True):
        top, left = int(numbers[0] * 5), int(numbers[1] * 5)
        crop = F.pad(image, (2, 2, 2, 2))[:, top:top + 5, left:left + 6]
        assert torch.equal(result, crop.flip(2) if numbers[2] < 0.5 else crop)
        kinds.add((top, left, bool(numbers[2] < 0.5)))
    assert len(kinds) == 50
    assert torch.equal(CropFlip(0, False)(images, draws), images)
    assert set(found.unique().tolist()) <= set(range(256))


def test_augmentation_depends_on_seed_epoch_and_image_alone():
    images = bank()

    def of_row(row, step, **changes):
        made = task(images, CropFlip(3, True), **changes)
        epoch = step // made.interval
        order, draws = made._of_epoch(epoch)
        place = int((order == row).nonzero())
        for step in range(epoch * made.interval, (epoch + 1) * made.interval):
            pixels, labels, _ = made.part(step, 0)
            if place < len(pixels):
                assert labels[place] == images.labels[row]
                return pixels[place]
            place -= len(pixels)
        return None

    first = of_row(5, 0, batch_size=18)
    assert torch.equal(first, of_row(5, 0, batch_size=72)), "the batch must not matter"
    others = [of_row(5, 0, batch_size=18, seed=1), of_row(5, 8, batch_size=18), images.images[5]]
    assert not any(torch.equal(first, other) for other in others)


@dataclass(frozen=True)
class Brighter:
    """An augmentation of the user's."""

    amount: float
    draws = 1

    def __call__(self, images, draws):
        return (images / 255 + self.amount * draws.float().view(-1, 1, 1, 1)).clamp(0, 1)


def test_an_augmentation_of_ones_own_is_part_of_the_run(tmp_path):
    plain = {"crop_padding": 0, "flip": False, "epochs": 1}
    run_supervised(tmp_path / "a", augment=Brighter(0.2), **plain)
    assert run_supervised(tmp_path / "a", augment=Brighter(0.2), **plain).steps == 8
    with pytest.raises(FewshotError, match=r"augment: 'Brighter\(amount=0.2\)' there, 'Brighter\(amount=0.3\)' here"):
        run_supervised(tmp_path / "a", augment=Brighter(0.3), **plain)
    with pytest.raises(FewshotError, match="leave these out"):
        run_supervised(tmp_path / "b", augment=Brighter(0.2))


# -- objectives --------------------------------------------------------------------------------------------------------


def test_cross_entropy_equals_its_definition():
    settings = supervised_config(label_smoothing=0.2, head="cosine")
    objective = CrossEntropy(settings, 4, 192)
    features = torch.randn(6, 192, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    loss, logits = objective.loss(nn.Identity(), features, labels, torch.Generator())
    weight = objective.head.weight
    cosine = (features @ weight.T) / features.norm(dim=1, keepdim=True) / weight.norm(dim=1)
    torch.testing.assert_close(logits, 10 * cosine)
    target = 0.8 * F.one_hot(labels, 4) + 0.2 / 4
    torch.testing.assert_close(loss, -(target * logits.log_softmax(1)).sum(1).mean())


class Mixed(Objective):
    """Mixes every image with another: an objective with random numbers and a weight of its own."""

    def __init__(self):
        super().__init__()
        self.head = CosineHead(192, 12)
        self.strength = nn.Parameter(torch.tensor(1.0))

    def loss(self, backbone, images, labels, generator):
        order = torch.randperm(len(images), generator=generator)
        logits = self.strength * self.head(backbone(0.7 * images + 0.3 * images[order]))
        return 0.7 * F.cross_entropy(logits, labels) + 0.3 * F.cross_entropy(logits, labels[order]), logits


def test_an_objective_of_ones_own_is_trained_stored_and_resumed(tmp_path):
    torch.manual_seed(0)
    objective = Mixed()
    whole = run_supervised(tmp_path / "whole", objective=objective)
    assert objective.strength.item() == 1.0 != whole.method.strength.item()
    assert run_supervised(tmp_path / "whole", objective=objective).method.strength.item() == whole.method.strength.item()

    class Broken(Brighter):
        def __repr__(self):
            return "None"

        def __call__(self, images, draws):
            self.calls.append(1)
            if len(self.calls) > 13:
                raise ZeroDivisionError
            return images

    Broken.calls = []
    plain = {"objective": objective, "crop_padding": 0, "flip": False}
    with pytest.raises(ZeroDivisionError):
        run_supervised(tmp_path / "broken", augment=Broken(0.0), **plain)
    torch.rand(3)
    resumed, straight = run_supervised(tmp_path / "broken", **plain), run_supervised(tmp_path / "straight", **plain)
    assert resumed.history == straight.history and resumed.steps == 24
    for name, value in head_of(tmp_path / "straight").items():
        assert torch.equal(head_of(tmp_path / "broken")[name], value)


# -- validation and what is left behind --------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l2n", "un"])
def test_validation_is_the_nearest_prototype(tmp_path, norm):
    result = run_supervised(tmp_path, validation_norm=norm, validation_episodes=60)
    images, settings = bank("val"), result.config
    sampler = EpisodeSampler(images, settings.validation_ways, settings.validation_shots, settings.validation_queries,
                             settings.validation_seed)
    episodes, labels = sampler.sample(embed(images, result.backbone, progress=False), count=60)
    predicted = create_method("simple_shot", norm=norm)(episodes).argmax(-1)
    assert float((predicted == labels).double().mean()) == pytest.approx(result.validation.mean, abs=1e-12)
    scores = {row["step"]: row["validation_accuracy"] for row in result.history if row["validation_accuracy"] is not None}
    assert sorted(scores) == [8, 16, 24] and result.validation.mean == max(scores.values())


def test_files_and_tensorboard(tmp_path):
    result = run_supervised(tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["run"]["config"]["recipe"] == "cross_entropy"
    assert isinstance(result.method, CrossEntropy) and not result.backbone.training
    again = run_supervised(tmp_path)
    assert torch.equal(again.method.head.weight, result.method.head.weight)
    check_tensorboard(tmp_path, result, "images")


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "message"), [
    ({"epochs": 0}, "epochs=0"), ({"batch_size": 1}, "batch_size=1; expected an integer of at least 2"),
    ({"head": "cosin"}, "did you mean 'cosine'"), ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
    ({"flip": 1}, "flip=1; pass True or False"), ({"crop_padding": -1}, "crop_padding=-1"),
    ({"validation_norm": "cl2n"}, "did you mean 'l2n'"), ({"lr": 1e-3, "lr_min": 1e-2}, "lr_min=0.01 exceeds")])
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(FewshotError) as caught:
        SupervisedConfig(**changes)
    assert message in str(caught.value)


def test_settings_that_do_not_fit_the_data_are_refused(tmp_path):
    with pytest.raises(FewshotError, match="warmup_steps=24 leaves nothing of steps=24"):
        run_supervised(tmp_path / "a", warmup_steps=24)
    with pytest.raises(FewshotError, match="accumulate=19 passes for batches of 18 images"):
        run_supervised(tmp_path / "b", accumulate=19)
    with pytest.raises(UnknownName, match="did you mean 'cross_entropy'"):
        run_supervised(tmp_path / "c", recipe="crossentropy")
    with pytest.raises(FewshotError, match="nothing to train"):
        run_supervised(tmp_path / "d", backbone=tiny().requires_grad_(False))
    one = ImageBank(bank().images[:12], bank().labels[:12], split="train")
    with pytest.raises(FewshotError, match="images of 1 classes"):
        train_supervised(supervised_config(), one, bank("val"), tiny(), out=tmp_path, progress=False)


def test_test_classes_and_training_classes_are_refused_for_validation(tmp_path):
    def attempt(train_bank, val_bank):
        train_supervised(supervised_config(), train_bank, val_bank, tiny(), out=tmp_path, progress=False)

    with pytest.raises(FewshotError, match="val_bank is the split 'test'"):
        attempt(bank(), bank("test"))
    with pytest.raises(FewshotError, match="train_bank is the split 'test'"):
        attempt(bank("test"), bank("val"))
    with pytest.raises(FewshotError, match="val_bank is train_bank"):
        attempt(bank(), bank())
    with pytest.raises(FewshotError, match="no validation bank"):
        attempt(bank(), None)


def test_a_layer_that_overflows_is_named(tmp_path):
    backbone = tiny()
    with torch.no_grad():
        backbone.conv.weight.fill_(3e38)
    with pytest.raises(FewshotError, match=r"the loss is nan at step 0; .*the output of backbone\.conv \(Conv2d\)"):
        run_supervised(tmp_path, backbone=backbone)


def test_a_folder_of_the_other_kind_of_training_is_refused(tmp_path):
    run(tmp_path, steps=2, validate_every=0, warmup_steps=0)
    with pytest.raises(FewshotError, match="holds a run with other settings"):
        run_supervised(tmp_path)
