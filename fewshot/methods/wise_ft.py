"""WiSE-FT: zero-shot classification interpolated with a head trained on the support, and soups of such heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_choice, check_integer, check_number
from fewshot.core.errors import FewshotError
from fewshot.core.seeding import derived_seed
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method
from fewshot.ops.distances import l2_normalise
from fewshot.ops.head_training import (
    EPSILON,
    Tensors,
    check_training,
    equal_weights,
    head_gradient,
    head_logits,
    text_head,
    train,
    with_one,
)
from fewshot.ops.heads import uniform
from fewshot.ops.prototypes import one_hot

SOUPS = ("uniform", "greedy", "stock")


@METHODS.register("wise_ft")
@dataclass(frozen=True, eq=False)
class WiSEFT(Method):
    """A linear head on unit features f starts as zero-shot classification h_0 = (logit_scale text, logit_bias) and is
    trained on the support by cross-entropy to h_1;

        logits = ((1 - alpha) h_0 + alpha h_1) (f, 1).

    As the head is linear, that is the same mixture of their logits. alpha = 0 is zero_shot. With several runs h_1 is a soup
    of their heads.

    alpha           0 zero-shot, 1 trained; papers show the curve and report 0.5
    runs            heads that are trained, each with its own dropout
    soup            "uniform": their mean. "greedy": from the best on, each that does not raise the loss on the validation
                    images joins the mean. In episodes without any one item of each class of two and more is held out,
                    on which no head is trained; without these, too, the soup is uniform. "stock": h_0 + t (mean - h_0),
                    t = R c / (1 + (R - 1) c) for R runs whose h - h_0 have the mean cosine c (Model Stock, whose own answer
                    is alpha = 1)
    dropout         share of the channels that a training step sets to 0, the others grow in turn; runs differ by it alone
    text_scale      multiplies the logits of the zero-shot head; 0 trains from a head of zeros, without any text
    steps, learning_rate, weight_decay, epsilon   of AdamW on the whole support; the learning rate follows half a cosine
    seed            of dropout and of what is held out

    Deviations: the encoder is frozen, so that only the head is interpolated. The official program takes batches, 1e-3 and a
    decay of 0.1 for tens of thousands of steps after a warm-up, and clips gradients at length 1; a support is one batch, and
    100 steps of 0.1 fit it. The paper's greedy soups go by accuracy, which a handful of images does not resolve. What is
    held out is decided by a random direction in the space of the features, whatever the order of the support.
    """

    paper = ("Wortsman et al. 2022 (WiSE-FT), arXiv:2109.01903; mlfoundations/wise-ft. "
             "Soups: Wortsman et al. 2022, arXiv:2203.05482; Jang et al. 2024 (Model Stock), arXiv:2403.19522")
    needs_text = True

    alpha: float = 0.5
    runs: int = 1
    soup: str = "uniform"
    dropout: float = 0.0
    text_scale: float = 1.0
    steps: int = 100
    learning_rate: float = 0.1
    weight_decay: float = 0.0
    epsilon: float = EPSILON
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, 0, 1)
        check_integer("runs", self.runs, 1)
        check_choice(SOUPS, soup=self.soup)
        check_number("dropout", self.dropout, 0, 1, high_allowed=False)
        check_training(self.steps, self.learning_rate, text_scale=self.text_scale, weight_decay=self.weight_decay,
                       epsilon=self.epsilon)
        if (self.runs > 1) != (self.dropout > 0):
            raise FewshotError(f"runs={self.runs}, dropout={self.dropout!r}; runs differ by dropout alone: give several "
                               "runs and a dropout above 0, or one run and none")
        if self.runs == 1 and self.soup != "uniform":
            raise FewshotError(f"soup={self.soup!r} of one run; give runs of at least 2")

    def __call__(self, episodes: Episodes) -> Tensor:
        points, start = with_one(l2_normalise(episodes.support)), text_head(episodes, self.text_scale)
        targets = one_hot(episodes.support_labels, episodes.ways, points.dtype)
        held = torch.zeros_like(targets[..., 0])
        if self.soup == "greedy" and episodes.validation is None:
            held = _held_out(points[..., :-1], targets, self.seed)
        weights = equal_weights(1 - held)
        heads = torch.stack([self._trained(start, points, targets, weights, run) for run in range(self.runs)])
        if self.soup == "greedy" and episodes.validation is not None:
            assert episodes.validation_labels is not None, "Episodes"
            judges = with_one(l2_normalise(episodes.validation.query))
            wanted = one_hot(episodes.validation_labels, episodes.ways, points.dtype)
            soup = greedy_soup(heads, judges, wanted, torch.ones_like(judges[..., 0]))
        elif self.soup == "greedy":
            soup = greedy_soup(heads, points, targets, held)
        else:
            soup = heads.mean(0) if self.soup == "uniform" else model_stock(start, heads)
        head = (1 - self.alpha) * start + self.alpha * soup
        return head_logits(head, with_one(l2_normalise(episodes.query)))

    def _trained(self, start: Tensor, points: Tensor, targets: Tensor, weights: Tensor, run: int) -> Tensor:
        generator = torch.Generator().manual_seed(derived_seed("wise_ft", self.seed, run))

        def gradient(values: Tensors) -> Tensors:
            seen = points
            if self.dropout:
                drawn = torch.rand(points.shape[-1] - 1, generator=generator, dtype=torch.float64)
                kept = (drawn >= self.dropout).to(points) / (1 - self.dropout)
                seen = points * torch.cat([kept, kept.new_ones(1)])
            return {"head": head_gradient(values["head"], seen, targets, weights)}

        return train({"head": start}, gradient, self.steps, self.learning_rate, self.weight_decay, self.epsilon)["head"]


def _held_out(points: Tensor, targets: Tensor, seed: int) -> Tensor:
    """[E, S] 1 for the item of each class of two and more that is farthest along a random direction, else 0."""
    places = points @ uniform((points.shape[-1],), 1.0, seed, "held out").to(points)  # [E, S]
    of_class = places.unsqueeze(-1).where(targets > 0, -torch.inf)  # [E, S, N]
    farthest = (of_class == of_class.amax(1, keepdim=True)) & (targets > 0)
    return (farthest & (targets.sum(1, keepdim=True) > 1)).any(-1).to(points)


def greedy_soup(heads: Tensor, points: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """[E, N, D] of heads [R, E, N, D]: from the one of least cross-entropy on, in their order, each that does not raise the
    loss of the mean joins it.

    The loss is that on points [E, A, D] with targets [E, A, N], of the items with a 1 in counts [E, A]; without any, all
    heads join.
    """
    dtype, heads, points = heads.dtype, heads.double(), points.double()  # where all are sure, float32 tells no losses apart

    def loss(head: Tensor) -> Tensor:  # [..., E]
        each = -(targets * (points @ head.transpose(-1, -2)).log_softmax(-1)).sum(-1)
        return (each * counts).sum(-1)

    order = loss(heads).argsort(dim=0, stable=True)  # [R, E]
    heads = heads.take_along_dim(order[:, :, None, None], 0)
    soup, best, members = heads[0], loss(heads[0]), torch.ones_like(counts[:, 0])
    for head in heads[1:]:
        mixed = soup + (head - soup) / (members + 1)[:, None, None]
        joins = loss(mixed) <= best
        soup, best = mixed.where(joins[:, None, None], soup), loss(mixed).where(joins, best)
        members = members + joins.to(members)
    return soup.to(dtype)


def model_stock(start: Tensor, heads: Tensor) -> Tensor:
    """[E, N, D] start + t (mean - start) of heads [R, E, N, D], R at least 2: t = R c / (1 + (R - 1) c) with c, at least 0,
    the mean cosine of the moves from start of two different heads."""
    runs = len(heads)
    moves = l2_normalise((heads - start).flatten(2))  # [R, E, N * D]
    # The squared length of the sum of unit vectors is R + the sum of the cosines of all ordered pairs.
    pairs = moves.sum(0).square().sum(-1) - moves.square().sum((0, -1))  # [E]
    cosine = (pairs / (runs * (runs - 1))).clamp_min(0)
    ratio = runs * cosine / (1 + (runs - 1) * cosine)
    return start + ratio[:, None, None] * (heads.mean(0) - start)
