from __future__ import annotations

import pytest
import torch

from fewshot.backbones import create_backbone
from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from fewshot.ops.diff_augment import diff_augment
from fewshot.training import TrainConfig
from fewshot.training.learner import make_learner
from tests.methods.agreement import check_soft
from tests.methods.fine_tuning import check_against, check_without_steps, cosine_prototypes, learner
from tests.methods.image_episodes import image_episodes

AGREEMENT = [("pmf", {"lr": 1e-3, "steps": 50, "probability": 0.0}, "pmf")]


def test_agrees_with_official_code(oracles):
    check_soft(oracles, *AGREEMENT[0], only=("caltech_dn4_5w1s",), first=2)


@pytest.mark.slow
def test_agrees_with_official_code_on_all_inputs(oracles):
    check_soft(oracles, *AGREEMENT[0])


@pytest.mark.parametrize("probability", [0.0, 0.9])
@pytest.mark.parametrize(("blocks", "moved"), [("all", ["blocks", "last"]), ("last", ["blocks.1", "last"])])
def test_against_a_plain_loop(probability, blocks, moved):
    """Prototypes of the clean support, computed anew in every step, and gradients through them."""
    def by_hand(network, labels):
        body = [p for name in moved for p in network.get_submodule(name).parameters()]
        return cosine_prototypes(labels), [{"params": body, "lr": 0.01}]

    check_against("pmf", by_hand, "adam", 6, lr=0.01, blocks=blocks, probability=probability,
                  images=lambda step, x: diff_augment(x, 0, step, probability) if probability else x)


def test_without_steps_or_rate_it_is_the_nearest_mean_by_cosine():
    check_without_steps("pmf")


def test_augmentation_is_a_function_of_seed_and_step():
    """Not of the batch mates of an episode, nor of the global generator."""
    episodes, _ = image_episodes()
    made = learner("pmf", lr=0.05, steps=5)
    together = made(episodes)
    torch.manual_seed(3)
    torch.testing.assert_close(torch.cat([made(e) for e in episodes]), together, atol=0, rtol=0)
    assert not torch.equal(learner("pmf", lr=0.05, steps=5, seed=1)(episodes), together)


def test_augmented_images():
    """Mirrored, moved by at most an eighth, zeros where nothing was; each image in its own way."""
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = x.clone()
    found = [diff_augment(x, 0, step) for step in range(200)]
    assert torch.equal(x, before) and all(y.shape == x.shape and y.isfinite().all() for y in found)
    assert 5 <= sum(y is x for y in found) <= 40  # a tenth
    shifts = set()
    for y in found:
        rows = (y != 0).any(1).any(2)  # [4, 16]: rows and columns that moved in are zero
        shifts |= {(int(r.nonzero()[0]), 15 - int(r.nonzero()[-1])) for r in rows}
    assert shifts == {(0, 0), (1, 0), (2, 0), (0, 1), (0, 2)}


def test_colours_and_mirrors_by_hand():
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    still = [diff_augment(x, 0, step, 1.0, shift=0.0) for step in range(20)]
    for y in still:
        fits = []
        for z in (x, x.flip(3)):
            centred, other = z - z.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
            # The colours of a pixel around its grey are scaled by one number an image, the greys around their mean by one.
            ratios = (other / centred).flatten(1)
            grey = (y.mean(1) - y.mean((1, 2, 3))[:, None, None]) / (z.mean(1) - z.mean((1, 2, 3))[:, None, None])
            fits.append(all((r - r[:, :1]).abs().max() < 1e-8 for r in (ratios, grey.flatten(1))))
            if fits[-1]:
                contrast = grey.flatten(1)[:, 0]
                assert ((contrast >= 0.5) & (contrast <= 1.5)).all()
                saturation = ratios[:, 0] / contrast
                assert ((saturation >= 0) & (saturation <= 2)).all()
                assert ((y.mean((1, 2, 3)) - z.mean((1, 2, 3))).abs() <= 0.5).all()
        assert sum(fits) == 1
    flipped = [(y - x.flip(3)).std() < (y - x).std() for y in still]
    assert 0 < sum(map(int, flipped)) < 20


def test_mistakes_are_named():
    for settings, message in (({"probability": 1.5}, "probability=1.5"), ({"blocks": "first"}, "blocks='first'"),
                              ({"scale": -1.0}, "scale=-1.0"), ({"seed": -1}, "seed=-1")):
        with pytest.raises(FewshotError, match=message):
            create_method("pmf", **settings)
    with pytest.raises(FewshotError, match="no weights in blocks='all'"):
        learner("pmf", torch.nn.Flatten())


def test_blocks_as_a_command_line_writes_them():
    for blocks in ("0,1", (0, 1), [0, 1]):
        assert create_method("pmf", blocks=blocks).blocks == "0,1"
    assert create_method("pmf", blocks=1).blocks == "1" and create_method("finetune", layers=1).layers == "1"


def test_there_is_nothing_to_train():
    with pytest.raises(FewshotError, match="pmf adapts a trained backbone to each test episode"):
        make_learner(TrainConfig(method="pmf"), create_backbone("conv4", channels=1, image_size=16), None)
