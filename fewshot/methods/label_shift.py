"""Another method, corrected for how often each class occurs among the queries (EM of Saerens et al.)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_integer, check_number
from fewshot.core.errors import FewshotError
from fewshot.core.frozen import FrozenDict, frozen_dict
from fewshot.episodes.types import Episodes
from fewshot.methods.bases.wrapping import WrappingMethod
from fewshot.methods.contract import METHODS, IterativeMethod, Method, Refinement, fitted


@METHODS.register("label_shift")
@dataclass(frozen=True, eq=False)
class LabelShift(WrappingMethod, IterativeMethod):
    """The logits of `method` plus the logarithm of the frequencies of the classes. These, w [N], are of maximum likelihood
    given p = softmax(logits / temperature), by EM from equal ones:

        r_qn = w_n p_qn / sum_m w_m p_qm,    w_n = (sum_q r_qn + pseudo_count) / (Q + N pseudo_count)

    The answer is logits / temperature + log(N w).

    That p is right for equal frequencies is taken for granted: of logits that are too sharp or too flat the frequencies are
    wrong, and where classes are in truth equally frequent the correction can only cost, the more the fewer the queries.
    `temperature` makes p right on average, chosen on validation classes (`fewshot.choose_decisions(...).temperature`). The
    likelihood is concave in w: EM finds its maximum.

    method       name of a registered method on features;  parameters: its hyper-parameters
    temperature  divides its logits
    pseudo_count our extension: so many queries of each class are imagined beside those there are, which holds the
                 frequencies towards equal ones; 0 is the paper's maximum likelihood
    iterations   at most so many steps;  tolerance: an episode stops when no frequency changes by more

    EM works in float64. A class without queries approaches frequency 0, which counts as the smallest normal number of the
    dtype of the features. Deviation: the paper's classifier may have been trained with unequal frequencies, a few-shot
    method is taken to weigh its classes equally, whatever their shots.
    """

    paper = "Saerens et al. 2002, Neural Computation 14(1), 21-41"

    method: str = "protonet"
    parameters: Mapping = FrozenDict()
    temperature: float = 1.0
    pseudo_count: float = 0.0
    iterations: int = 1000
    tolerance: float = 1e-6
    inner: Method | None = fitted()

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", frozen_dict(self.parameters))
        object.__setattr__(self, "iterations", check_integer("iterations", self.iterations, 0))
        check_number("temperature", self.temperature, 0, low_allowed=False)
        check_number("pseudo_count", self.pseudo_count, 0)
        check_number("tolerance", self.tolerance, 0)
        if self.method == "label_shift":
            raise FewshotError("method='label_shift' of label_shift; name the method whose logits are corrected")
        if self.made.inputs != "features" or self.made.needs_backbone:
            raise FewshotError(f"method={self.method!r} of label_shift has weights of its own or takes images; name one on "
                               "features, such as protonet or ridge")

    @property
    def assumes(self) -> tuple[str, ...]:
        return ("calibrated logits", *super().assumes)

    def refine(self, episodes: Episodes, history: bool = False) -> Refinement:
        return self._corrected(self.made(episodes))

    def transfer(self, episodes: Episodes, query: Tensor, text: Tensor) -> Tensor:
        return self._corrected(self.made.transfer(episodes, query, text)).logits

    def _corrected(self, logits: Tensor) -> Refinement:
        """From logits [E, Q, N]; there are no prototypes."""
        calibrated = logits / self.temperature
        p = calibrated.detach().double().softmax(-1)
        frequency, iterations, converged = frequencies(p, self.pseudo_count, self.iterations, self.tolerance)
        worth = (frequency * p.shape[-1]).clamp_min(torch.finfo(logits.dtype).tiny).log()
        return Refinement(calibrated + worth.to(logits.dtype).unsqueeze(1), None, iterations, converged)


def frequencies(p: Tensor, pseudo_count: float, iterations: int, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """(most likely frequencies [E, N], steps taken [E], whether the last one changed none by more than
    `tolerance` [E]) for class probabilities p [E, Q, N] under equal frequencies."""
    _, queries, ways = p.shape
    w = p.new_full((len(p), ways), 1 / ways)
    taken = torch.zeros(len(p), dtype=torch.int64, device=p.device)
    converged = torch.zeros_like(taken, dtype=torch.bool)
    for _ in range(iterations):
        going = (~converged).nonzero()[:, 0]  # an episode that has converged stays as it is
        if not len(going):
            break
        before, of_going = w[going], p[going]
        # A query's probabilities of 0 that meet frequencies of 0 would leave nothing to divide by.
        total = (of_going @ before.unsqueeze(-1)).clamp_min(torch.finfo(p.dtype).tiny)  # [E, Q, 1]
        w[going] = (before * (of_going / total).sum(1) + pseudo_count) / (queries + ways * pseudo_count)
        taken[going] += 1
        converged[going] = (w[going] - before).abs().amax(-1) <= tolerance
    return w, taken, converged
