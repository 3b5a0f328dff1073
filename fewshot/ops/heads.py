"""Classifiers on top of features that are trained on the support of an episode by gradient steps.

A head is a description; what it learns is a dictionary of tensors with a leading axis E, made by `start`. `reads_support`
says whether its logits depend on the present features of the support, which then have to be computed in every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewshot.core.seeding import derived_seed
from fewshot.ops.distances import cosine, l2_normalise
from fewshot.ops.prototypes import one_hot, weighted_means

Tensors = dict[str, Tensor]
INITIAL = ("prototypes", "random")


def class_means(support: Tensor, labels: Tensor, ways: int) -> Tensor:
    """[E, N, D] of support [E, S, D]."""
    return weighted_means(support, one_hot(labels, ways, support.dtype))


@dataclass(frozen=True)
class PrototypeHead:
    """logits = scale cos(A z, A c_n) with c_n the mean of the present features of class n. Without `aligned` A is the
    identity and nothing is learned; with it A [D, D] starts there: the pre-classifier alignment of URL."""

    scale: float = 10.0
    aligned: bool = False

    reads_support: ClassVar[bool] = True

    def start(self, support: Tensor, labels: Tensor, ways: int) -> Tensors:
        E, _, D = support.shape
        return {"map": torch.eye(D, dtype=support.dtype).to(support.device).expand(E, D, D)} if self.aligned else {}

    def logits(self, values: Tensors, z: Tensor, support: Tensor, labels: Tensor, ways: int) -> Tensor:
        """[E, B, N] of features z [E, B, D]."""
        means = class_means(support, labels, ways)
        if self.aligned:  # the mean of mapped features is the mapped mean
            z, means = (x @ values["map"].transpose(1, 2) for x in (z, means))
        return self.scale * cosine(z, means)


@dataclass(frozen=True)
class LinearHead:
    """logits = W z + b of features that `norm` "l2n" divides by their length; "un" leaves them.

    initial   "prototypes": W_n = 2 c_n, b_n = -|c_n|^2, which is the nearest class mean (the logits of ProtoNet plus
              |z|^2); "random": uniform in +-1/sqrt(D), nn.Linear's own, from `seed`, the same for every episode
    """

    initial: str = "prototypes"
    norm: str = "l2n"
    seed: int = 0

    reads_support: ClassVar[bool] = False

    def start(self, support: Tensor, labels: Tensor, ways: int) -> Tensors:
        if self.initial == "prototypes":
            means = class_means(self._normalised(support), labels, ways)
            return {"weight": 2 * means, "bias": -means.square().sum(-1)}
        E, _, D = support.shape
        bound = D**-0.5
        weight, bias = (uniform(shape, bound, self.seed, name).to(support).expand(E, *shape)
                        for name, shape in (("weight", (ways, D)), ("bias", (ways,))))
        return {"weight": weight, "bias": bias}

    def logits(self, values: Tensors, z: Tensor, support: Tensor | None, labels: Tensor, ways: int) -> Tensor:
        return torch.baddbmm(values["bias"].unsqueeze(1), self._normalised(z), values["weight"].transpose(1, 2))

    def _normalised(self, z: Tensor) -> Tensor:
        return l2_normalise(z) if self.norm == "l2n" else z


@dataclass(frozen=True)
class CosineHead:
    """logits = s cos(z, w_n); w and the scale s are learned.

    initial   of w: "prototypes" or "random", as in `LinearHead`;  scale: where s starts
    """

    initial: str = "prototypes"
    scale: float = 10.0
    norm: str = "l2n"
    seed: int = 0

    reads_support: ClassVar[bool] = False

    def start(self, support: Tensor, labels: Tensor, ways: int) -> Tensors:
        weight = LinearHead(self.initial, self.norm, self.seed).start(support, labels, ways)["weight"]
        return {"weight": weight, "scale": support.new_full((len(support), 1, 1), self.scale)}

    def logits(self, values: Tensors, z: Tensor, support: Tensor | None, labels: Tensor, ways: int) -> Tensor:
        return values["scale"] * cosine(z, values["weight"])


def uniform(shape: tuple[int, ...], bound: float, seed: int, *names: str) -> Tensor:
    """Numbers in +-bound, float64: a pure function of the seed and the names."""
    generator = torch.Generator().manual_seed(derived_seed("uniform", seed, *names))
    return (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) * bound
