"""Classifiers of one point at a time, written out as arithmetic that nothing but the support has entered."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.ops.class_reductions import class_maximum
from fewshot.ops.distances import l2_normalise
from fewshot.ops.linear import LinearFit


@dataclass(frozen=True, eq=False)
class PointClassifier:
    """What an inductive method makes of the support of one episode, for D features and N classes:

        z = x - shift, divided by its length where `unit` is set
        logits_n = the largest weights_r z + intercept_r of the rows r that belong to class n

    weights     [R, D] rows: one a class for prototypes and linear classifiers, one a support point for neighbours
    intercept   [R]
    classes     [R] int64, the class of each row, 0 .. ways-1; every class has a row
    shift       [D], or None for none

    Logits are those of the method but for a number that all classes of a point share: the probabilities are the same. No
    step depends on the values of the points, so that it can be exported as a graph.
    """

    weights: Tensor
    intercept: Tensor
    classes: Tensor
    ways: int
    shift: Tensor | None = None
    unit: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [A, N] of x [A, D], in the dtype of the weights."""
        x = x.to(self.weights.dtype)
        x = x if self.shift is None else x - self.shift.to(x.dtype)
        scores = (l2_normalise(x) if self.unit else x) @ self.weights.T + self.intercept  # [A, R]
        return class_maximum(scores[None], self.classes[None], self.ways)[0]


def by_distance(points: Tensor, classes: Tensor, ways: int, scale: float, norm: str = "un",
                base_mean: Tensor | None = None) -> PointClassifier:
    """Logits -scale |z - point|^2, z being the query after `norm` (`ops.features.normalise_episodes`), for points [R, D]
    in that space. |z|^2 is left out; where z is not of unit length, a shift to the mean of the points keeps digits."""
    shift, unit = _of_norm(norm, base_mean)
    if not unit:
        shift = points.mean(0)
        points = points - shift
    return PointClassifier(2 * scale * points, -scale * points.square().sum(-1), classes, ways, shift, unit)


def by_cosine(points: Tensor, classes: Tensor, ways: int, scale: float, norm: str = "un",
              base_mean: Tensor | None = None) -> PointClassifier:
    """Logits scale cos(z, point), as `by_distance`."""
    shift, _ = _of_norm(norm, base_mean)
    return PointClassifier(scale * l2_normalise(points), points.new_zeros(len(points)), classes, ways, shift, unit=True)


def by_products(fit: LinearFit, scale: float, norm: str, base_mean: Tensor | None) -> PointClassifier:
    """Logits scale (W z + b) of a fit of one episode, z as in `by_distance`."""
    weights, ways = fit.weights[0], fit.weights.shape[1]
    classes = torch.arange(ways, device=weights.device)
    return PointClassifier(scale * weights, scale * fit.intercept[0], classes, ways, *_of_norm(norm, base_mean))


def _of_norm(norm: str, base_mean: Tensor | None) -> tuple[Tensor | None, bool]:
    """(shift, unit) that do what `normalise_episodes` does."""
    return base_mean if norm == "cl2n" else None, norm != "un"
