"""The M-step of Dirichlet mixtures: majorise-minimise iterations, most of which are leapt over where no gradient is
needed."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

CHECK = 50  # steps between two looks at the stopping rule
DAMPING = 8  # real steps after each leap
LEAP_ERROR = 2e-9  # largest estimated relative error of a leap
SAMPLES = (25, 32, 40, 50)  # steps whose changes the first leap extrapolates
ORDER = 5  # changes kept
_ELEMENTS = 1 << 15  # of the rows that take their steps together: a quarter of a MiB an array
GAUSS = 8  # quadrature points that stand for the steps of a leap


def dirichlet_mm(alpha: Tensor, mean_log: Tensor, steps: int = 1000, tolerance: float = 1e-11) -> tuple[Tensor, Tensor]:
    """Maximise the Dirichlet likelihood of each row by majorise-minimise, warm-started at alpha.

    alpha, mean_log [E, N, D]: parameters and mean log features. A step is a = (-b + sqrt(b^2 + 4c)) / (2c) with
    c = 2 (a psi(a+1) - lnGamma(a+1)) / a^2 and b = psi(a+1) - psi(sum a) - c a - mean_log; it never lowers the
    likelihood. Every 50 steps an episode stops when |da|^2 / |a|^2 < tolerance over its own parameters (the official
    code takes the norm over the batch). Returns (alpha [E, N, D], met [E] bool: stopped before `steps` ran out).

    The limit of 1000 steps is part of the published method, and a compact cluster is far from its maximum then: what is
    wanted is the 1000th iterate, not the maximum. Where no gradient is needed it is found with about a fifth of the steps
    (`_leaping`), to a relative error of about 1e-8.

    Gradients are those of the unrolled loop, computed without its graph: see `_DirichletMM`.
    """
    return _DirichletMM.apply(alpha, mean_log, steps, tolerance)


def _mm_terms(a: Tensor, mean_log: Tensor) -> tuple[Tensor, Tensor]:
    """b / 2 and c, in few operations: tensors are small here, and thousands of steps make each one count."""
    shifted = a + 1
    psi, curve = torch.digamma(shifted), torch.lgamma(shifted)
    curve.addcmul_(a, psi, value=-1).div_(a)  # -c a / 2
    half_b = curve.add(psi.sub_(torch.digamma(a.sum(-1, keepdim=True))).sub_(mean_log), alpha=0.5)
    # mean_log >= log(1e-15) keeps every parameter above about 0.02, so the limit of c at a = 0 is never needed.
    return half_b, curve.div_(a * -0.5)


def _mm_step(a: Tensor, mean_log: Tensor) -> Tensor:
    half_b, c = _mm_terms(a, mean_log)
    return torch.addcmul(c, half_b, half_b).sqrt_().sub_(half_b).div_(c)


def _advance(a: Tensor, mean_log: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Rows a [R, D] before the last of `steps` steps, and after it. Rows are independent, and so few of them at a time are
    taken that they stay in the cache from one step to the next."""
    size = max(1, _ELEMENTS // a.shape[1])
    if size < len(a):
        parts = [_advance(*part, steps) for part in zip(a.split(size), mean_log.split(size), strict=True)]
        return torch.cat([before for before, _ in parts]), torch.cat([after for _, after in parts])
    for _ in range(steps):
        before, a = a, _mm_step(a, mean_log)
    return before, a


def _leaping(alpha: Tensor, mean_log: Tensor, steps: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """The iterates of `steps` MM steps, of which those in the middle of each 50 are extrapolated.

    The Jacobian of a step is a diagonal (entries up to 1/2) plus a rank-one matrix, so all its eigenvalues but one are at
    most 1/2: after some twenty steps a row moves along a curve, slowly, its change per step close to an exponential in
    the step number. The changes at a few earlier steps give a polynomial in w = (exp(r t) - 1) / r, with r the row's
    present rate of decay; its sum over 42 steps is the leap, and 8 real steps damp what it stirs up (multirevolution
    methods; Petzold 1981, doi:10.1137/0718041). The changes of the last of them enter the next leap and the stopping
    rule. What the oldest samples add estimates the error; a row whose estimate exceeds 2e-9 takes real steps
    instead. Rows are judged one by one, so that an episode does not depend on its batch mates.
    """
    episodes, ways, _ = alpha.shape
    result, met = alpha.clone(), torch.zeros(episodes, dtype=torch.bool, device=alpha.device)
    alive = torch.arange(episodes, device=alpha.device)
    a, y = alpha.flatten(0, 1), mean_log.flatten(0, 1)  # [E N, D]
    times: list[int] = []
    changes: list[Tensor] = []
    taken = 0
    while True:
        length = min(CHECK if taken else CHECK + 1, steps - taken)
        skipped = length - DAMPING
        if not taken or skipped < GAUSS:
            skipped = 0
        else:
            a = _leap(a, y, taken, skipped, times, changes)
        step = taken + skipped
        for sample in SAMPLES[:-1]:
            if taken == 0 and sample < length:
                before, a = _advance(a, y, sample + 1 - step)
                times.append(sample)
                changes.append(a - before)
                step = sample + 1
        if step < taken + length:
            before, a = _advance(a, y, taken + length - step)
        taken += length
        change = a - before
        times, changes = [*times, taken - 1][-ORDER:], [*changes, change][-ORDER:]
        moving = change.square().view(len(alive), -1).sum(1) >= tolerance * before.square().view(len(alive), -1).sum(1)
        if taken >= steps or not moving.any():
            result[alive] = a.view(len(alive), ways, -1)
            met[alive] = ~moving & (taken % CHECK == 1)
            return result, met
        if not moving.all():
            stay = moving.repeat_interleave(ways)
            result[alive[~moving]] = a[~stay].view(-1, *alpha.shape[1:])
            met[alive[~moving]] = True
            alive, a, y, changes = alive[moving], a[stay], y[stay], [x[stay] for x in changes]


def _leap(a: Tensor, mean_log: Tensor, start: int, length: int, times: list[int], changes: list[Tensor]) -> Tensor:
    """Rows a [R, D] at step `start` moved on by `length` steps, from their changes [R, D] at earlier steps."""
    norms = [change.norm(dim=1) for change in changes[-2:]]
    rate = (norms[1] / norms[0]).log().div(times[-1] - times[-2]).nan_to_num(nan=-0.3).clamp(-0.3, -1e-7).unsqueeze(1)
    at = torch.tensor(times[::-1], dtype=rate.dtype, device=a.device) - start
    w = torch.expm1(rate * at) / rate  # [R, T], the newest sample first
    nodes, weights = _sum_rule(length)
    to = torch.expm1(rate * nodes.to(rate)) / rate  # [R, GAUSS]
    # Newton's form of the polynomial: each term is what one more sample adds.
    basis, divided, moved, terms = weights.to(rate).expand_as(to), changes[::-1], a, []
    for order in range(len(times)):
        terms.append(divided[0] * basis.sum(1, keepdim=True))
        moved = moved + terms[-1]
        basis = basis * (to - w[:, order : order + 1])
        spans = w[:, order + 1 :] - w[:, : len(times) - order - 1]
        divided = [(old - new) / spans[:, i : i + 1]
                   for i, (new, old) in enumerate(zip(divided, divided[1:], strict=False))]
    error = torch.maximum(terms[-1].abs(), terms[-2].abs() / 10)
    smooth = (error / a).amax(1) < LEAP_ERROR  # False for NaN
    if not smooth.all():
        rough = ~smooth
        moved[rough] = _advance(a[rough], mean_log[rough], length)[1]
    return moved


@functools.cache
def _sum_rule(length: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights with which a weighted sum of a smooth function stands for its sum over 0, 1, ..., length - 1:
    Gauss's rule for that discrete measure, from the recurrence of its polynomials (Golub and Welsch 1969)."""
    k = np.arange(1, GAUSS)
    side = np.sqrt(k**2 * (length**2 - k**2) / (4 * (4 * k**2 - 1.0)))
    nodes, vectors = np.linalg.eigh(np.diag(side, 1) + np.diag(side, -1))
    return torch.from_numpy(nodes + (length - 1) / 2), torch.from_numpy(length * vectors[0] ** 2)


class _DirichletMM(torch.autograd.Function):
    """The MM loop with the exact gradient of its unrolled steps.

    The Jacobian of a step is a diagonal plus a rank-one matrix in closed form, so the backward pass needs only the
    visited parameters; they are recomputed block by block from one checkpoint per 50 steps.
    """

    @staticmethod
    def forward(ctx: Any, alpha: Tensor, mean_log: Tensor, steps: int, tolerance: float) -> tuple[Tensor, Tensor]:
        if not any(ctx.needs_input_grad):
            result, met = _leaping(alpha, mean_log, steps, tolerance)
            ctx.mark_non_differentiable(met)
            return result, met
        result, met = alpha.clone(), torch.zeros(len(alpha), dtype=torch.bool, device=alpha.device)
        active, a, y = torch.arange(len(alpha), device=alpha.device), alpha, mean_log
        blocks, taken = [], 0
        while taken < steps and len(active):
            length = min(CHECK if taken else CHECK + 1, steps - taken)
            blocks.append((active, a, length))
            for _ in range(length):
                previous, a = a, _mm_step(a, y)
            taken += length
            result[active] = a
            if taken % CHECK == 1:
                change = (a - previous).square().sum((1, 2)) / previous.square().sum((1, 2))
                moving = change >= tolerance
                if not moving.all():
                    met[active[~moving]] = True
                    active, a, y = active[moving], a[moving], y[moving]
        ctx.blocks, ctx.mean_log = blocks, mean_log
        ctx.mark_non_differentiable(met)
        return result, met

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, of_met: None) -> tuple[Tensor, Tensor, None, None]:
        grad_alpha, grad_mean = grad.clone(), torch.zeros_like(grad)
        for active, a, length in reversed(ctx.blocks):
            y, visited = ctx.mean_log[active], [a]
            for _ in range(length):
                visited.append(_mm_step(visited[-1], y))
            a, new = torch.stack(visited[:-1]), torch.stack(visited[1:])  # [T, e, N, D]
            half_b, c = _mm_terms(a, y)
            root = 2 * (c * new + half_b)
            by_mean = new / root
            bend = torch.polygamma(1, a + 1) - c
            diagonal = bend * (by_mean + 2 * (1 / root - new) / (c * a))
            common = torch.polygamma(1, a.sum(-1, keepdim=True))
            g, total = grad_alpha[active], torch.zeros_like(y)
            for step in reversed(range(length)):
                weighted = by_mean[step] * g
                total += weighted
                g = diagonal[step] * g + common[step] * weighted.sum(-1, keepdim=True)
            grad_alpha[active] = g
            grad_mean[active] += total
        return grad_alpha, grad_mean, None, None
