"""Entropic optimal transport between Q points and N classes, batched over episodes.

Both solvers look for the plan minimising <plan, cost> - reg * entropy(plan) with given row and column sums. The plan
has the form exp((f_q + g_n - cost_qn) / reg). They compute in float64 whatever the input (the potentials span many
orders of magnitude, and the arrays are small), and treat each episode alone: it stops by its own residual and is then
removed from the batch, so its plan does not depend on its batch mates.

POT's batch solvers (ot.batch.solve_batch, bregman_log_projection_batch; 0.9.7) were checked and are not used: they stop
when the worst item of the batch has converged (every tenth iteration), so an item's plan depends on the others, and
they return one iteration count and no flag per item. The single-problem solvers of POT are the reference in the tests,
which alone need it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fewshot.core.checked import check_at_least, check_choice
from fewshot.core.errors import FewshotError

LINEAR_RANGE = 200.0  # exp(+-3 * 200) is still finite in float64
_MANY = 256  # classes from which on a Hessian costs so much more than a plan that its factors serve several steps
STOPS = ("marginal", "row_sums", "potentials")


class Transport(NamedTuple):
    """plan [E, Q, N] in the dtype of the cost, iterations [E] int64, converged [E], potentials g [E, N] float64; with many
    classes also the factors (LU [E, N, N], pivots [E, N]) of the Hessians at the end, for the start of a similar problem."""

    plan: Tensor
    iterations: Tensor
    converged: Tensor
    potentials: Tensor
    factors: tuple[Tensor, Tensor] | None = None


@torch.no_grad()
def entropic_plan(cost: Tensor, row_marginals: Tensor, col_marginals: Tensor, reg: float, tolerance: float = 1e-9,
                  max_iterations: int = 200, start: Transport | None = None) -> Transport:
    """The limit of Sinkhorn's iteration, found by Newton steps on the N column potentials.

    cost [E, Q, N], row_marginals [E, Q], col_marginals [E, N] (equal totals; zeros allowed), reg > 0. Given g, the best
    f has a closed form (a softmax over N); what is left is convex and smooth in g, with gradient column sums minus
    col_marginals. A handful of N x N solves then replaces the hundreds to tens of thousands of matrix scalings that
    Sinkhorn needs at small reg. Row sums of the plan are exact; an episode has converged when no column sum is off by
    more than `tolerance` times the total mass. `start`: what was found for a similar problem, to begin from.

    Damping: the objective is generalised self-concordant (its third derivative along d is at most range(d) / reg times
    the second), for which the step log(1 + s) / s with s = range(d) / reg decreases it without a line search
    (Sun and Tran-Dinh 2019, arXiv:1703.04599). A cold start at small reg begins with a larger one and lowers
    it by 4 each time the columns are roughly right.

    A Hessian takes Q N^2 products, a plan Q N exponentials. With many classes a step therefore keeps the factors of an
    earlier Hessian, that of `start` at first, as long as every step leaves at most a fifth of the residual and moves the
    potentials little: that property also bounds by how much a Hessian changes then (by exp(s)), and with it the error.
    """
    rows, cols = _checked(cost, row_marginals, col_marginals, reg)
    total = rows.sum(-1, keepdim=True)
    cols = cols * (total / cols.sum(-1, keepdim=True))
    episodes, queries, ways = cost.shape
    many = ways >= _MANY
    scores = -cost.double()
    scores = (scores - scores.amax(2, keepdim=True)).masked_fill((cols == 0).unsqueeze(1), -torch.inf)
    # [E, N, Q] in any case; in memory the longer axis comes last, which is several times faster for a softmax over classes.
    scores = scores.contiguous().transpose(1, 2) if many else scores.transpose(1, 2).contiguous()
    g = torch.zeros_like(cols) if start is None else start.potentials.double().clone()
    level = torch.full_like(total, reg)
    if start is None:
        low, high = cost.double().flatten(1).aminmax(dim=1)
        level = ((high - low).unsqueeze(1) / 20).clamp_min(reg)  # [E, 1]
    scores = scores.div_(level.unsqueeze(-1))
    factors, before = None, torch.zeros_like(total)  # the residual before the last step; 0: the factors are not to be used
    if many and start is not None and start.factors is not None:
        factors, before = (start.factors[0].clone(), start.factors[1].clone()), torch.full_like(total, torch.inf)
    elif many:  # those of the identity
        pivots = torch.arange(1, ways + 1, dtype=torch.int32, device=cost.device)
        factors = torch.diag_embed(torch.ones_like(cols)), pivots.repeat(episodes, 1)
    result = Transport(torch.empty_like(scores), torch.full((episodes,), max_iterations, device=cost.device),
                       torch.zeros(episodes, dtype=torch.bool, device=cost.device), torch.empty_like(g), factors)
    alive = torch.arange(episodes, device=cost.device)
    rows = rows.unsqueeze(1)  # [E, 1, Q]
    for step in range(max_iterations + 1):
        exponents = scores + (g / level).unsqueeze(-1)
        if many:  # each pass over an array of that size counts
            share = torch.softmax(exponents.transpose(1, 2), 2).transpose(1, 2)  # [E, N, Q]
            sums = (share @ rows.transpose(1, 2)).squeeze(-1)  # [E, N]
        else:
            share = torch.softmax(exponents, 1)
            sums = (mass := share * rows).sum(-1)
        gap = cols - sums
        residual = gap.abs().amax(-1, keepdim=True) / total
        done = ((residual <= tolerance) & (level <= reg)).squeeze(1)
        last = step == max_iterations
        if last or bool(done.any()):
            leave = torch.ones_like(done) if last else done
            gone = alive[leave]
            result.plan[gone] = share[leave].mul_(rows[leave]) if many else mass[leave]
            result.potentials[gone], result.converged[gone], result.iterations[gone] = g[leave], done[leave], step
            if bool(leave.all()):
                break
            stay = ~leave
            alive, scores, rows, cols, total, g, level, before, share, sums, gap, residual = (
                x[stay] for x in (alive, scores, rows, cols, total, g, level, before, share, sums, gap, residual))
            if not many:
                mass = mass[stay]
        if factors is None:
            direction = torch.linalg.solve_ex(_hessian(mass, share, sums, total), gap.unsqueeze(-1)).result
        else:
            stale = (residual > 0.2 * before).squeeze(1)
            if bool(stale.any()):
                mass = share[stale] * rows[stale]
                made = torch.linalg.lu_factor_ex(_hessian(mass, share[stale], sums[stale], total[stale]))
                for kept, new in zip(factors, made, strict=False):
                    kept[alive[stale]] = new
            lu, pivots = factors if len(alive) == episodes else (factors[0][alive], factors[1][alive])
            direction = torch.linalg.lu_solve(lu, pivots, gap.unsqueeze(-1))
        direction = direction.squeeze(-1).masked_fill(cols == 0, 0)
        size = (direction.amax(-1, keepdim=True) - direction.amin(-1, keepdim=True)).clamp_min(1e-300)
        g = g + level * direction * (torch.log1p(size) / size)
        lower = torch.where(residual < 0.05, (level / 4).clamp_min(reg), level)
        before = residual.masked_fill((size > 0.5) | (lower < level), 0)
        if bool((lower < level).any()):
            scores, level = scores * (level / lower).unsqueeze(-1), lower
    return result._replace(plan=result.plan.transpose(1, 2).to(cost.dtype))


def _hessian(mass: Tensor, share: Tensor, sums: Tensor, total: Tensor) -> Tensor:
    """Second derivatives [E, N, N] with respect to the column potentials, times the regularisation."""
    hessian = torch.diag_embed(sums + 1e-14 * total) - mass @ share.transpose(1, 2)
    # Potentials are determined up to a constant: fixing that direction makes the matrix invertible.
    return hessian.add_((total / sums.shape[1] ** 2).unsqueeze(-1))


@torch.no_grad()
def sinkhorn(cost: Tensor, row_marginals: Tensor, col_marginals: Tensor, reg: float, tolerance: float = 1e-9,
             max_iterations: int = 10_000, stop: str = "marginal") -> Transport:
    """Sinkhorn's alternating scaling, rows first and columns last, with its own stopping rule for every episode.

    Shapes as in `entropic_plan`, which is the faster way to the converged plan; this function exists for algorithms
    that are defined by an early stop. Column sums of the plan are exact, and an iteration scales rows and columns once.

    stop   "marginal"    max_q |row sum - row_marginals| <= tolerance
           "row_sums"    max_q |row sum - row sum of the previous iteration| <= tolerance (PT-MAP's code)
           "potentials"  sum_q |f - f of the previous iteration| < tolerance (OpTA's code)

    The kernel exp(-cost / reg) is first scaled so that each row and column has an entry of 1. Episodes whose smallest
    entry then stays above exp(-200) are iterated as matrix-vector products, the others by logarithms (ten times slower,
    no underflow). Both follow the same iterates.
    """
    check_choice(STOPS, stop=stop)
    rows, cols = _checked(cost, row_marginals, col_marginals, reg)
    log_kernel = -cost.double() / reg
    log_kernel = log_kernel - log_kernel.amax(2, keepdim=True)
    shift = log_kernel.amax(1)  # [E, N]
    log_kernel = (log_kernel - shift.unsqueeze(1)).contiguous()
    episodes = len(cost)
    result = Transport(torch.empty_like(log_kernel), torch.full((episodes,), max_iterations, device=cost.device),
                       torch.zeros(episodes, dtype=torch.bool, device=cost.device), torch.empty_like(cols))
    small = log_kernel.flatten(1).amin(1) >= -LINEAR_RANGE
    for linear, which in ((True, small.nonzero().squeeze(1)), (False, (~small).nonzero().squeeze(1))):
        if len(which):
            _alternate(log_kernel[which], rows[which], cols[which], shift[which], which, result, linear,
                       tolerance / reg if stop == "potentials" else tolerance, max_iterations, stop)
    return result._replace(plan=result.plan.to(cost.dtype), potentials=reg * (result.potentials - shift))


def _alternate(log_kernel: Tensor, rows: Tensor, cols: Tensor, log_b: Tensor, alive: Tensor, result: Transport,
               linear: bool, tolerance: float, max_iterations: int, stop: str) -> None:
    """Iterate plan = exp(log_a) * kernel * exp(log_b) and write episode alive[i] of `result` when item i stops."""
    kernel = log_kernel.exp() if linear else log_kernel
    empty = rows == 0
    log_rows, log_cols = rows.log(), cols.log()
    log_a, sums = torch.full_like(rows, torch.inf), torch.full_like(rows, torch.inf)
    reach = _log_products(kernel, log_b, linear, 2)  # [E, Q]
    for step in range(1, max_iterations + 1):
        before = log_a, sums
        log_a = log_rows - reach
        log_b = log_cols - _log_products(kernel, log_a, linear, 1)
        reach = _log_products(kernel, log_b, linear, 2)
        sums = (log_a + reach).exp()
        if stop == "marginal":
            done = (sums - rows).abs().amax(1) <= tolerance
        elif stop == "row_sums":
            done = (sums - before[1]).abs().amax(1) <= tolerance
        else:
            done = (log_a - before[0]).masked_fill(empty, 0).abs().sum(1) < tolerance
        last = step == max_iterations
        if last or bool(done.any()):
            leave = torch.ones_like(done) if last else done
            gone = alive[leave]
            scale = log_a[leave].unsqueeze(2) + log_b[leave].unsqueeze(1)
            result.plan[gone] = scale.exp() * kernel[leave] if linear else (scale + kernel[leave]).exp()
            result.potentials[gone], result.converged[gone], result.iterations[gone] = log_b[leave], done[leave], step
            if bool(leave.all()):
                return
            stay = ~leave
            kernel, rows, empty, log_rows, log_cols, log_a, log_b, sums, reach, alive = (
                x[stay] for x in (kernel, rows, empty, log_rows, log_cols, log_a, log_b, sums, reach, alive))


def _log_products(kernel: Tensor, log_weights: Tensor, linear: bool, dim: int) -> Tensor:
    """log of the sum over axis `dim` of kernel [E, Q, N] times exp(log_weights); unless `linear`, `kernel` is a log."""
    weights = log_weights.unsqueeze(3 - dim)
    if linear:
        return (kernel * weights.exp()).sum(dim).log()
    exponents = kernel + weights
    peak = exponents.amax(dim, keepdim=True)
    return (exponents - peak).exp_().sum(dim).log_() + peak.squeeze(dim)


@torch.no_grad()
def unbalanced_plan(cost: Tensor, row_marginals: Tensor, col_marginals: Tensor, reg: float, row_weight: float = math.inf,
                    col_weight: float = math.inf, tolerance: float = 1e-9, max_iterations: int = 5000,
                    start: Transport | None = None) -> Transport:
    """Transport whose row and column sums may differ from the marginals, and pay for it: the plan P minimising

        <P, cost> + reg sum P (log P - 1) + row_weight KL(row sums | rows) + col_weight KL(column sums | cols)

    for the marginals `rows` and `cols`, with KL(x | m) = sum x log(x / m) - x + m. A row that is far from every column then
    has little mass.

    Shapes as in `entropic_plan`; totals may differ. A weight is infinite for sums that are as given, and 0 for free ones;
    one of them must be finite. Sinkhorn's iteration with its steps shortened by weight / (weight + reg), in logarithms
    (Chizat et al. 2018, arXiv:1607.05816, algorithm 1 and section 4), which converges by the product of both factors a
    step. An episode has converged when no column's log scaling changes by more than `tolerance`. `start`: what was found
    for a similar problem.
    """
    rows, cols = _checked(cost, row_marginals, col_marginals, reg, balanced=False)
    check_at_least(0, row_weight=row_weight, col_weight=col_weight)
    if math.isinf(row_weight) and math.isinf(col_weight):
        raise FewshotError("row_weight and col_weight are both infinite, which is balanced transport; give one a number, or "
                           "use entropic_plan")
    of_row, of_col = (1.0 if math.isinf(weight) else weight / (weight + reg) for weight in (row_weight, col_weight))
    kernel = (-cost.double() / reg).transpose(1, 2).contiguous()  # [E, N, Q]: sums over classes are faster so
    log_rows, log_cols = rows.log(), cols.log()
    g = torch.zeros_like(cols) if start is None else start.potentials.double() / reg
    result = Transport(torch.empty_like(kernel), torch.full((len(cost),), max_iterations, device=cost.device),
                       torch.zeros(len(cost), dtype=torch.bool, device=cost.device), torch.empty_like(g))
    alive = torch.arange(len(cost), device=cost.device)
    for step in range(1, max_iterations + 1):
        f = of_row * (log_rows - torch.logsumexp(kernel + g.unsqueeze(2), 1))  # [E, Q]
        before, g = g, of_col * (log_cols - torch.logsumexp(kernel + f.unsqueeze(1), 2))
        # A column without mass is at minus infinity from the first step on, which is no change.
        done = (g - before).nan_to_num(nan=0.0).abs().amax(1) <= tolerance
        last = step == max_iterations
        if last or bool(done.any()):
            leave = torch.ones_like(done) if last else done
            gone, stay = alive[leave], ~leave
            result.plan[gone] = (kernel[leave] + f[leave].unsqueeze(1) + g[leave].unsqueeze(2)).exp()
            result.potentials[gone], result.converged[gone], result.iterations[gone] = reg * g[leave], done[leave], step
            if bool(leave.all()):
                break
            kernel, log_rows, log_cols, g, alive = (x[stay] for x in (kernel, log_rows, log_cols, g, alive))
    return result._replace(plan=result.plan.transpose(1, 2).to(cost.dtype))


def _checked(cost: Tensor, rows: Tensor, cols: Tensor, reg: float, balanced: bool = True) -> tuple[Tensor, Tensor]:
    if not reg > 0:
        raise FewshotError(f"reg={reg}; entropic transport needs reg > 0 (unregularised transport: ot.emd)")
    if rows.shape != cost.shape[:2] or cols.shape != (cost.shape[0], cost.shape[2]):
        raise FewshotError(f"cost {tuple(cost.shape)}, row_marginals {tuple(rows.shape)} and col_marginals "
                           f"{tuple(cols.shape)}; expected [E, Q, N], [E, Q] and [E, N]")
    rows, cols = rows.double(), cols.double()
    supply, demand = rows.sum(-1), cols.sum(-1)
    wrong = (rows < 0).any(-1) | (cols < 0).any(-1) | (supply <= 0) | (demand <= 0)
    if balanced:
        wrong |= (supply - demand).abs() > 1e-3 * supply
    if bool(wrong.any()):
        episode = int(wrong.nonzero()[0])
        sums = "equal, positive sums" if balanced else "positive sums"
        raise FewshotError(f"marginals of episode {episode} sum to {float(supply[episode]):g} (rows) and "
                           f"{float(demand[episode]):g} (columns); they must be non-negative with {sums}")
    return rows, cols


def query_marginals(query_prior: str | Tensor | tuple[float, ...], cost: Tensor) -> Tensor:
    """Expected number of queries of each class [E, N] float64 for a prior that is "balanced" or N class frequencies
    (any positive scale; a class may have 0), given cost [E, Q, N]."""
    episodes, queries, ways = cost.shape
    if isinstance(query_prior, str):
        if query_prior != "balanced":
            raise FewshotError(f"query_prior={query_prior!r}; choose 'balanced' or 'unknown', or give N frequencies")
        prior = torch.ones(ways, dtype=torch.float64, device=cost.device)
    else:
        prior = torch.as_tensor(query_prior, dtype=torch.float64, device=cost.device)
    if prior.shape != (ways,) or bool((prior < 0).any()) or not 0 < float(prior.sum()) < float("inf"):
        raise FewshotError(f"query_prior={query_prior!r}; with {ways} ways it needs {ways} non-negative frequencies")
    return (prior / prior.sum() * queries).expand(episodes, ways)


def assumed_queries(query_prior: str | Tensor | tuple[float, ...]) -> tuple[str, ...]:
    """What a method with this `query_prior` assumes, for tables."""
    if not isinstance(query_prior, str):
        return ("known class frequencies of the queries",)
    return ("balanced queries",) if query_prior == "balanced" else ()


def free_columns(cost: Tensor, query_prior: str | Tensor | tuple[float, ...]) -> bool:
    """Whether `assignment` leaves the column sums free: with an unknown prior, and for a single query."""
    return cost.shape[1] == 1 or (isinstance(query_prior, str) and query_prior == "unknown")


def assignment(cost: Tensor, reg: float, query_prior: str | Tensor | tuple[float, ...],
               start: Transport | None = None) -> Transport:
    """Soft assignment of queries to classes, rows summing to 1, from cost [E, Q, N].

    With query_prior="unknown" the columns are free and the plan is softmax(-cost / reg) over N; otherwise it is the
    `entropic_plan` whose column sums are `query_marginals`. Both sums of a single query would leave its plan no choice but
    the prior, whatever the costs: it is the softmax of log prior - cost / reg instead.
    """
    if free_columns(cost, query_prior):
        steps = torch.zeros(len(cost), dtype=torch.int64, device=cost.device)
        free = torch.zeros(len(cost), cost.shape[2], dtype=torch.float64, device=cost.device)
        scores = -cost / reg
        if not isinstance(query_prior, str) or query_prior != "unknown":
            scores = scores + query_marginals(query_prior, cost).log().to(cost.dtype).unsqueeze(1)
        return Transport(torch.softmax(scores, dim=-1), steps, steps == 0, free)
    return entropic_plan(cost, cost.new_ones(cost.shape[:2]), query_marginals(query_prior, cost), reg, start=start)
