"""Matching Networks: attention over the support points by cosine similarity."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewshot.episodes import Episodes
from fewshot.errors import FewshotError
from fewshot.methods.base import METHODS, Method
from fewshot.ops.distances import cosine
from fewshot.ops.prototypes import one_hot, weighted_means
from fewshot.ops.reductions import class_logsumexp

VARIANTS = ("attention", "closer_look", "class_mean")


@METHODS.register("matching_net")
@dataclass(frozen=True, eq=False)
class MatchingNet(Method):
    """P(n | q) = sum_i a(q, i) [y_i = n] with a = softmax_i(scale cos(z_q, s_i)); the logits are log P (eq. 1 and
    section 2.1.1). A class with more shots gets more attention, as the equation has it.

    scale    multiplies the cosines. The paper has 1: the attention then lies within a factor e^2, probabilities stay
             close to uniform and the loss cannot become small. 10 is the usual initial value of cosine classifiers
    relu     set negative cosines to 0 before scaling
    variant  "attention"    as above
             "closer_look"  the same with two constants of wyharveychen/CloserLookFewShot: norms + 1e-5, and
                            log(P + 1e-6), which bounds the loss; used there with scale=100, relu=True
             "class_mean"   logits = scale * mean cosine per class, without attention, as in
                            Frankluox/CloserLookAgainFewShot with scale=100, relu=True

    Deviations: embeddings are used as they are (no full-context embeddings). `scale=1` is the formula of the paper.
    """

    source = "Vinyals et al. 2016, arXiv:1606.04080 (no official code); wyharveychen/CloserLookFewShot"

    scale: float = 10.0
    relu: bool = False
    variant: str = "attention"

    def __post_init__(self):
        if self.variant not in VARIANTS:
            raise FewshotError(f"variant={self.variant!r}; choose one of {', '.join(VARIANTS)}")
        if not self.scale > 0:
            raise FewshotError(f"scale={self.scale!r}; it must be positive, or the nearest point gets the least weight")

    def __call__(self, episodes: Episodes) -> Tensor:
        if self.variant == "closer_look":
            query, support = (x / (x.norm(dim=-1, keepdim=True) + 1e-5) for x in (episodes.query, episodes.support))
            similarities = query @ support.transpose(1, 2)
        else:
            similarities = cosine(episodes.query, episodes.support)  # [E, Q, S]
        if self.variant == "class_mean":
            labels = one_hot(episodes.support_labels, episodes.ways, similarities.dtype)  # [E, S, N]
            similarities = weighted_means(similarities.transpose(1, 2), labels).transpose(1, 2)  # [E, Q, N]
        if self.relu:
            similarities = similarities.relu()
        scores = self.scale * similarities
        if self.variant == "class_mean":
            return scores
        log_probabilities = class_logsumexp(scores, episodes.support_labels, episodes.ways).log_softmax(-1)
        return (log_probabilities.exp() + 1e-6).log() if self.variant == "closer_look" else log_probabilities
