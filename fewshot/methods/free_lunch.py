"""Distribution calibration ("free lunch"): logistic regression on features sampled from statistics of base classes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_at_least, check_choice, check_positive
from fewshot.core.errors import FewshotError
from fewshot.core.seeding import derived_seed
from fewshot.data.banks import FeatureBank
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, IterativeMethod, Refinement, fitted
from fewshot.ops.distances import squared_euclidean
from fewshot.ops.features import tukey_transform
from fewshot.ops.linear import fit_logistic
from fewshot.ops.prototypes import one_hot

DISPERSIONS = ("all", "diagonal")
_ELEMENTS = 1 << 23  # of the sampled features of a block of episodes: 32 MB in float32


@dataclass(frozen=True, eq=False)
class BaseDraws:
    """Of B base classes: means [B, D], and draws [B, T, D] from normal distributions of mean 0 and their covariances."""

    means: Tensor
    draws: Tensor


@METHODS.register("free_lunch")
@dataclass(frozen=True, eq=False)
class FreeLunch(IterativeMethod):
    """Features pass Tukey's transform. Around each support item x, with B the base classes whose means are nearest,

        mean = (x + sum_B mean_b) / (neighbours + 1),    covariance = sum_B covariance_b / neighbours + alpha    (eq. 5, 6),

    features are drawn from the normal distribution; logistic regression is fitted to them and the support, all alike.

    neighbours   k, base classes taken for each support item
    alpha        dispersion, added to the covariance; dispersion="all" adds it to every entry, as the official code does: one
                 random number common to all channels; "diagonal" to the diagonal, an independent one for each
    beta         of Tukey's transform, sign(x) |x|^beta
    tukey_base   statistics of the base classes in the transformed space, too. The paper and its code take those of the
                 features as they are, and compare and average them with transformed support
    samples      drawn per class, shared equally among its shots (what does not divide goes to the first of them)
    C, tolerance   of the logistic regression (`ops.linear.fit_logistic`). With 750 samples nearly all time is spent on it:
                 tolerance=1e-3 takes fewer steps and stops a little before the optimum
    seed         of the draws

    `fit(base_bank)` keeps the means and, for each base class, `samples` draws with its covariance, made as Gaussian
    combinations of its centred items over sqrt(n - 1): that is exactly the distribution, and no D x D matrix is formed. It
    needs 4 B samples D bytes in float32 (123 MB for 64 classes of 640 features).

    Deviations: the draws belong to the base classes and are the same for all episodes and classes, so that an answer
    depends on nothing but its episode and `seed` (items of one class get different ones, in the order of the sums of their
    features). The regression is solved to convergence, where the official code calls scikit-learn.

    Raises FewshotError without `fit`, and where there are fewer base classes than `neighbours`.
    """

    setting = "inductive"
    needs_base = True
    paper = "Yang, Liu, Xu 2021, arXiv:2101.06395; ShuoYang-1998/Few_Shot_Distribution_Calibration"

    neighbours: int = 2
    alpha: float = 0.21
    beta: float = 0.5
    tukey_base: bool = False
    dispersion: str = "all"
    samples: int = 750
    C: float = 1.0
    tolerance: float | None = None
    seed: int = 0
    base: BaseDraws | None = fitted()

    def __post_init__(self) -> None:
        check_at_least(1, neighbours=self.neighbours, samples=self.samples)
        check_positive(beta=self.beta, C=self.C)
        if not self.alpha >= 0:
            raise FewshotError(f"alpha={self.alpha!r}; it is a variance, 0 or more")
        check_positive(tolerance=self.tolerance)
        check_choice(DISPERSIONS, dispersion=self.dispersion)

    def fit(self, base_bank: FeatureBank) -> FreeLunch:
        """A copy with the statistics of the base classes; raises FewshotError where there are too few of them."""
        present = base_bank.classes.tolist()
        if len(present) < self.neighbours:
            raise FewshotError(f"neighbours={self.neighbours}, but {base_bank.name}/{base_bank.split} has {len(present)} "
                               "base classes; lower neighbours")
        x = tukey_transform(base_bank.features, self.beta) if self.tukey_base else base_bank.features
        means, draws = x.new_empty(len(present), x.shape[1]), x.new_empty(len(present), self.samples, x.shape[1])
        for place, label in enumerate(present):
            items = x[base_bank.labels == label]
            means[place] = items.mean(0)
            factor = (items - means[place]) / max(len(items) - 1, 1) ** 0.5
            torch.matmul(self._gaussian(f"class {label}", len(items)).to(x), factor, out=draws[place])
        return dataclasses.replace(self, base=BaseDraws(means, draws))

    @torch.no_grad()
    def refine(self, episodes: Episodes, history: bool = False) -> Refinement:
        """Sample, fit and classify. There are no prototypes, hence no history."""
        self._known()
        e = episodes.with_features(lambda x: tukey_transform(x, self.beta))
        size = max(1, _ELEMENTS // (e.ways * self.samples * e.query.shape[2]))
        parts = [self._answer(e[start:start + size]) for start in range(0, len(e), size)]
        logits, iterations, converged = (torch.cat(values) for values in zip(*parts, strict=True))
        return Refinement(logits, None, iterations, converged)

    def _answer(self, e: Episodes) -> tuple[Tensor, Tensor, Tensor]:
        drawn, labels = self.sample(e)
        points, labels = torch.cat([e.support, drawn], 1), torch.cat([e.support_labels, labels], 1)
        model = fit_logistic(points, labels, e.ways, self.C, tolerance=self.tolerance)
        return model(e.query), model.iterations, model.converged

    def sample(self, e: Episodes) -> tuple[Tensor, Tensor]:
        """(features [E, N samples, D], their labels [E, N samples]) for episodes of transformed features."""
        base = self._known()
        means, draws = base.means.to(e.support), base.draws.to(e.support)
        nearest = squared_euclidean(e.support, means.expand(len(e), -1, -1)).topk(self.neighbours, largest=False).indices
        centres = (e.support + means[nearest].sum(2)) / (self.neighbours + 1)  # [E, S, D]
        item = _items_of_samples(e, self.samples)  # [E, N, T]
        centre = centres.gather(1, item.flatten(1).unsqueeze(-1).expand(-1, -1, centres.shape[2]))
        classes = nearest.gather(1, item.flatten(1).unsqueeze(-1).expand(-1, -1, self.neighbours))  # [E, N T, k]
        number = torch.arange(self.samples, device=item.device).repeat(e.ways)  # [N T]
        for k in range(self.neighbours):
            centre = centre + draws[classes[..., k], number] / self.neighbours**0.5
        spread = self._gaussian("dispersion", 1 if self.dispersion == "all" else centres.shape[2]).to(centre)
        labels = torch.arange(e.ways, device=item.device).repeat_interleave(self.samples).expand(len(e), -1)
        return centre + self.alpha**0.5 * spread.repeat(e.ways, 1), labels

    def _known(self) -> BaseDraws:
        if self.base is None:
            raise FewshotError("free_lunch needs the statistics of the base classes: call method.fit(base_bank) first")
        return self.base

    def _gaussian(self, stream: str, width: int) -> Tensor:
        """[T, width] float64, a function of the seed and the name of the stream."""
        generator = torch.Generator().manual_seed(derived_seed("free_lunch", self.seed, stream))
        return torch.randn(self.samples, width, generator=generator, dtype=torch.float64)


def _items_of_samples(e: Episodes, samples: int) -> Tensor:
    """[E, N, T] the support item around which each sample of a class is drawn. A class's items take turns, in an order that
    does not depend on where they stand in the support."""
    rank = e.support.sum(-1).argsort(1).argsort(1)  # [E, S]
    order = (e.support_labels * rank.shape[1] + rank).argsort(1)  # by class, then by the sum
    shots = one_hot(e.support_labels, e.ways, torch.int64).sum(1).unsqueeze(-1)  # [E, N, 1]
    turn = torch.arange(samples, device=order.device) % shots  # [E, N, T]
    return order.gather(1, (shots.cumsum(1) - shots + turn).flatten(1)).unflatten(1, (-1, samples))
