"""Which weights of a network are adapted: its blocks, counted from the input, and kinds of layers in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fewshot.core.errors import FewshotError

NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)
Layer = TypeVar("Layer", bound=nn.Module)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def network_blocks(network: nn.Module) -> list[str]:
    """Names of the blocks, in order: the items of the largest list of modules.

    Lists are nn.Sequential and nn.ModuleList that are not inside another, and numbered neighbours (layer1, layer2, ..);
    the largest has the most weights. A list of one item is looked into. Of the backbones here: 4 blocks of conv4, resnet12
    and resnet18, 12 of wrn28_10, 7 of efficientnet_lite0 and 12 of a ViT-S. A network without such a list is one block, "".
    """
    best, items = 0, [""]
    for found in _lists(network, ""):
        size = sum(_size(network.get_submodule(name)) for name in found)
        if size > best:
            best, items = size, found
    if len(items) == 1 and items != [""]:
        inside = network_blocks(network.get_submodule(items[0]))
        return [f"{items[0]}.{name}".rstrip(".") for name in inside]
    return items


def block_weights(network: nn.Module) -> list[list[str]]:
    """Names of the weights of each block; those before the first belong to it, all others outside to the last."""
    blocks = network_blocks(network)
    names = [name for name, _ in network.named_parameters()]
    parts: list[list[str]] = [[] for _ in blocks]
    before = True
    for name in names:
        inside = [i for i, block in enumerate(blocks) if not block or name.startswith(f"{block}.")]
        before = before and not inside
        parts[inside[0] if inside else 0 if before else -1].append(name)
    return parts


NAMED = ("all", "last", "none")


def chosen_weights(network: nn.Module, blocks: str | int | tuple) -> list[str]:
    """Names of the weights of "all" blocks, the "last", "none", or those of the numbers in e.g. "2,3".

    Raises FewshotError for anything else and for numbers of blocks that the network does not have.
    """
    parts, blocks = block_weights(network), blocks_text(blocks)
    named: dict[str, list[int]] = {"all": list(range(len(parts))), "last": [len(parts) - 1], "none": []}
    numbers = named.get(blocks)
    if numbers is None:
        numbers = block_numbers(blocks)
        if numbers[-1] >= len(parts):
            raise FewshotError(f"blocks={blocks!r}; this network has {len(parts)} blocks, 0 to {len(parts) - 1} "
                               f"({', '.join(network_blocks(network)[:3])}, ...)")
    return [name for number in numbers for name in parts[number]]


def blocks_text(blocks: str | int | tuple) -> str:
    """The one way to write the same blocks: 2 is "2", and (2, 3), which a command line makes of 2,3, is "2,3"."""
    return ",".join(map(str, blocks)) if isinstance(blocks, (tuple, list)) else str(blocks)


def block_numbers(blocks: str, field: str = "blocks", named: tuple[str, ...] = NAMED) -> list[int]:
    """The numbers in e.g. "2,3", ascending; raises FewshotError, saying the `field` and its `named` values, where it is no
    such list."""
    if not re.fullmatch(r"\d+(,\d+)*", blocks):
        raise FewshotError(f"{field}={blocks!r}; choose {', '.join(map(repr, named))} or numbers such as '2,3'")
    return sorted({int(number) for number in blocks.split(",")})


def layers_of(network: nn.Module, weights: list[str], kinds: tuple[type[Layer], ...]) -> dict[str, Layer]:
    """{name: module} of the layers of these kinds that have a weight among `weights`, which may hold that of others."""
    names = {name.rpartition(".")[0] for name in weights if name.rpartition(".")[2] == "weight"}
    return {name: layer for name, layer in network.named_modules() if name in names and isinstance(layer, kinds)}


def _size(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def _lists(module: nn.Module, prefix: str) -> Iterator[list[str]]:
    children = {name: child for name, child in module.named_children() if _size(child)}
    if isinstance(module, (nn.Sequential, nn.ModuleList)):
        yield [prefix + name for name in children]
        return
    numbered: dict[str, list[str]] = {}
    for name, child in children.items():
        stem = re.sub(r"\d+$", "", name)
        if stem != name and isinstance(child, (nn.Sequential, nn.ModuleList)):
            numbered.setdefault(stem, []).append(prefix + name)
        else:
            yield from _lists(child, f"{prefix}{name}.")
    yield from numbered.values()
