"""Matching Networks: attention over the support points by cosine similarity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewshot.core.checked import check_at_least, check_choice
from fewshot.core.errors import FewshotError
from fewshot.core.seeding import isolated_rng
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method, feature_dim_of
from fewshot.ops.class_reductions import class_logsumexp
from fewshot.ops.distances import cosine
from fewshot.ops.prototypes import one_hot, weighted_means

VARIANTS = ("attention", "closer_look", "class_mean")


class FullContext(nn.Module, Method):
    """Matching Networks with full-context embeddings, made by `create_method("matching_net", full_context=True,
    ...).with_backbone(backbone, ways)`. With f and s_i the features of a query and of the support (appendix A):

    support   g_i = s_i + h_i(forwards) + h_i(backwards) of a bidirectional LSTM over the support
    query     h_0 = f, c_0 = 0; r = sum_i softmax_i(h . g_i) g_i;  h, c = LSTM([f, r], (h, c)); h = h + f

    **The answer depends on the order of the support**, because an LSTM reads it one after the other. Before that the items
    are grouped by class: classes in the order of their first items, the items of a class in theirs. This is the order of
    episodes from a sampler, so that support given in another way (shot by shot) is read as in training, and it does not
    depend on which number a class has.

    Deviations: the paper does not say where h starts; h_0 = f and the LSTM's input [f, r] are those of
    wyharveychen/CloserLookFewShot. The paper has r in the LSTM's state instead, which gives the same gates.
    """

    def __init__(self, settings: MatchingNet, feature_dim: int, seed: int):
        super().__init__()
        self.settings, self.paper = settings, settings.paper
        with isolated_rng(seed):
            self.support_lstm = nn.LSTM(feature_dim, feature_dim, bidirectional=True, batch_first=True)
            self.query_cell = nn.LSTMCell(2 * feature_dim, feature_dim)

    def forward(self, episodes: Episodes) -> Tensor:
        """Logits [E, Q, N] of episodes of features."""
        return self.settings.attend(self.embed(episodes))

    def embed(self, episodes: Episodes) -> Episodes:
        """The episodes with features in the context of their support, which is grouped by class."""
        order = _grouped(episodes.support_labels, episodes.ways)
        support = episodes.support.gather(1, order.unsqueeze(-1).expand_as(episodes.support))
        forwards, backwards = self.support_lstm(support)[0].chunk(2, dim=-1)
        support = support + forwards + backwards  # [E, S, D]
        steps = support.shape[1] if self.settings.steps is None else self.settings.steps
        f, h, c = episodes.query, episodes.query, torch.zeros_like(episodes.query).flatten(0, 1)
        for _ in range(steps):
            r = (h @ support.transpose(1, 2)).softmax(-1) @ support  # [E, Q, D]
            h, c = self.query_cell(torch.cat([f, r], dim=-1).flatten(0, 1), (h.flatten(0, 1), c))
            h = h.view_as(f) + f
        return Episodes.trusted(support=support, support_labels=episodes.support_labels.gather(1, order), query=h,
                                ways=episodes.ways)


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

    full_context   embed the support and the queries in the context of the support first (section 2.1.2 and appendix A).
                   This has weights: `with_backbone(backbone, ways)` makes the `FullContext` that holds them, and which is
                   trained together with the backbone
    steps          of the queries' attention LSTM; None takes as many as there are support items, as in the paper

    Deviations: embeddings are used as they are unless full_context is set. `scale=1` is the formula of the paper.
    """

    paper = "Vinyals et al. 2016, arXiv:1606.04080 (no official code); wyharveychen/CloserLookFewShot"

    scale: float = 10.0
    relu: bool = False
    variant: str = "attention"
    full_context: bool = False
    steps: int | None = None

    def __post_init__(self) -> None:
        check_choice(VARIANTS, variant=self.variant)
        if not self.scale > 0:
            raise FewshotError(f"scale={self.scale!r}; it must be positive, or the nearest point gets the least weight")
        if self.steps is not None:
            check_at_least(1, steps=self.steps)
            if not self.full_context:
                raise FewshotError(f"steps={self.steps} without full_context; set full_context=True, or leave steps out")

    @property
    def needs_backbone(self) -> bool:
        return self.full_context

    def with_backbone(self, backbone: nn.Module, ways: int, *, feature_dim: int | None = None, seed: int = 0) -> Method:
        """With full_context the module for the features of `backbone`, in evaluation mode, with weights drawn from `seed`;
        `ways` does not matter. Without, the method itself."""
        if not self.full_context:
            return self
        weight = next(backbone.parameters(), torch.empty(0))
        return FullContext(self, feature_dim_of(backbone, feature_dim), seed).to(weight.device, weight.dtype).eval()

    def __call__(self, episodes: Episodes) -> Tensor:
        if self.full_context:
            raise self.without_network()
        return self.attend(episodes)

    def attend(self, episodes: Episodes) -> Tensor:
        """Logits [E, Q, N] from embeddings as they are."""
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


def _grouped(labels: Tensor, ways: int) -> Tensor:
    """Positions [E, S] that put the items of each class together, in the order in which classes and items appear."""
    positions = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
    first = labels.new_full((len(labels), ways), labels.shape[1]).scatter_reduce(1, labels, positions, "amin")  # [E, N]
    return first.gather(1, labels).argsort(dim=1, stable=True)
