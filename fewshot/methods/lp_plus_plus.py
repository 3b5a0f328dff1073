"""LP++: a linear probe with a learned multiple of what the texts say for each class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_at_least, check_choice
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method
from fewshot.ops.distances import l2_normalise, nonzero
from fewshot.ops.heads import uniform
from fewshot.ops.prototypes import one_hot
from fewshot.ops.text import unit_texts

_START = 250.0  # of alpha, times the mean cosine of an item with its text
_MOMENTUM = 0.9
_EVERY = 10  # steps on weights and intercept for one on alpha


@METHODS.register("lp_plus_plus")
@dataclass(frozen=True)
class LPPlusPlus(Method):
    """logits_n = v_n q + b_n + alpha_n text_scale cos(q, w_n), with q of unit length; v, b and alpha [N] are trained on the
    support by block coordinate descent on the cross-entropy, with step sizes from bounds of its curvature.

    v starts as the class means, b as 0, and every alpha_n as 250 times the mean cosine of support items with their own texts
    (first over the items of a class, then over classes): without steps, votes of class means and of texts. A step is one of
    gradient descent with momentum 0.9 on v and b, at the rate 4 S / (largest eigenvalue of X'X); every tenth is followed by
    one on alpha, at S / (4 max_n sum_i cos(x_i, w_n)^2). X [S, D] is the support.

    steps        300 in the program, which takes the best of them on validation images; here it is the last
    text_scale   weight of the texts; 0 leaves them out
    variant      "official": v starts as the class sums and b as nn.Linear's, uniform in +-1/sqrt(D); the gradient of
                 alpha is added up over all steps so far, since it is never set to 0
    seed         of that b, which is the same for every episode

    Deviations: classes may have unequal shots. Training is done in the combinations of support items that v consists of.
    Logits carry no gradient.
    """

    paper = "Huang et al. 2024 (LP++), arXiv:2404.02285; FereshteShakeri/FewShot-CLIP-Strong-Baseline"
    needs_text = True

    steps: int = 300
    text_scale: float = 1.0
    variant: str = "sane"
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(0, steps=self.steps, text_scale=self.text_scale, seed=self.seed)
        check_choice(("sane", "official"), variant=self.variant)

    @torch.no_grad()
    def __call__(self, episodes: Episodes) -> Tensor:
        support, query, texts = l2_normalise(episodes.support), l2_normalise(episodes.query), unit_texts(episodes)
        by_text = self.text_scale * texts @ support.transpose(1, 2)  # [E, N, S]
        combination, intercept, alpha = self._trained(episodes, support, by_text)
        visual = torch.baddbmm(intercept, combination @ support, query.transpose(1, 2))  # [E, N, Q]
        return (visual + self.text_scale * alpha * (texts @ query.transpose(1, 2))).transpose(1, 2)

    def _trained(self, episodes: Episodes, support: Tensor, by_text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(A [E, N, S] of v = A X, intercept and alpha [E, N, 1]): the gradient of v is that of the logits times X."""
        official, items, dim = self.variant == "official", support.shape[1], support.shape[2]
        wanted = one_hot(episodes.support_labels, episodes.ways, support.dtype).transpose(1, 2)  # [E, N, S]
        means = wanted / wanted.sum(-1, keepdim=True)
        intercept = torch.zeros_like(wanted[..., :1])
        if official:
            intercept += uniform((episodes.ways, 1), dim**-0.5, self.seed, "lp_plus_plus").to(intercept)
        cosines = unit_texts(episodes) @ support.transpose(1, 2)
        alpha = _START * (means * cosines).sum(-1, keepdim=True).mean(1, keepdim=True).expand_as(intercept).clone()
        combination = wanted.clone() if official else means

        across = support @ support.transpose(1, 2)  # [E, S, S]
        smaller = across if items <= dim else support.transpose(1, 2) @ support
        rate = 4 * items / nonzero(torch.linalg.eigvalsh(smaller)[:, -1, None, None])
        of_alpha = items / nonzero(4 * by_text.square().sum(-1).amax(-1)[:, None, None])
        speed, speed_of_intercept, added = (torch.zeros_like(x) for x in (combination, intercept, alpha))
        for step in range(1, self.steps + 1):
            logits = combination @ across + intercept + alpha * by_text
            errors = (logits.softmax(1) - wanted) / items  # [E, N, S], the gradient of the logits
            speed.mul_(_MOMENTUM).add_(errors)
            speed_of_intercept.mul_(_MOMENTUM).add_(errors.sum(-1, keepdim=True))
            now = (errors * by_text).sum(-1, keepdim=True)
            added = added + now if official else now
            combination = combination - rate * speed
            intercept = intercept - rate * speed_of_intercept
            if step % _EVERY == 0:
                alpha = alpha - of_alpha * added
        return combination, intercept, alpha
