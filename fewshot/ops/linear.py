"""Linear classifiers fitted to the support of many episodes at once: logistic regression and ridge regression."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.ops.prototypes import one_hot
from fewshot.ops.span import span_coordinates

# Up to this ratio of two curvatures three digits of the smaller one are kept, and in float64 two.
_CONDITION = {torch.float32: 1e4, torch.float64: 1e14}
_LOOK = 8  # Newton steps in which a gradient in float32 has to halve


@dataclass(frozen=True, eq=False)
class LinearFit:
    """logits = x weights^T + intercept.

    weights     [E, N, D]
    intercept   [E, N]
    iterations  [E] int64, steps of the solver (0 for a closed form)
    converged   [E] bool
    """

    weights: Tensor
    intercept: Tensor
    iterations: Tensor
    converged: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [E, A, N] of x [E, A, D], in its dtype."""
        # The few classes in front: the product is several times faster than the other way round.
        points = x.to(self.weights.dtype).transpose(1, 2)
        return torch.baddbmm(self.intercept.unsqueeze(-1), self.weights, points).transpose(1, 2).to(x.dtype)


def _centred(x: Tensor, weight: float | Tensor, intercept: bool = True) -> tuple[Tensor, Tensor]:
    """(x - mean [E, S, D], mean [E, 1, D]), the mean being 0 without an `intercept`. In float64 where `weight` times the
    Gram matrix is so large against the identity that the sum of both is singular in float32.

    Raises FewshotError where it is singular in float64, too.
    """
    mean = x.mean(1, keepdim=True) if intercept else x.new_zeros(len(x), 1, x.shape[-1])
    centred = x - mean
    condition = float(centred.detach().square().sum((1, 2)).amax()) * float(weight)
    if condition <= _CONDITION[x.dtype]:
        return centred, mean
    if x.dtype != torch.float64:
        return _centred(x.double(), weight, intercept)
    longest = float(x.detach().norm(dim=-1).max())
    raise FewshotError(f"features of length {longest:.3g} outweigh the penalty {condition:.1e} times, and float64 does not "
                       "resolve that; normalise them (norm='l2n'), scale them, or regularise more")


def fit_ridge(x: Tensor, labels: Tensor, ways: int, regularisation: float = 1.0, intercept: bool = True) -> LinearFit:
    """Ridge regression to one-hot targets: the minimiser of sum_i |W x_i + b - y_i|^2 + regularisation |W|^2.

    x [E, S, D], labels [E, S]; the objective of scikit-learn's Ridge(alpha=regularisation, fit_intercept=intercept).
    The linear system has the size of the smaller of S and D (Woodbury); it is solved in float64 where float32 does not hold
    both x^T x and the regularisation. Differentiable in x and regularisation.
    """
    x, mean = _centred(x, 1 / regularisation, intercept)
    targets = one_hot(labels, ways, x.dtype)
    offset = targets.mean(1, keepdim=True) if intercept else targets.new_zeros(len(x), 1, ways)
    targets = targets - offset
    transposed = x.transpose(1, 2)
    wide = x.shape[1] <= x.shape[2]
    gram = x @ transposed if wide else transposed @ x
    factor = torch.linalg.cholesky(gram + regularisation * torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device))
    if wide:
        weights = torch.cholesky_solve(targets, factor).transpose(1, 2) @ x  # [E, N, D]
    else:
        weights = torch.cholesky_solve(transposed @ targets, factor).transpose(1, 2)
    iterations = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    intercepts = offset.squeeze(1) - (weights @ mean.transpose(1, 2)).squeeze(-1)
    return LinearFit(weights, intercepts, iterations, iterations == 0)


@torch.no_grad()
def fit_logistic(x: Tensor, labels: Tensor, ways: int, C: float = 1.0, max_iterations: int = 100,
                 tolerance: float | None = None) -> LinearFit:
    """Multinomial logistic regression of each episode: the minimiser over W [N, D] and b [N] of

        C sum_i -log softmax(W x_i + b)[y_i] + |W|^2 / 2,    x [E, S, D], labels [E, S] int64.

    The same objective as scikit-learn's LogisticRegression(C) for three or more classes (b is not penalised). For two
    classes scikit-learn penalises one vector w = w_1 - w_0 by |w|^2 / 2, which is this problem with 2C in place of C.

    The rows of the optimal W lie in the span of the support points, so the problem is solved in the coordinates of that
    span (at most S of them, whatever D) by Newton's method. Each step is found by conjugate gradients, with the Hessian
    at uniform class probabilities as the preconditioner (which makes the first step exact), and is halved until the
    objective decreases. An episode takes its last step, and leaves the batch, when its gradient is shorter than
    `tolerance` times its natural size, C sqrt(sum_i |x_i - mean|^2 + 1) (the penalty has curvature 1, so that the error
    of W is of the order of the gradient or less). Default eps^(3/4) of the dtype. An episode that has not stopped after
    `max_iterations` steps is reported as not converged. Gradients do not pass. Solved in float64 where float32 does not hold
    both the curvature of the loss and that of the penalty; and an episode is solved in float64, from the start, whose
    gradient in float32 stays at the level of rounding errors (those of large logits).
    """
    # Centring changes the intercept only, and keeps the problem well conditioned when the mean is long.
    centred, mean = _centred(x, C / ways)
    dtype = centred.dtype
    tolerance = torch.finfo(dtype).eps ** 0.75 if tolerance is None else tolerance
    coordinates = span_coordinates(centred)  # [E, S, R]
    design = torch.cat([coordinates, torch.ones_like(coordinates[..., :1])], -1)  # [E, S, R + 1], last: intercept
    result, iterations, converged = _newton(design, one_hot(labels, ways, dtype), C, max_iterations, tolerance)
    weights = result[:, :-1]
    if coordinates.shape[-1] < x.shape[-1]:
        # centred = coordinates @ basis with orthonormal rows, hence basis = coordinates^-1 @ centred (triangular).
        # A point at the mean has a zero row and column; any pivot gives it the weight 0 that it has.
        pivots = coordinates.diagonal(dim1=1, dim2=2)
        coordinates = coordinates + torch.diag_embed((pivots == 0).to(dtype))
        dual = torch.linalg.solve_triangular(coordinates.transpose(1, 2), weights, upper=True)
        weights = dual.transpose(1, 2) @ centred  # [E, N, D]
    else:
        weights = weights.transpose(1, 2)
    fit = LinearFit(weights, result[:, -1] - (weights @ mean.transpose(1, 2)).squeeze(-1), iterations, converged)
    stalled = ~converged & (iterations < max_iterations)
    if stalled.any():
        wide = fit_logistic(x[stalled].double(), labels[stalled], ways, C, max_iterations, tolerance)
        fit.weights[stalled], fit.intercept[stalled] = wide.weights.to(dtype), wide.intercept.to(dtype)
        iterations[stalled], converged[stalled] = wide.iterations, wide.converged
    return fit


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Sum over the last two axes, kept: [E, 1, 1]."""
    return (x * y).sum((1, 2), keepdim=True)


def _centre(x: Tensor) -> Tensor:
    """Subtract the mean over classes (a sum, because `mean` is slow on short axes)."""
    return x - x.sum(-1, keepdim=True) / x.shape[-1]


def _newton(design: Tensor, targets: Tensor, C: float, max_iterations: int,
            tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients [E, R + 1, N], iterations [E], converged [E] for design [E, S, R + 1] and targets [E, S, N]. In float32
    an episode also leaves, not converged, when its gradient does not halve in `_LOOK` steps."""
    episodes, _, width = design.shape
    result = design.new_zeros(episodes, width, targets.shape[-1])
    iterations = torch.full((episodes,), max_iterations, device=design.device)
    converged = torch.zeros(episodes, dtype=torch.bool, device=design.device)
    active = torch.arange(episodes, device=design.device)
    limit = tolerance * C * _dot(design, design).sub(design.shape[1] - 1).sqrt()
    earlier = torch.full_like(limit, torch.inf)

    inverse = _inverse_hessian(design, C / targets.shape[-1])
    weights, logits = result.clone(), torch.zeros_like(targets)
    for iteration in range(1, max_iterations + 1):
        probabilities = logits.softmax(-1)
        gradient = C * (design.transpose(1, 2) @ (probabilities - targets))
        gradient[:, :-1] += weights[:, :-1]
        size = _dot(gradient, gradient).sqrt()
        step, change = _newton_step(design, inverse, probabilities, gradient, C, rate=size / limit * tolerance)
        length = _step_length(weights, logits, step, change, targets, C, _dot(gradient, step))
        weights += length * step
        logits += length * change
        done = solved = (size <= limit).flatten()
        if design.dtype != torch.float64 and iteration % _LOOK == 0:
            done = solved | (size > earlier / 2).flatten()
            earlier = size
        if done.any():
            result[active[done]] = weights[done]
            iterations[active[done]] = iteration
            converged[active[solved]] = True
            keep = ~done
            active, design, inverse, targets, weights, logits, limit, earlier = (
                t[keep] for t in (active, design, inverse, targets, weights, logits, limit, earlier))
            if not len(active):
                break
    result[active] = weights
    return result, iterations, converged


def _inverse_hessian(design: Tensor, curvature: float) -> Tensor:
    """[E, R + 1, R + 1] inverse of curvature * design^T design + identity (0 for the intercept)."""
    hessian = curvature * (design.transpose(1, 2) @ design)
    hessian.diagonal(dim1=1, dim2=2)[:, :-1] += 1
    return torch.cholesky_inverse(torch.linalg.cholesky(hessian))


def _newton_step(design: Tensor, inverse: Tensor, probabilities: Tensor, gradient: Tensor, C: float,
                 rate: Tensor) -> tuple[Tensor, Tensor]:
    """The step [E, R + 1, N] and the change of the logits [E, S, N] it makes, by preconditioned conjugate gradients.

    rate [E, 1, 1] is the present gradient relative to its natural size. The residual is reduced by min(rate, 0.1): far
    from the optimum a rough step is enough, near it the steps become exact and convergence quadratic.
    """
    # Adding a constant to all classes changes nothing: without the projection, rounding errors in that direction of
    # zero curvature grow until they dominate.
    residual = _centre(-gradient)
    direction = inverse @ residual
    energy = _dot(residual, direction)
    target = energy * rate.clamp(torch.finfo(rate.dtype).eps ** 0.5, 0.1).square()
    running = energy > 0
    step, change = torch.zeros_like(gradient), torch.zeros_like(probabilities)
    for _ in range(gradient.shape[1] * gradient.shape[2]):
        image = design @ direction
        weighted = probabilities * image
        weighted -= probabilities * weighted.sum(-1, keepdim=True)
        product = C * (design.transpose(1, 2) @ weighted)
        product[:, :-1] += direction[:, :-1]
        length = torch.where(running, energy / _dot(direction, product), 0)
        step += length * direction
        change += length * image
        residual = _centre(residual - length * product)
        preconditioned = inverse @ residual
        previous, energy = energy, _dot(residual, preconditioned)
        running = running & (energy > target)
        if not running.any():
            break
        direction = preconditioned + torch.where(running, energy / previous, 0) * direction
    return step, change


def _step_length(weights: Tensor, logits: Tensor, step: Tensor, change: Tensor, targets: Tensor, C: float,
                 slope: Tensor) -> Tensor:
    """Length [E, 1, 1] of the step: 1, halved until the objective decreases as it should (Armijo)."""
    linear = _dot(weights[:, :-1], step[:, :-1])
    square = _dot(step[:, :-1], step[:, :-1])

    def loss(z: Tensor) -> Tensor:
        return C * (z.logsumexp(-1) - (z * targets).sum(-1)).sum(1)[:, None, None]

    start = loss(logits)
    # Near the optimum the true decrease is below the rounding error of the objective, whose terms are of this size.
    terms = C * (1 + logits.abs().amax(-1)).sum(1)[:, None, None] + _dot(weights[:, :-1], weights[:, :-1])
    slack = 10 * torch.finfo(logits.dtype).eps * terms
    length = torch.ones_like(start)
    for _ in range(30):
        increase = loss(logits + length * change) - start + length * linear + length.square() * square / 2
        bad = increase > 1e-4 * length * slope + slack
        if not bad.any():
            break
        length = torch.where(bad, length / 2, length)
    return length
