"""TIP-X: Tip-Adapter and a third term that compares images by what the texts say of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewshot.core.checked import check_at_least, check_choice, check_positive
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.bases.grid import GridMethod, equal_steps
from fewshot.methods.contract import METHODS
from fewshot.ops.distances import l2_normalise, nonzero
from fewshot.ops.key_cache import KeyCache
from fewshot.ops.prototypes import class_sums
from fewshot.ops.text import unit_texts


@dataclass(frozen=True, eq=False)
class _Beliefs:
    """What the texts say of items: p [E, ., N], and its logarithm less what is the same for all items."""

    p: Tensor
    logs: Tensor

    @property
    def own(self) -> Tensor:
        """sum_n p_n logs_n [E, 1, .]."""
        return (self.p * self.logs).sum(-1).unsqueeze(1)


@METHODS.register("tip_x")
@dataclass(frozen=True)
class TipX(GridMethod):
    """Tip-Adapter plus gamma times the nearness of the class probabilities of query and support by the texts:

        logits_n = tip_adapter_n + gamma sum over support i of class n of (1 - s KL(p_q || p_i)),
        p_x = softmax over classes of cos(x, w_n) / temperature

    s = (1 - smallest cosine) / largest divergence, both of all pairs of the support: a divergence is as far as the cosines
    of the support reach. gamma=0 is `tip_adapter`; so is text_scale=0, as there are no texts to compare by.

    alpha, beta, text_scale   those of `tip_adapter`; gamma: weight of the third term. The paper gives no values to start
                  from and searches 20 x 200 x 50 of them, which `fewshot.search_grid` does at once
    temperature   of p_x, 0.5 as in the official program
    variant       "official": the third term is - sum of KL scaled linearly from [its minimum, its maximum] over all queries
                  to `affinity_range`; the program computes divergences of blocks of 100 queries, and those of the last
                  Q mod 100 stay 0. Transductive
    affinity_range   of the official variant: the smallest and the largest cosine to scale to. The program takes those of
                  the *validation* images also for the test; None is those of the queries

    Deviations of the default: the scale s is one number of the support instead of one of all queries, so that no query
    decides about another. With equal shots the 1 in the sum changes no prediction; with unequal shots it counts votes, as
    Tip-Adapter does, where the official sum of negative terms would count against classes of many shots.
    """

    paper = "Udandarao et al. 2023 (SuS-X), arXiv:2211.16198; vishaal27/SuS-X"
    needs_text = True
    searched_grid = {"alpha": equal_steps(0.1, 50, 20), "beta": equal_steps(1, 50, 200), "gamma": equal_steps(0.1, 30, 50)}
    multipliers = ("alpha", "gamma")
    reused = ("alpha", "beta", "gamma")
    block: ClassVar[int] = 100  # queries of which the official program computes divergences together

    alpha: float = 1.0
    beta: float = 5.5
    gamma: float = 1.0
    text_scale: float = 1.0
    temperature: float = 0.5
    variant: str = "sane"
    affinity_range: tuple | None = None

    def __post_init__(self) -> None:
        check_at_least(0, alpha=self.alpha, beta=self.beta, gamma=self.gamma, text_scale=self.text_scale)
        check_positive(temperature=self.temperature)
        check_choice(("sane", "official"), variant=self.variant)
        if self.affinity_range is not None:
            if self.variant != "official":
                raise FewshotError(f"affinity_range={self.affinity_range!r} is for variant='official'; leave it out")
            if len(self.affinity_range) != 2 or not self.affinity_range[0] <= self.affinity_range[1]:
                raise FewshotError(f"affinity_range={self.affinity_range!r}; give the smallest and the largest cosine")
        if self.variant == "official":
            object.__setattr__(self, "setting", "transductive")

    def shared(self, episodes: Episodes) -> tuple[KeyCache, Tensor]:
        """The cache, and the third term [E, N, Q]."""
        return self.with_keys(episodes, l2_normalise(episodes.support))

    def with_keys(self, episodes: Episodes, keys: Tensor) -> tuple[KeyCache, Tensor]:
        """The same with keys [E, S, D] of the support that vote in the place of its features."""
        support, query = l2_normalise(episodes.support), l2_normalise(episodes.query)
        cache = KeyCache.of(episodes, keys, query, self.text_scale)
        if self.text_scale == 0:
            return cache, torch.zeros_like(cache.text)
        texts = unit_texts(episodes).transpose(1, 2)
        logs = [(self.scores(x, texts) / self.temperature).log_softmax(-1) for x in (support, query)]
        # Divergences of close distributions are small differences: what they have in common is left out of them.
        common = logs[0].mean(1, keepdim=True)
        of_support, of_query = (_Beliefs(each.exp(), each - common) for each in logs)
        if self.variant == "official":
            return cache, self._official(cache, of_support, of_query)
        return cache, _nearness(cache, support, of_support, of_query)

    def parts(self, shared: tuple[KeyCache, Tensor]) -> tuple[Tensor, ...]:
        cache, term = shared
        return cache.text, cache.votes(self.beta), term

    def scores(self, points: Tensor, texts: Tensor) -> Tensor:
        """[E, A, N] what p_x is made of, for unit points [E, A, D] and texts [E, D, N]."""
        return points @ texts

    def _official(self, cache: KeyCache, of_support: _Beliefs, of_query: _Beliefs) -> Tensor:
        """The third term [E, N, Q] as the official program has it."""
        queries = of_query.p.shape[1]
        whole = queries // self.block * self.block
        if not whole:
            raise FewshotError(f"{queries} queries; the official program compares blocks of {self.block} and would divide 0 "
                               "by 0: give more, or take another variant")
        far = _divergences(of_query, of_support)
        far[:, :, whole:] = 0
        low, high = far.amin((1, 2), keepdim=True), far.amax((1, 2), keepdim=True)
        cosines = 1 - cache.distances
        bottom, top = (cosines.amin((1, 2), keepdim=True), cosines.amax((1, 2), keepdim=True)) \
            if self.affinity_range is None else self.affinity_range
        scaled = (far - low) / nonzero(high - low) * (top - bottom) + bottom
        return class_sums(-scaled, cache.labels, cache.ways)[0]


def _nearness(cache: KeyCache, support: Tensor, of_support: _Beliefs, of_query: _Beliefs) -> Tensor:
    """[E, N, Q] sum over the support i of each class of 1 - s KL(p_q || p_i)."""
    reach = 1 - (support @ support.transpose(1, 2)).amin((1, 2), keepdim=True)
    scale = reach / nonzero(_divergences(of_support, of_support).amax((1, 2), keepdim=True))
    # The divergence is linear in log p_i: it is summed over a class before it meets the queries.
    logs, counts = class_sums(of_support.logs, cache.labels, cache.ways)  # [E, N, N] class by text, [E, N]
    counts = counts.unsqueeze(-1)
    return counts - scale * (counts * of_query.own - logs @ of_query.p.transpose(1, 2))


def _divergences(of_query: _Beliefs, of_support: _Beliefs) -> Tensor:
    """KL(p_q || p_i) [E, S, Q], never negative."""
    return (of_query.own - of_support.logs @ of_query.p.transpose(1, 2)).clamp_min(0)
