"""A backbone that `torch.compile` wrapped trains as the backbone does."""

from __future__ import annotations

import pytest
import torch

from fewshot.backbones import load_weights, save_weights
from fewshot.core.errors import FewshotError
from fewshot.core.hashing import state_sha256
from fewshot.methods import create_method
from fewshot.training.diagnose import first_non_finite
from fewshot.training.learner import make_learner
from tests.methods.image_episodes import image_episodes
from tests.training.runs import config, run, run_recipe, run_supervised, small_conv4, tiny


class Counted:
    """A backend that runs the graph as it is and counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, graph, example_inputs):
        def call(*arguments):
            self.calls += 1
            return graph(*arguments)

        return call


RUNS = {"protonet": lambda out, backbone: run(out, backbone=backbone, steps=4, validate_every=2, log_every=1),
        "maml": lambda out, backbone: run(out, backbone=backbone, steps=4, validate_every=2, method_name="maml"),
        "cross_entropy": lambda out, backbone: run_supervised(out, backbone=backbone, epochs=1),
        # Mixes maps on their way, at random depths, which the compiled call would not do.
        "easy": lambda out, backbone: run_recipe(out, recipe="easy", backbone=backbone, epochs=1)}


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("kind", RUNS)
def test_training_gives_the_same_weights_under_the_same_names(tmp_path, kind):
    make = small_conv4 if kind == "easy" else tiny
    expected = RUNS[kind](tmp_path / "plain", make())
    counted, network = Counted(), make()
    model = torch.compile(network, backend=counted)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = RUNS[kind](tmp_path / "compiled", model)
    assert (counted.calls > 0) == (kind != "maml")
    torch.testing.assert_close(dict(found.backbone.state_dict()), dict(expected.backbone.state_dict()), atol=0, rtol=0)
    assert found.history == expected.history
    torch.testing.assert_close(dict(network.state_dict()), before, atol=0, rtol=0)
    loaded = make(seed=1)
    load_weights(loaded, found.weights)
    torch.testing.assert_close(dict(loaded.state_dict()), dict(found.backbone.state_dict()), atol=0, rtol=0)
    # The finished run is found with and without it.
    assert RUNS[kind](tmp_path / "compiled", make()).best_step == found.best_step
    assert RUNS[kind](tmp_path / "plain", model).best_step == expected.best_step


def test_weights_of_a_backbone_with_compiled_parts(tmp_path):
    one, other = small_conv4(), small_conv4(seed=1)
    assert save_weights(torch.compile(one, backend="eager"), tmp_path / "whole") == save_weights(one, tmp_path / "plain")
    one.blocks = torch.compile(one.blocks, backend="eager")
    assert one.weights_id == small_conv4().weights_id
    assert save_weights(one, tmp_path / "part") == save_weights(small_conv4(), tmp_path / "plain")
    load_weights(other, tmp_path / "part")
    torch.testing.assert_close(dict(other.state_dict()), dict(small_conv4().state_dict()), atol=0, rtol=0)
    save_weights(small_conv4(seed=2), tmp_path / "new")
    for model in (one, torch.compile(other, backend="eager")):
        load_weights(model, tmp_path / "new")
        assert model.weights_id == state_sha256(small_conv4(seed=2).state_dict())
    with pytest.raises(FewshotError, match="do not fit"):
        load_weights(torch.compile(tiny(), backend="eager"), tmp_path / "new")


def test_learners_that_hold_the_network_take_the_one_inside():
    network = small_conv4()
    model = torch.compile(network, backend="eager")
    assert create_method("maml").with_backbone(model, 3).backbone is network
    assert create_method("finetune").with_backbone(model, 3).backbone is network


def test_the_layer_that_is_not_finite_is_found_in_a_compiled_network():
    learner = make_learner(config(), torch.compile(tiny(), backend="eager"), None)
    episodes, _ = image_episodes(dtype=torch.float32)
    images = torch.randint(0, 256, (3, 6, 1, 8, 8), dtype=torch.uint8)
    episodes = type(episodes)(images, episodes.support_labels, images, 3)
    with torch.no_grad():
        learner(episodes)
        learner.backbone.conv.weight.fill_(3e38)
    assert first_non_finite(learner, lambda: learner(episodes)) == "the output of backbone.conv (Conv2d)"
