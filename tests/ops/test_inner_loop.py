"""Networks adapted to episodes: what layers count, keep and refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from fewshot.backbones.resnet12 import DropBlock
from fewshot.core.errors import FewshotError
from fewshot.core.seeding import isolated_rng
from fewshot.methods import create_method
from tests.methods.image_episodes import image_episodes, loss_and_gradients, network


class Dropping(nn.Module):
    """BatchNorm, whose batches DropBlock's warm-up counts."""

    feature_dim = 16 * 36

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.drop = DropBlock(0.5, block_size=1, warmup=4)

    def forward(self, images):
        return self.drop(self.norm(self.conv(images)), self.norm.num_batches_tracked).flatten(1)


@pytest.mark.parametrize("batch_norm", ["batch", "running"])
@pytest.mark.parametrize("name", ["maml", "anil", "boil", "meta_sgd", "proto_maml", "reptile"])
def test_dropblock_warms_up_over_the_meta_batches(name, batch_norm):
    """The share of positions that are dropped goes to `rate` in `warmup` meta-batches, as in ordinary training."""
    torch.manual_seed(0)
    network = Dropping()
    learner = create_method(name, inner_steps=2, batch_norm=batch_norm).with_backbone(network, 3).train()
    episodes, labels = image_episodes(dtype=torch.float32)
    shares = []
    network.drop.register_forward_hook(lambda _, inputs, output: shares[-1].append((output == 0).double().mean().item()))
    for _ in range(6):
        shares.append([])
        learner.loss(episodes, labels)
    for share, expected in zip(shares, [0.125, 0.25, 0.375, 0.5, 0.5, 0.5], strict=True):
        assert sum(share) / len(share) == pytest.approx(expected, abs=0.015)  # 3 episodes of 7 500 positions and more
    learner.eval()
    learner.loss(episodes, labels)
    assert network.norm.num_batches_tracked == 6, "evaluation does not count"


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("settings", [{}, {"batch_norm": "running"}, {"batch_norm": "per_step"}, {"first_order": True}],
                         ids=str)
def test_checkpoints_repeat_layers_that_write_buffers(settings, old):
    """Spectral norm, parametrised or by the older hook, takes a step of its power iteration in every forward pass."""
    episodes, labels = image_episodes()

    def run(checkpoint):
        backbone = network()
        with isolated_rng(0):
            (nn.utils.spectral_norm if old else spectral_norm)(backbone.layers[0])
        learner = create_method("maml", inner_lr=0.5, inner_steps=3, checkpoint=checkpoint, **settings)
        learner = learner.with_backbone(backbone, 3).train()
        twice = [loss_and_gradients(learner, episodes, labels) for _ in range(2)]
        return twice, dict(learner.named_buffers())

    torch.testing.assert_close(run(True), run(False), atol=1e-12, rtol=0)


class Recurrent(nn.Module):
    """Reads the rows of an image."""

    feature_dim = 5

    def __init__(self, kind):
        super().__init__()
        self.body = nn.ModuleDict({"rows": kind(6, 5, batch_first=True)})

    def forward(self, images):
        return self.body["rows"](images.squeeze(1))[0][:, -1]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_take_one_episode_after_the_other(kind):
    episodes, labels = image_episodes(episodes=2)

    def learner(**settings):
        return create_method("maml", inner_steps=1, **settings).with_backbone(Recurrent(kind).double(), 3).train()

    _, found = loss_and_gradients(learner(), episodes, labels)
    assert found["backbone.body.rows.weight_hh_l0"].abs().max() > 0
    together = learner(vectorise=True)
    with pytest.raises(FewshotError, match=rf"layer body\.rows \({kind.__name__}\) cannot .* at once.*vectorise=False"):
        together(episodes)
    assert not together.backbone.body["rows"]._forward_hooks


def test_layers_that_write_buffers_and_other_errors_under_vmap():
    episodes, _ = image_episodes()
    backbone = network()
    spectral_norm(backbone.layers[0])
    learner = create_method("maml", inner_steps=1, vectorise=True).with_backbone(backbone, 3).train()
    with pytest.raises(FewshotError, match=r"layer layers\.0\.parametrizations\.weight\.0 \(_SpectralNorm\) cannot"):
        learner(episodes)
    wrong = nn.Sequential(nn.Flatten(), nn.Linear(7, 2)).double()
    learner = create_method("maml", inner_steps=1, vectorise=True).with_backbone(wrong, 3, feature_dim=2)
    with pytest.raises(RuntimeError, match=r"\[3, 36\] but got: \[3, 7\]"):
        learner(episodes)
