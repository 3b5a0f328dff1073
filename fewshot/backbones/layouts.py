"""Names of the tensors in weight files that other projects publish, as facts about them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fewshot.backbones.transform import IMAGENET_MEAN, IMAGENET_STD

_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)


def _of_255(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(value / 255 for value in mean), tuple(value / 255 for value in std)


_METAOPT = _of_255((120.39586422, 115.59361427, 104.54012653), (70.68188272, 68.27635443, 72.54505529))
_METAOPT_CIFAR = _of_255((129.37731888, 124.10583864, 112.47758569), (68.20947949, 65.43124043, 70.45866994))
_RFS_CIFAR = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
_EASY = _of_255((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))


@dataclass(frozen=True)
class Layout:
    """How one project names and uses the tensors of one backbone.

    name, backbone   e.g. "feat" of "resnet12"
    repository       where these names and the preparation of images were read
    published        our tensor name -> the published one, without the prefixes of wrappers
    container        key of the file's dictionary that holds the tensors; tells layouts with the same names apart
    heads            regular expression for the beginning of tensors that belong to no backbone (classifiers, attention, ...)
    absent           regular expression for our tensors that the published network lacks because they would be zero
    options          keywords of `create_backbone` that make the published architecture
    normalisation    data set -> (mean, std) of the images; "" for those not named
    image_size       side of the images, "cifar" where the data set is made of CIFAR-100's
    """

    name: str
    backbone: str
    repository: str
    published: Callable[[str], str]
    container: str
    heads: str
    absent: str = ""
    options: dict = field(default_factory=dict)
    normalisation: dict[str, tuple] = field(default_factory=lambda: {"": _IMAGENET})
    image_size: dict[str, int] = field(default_factory=lambda: {"": 84, "cifar_fs": 32, "fc100": 32})

    def of(self, dataset: str | None, table: dict) -> Any:
        """The entry of `normalisation` or `image_size` for a data set."""
        return table.get(dataset, table[""])


def _renumbered(pattern: str, template: str) -> Callable[[str], str]:
    """A renaming of the blocks: `pattern` has one number in it, i; `template` takes i, i + 1, i // 4, i // 4 + 1, i % 4 as
    {i}, {i1}, {stage}, {stage1}, {place}."""
    def rename(name: str) -> str:
        def numbered(match: re.Match) -> str:
            i = int(match[1])
            return template.format(i=i, i1=i + 1, stage=i // 4, stage1=i // 4 + 1, place=i % 4)

        return re.sub(pattern, numbered, name)

    return rename


def _with(rename: Callable[[str], str], *replaced: tuple[str, str]) -> Callable[[str], str]:
    """`rename`, after it the regular expressions of `replaced`."""
    def published(name: str) -> str:
        name = rename(name)
        for pattern, text in replaced:
            name = re.sub(pattern, text, name)
        return name

    return published


_RESIDUAL12 = _with(_renumbered(r"^blocks\.(\d)\.", "layer{i1}.0."), (r"\.shortcut\.", ".downsample."),
                    (r"\.se\.", ".se.fc."))
_RESIDUAL18 = _with(_renumbered(r"^layers\.(\d)\.", "layer{i1}."), (r"^stem\.0\.", "conv1."), (r"^stem\.1\.", "bn1."))
_BLOCKS = r"^blocks\.(\d+)\."
_CIFARS = ("cifar_fs", "fc100")
_SIZES_80 = {"": 80, **dict.fromkeys(_CIFARS, 32)}

LAYOUTS = (
    # FEAT's files may hold its attention over prototypes (slf_attn); sicara/easy-few-shot-learning reads the same files.
    Layout("feat", "resnet12", "Sha-Lab/FEAT", _RESIDUAL12, "params", r"fc\.|slf_attn\.", normalisation={"": _METAOPT}),
    Layout("metaopt", "resnet12", "kjunelee/MetaOptNet", _RESIDUAL12, "embedding", "(?!)", options={"reduce": "flatten"},
           normalisation={"": _METAOPT, **dict.fromkeys(_CIFARS, _METAOPT_CIFAR)}),
    Layout("rfs", "resnet12", "WangYueFt/rfs", _RESIDUAL12, "model", r"classifier\.",
           normalisation={"": _METAOPT, **dict.fromkeys(_CIFARS, _RFS_CIFAR)}),
    Layout("easy", "resnet12", "ybendou/easy", _with(lambda name: name, (r"^blocks\.", "layers.")), "", r"linear(_rot)?\.",
           normalisation={"": _EASY, **dict.fromkeys((*_CIFARS, "cub"), _IMAGENET)}),
    # PT-MAP reads the same files. The classifier compares by cosine (linear.L) or, on CIFAR-FS, is linear.
    Layout("s2m2", "wrn28_10", "nupurkmr9/S2M2_fewshot",
           _with(_renumbered(_BLOCKS, "block{stage1}.layer.{place}."), (r"\.shortcut\.", ".convShortcut."),
                 (r"^conv\.", "conv1."), (r"^bn\.", "bn1.")), "state", r"(linear|classifier)\.", image_size=_SIZES_80),
    Layout("easy", "wrn28_10", "ybendou/easy",
           _with(_renumbered(_BLOCKS, "blocks.{stage}.layer.{place}."), (r"\.shortcut\.", ".convShortcut."),
                 (r"^conv\.", "conv1.")), "", r"linear(_rot)?\.|rotationLinear\.",
           normalisation={"": _EASY, **dict.fromkeys((*_CIFARS, "cub"), _IMAGENET)}),
    # LaplacianShot, TIM and those after them (alpha-TIM, PADDLE) read SimpleShot's files or train networks of its names.
    Layout("simple_shot", "wrn28_10", "mileyan/simple_shot",
           _with(_renumbered(_BLOCKS, "layer{stage1}.{place}."), (r"\.shortcut\.", ".shortcut.0."), (r"^conv\.", "conv1."),
                 (r"^bn\.", "bn1.")), "state_dict", r"(linear|classifier|fc|slf_attn)\.",
           options={"variant": "simple_shot"}),
    Layout("simple_shot", "resnet18", "mileyan/simple_shot", _RESIDUAL18, "state_dict", r"(fc|slf_attn)\."),
    Layout("simple_shot", "conv4", "mileyan/simple_shot", _renumbered(_BLOCKS, "conv{i1}."), "state_dict", r"logits\."),
    # FEAT takes the maximum over the whole 5x5 map.
    Layout("feat", "conv4", "Sha-Lab/FEAT", _renumbered(_BLOCKS, "{i}."), "params", r"fc\.|slf_attn\.",
           options={"reduce": "max"}),
    Layout("metaopt", "conv4", "kjunelee/MetaOptNet", _renumbered(_BLOCKS, "{i}.block."), "embedding", "(?!)",
           absent=r"blocks\.\d\.0\.bias", normalisation={"": _METAOPT, **dict.fromkeys(_CIFARS, _METAOPT_CIFAR)}),
    Layout("rfs", "conv4", "WangYueFt/rfs", _renumbered(_BLOCKS, "layer{i1}."), "model", r"classifier\.",
           options={"pools": 3, "reduce": "average"}, normalisation={"": _METAOPT, **dict.fromkeys(_CIFARS, _RFS_CIFAR)}),
    # Our own networks that somebody trained elsewhere, compiled or in a module of Lightning, with whatever head.
    *(Layout("fewshot", backbone, "this project", lambda name: name, "state_dict", r"(fc|head|classifier|linear|logits)\.")
      for backbone in ("resnet12", "wrn28_10", "resnet18", "conv4")),
)
