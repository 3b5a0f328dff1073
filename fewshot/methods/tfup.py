"""TFUP: texts choose a cache of the queries themselves, which then has a say beside them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_integer, check_number
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method
from fewshot.ops.chunked import in_blocks
from fewshot.ops.distances import l2_normalise
from fewshot.ops.text import text_logits, unit_texts


@METHODS.register("tfup")
@dataclass(frozen=True)
class TFUP(Method):
    """The training-free form. The support is not looked at. With p = softmax(sharpness cos(query, text)) [Q, N], class n
    keeps m of the 2m queries with the largest p_n: those j of the least sum of KL(p_j | p_i) over these 2m queries i. Then

        logits_qn = text logits + alpha sum over the m cached queries j of class n of exp(-beta (1 - s_qj cos(q, j)))
        s_qj      = 2 (1 - (KL(p_q | p_j) - least) / (largest - least)), least and largest over all cached queries

    Text logits are those of `zero_shot`. A class may keep queries of another one, and a query may be kept by two.

    alpha, beta, sharpness   of the official program (0.3, 1, 10)
    share        m = share * Q / N queries a class, rounded down, but at least `least` and at most `most` (0.3, 9, 16)
    text_scale   weight of the text logits in the sum; at 0 the cache alone answers, which the texts have chosen

    Deviations: m is at most Q / N, as with 2m queries or fewer in all every class would keep the same ones. The program
    scales KL to mean 0 and variance 1 first, which the scaling to [0, 1] undoes, and keeps it in half precision. TFUP-T,
    which trains adapters of both sides on augmented images, is not part of this.
    """

    paper = "Long et al. 2024 (TFUP), arXiv:2404.16339; wlb12345/TFUP"
    setting = "transductive"
    needs_text = True

    alpha: float = 0.3
    beta: float = 1.0
    sharpness: float = 10.0
    share: float = 0.3
    least: int = 9
    most: int = 16
    text_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "share", "text_scale"):
            check_number(name, getattr(self, name), 0)
        check_number("sharpness", self.sharpness, 0, low_allowed=False)
        for name in ("least", "most"):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), 1))
        if self.least > self.most:
            raise FewshotError(f"least={self.least} exceeds most={self.most}; a class keeps between the two")

    def __call__(self, episodes: Episodes) -> Tensor:
        query, text = l2_normalise(episodes.query), unit_texts(episodes)
        log_p = (self.sharpness * query @ text.transpose(1, 2)).log_softmax(-1)
        cached = self._chosen(log_p)  # [E, N, m]

        def rows(of: Tensor) -> Tensor:
            """Those of the cached queries, class by class [E, N m, ...]."""
            return of.gather(1, cached.flatten(1).unsqueeze(-1).expand(-1, -1, of.shape[-1]))

        keys, log_cached, size = rows(query), rows(log_p), cached.shape[2]

        def of_cache(both: Tensor, keys: Tensor, log_cached: Tensor) -> Tensor:
            q, log_q = both.split([query.shape[-1], log_p.shape[-1]], dim=-1)
            p = log_q.exp()
            kl = (p * log_q).sum(-1, keepdim=True) - p @ log_cached.transpose(1, 2)  # [E, Q, N m]
            low, high = kl.amin(-1, keepdim=True), kl.amax(-1, keepdim=True)
            alike = 2 * (1 - (kl - low) / (high - low).clamp_min(torch.finfo(kl.dtype).eps))
            near = (self.beta * (alike * (q @ keys.transpose(1, 2)) - 1)).exp()
            return near.unflatten(-1, (-1, size)).sum(-1)

        found = in_blocks(of_cache, torch.cat([query, log_p], -1), keys, log_cached, elements=keys.shape[1])
        return text_logits(episodes, self.text_scale) + self.alpha * found

    def transfer(self, episodes: Episodes, query: Tensor, text: Tensor) -> Tensor:
        return self(episodes.replace(query=query, text=text))  # as the support plays no part

    def _chosen(self, log_p: Tensor) -> Tensor:
        """[E, N, m] the queries that each class keeps."""
        queries, ways = log_p.shape[1:]
        m = min(max(int(self.share * queries / ways), self.least), self.most, max(1, queries // ways))
        candidates = log_p.topk(min(2 * m, queries), dim=1).indices.transpose(1, 2)  # [E, N, 2m]
        member = torch.zeros_like(log_p).transpose(1, 2).scatter(2, candidates, 1.0)  # [E, N, Q]
        p = log_p.exp()
        # sum_i KL(p_j | p_i) = count * sum_k p_jk log p_jk - sum_k p_jk sum_i log p_ik
        divergence = candidates.shape[2] * (p * log_p).sum(-1).unsqueeze(1) - (member @ log_p) @ p.transpose(1, 2)
        best = divergence.gather(2, candidates).topk(min(m, queries), dim=2, largest=False).indices
        return candidates.gather(2, best)
