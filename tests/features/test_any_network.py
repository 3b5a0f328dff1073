"""Features of any network: modules and callables that are no backbones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewshot import ImageBank, embed, evaluate, wrap_backbone
from fewshot.core.errors import FewshotError


@pytest.fixture
def bank():
    images = torch.randint(0, 255, (60, 3, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageBank(images, torch.arange(5).repeat_interleave(12))


def pixels(bank):
    return bank.images.float() / 255


def features(bank, network, **options):
    return embed(bank, network, progress=False, **options)


@pytest.mark.parametrize("training", [True, False])
def test_a_module_in_eval_mode_and_put_back(bank, training):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1)).train(training)
    found = features(bank, network)
    assert network.training == training == network[1].training
    assert network[1].num_batches_tracked == 0
    with torch.no_grad():
        expected = network.eval()(pixels(bank)).flatten(1)  # maps of one place are vectors
    assert torch.allclose(found.features, expected, atol=1e-6)
    assert found.provenance["backbone"] == "Sequential"
    assert evaluate(bank=found, queries=5, episodes=10).record.backbone == "Sequential"


def test_lazy_modules_and_callables(bank):
    lazy = features(bank, nn.Sequential(nn.Flatten(), nn.LazyLinear(7)))
    assert lazy.features.shape == (60, 7)
    means = features(bank, lambda images: images.mean((2, 3)))
    assert torch.allclose(means.features, pixels(bank).mean((2, 3))) and means.provenance["weights_id"] == "none"


def test_a_cache_tells_weights_apart_and_refuses_callables(bank, tmp_path):
    def network(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(432, 4))

    one, other, again = (features(bank, network(seed), cache=tmp_path) for seed in (0, 1, 0))
    assert torch.equal(one.features, again.features) and not torch.equal(one.features, other.features)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    with pytest.raises(FewshotError, match="cache= with a plain callable"):
        features(bank, lambda images: images.flatten(1), cache=tmp_path)


class Tokens(nn.Module):
    def forward(self, images):
        return images.flatten(2).transpose(1, 2)


@pytest.mark.parametrize(("network", "message"), [
    (nn.Conv2d(3, 4, 3), r"Conv2d makes maps \(2, 4, 10, 10\) of 2 images; .*wrap_backbone.*pool='mean'"),
    (Tokens(), r"Tokens makes a Tensor \(2, 144, 3\) .*of tokens \[B, T, D\] return one vector an image"),
    (nn.Linear(5, 4), r"Linear does not take images \(2, 3, 12, 12\)"),
    (lambda images: images.flatten(1).numpy(), "makes a ndarray"),
    (lambda images: images.flatten(1).long(), "expected floating point features"),
    (lambda images: images.flatten(), "expected floating point features"),
    ("conv4", "str is no network; pass a backbone"),
])
def test_what_makes_no_vectors_is_named(bank, network, message):
    with pytest.raises(FewshotError, match=message):
        features(bank, network)


def test_maps_after_a_choice(bank):
    assert features(bank, wrap_backbone(nn.Conv2d(3, 4, 3), 3, 12, pool="mean")).features.shape == (60, 4)
