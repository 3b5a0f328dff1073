"""UNEM-Gaussian: PADDLE's EM unrolled into a few layers whose prior weights and temperatures are learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from fewshot.core.checked import check_at_least
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, IterativeMethod, Refinement
from fewshot.methods.paddle import shifted_moments
from fewshot.ops.mixtures import GaussianStatistics, gaussian_em


class UnrolledEM(IterativeMethod, nn.Module):
    """L layers of EM with learned raw scalars, kept in float64: `scale` [], `prior` [L] and `temperature` [L].

    `fewshot.fit_method` learns them on validation episodes by the `learning`; `learned` shows them as plain numbers and
    the constructor keyword of the same name (or `load_learned`) sets them. `initial` holds the starting values.

    The scalars do not require gradients except while they are fitted, so that evaluation builds no graph.
    """

    learning: ClassVar[dict] = {}
    initial: ClassVar[dict[str, float]] = {}
    scale: nn.Parameter
    prior: nn.Parameter
    temperature: nn.Parameter

    def __init__(self, layers: int, learned: Mapping | None):
        super().__init__()
        check_at_least(1, layers=layers)
        self.layers = layers
        for name, value in self.initial.items():
            shape = () if name == "scale" else (layers,)
            setattr(self, name, nn.Parameter(torch.full(shape, value, dtype=torch.float64), requires_grad=False))
        if learned is not None:
            self.load_learned(learned)

    @property
    def learned(self) -> dict[str, float | list[float]]:
        """The raw values, before softplus."""
        return {name: getattr(self, name).detach().tolist() for name in self.initial}

    def load_learned(self, values: Mapping) -> None:
        """Set raw values in place; raises FewshotError on unknown or missing names and on wrong lengths."""
        if set(values) != set(self.initial):
            raise FewshotError(f"learned values {sorted(values)}; expected exactly {sorted(self.initial)}")
        for name, value in values.items():
            parameter = getattr(self, name)
            value = torch.as_tensor(value, dtype=parameter.dtype)
            if value.shape != parameter.shape:
                raise FewshotError(f"learned {name!r} has shape {tuple(value.shape)}; layers={self.layers} needs "
                                   f"{tuple(parameter.shape)}")
            with torch.no_grad():
                parameter.copy_(value)

    def schedule(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Prior weights softplus(prior) [L] and temperatures 1 + softplus(temperature) [L] in the type of `like`."""
        return softplus(self.prior).to(like), 1 + softplus(self.temperature).to(like)


@METHODS.register("unem_gaussian")
class UNEMGaussian(UnrolledEM):
    """u = softmax_k((-|z - w_k|^2 / 2 + gamma_l (log pi_k + 1)) / T_l) in layer l = 1..L with gamma_l =
    softplus(prior_l) and T_l = 1 + softplus(temperature_l), on features multiplied by softplus(scale); w as in PADDLE.

    layers    10 in the paper
    learned   raw values {"scale": s, "prior": [L], "temperature": [L]}; None: the initialisation of the official
              code, all 1. With gamma = softplus(scale) = 1 and T = 1 the method is `layers` iterations of PADDLE
              without range scaling

    No other normalisation. The paper learns the values per data set and number of shots.
    """

    assumes = ("few of the classes among the queries", "fitted on validation episodes")
    paper = "Zhou et al. 2024, arXiv:2412.16739; ZhouLong0/UNEM-Transductive"
    learning = {"epochs": 100, "lr": 0.1, "halve_every": 50, "batch": None}
    initial = {"scale": 1.0, "prior": 1.0, "temperature": 1.0}

    def __init__(self, layers: int = 10, learned: Mapping | None = None):
        super().__init__(layers, learned)

    def refine(self, episodes: Episodes, history: bool = False) -> Refinement:
        moments = shifted_moments(episodes)
        scale = softplus(self.scale).to(moments.query)
        statistics = GaussianStatistics.of(moments.query, moments.sums, moments.counts).scaled(scale)
        logits, visited = gaussian_em(statistics, *self.schedule(moments.query), history)
        path = [scale * moments.centroids(u) for u in visited]
        return Refinement.of_fixed_steps(logits.transpose(1, 2), path[-1], self.layers, path if history else None,
                                         episodes.with_features(lambda x: scale * x) if history else None)
