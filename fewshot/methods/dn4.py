"""DN4: a query image's local descriptors look for their nearest neighbours among those of each class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_at_least
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method
from fewshot.ops.chunked import in_blocks
from fewshot.ops.descriptors import descriptors
from fewshot.ops.distances import l2_normalise


@METHODS.register("dn4")
@dataclass(frozen=True, eq=False)
class Dn4(Method):
    """logits[q, n] = sum over the positions x of q of the sum of its `neighbours` largest cosines with the descriptors of
    class n, those of all its shots together (the image-to-class measure).

    channels     C of the maps [C, h, w] that are flattened into the features: D = C h w. `conv4` with pools=2 makes such
                 features of 64 channels, 7x7 positions at 28 pixels and 21x21 at 84
    neighbours   k

    It has no weights: train a backbone with it (cross-entropy of the scores), or use it on features that exist. Pooled
    features, one descriptor an image, allow no more neighbours than shots.

    Raises FewshotError where D is no multiple of `channels`, and where a class has fewer descriptors than `neighbours`.
    Deviations: none. A descriptor of zeros is similar to nothing (cosine 0).
    """

    paper = "Li et al. 2019, arXiv:1903.12290; WenbinLee/DN4, RL-VIG/LibFewShot"

    channels: int = 64
    neighbours: int = 3

    def __post_init__(self) -> None:
        check_at_least(1, channels=self.channels, neighbours=self.neighbours)

    def __call__(self, episodes: Episodes) -> Tensor:
        query, support = (l2_normalise(descriptors(x, self.channels)) for x in (episodes.query, episodes.support))
        positions = query.shape[2]
        labels = episodes.support_labels
        shots = labels.new_zeros(len(labels), episodes.ways).scatter_add(1, labels, torch.ones_like(labels))  # [E, N]
        fewest, most = int(shots.min()) * positions, int(shots.max())
        if self.neighbours > fewest:
            raise FewshotError(f"neighbours={self.neighbours}, but a class has {fewest} descriptors (shots times "
                               f"{positions} positions); lower neighbours, or use a backbone with larger maps")
        # Items of a class become neighbours, and classes with fewer shots are filled up: no loop over classes.
        order = labels.argsort(dim=1, stable=True)
        start = shots.cumsum(1) - shots
        place = torch.arange(most, device=order.device).expand(*shots.shape, most)
        filled = place >= shots.unsqueeze(-1)  # [E, N, most]
        rows = order.gather(1, (start.unsqueeze(-1) + place).clamp_max(order.shape[1] - 1).flatten(1))
        rows = rows[..., None, None].expand(-1, -1, *support.shape[2:])
        pools = support.gather(1, rows).flatten(1, 2)  # [E, N most h w, C]

        def scores(query: Tensor, pools: Tensor, filled: Tensor) -> Tensor:
            cosines = query.flatten(1, 2) @ pools.transpose(1, 2)  # [E, Q h w, N most h w]
            cosines = cosines.unflatten(2, (*filled.shape[1:], positions))
            if most * positions > fewest:
                cosines = cosines.masked_fill(filled[:, None, :, :, None], float("-inf"))
            best = cosines.flatten(3).topk(self.neighbours, dim=-1, sorted=False).values.sum(-1)  # [E, Q h w, N]
            return best.unflatten(1, (-1, positions)).sum(2)

        return in_blocks(scores, query, pools, filled, elements=positions * pools.shape[1])  # [E, Q, N]
