"""Published weight files: tensors under the names of other projects, and a plain forward pass of each written from those
names, in float64."""

from __future__ import annotations

import argparse
import hashlib
import os
import pathlib

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fewshot.backbones import create_backbone, load_official, load_weights
from fewshot.backbones.layouts import LAYOUTS
from fewshot.backbones.official import convert_official, read_official
from fewshot.cli.app import app
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.run import Run
from fewshot.features.extract import embed_episodes
from fewshot.features.source import FeatureSource
from fewshot.methods import create_method


class Tensors(dict):
    """A state dict that is filled layer by layer with random values, BatchNorm with statistics that are far from 0 and 1."""

    def __init__(self, seed: int = 0):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def conv(self, name: str, inputs: int, outputs: int, side: int, bias: bool = False) -> None:
        self[f"{name}.weight"] = self.random(outputs, inputs, side, side) * (2 / (inputs * side**2)) ** 0.5
        if bias:
            self[f"{name}.bias"] = 0.3 * self.random(outputs)

    def norm(self, name: str, channels: int) -> None:
        self[f"{name}.weight"], self[f"{name}.bias"] = 1 + 0.2 * self.random(channels), 0.2 * self.random(channels)
        self[f"{name}.running_mean"] = 0.2 * self.random(channels)
        self[f"{name}.running_var"] = 0.5 + self.random(channels).abs()
        self[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def linear(self, name: str, inputs: int, outputs: int) -> None:
        self[f"{name}.weight"], self[f"{name}.bias"] = self.random(outputs, inputs) / inputs**0.5, self.random(outputs)

    def prefixed(self, prefix: str) -> dict:
        return {prefix + name: value for name, value in self.items()}


class Plain:
    """The layers of a state dict as functions of x, in float64."""

    def __init__(self, state: dict):
        self.state = {name: x.double() for name, x in state.items()}

    def conv(self, x, name, stride=1):
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), stride, padding=weight.shape[-1] // 2)

    def norm(self, x, name):
        mean, var, weight, bias = (self.state[f"{name}.{part}"][:, None, None]
                                   for part in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def linear(self, x, name):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]


def resnet12_state(stage: str, shortcut: str, width: int = 16, squeeze: bool = False) -> Tensors:
    state, inputs = Tensors(), 3
    for i, outputs in enumerate((width, int(2.5 * width), 5 * width, 10 * width)):
        block = stage.format(i, i + 1)
        for j, channels in enumerate((inputs, outputs, outputs), 1):
            state.conv(f"{block}.conv{j}", channels, outputs, 3)
            state.norm(f"{block}.bn{j}", outputs)
        state.conv(f"{block}.{shortcut}.0", inputs, outputs, 1)
        state.norm(f"{block}.{shortcut}.1", outputs)
        if squeeze:
            state.linear(f"{block}.se.fc.0", outputs, outputs // 4)
            state.linear(f"{block}.se.fc.2", outputs // 4, outputs)
        inputs = outputs
    return state


def resnet12(state: dict, x, stage: str, shortcut: str, squeeze: bool = False):
    """-> the last map."""
    net = Plain(state)
    for i in range(4):
        block = stage.format(i, i + 1)
        out = F.leaky_relu(net.norm(net.conv(x, f"{block}.conv1"), f"{block}.bn1"), 0.1)
        out = F.leaky_relu(net.norm(net.conv(out, f"{block}.conv2"), f"{block}.bn2"), 0.1)
        out = net.norm(net.conv(out, f"{block}.conv3"), f"{block}.bn3")
        if squeeze:
            gate = F.relu(net.linear(out.mean((2, 3)), f"{block}.se.fc.0"))
            out = out * net.linear(gate, f"{block}.se.fc.2").sigmoid()[:, :, None, None]
        out = F.leaky_relu(out + net.norm(net.conv(x, f"{block}.{shortcut}.0"), f"{block}.{shortcut}.1"), 0.1)
        x = F.max_pool2d(out, 2)
    return x


def wrn_state(block: str, shortcut: str, last: str, bias: bool = False) -> Tensors:
    state, inputs = Tensors(), 16
    state.conv("conv1", 3, 16, 3, bias)
    for i, outputs in enumerate((160, 320, 640)):
        for j in range(4):
            name = block.format(i, i + 1, j)
            state.norm(f"{name}.bn1", inputs)
            state.conv(f"{name}.conv1", inputs, outputs, 3, bias)
            state.norm(f"{name}.bn2", outputs)
            state.conv(f"{name}.conv2", outputs, outputs, 3, bias)
            if j == 0:
                state.conv(f"{name}.{shortcut}", inputs, outputs, 1, bias)
            inputs = outputs
    state.norm(last, 640)
    return state


def s2m2(state: dict, x, block: str, shortcut: str, last: str):
    net = Plain(state)
    x = net.conv(x, "conv1")
    for i in range(3):
        for j in range(4):
            name, stride = block.format(i, i + 1, j), 2 if i and not j else 1
            active = F.relu(net.norm(x, f"{name}.bn1"))
            out = net.conv(F.relu(net.norm(net.conv(active, f"{name}.conv1", stride), f"{name}.bn2")), f"{name}.conv2")
            x = out + (net.conv(active, f"{name}.{shortcut}", stride) if j == 0 else x)
    return F.relu(net.norm(x, last)).mean((2, 3))


def simple_shot_wrn(state: dict, x):
    net = Plain(state)
    x = net.conv(x, "conv1")
    for i in range(1, 4):
        for j in range(4):
            name, stride = f"layer{i}.{j}", 2 if i > 1 and not j else 1
            out = net.conv(F.relu(net.norm(x, f"{name}.bn1")), f"{name}.conv1")
            out = net.conv(F.relu(net.norm(out, f"{name}.bn2")), f"{name}.conv2", stride)
            x = out + (net.conv(x, f"{name}.shortcut.0", stride) if j == 0 else x)
    return F.relu(net.norm(x, "bn1")).mean((2, 3))


def conv4_state(conv: str, norm: str, bias: bool = True) -> Tensors:
    state = Tensors()
    for i in range(4):
        state.conv(conv.format(i, i + 1), 3 if i == 0 else 64, 64, 3, bias)
        state.norm(norm.format(i, i + 1), 64)
    return state


def conv4(state: dict, x, conv: str, norm: str, pools: int = 4):
    net = Plain(state)
    for i in range(4):
        x = F.relu(net.norm(net.conv(x, conv.format(i, i + 1)), norm.format(i, i + 1)))
        x = F.max_pool2d(x, 2) if i < pools else x
    return x


def resnet18_state(side: int = 3) -> Tensors:
    state, inputs = Tensors(), 64
    state.conv("conv1", 3, 64, side)
    state.norm("bn1", 64)
    for i, outputs in enumerate((64, 128, 256, 512), 1):
        for j in range(2):
            for k, channels in enumerate((inputs, outputs), 1):
                state.conv(f"layer{i}.{j}.conv{k}", channels, outputs, 3)
                state.norm(f"layer{i}.{j}.bn{k}", outputs)
            if inputs != outputs:
                state.conv(f"layer{i}.{j}.downsample.0", inputs, outputs, 1)
                state.norm(f"layer{i}.{j}.downsample.1", outputs)
            inputs = outputs
    return state


def resnet18(state: dict, x):
    net = Plain(state)
    x = F.relu(net.norm(net.conv(x, "conv1"), "bn1"))
    for i in range(1, 5):
        for j in range(2):
            name, stride = f"layer{i}.{j}", 2 if i > 1 and not j else 1
            out = F.relu(net.norm(net.conv(x, f"{name}.conv1", stride), f"{name}.bn1"))
            out = net.norm(net.conv(out, f"{name}.conv2"), f"{name}.bn2")
            if stride == 2:
                x = net.norm(net.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            x = F.relu(out + x)
    return x.mean((2, 3))


STAGES = ("layer{1}.0", "downsample")
EASY = ("layers.{0}", "shortcut")
S2M2 = ("block{1}.layer.{2}", "convShortcut", "bn1")
EASY_WRN = ("blocks.{0}.layer.{2}", "convShortcut", "bn")


def with_head(state: Tensors, *heads: str) -> Tensors:
    for head in heads:
        state.linear(head, 8, 5)
    return state


# name: (backbone, layout, image size, wrapped file content from a state, state, its features)
CASES = {
    "feat": ("resnet12", "feat", 32, lambda s: {"params": {**s.prefixed("encoder."), "fc.weight": torch.ones(64, 640),
                                                           "slf_attn.w_qs.weight": torch.ones(2, 2)}},
             lambda: resnet12_state(*STAGES, width=64), lambda s, x: resnet12(s, x, *STAGES).mean((2, 3))),
    "feat on several GPUs": ("resnet12", "feat", 32, lambda s: {"params": s.prefixed("encoder.module.")},
                             lambda: resnet12_state(*STAGES), lambda s, x: resnet12(s, x, *STAGES).mean((2, 3))),
    "metaopt": ("resnet12", "metaopt", 32, lambda s: {"embedding": s.prefixed("module."), "head": {"scale": torch.ones(1)}},
                lambda: resnet12_state(*STAGES), lambda s, x: resnet12(s, x, *STAGES).flatten(1)),
    "rfs": ("resnet12", "rfs", 32, lambda s: {"opt": argparse.Namespace(lr=0.05), "model": dict(s)},
            lambda: with_head(resnet12_state(*STAGES), "classifier"), lambda s, x: resnet12(s, x, *STAGES).mean((2, 3))),
    "rfs with squeeze": ("resnet12", "rfs", 32, lambda s: {"model": dict(s)},
                         lambda: with_head(resnet12_state(*STAGES, squeeze=True), "classifier"),
                         lambda s, x: resnet12(s, x, *STAGES, squeeze=True).mean((2, 3))),
    "easy": ("resnet12", "easy", 32, dict, lambda: with_head(resnet12_state(*EASY), "linear", "linear_rot"),
             lambda s, x: resnet12(s, x, *EASY).mean((2, 3))),
    "easy, small": ("resnet12", "easy", 32, dict, lambda: with_head(resnet12_state(*EASY, width=45), "linear"),
                    lambda s, x: resnet12(s, x, *EASY).mean((2, 3))),
    "s2m2": ("wrn28_10", "s2m2", 16, lambda s: {"epoch": 9, "state": {**s.prefixed("module."),
                                                                      "module.linear.L.weight_g": torch.ones(200, 1)},
                                                "rotate": {"0.weight": torch.ones(4, 640)}},
             lambda: wrn_state(*S2M2), lambda s, x: s2m2(s, x, *S2M2)),
    "easy wrn": ("wrn28_10", "easy", 16, dict, lambda: with_head(wrn_state(*EASY_WRN), "linear", "rotationLinear.L"),
                 lambda s, x: s2m2(s, x, *EASY_WRN)),
    "simple_shot wrn": ("wrn28_10", "simple_shot", 16,
                        lambda s: {"state_dict": s.prefixed("module."), "best_prec1": np.float64(61.3), "arch": "wideres"},
                        lambda: with_head(wrn_state("layer{1}.{2}", "shortcut.0", "bn1", bias=True), "linear"),
                        simple_shot_wrn),
    "simple_shot resnet18": ("resnet18", "simple_shot", 32, lambda s: {"state_dict": s.prefixed("module.encoder.")},
                             lambda: with_head(resnet18_state(), "fc"), resnet18),
    "simple_shot conv4": ("conv4", "simple_shot", 32, lambda s: {"state_dict": s.prefixed("module.")},
                          lambda: with_head(conv4_state("conv{1}.0", "conv{1}.1"), "logits"),
                          lambda s, x: conv4(s, x, "conv{1}.0", "conv{1}.1").flatten(1)),
    "feat conv4": ("conv4", "feat", 32, lambda s: {"params": s.prefixed("encoder.encoder.")},
                   lambda: conv4_state("{0}.0", "{0}.1"), lambda s, x: conv4(s, x, "{0}.0", "{0}.1").amax((2, 3))),
    "metaopt conv4": ("conv4", "metaopt", 32, lambda s: {"embedding": s.prefixed("encoder.")},
                      lambda: conv4_state("{0}.block.0", "{0}.block.1", bias=False),
                      lambda s, x: conv4(s, x, "{0}.block.0", "{0}.block.1").flatten(1)),
    "rfs conv4": ("conv4", "rfs", 32, lambda s: {"model": dict(s)},
                  lambda: with_head(conv4_state("layer{1}.0", "layer{1}.1"), "classifier"),
                  lambda s, x: conv4(s, x, "layer{1}.0", "layer{1}.1", pools=3).mean((2, 3))),
}


def written(path, content):
    torch.save(content, path)
    return path


def test_every_layout_has_a_case():
    assert {(one.backbone, one.name) for one in LAYOUTS if one.name != "fewshot"} == {case[:2] for case in CASES.values()}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if case[0] == "wrn28_10" else name
                                  for name, case in CASES.items()])
def test_features_are_those_of_the_published_network(name, tmp_path):
    backbone, layout, size, wrapped, state, features = CASES[name]
    state = state()
    path = written(tmp_path / "published.pth", wrapped(state))
    made, provenance = read_official(path, image_size=size)  # backbone and layout are found by the names
    assert (made.name, provenance["layout"], provenance["backbone"]) == (backbone, layout, backbone)
    assert provenance["file_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not made.training and made.pretrained_on is None
    images = torch.rand(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found, expected = made.double()(images), features(state, images)
    assert found.shape == (2, made.feature_dim) == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-9 * float(expected.abs().max()), rtol=0)
    assert expected.std(0).max() > 1e-3 * expected.abs().max(), "the two images must make different features"


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "model.", "net.", "model.backbone._orig_mod.", "module."])
@pytest.mark.parametrize(("name", "options"), [("resnet12", {"width": 8}), ("conv4", {"width": 16}),
                                               pytest.param("resnet18", {}, marks=pytest.mark.slow)])
def test_own_networks_trained_elsewhere(name, options, prefix, tmp_path):
    network = create_backbone(name, seed=3, image_size=84, **options)
    state = {f"{prefix}{key}": value for key, value in network.state_dict().items()}
    content = {"state_dict": {**state, "classifier.weight": torch.ones(5, 64)}, "pytorch-lightning_version": "2.5.0"}
    made, provenance = read_official(written(tmp_path / "last.ckpt", content))
    assert provenance["layout"] == "fewshot" and provenance["left_out"] == ["classifier"]
    x = torch.rand(2, 3, 84, 84)
    with torch.inference_mode():
        assert torch.equal(made(made.transform(x)), network(network.transform(x)))


def test_the_network_of_easyfsl_makes_the_same_features(tmp_path):
    modules = pytest.importorskip("easyfsl.modules.feat_resnet12", reason="needs easyfsl")
    network = modules.feat_resnet12().eval().double()
    path = written(tmp_path / "w.pth", {"params": {f"encoder.{k}": v for k, v in network.state_dict().items()}})
    images = torch.rand(2, 3, 84, 84, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(load_official(path).double()(images), network(images), atol=1e-5, rtol=1e-5)


def test_a_converted_file_is_used_like_any_other(tmp_path, monkeypatch):
    """Options, image size, normalisation and where the weights come from are in the file."""
    state = conv4_state("layer{1}.0", "layer{1}.1")
    path = written(tmp_path / "ckpt.pth", {"model": dict(state)})
    monkeypatch.chdir(tmp_path)
    app(["convert", str(path), "--out", "w.safetensors", "--dataset", "cifar_fs"], standalone_mode=False)
    direct = load_official(path, dataset="cifar_fs")
    assert direct.input_size == 32 and direct.transform.mean[0] == 0.5071
    images = torch.rand(2, 3, 50, 50)
    loaded = create_backbone("conv4", weights="w.safetensors", **direct.options)
    assert loaded.transform == direct.transform and loaded.weights_id == direct.weights_id
    torch.testing.assert_close(loaded(loaded.transform(images)), direct(direct.transform(images)))
    kept = load_weights(loaded, "w.safetensors")
    assert kept["repository"] == "WangYueFt/rfs" and kept["dataset"] == "cifar_fs" and kept["left_out"] == []

    # One set of tensors, two reductions: the key of a run tells them apart.
    convert_official(path, "flat.safetensors", dataset="cifar_fs", reduce="flatten")
    source, runs = FeatureSource(cache=tmp_path / "cache"), []
    for weights in ("w.safetensors", "flat.safetensors"):
        runs.append(evaluate(Run(weights=weights, episodes=5, queries=3), source=source).record)
    assert runs[0].weights == runs[1].weights and runs[0].key != runs[1].key
    assert runs[1].backbone_options == {"channels": 3, "image_size": 32, "pools": 3, "reduce": "flatten"}


def test_data_sets_decide_size_and_normalisation(tmp_path):
    path = written(tmp_path / "conv4.pth", dict(conv4_state("conv{1}.0", "conv{1}.1")))
    assert [load_official(path, dataset=name).input_size for name in (None, "cub", "fc100")] == [84, 84, 32]
    path = written(tmp_path / "easy.pth", dict(resnet12_state(*EASY, width=8)))
    means = [load_official(path, dataset=name).transform.mean[0] for name in ("tiered_imagenet", "cub")]
    assert means == pytest.approx([125.3 / 255, 0.485])
    assert load_official(path, dataset="ImageNet-1k").pretrained_on == "ImageNet-1k"
    assert load_official(path, dataset="tiered_imagenet").pretrained_on is None


def test_old_files_have_no_counters(tmp_path):
    state = {name: x for name, x in conv4_state("conv{1}.0", "conv{1}.1").items() if "num_batches" not in name}
    made, provenance = read_official(written(tmp_path / "old.pth", state))
    assert provenance["filled_with_zeros"] == 4
    assert int(made.state_dict()["blocks.0.1.num_batches_tracked"]) == 0
    torch.save(state, tmp_path / "older.pth", _use_new_zipfile_serialization=False)
    assert load_official(tmp_path / "older.pth").weights_id == made.weights_id


def test_the_imagenet_stem_is_recognised(tmp_path):
    made = load_official(written(tmp_path / "w.pth", dict(resnet18_state(side=7))))
    assert made.options["stem"] == "imagenet"


class Command:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_nothing_in_a_file_is_executed(tmp_path):
    with pytest.raises(FewshotError, match=r"holds a Python object \((posix|nt)\.system\), which is code"):
        load_official(written(tmp_path / "evil.pth", {"state": Command(tmp_path / "done")}))
    assert not (tmp_path / "done").exists()
    with pytest.raises(FewshotError, match=r"torch\.nn\.modules\.linear\.Linear"):
        load_official(written(tmp_path / "model.pth", torch.nn.Linear(2, 2)))
    with pytest.raises(FewshotError, match=r"pathlib.*\), which is code"):
        load_official(written(tmp_path / "path.pth", {"opt": pathlib.PurePosixPath("/x"), "model": {"a": torch.ones(1)}}))


def test_damaged_files_are_named(tmp_path):
    whole = written(tmp_path / "whole.pth", {"state": {"a": torch.ones(20_000)}}).read_bytes()
    flipped = bytearray(whole)
    flipped[40_000] ^= 1
    torch.save({"a": torch.ones(20_000)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name, data in (("short", whole[:5000]), ("flipped", bytes(flipped)), ("empty", b""), ("text", b"hello"),
                       ("old", (tmp_path / "old.pth").read_bytes()[:5000])):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FewshotError, match=f"{name} is not a weight file of PyTorch, or is damaged.*download it again"):
            load_official(tmp_path / name)
    with pytest.raises(FewshotError, match="no weight file at"):
        load_official(tmp_path / "absent.pth")


def test_what_does_not_fit_is_listed(tmp_path):
    state = conv4_state("conv{1}.0", "conv{1}.1")
    good = dict(state)

    def refused(content, match, **options):
        with pytest.raises(FewshotError, match=match):
            load_official(written(tmp_path / "w.pth", content), **options)

    refused({k: v for k, v in good.items() if k != "conv2.0.bias"},
            r"nearest layout, conv4 as simple_shot names it.*: 1 missing \(conv2\.0\.bias\)")
    refused({**good, "conv5.0.weight": torch.ones(2)}, r"1 unexpected \(conv5\.0\.weight\)")
    refused({**good, "conv2.1.weight": torch.ones(3)}, r"1 shape differs \(conv2\.1\.weight \(3,\) instead of \(64,\)\)")
    refused({**good, "conv2.1.weight": torch.full((64,), torch.nan)}, r"NaN or infinity in conv2\.1\.weight")
    refused({**good, **state.prefixed("module.")}, "28 tensors twice")
    refused(good, r"does not fit conv4 as feat names it .*24 missing .*; 28 unexpected", backbone="conv4", layout="feat")
    refused(good, "resnet12", backbone="resnet12")
    refused(dict(resnet18_state()), "unexpected", backbone="resnet12")
    refused({"epoch": 3, "best": 0.5}, "a dictionary of epoch, best, without tensors")
    refused([1, 2], "a list, without tensors")
    refused(good, "did you mean 'conv4'", backbone="conv5")
    refused(good, "did you mean 'simple_shot'", layout="simpleshot")


def test_nothing_is_written_when_it_fails(tmp_path):
    with pytest.raises(FewshotError):
        convert_official(written(tmp_path / "w.pth", {"a": torch.ones(2)}), tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def test_dn4_compares_the_maps_of_a_published_network(tmp_path):
    """reduce="flatten" gives DN4 the last map: its descriptors are the columns of the published network's map."""
    state = resnet12_state(*STAGES)
    made = load_official(written(tmp_path / "w.pth", {"params": state.prefixed("encoder.")}), image_size=64,
                         reduce="flatten").double()
    images = torch.rand(1, 4, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    episodes = Episodes(support=images[:, :2], support_labels=torch.tensor([[0, 1]]), query=images[:, 2:], ways=2)
    with torch.inference_mode():
        scores = create_method("dn4", channels=160, neighbours=1)(embed_episodes(episodes, made))
        columns = F.normalize(resnet12(state, made.transform(images[0]), *STAGES).flatten(2), dim=1)  # [4, C, h w]
    expected = torch.stack([torch.stack([(query.T @ support).amax(1).sum() for support in columns[:2]])
                            for query in columns[2:]])
    torch.testing.assert_close(scores[0], expected, atol=1e-9, rtol=0)
