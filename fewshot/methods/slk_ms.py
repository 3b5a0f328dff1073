"""SLK-MS: K-modes by mean-shift, with a graph Laplacian that lets neighbouring points agree."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from fewshot.methods.contract import METHODS
from fewshot.methods.slk_means import SLKMeans
from fewshot.ops.clustering import ClusteringOptions


@METHODS.register("slk_ms")
@dataclass(frozen=True, eq=False)
class SLKMS(SLKMeans):
    """As `slk_means`, but each centre is a mode: mean-shift with a Gaussian kernel over the members of its cluster, and
    a point's cost is -exp(-|x - c|^2 / 2 s^2). That cost lies in [-1, 0], so softmax(logits) is nearly flat: read the
    predictions, not the confidences.

    laplacian_weight   as in `slk_means`; 0 turns the graph off and gives K-modes: hard assignments and
                       logits -|x - c|^2 / 2 s^2
    bandwidth          s; None estimates it from the distances along the graph, as the official code does
    """

    bandwidth: float | None = None

    def options(self) -> ClusteringOptions:
        return dataclasses.replace(super().options(), centres="mode", bandwidth=self.bandwidth)
