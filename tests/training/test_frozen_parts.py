"""What is frozen computes what it computes in evaluation, and none of its state changes."""

from __future__ import annotations

import json

import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from fewshot.training import Learner, TrainConfig
from fewshot.training.supervised import Classifier
from tests.methods.image_episodes import image_episodes, loss_and_gradients, network
from tests.training.runs import bank, run, run_supervised, small_conv4, tiny
from tests.training.test_episodic import Scaled


def buffers(module):
    return {name: value.clone() for name, value in module.named_buffers()}


def test_a_frozen_backbone_keeps_its_statistics_and_trains_the_method(tmp_path):
    backbone = tiny().requires_grad_(False)
    before = buffers(backbone)
    result = run(tmp_path / "frozen", backbone=backbone, method=Scaled())
    torch.testing.assert_close(buffers(result.backbone), before, atol=0, rtol=0)
    assert result.method.scale != Scaled().scale
    moving = run(tmp_path / "moving", backbone=backbone, method=Scaled(), freeze=False)
    assert moving.backbone.norm.num_batches_tracked == moving.best_step
    assert not torch.equal(moving.backbone.norm.running_mean, before["norm.running_mean"])


@pytest.mark.parametrize("batch_norm", ["running", "batch"])
def test_a_frozen_backbone_gives_the_features_of_evaluation(batch_norm):
    """Dropout of 0.3 included; "batch" is a backbone that evaluates by the statistics of the batch."""
    backbone = tiny().requires_grad_(False)
    backbone.batch_norm = batch_norm
    images = backbone.transform(bank().images[:20])
    expected, before = backbone.eval()(images), buffers(backbone)
    learner = Learner(backbone, create_method("protonet")).train()
    torch.testing.assert_close(learner.backbone(images), expected, atol=0, rtol=0)
    backbone.conv.weight.requires_grad_()  # the layers behind it are still frozen, but for dropout
    backbone.dropout.p = 0.0
    learner.train()
    torch.testing.assert_close(learner.backbone(images), expected, atol=0, rtol=0)
    torch.testing.assert_close(buffers(backbone), before, atol=0, rtol=0)
    learner.freeze = False
    learner.train().backbone(images)
    assert backbone.norm.num_batches_tracked == before["norm.num_batches_tracked"] + 1


def test_frozen_blocks_in_supervised_training(tmp_path):
    backbone = small_conv4()
    backbone.blocks[:2].requires_grad_(False)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    after = run_supervised(tmp_path, backbone=backbone, epochs=1, ema_decay=0.0).backbone.state_dict()
    for name, value in after.items():
        assert torch.equal(value, before[name]) == name.startswith(("blocks.0", "blocks.1")), name


def test_evaluation_mode_and_objectives_are_left_alone():
    backbone, head = small_conv4().requires_grad_(False), torch.nn.BatchNorm1d(2).requires_grad_(False)
    learner = Classifier(backbone, head).train()
    assert head.training and not any(module.training for module in backbone.modules())
    assert not any(module.training for module in learner.eval().modules())


@pytest.mark.parametrize("vectorise", [False, True])
@pytest.mark.parametrize("batch_norm", ["running", "per_step"])
def test_frozen_layers_of_gradient_based_learners(batch_norm, vectorise):
    """The frozen BatchNorm normalises as in evaluation; "per_step", which copies its weights, does not train the copies."""
    episodes, labels = image_episodes()
    backbone = network()
    backbone.layers[1].requires_grad_(False)
    backbone.transform = lambda images: images
    method = create_method("maml", inner_lr=0.1, inner_steps=2, batch_norm=batch_norm, vectorise=vectorise)
    learner = Learner(backbone, method.with_backbone(backbone, 3)).train()
    before = buffers(learner.method)
    value, found = loss_and_gradients(learner, episodes, labels)
    assert {name.rpartition(".")[0] for name in found} == {"backbone.layers.0", "method.head"}
    torch.testing.assert_close({**buffers(learner.method)}, before, atol=0, rtol=0)
    assert torch.equal(value, learner.eval().loss(episodes, labels)[0])


def test_what_is_frozen_belongs_to_the_run(tmp_path):
    run(tmp_path, steps=2, validate_every=0)
    stored = json.loads((tmp_path / "result.json").read_text())["run"]
    assert "frozen" not in stored and "freeze" not in stored["config"], "as before there was a choice"
    backbone = tiny()
    backbone.norm.requires_grad_(False)
    with pytest.raises(FewshotError, match="frozen: None there, '2 parameters, .*' here"):
        run(tmp_path, backbone=backbone, steps=2, validate_every=0)
    with pytest.raises(FewshotError, match="freeze=1; pass True or False"):
        TrainConfig(freeze=1)
