from __future__ import annotations

import numpy as np
import ot
import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.ops import transport
from fewshot.ops.transport import assignment, entropic_plan, query_marginals, sinkhorn, unbalanced_plan

SOLVERS = pytest.mark.parametrize("solver", [entropic_plan, sinkhorn])


def problems(episodes=4, queries=20, ways=4, seed=0, dtype=torch.float64):
    """Squared distances with one exact zero each, and uneven marginals of total 1."""
    generator = torch.Generator().manual_seed(seed)
    cost = torch.rand(episodes, queries, ways, generator=generator, dtype=torch.float64) * 2
    cost[:, 0, 0] = 0
    rows = torch.rand(episodes, queries, generator=generator, dtype=torch.float64) + 0.1
    cols = torch.rand(episodes, ways, generator=generator, dtype=torch.float64) + 0.1
    return cost.to(dtype), (rows / rows.sum(1, keepdim=True)).to(dtype), (cols / cols.sum(1, keepdim=True)).to(dtype)


def reference_inputs(folder):
    raw, stored = np.load(folder / "inputs_sinkhorn_75x5.npz"), np.load(folder / "pot_sinkhorn__sinkhorn_75x5.npz")
    return [torch.from_numpy(raw[key]) for key in ("cost", "row_marginals", "col_marginals")], raw["reg"], stored


def test_newton_agrees_with_stored_plans_of_pot(oracles):
    problem, regs, stored = reference_inputs(oracles)
    for i, reg in enumerate(regs):
        found = entropic_plan(*problem, float(reg), tolerance=1e-11)
        assert found.converged.all() and found.iterations.max() <= 25
        for key in ("plan_sinkhorn", "plan_sinkhorn_log"):
            np.testing.assert_allclose(found.plan.numpy(), stored[key][i], atol=1e-9, rtol=0)


@pytest.mark.slow
def test_sinkhorn_agrees_with_stored_plans_of_pot(oracles):
    problem, regs, stored = reference_inputs(oracles)
    for i, reg in enumerate(regs):
        found = sinkhorn(*problem, float(reg), tolerance=1e-13, max_iterations=20_000)
        assert found.converged.all()
        np.testing.assert_allclose(found.plan.numpy(), stored["plan_sinkhorn"][i], atol=1e-9, rtol=0)


@SOLVERS
@pytest.mark.parametrize("reg", [0.3, 0.05])
def test_agrees_with_pot(solver, reg):
    cost, rows, cols = problems()
    found = solver(cost, rows, cols, reg, tolerance=1e-12)
    assert found.converged.all()
    for e in range(len(cost)):
        for expected in (ot.sinkhorn(rows[e].numpy(), cols[e].numpy(), cost[e].numpy(), reg, stopThr=1e-13,
                                     numItermax=10_000),
                         ot.bregman.sinkhorn_log(rows[e].numpy(), cols[e].numpy(), cost[e].numpy(), reg, stopThr=1e-13,
                                                 numItermax=10_000)):
            np.testing.assert_allclose(found.plan[e].numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("reg", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_regularisation_neither_underflows_nor_stalls(reg, dtype):
    found = entropic_plan(*problems(episodes=8, queries=40, seed=1, dtype=dtype), reg)
    _, rows, cols = problems(episodes=8, queries=40, seed=1, dtype=dtype)
    assert found.converged.all() and torch.isfinite(found.plan).all()
    torch.testing.assert_close(found.plan.sum(1), cols, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.plan.sum(2), rows, atol=1e-6, rtol=0)


def test_plans_approach_unregularised_transport():
    cost, rows, cols = problems(episodes=2)
    plan = entropic_plan(cost, rows, cols, 1e-4).plan
    for e in range(2):
        best = ot.emd2(rows[e].numpy(), cols[e].numpy(), cost[e].numpy())
        assert best - 1e-7 <= float((plan[e] * cost[e]).sum()) < best + 1e-3


def test_linear_and_logarithmic_sinkhorn_follow_the_same_iterates(monkeypatch):
    problem = problems(seed=2)
    linear = sinkhorn(*problem, 0.05, 1e-10)
    monkeypatch.setattr("fewshot.ops.transport.LINEAR_RANGE", -1.0)
    logarithmic = sinkhorn(*problem, 0.05, 1e-10)
    assert torch.equal(linear.iterations, logarithmic.iterations)
    torch.testing.assert_close(linear.plan, logarithmic.plan, atol=1e-13, rtol=0)
    torch.testing.assert_close(linear.potentials, logarithmic.potentials, atol=1e-12, rtol=0)


@SOLVERS
def test_a_batch_of_easy_and_hopeless_ranges_stays_finite(solver):
    """Cost / reg up to 4e5 in one episode and 1 in another: exp(-cost / reg) underflows in the first."""
    cost, rows, cols = problems(episodes=3, dtype=torch.float32)
    cost = cost * torch.tensor([1.0, 100.0, 1e4])[:, None, None]
    found = solver(cost, rows, cols, 0.05, max_iterations=300)
    assert torch.isfinite(found.plan).all()
    alone = solver(cost[:1], rows[:1], cols[:1], 0.05, max_iterations=300)
    torch.testing.assert_close(found.plan[:1], alone.plan, atol=1e-7, rtol=0)
    assert found.converged[0] and found.iterations[0] == alone.iterations[0] < found.iterations[2]


@SOLVERS
def test_a_column_or_a_row_may_have_no_mass(solver):
    cost, rows, cols = problems()
    cols[:, 2] = 0
    rows[:, 5] = 0
    rows, cols = rows / rows.sum(1, keepdim=True), cols / cols.sum(1, keepdim=True)
    found = solver(cost, rows, cols, 0.05, tolerance=1e-11)
    assert found.converged.all() and (found.plan[:, :, 2] == 0).all() and (found.plan[:, 5] == 0).all()
    kept = [0, 1, 3]
    smaller = solver(cost[:, :, kept], rows, cols[:, kept], 0.05, tolerance=1e-11)
    torch.testing.assert_close(found.plan[:, :, kept], smaller.plan, atol=1e-9, rtol=0)


def test_large_regularisation_gives_the_product_of_the_marginals():
    cost, rows, cols = problems()
    product = rows.unsqueeze(2) * cols.unsqueeze(1)
    torch.testing.assert_close(entropic_plan(cost, rows, cols, 1e6).plan, product, atol=1e-6, rtol=0)


@SOLVERS
def test_too_few_iterations_are_reported(solver):
    found = solver(*problems(), 0.01, tolerance=1e-12, max_iterations=2)
    assert not found.converged.any() and (found.iterations == 2).all() and torch.isfinite(found.plan).all()


def test_a_good_start_saves_steps():
    cost, rows, cols = problems()
    cold = entropic_plan(cost, rows, cols, 0.02)
    warm = entropic_plan(cost * 1.01, rows, cols, 0.02, start=cold)
    assert (warm.iterations < cold.iterations).all() and warm.converged.all()


def test_inputs_stay_and_many_classes_work():
    cost, rows, cols = problems(episodes=2, queries=30, ways=100)
    before = cost.clone(), rows.clone(), cols.clone()
    found = entropic_plan(cost, rows, cols, 0.02)
    assert found.converged.all()
    assert all(torch.equal(a, b) for a, b in zip(before, (cost, rows, cols), strict=True))


def test_query_marginals_and_free_columns():
    cost = problems()[0]
    assert torch.equal(query_marginals("balanced", cost), torch.full((4, 4), 5.0, dtype=torch.float64))
    assert query_marginals((1, 0, 2, 1), cost)[0].tolist() == [5, 0, 10, 5]
    torch.testing.assert_close(assignment(cost, 0.1, "unknown").plan, (-cost / 0.1).softmax(-1))
    torch.testing.assert_close(assignment(cost, 0.1, "balanced").plan.sum(1), query_marginals("balanced", cost))


def test_the_costs_of_a_single_query_decide():
    cost = torch.tensor([[[0.3, 0.1, 0.2]]], dtype=torch.float64)
    torch.testing.assert_close(assignment(cost, 0.1, "balanced").plan, (-cost / 0.1).softmax(-1))
    prior = torch.tensor([0.5, 0.0, 0.5])
    assert assignment(cost, 0.1, prior).plan[0, 0, 1] == 0
    torch.testing.assert_close(assignment(cost, 0.1, (2, 1, 1)).plan, (torch.tensor([2, 1, 1]) * (-cost / 0.1).exp()) /
                               (torch.tensor([2, 1, 1]) * (-cost / 0.1).exp()).sum())
    with pytest.raises(FewshotError, match="query_prior='even'"):
        assignment(cost, 0.1, "even")


@pytest.mark.parametrize(("row_weight", "col_weight"), [(0.3, 0.1), (0.05, 2.0), (np.inf, 0.5), (0.5, np.inf), (0.2, 0.0)])
def test_unbalanced_plans_agree_with_pot(row_weight, col_weight):
    cost, rows, cols = problems()
    cols = 1.5 * cols  # the totals may differ
    found = unbalanced_plan(cost, rows, cols, 0.05, row_weight, col_weight, tolerance=1e-13)
    assert found.converged.all() and found.plan.shape == cost.shape
    for e in range(len(cost)):
        expected = ot.unbalanced.sinkhorn_unbalanced(rows[e].numpy(), cols[e].numpy(), cost[e].numpy(), 0.05,
                                                     (row_weight, col_weight), reg_type="entropy", stopThr=1e-14,
                                                     numItermax=20_000)
        np.testing.assert_allclose(found.plan[e].numpy(), expected, atol=1e-10)


def test_an_unbalanced_plan_is_a_minimum():
    """Of the objective in the docstring: no other plan near it is better."""
    cost, rows, cols = problems(episodes=1)
    reg, of_row, of_col = 0.1, 0.4, 0.2

    def objective(plan):
        def kl(x, m):
            return (x * (x / m).log() - x + m).sum()

        return ((plan * cost).sum() + reg * (plan * (plan.log() - 1)).sum() + of_row * kl(plan.sum(2), rows)
                + of_col * kl(plan.sum(1), cols))

    plan = unbalanced_plan(cost, rows, cols, reg, of_row, of_col, tolerance=1e-13).plan.requires_grad_()
    slope, = torch.autograd.grad(objective(plan), plan)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-10, rtol=0)


def test_unbalanced_plans_from_free_to_balanced_sums():
    cost, rows, cols = problems()
    free = unbalanced_plan(cost, rows, cols, 0.1, col_weight=0.0)
    torch.testing.assert_close(free.plan, torch.softmax(-cost / 0.1, 2) * rows.unsqueeze(2), atol=1e-12, rtol=0)
    balanced = entropic_plan(cost, rows, cols, 0.1).plan
    away = [float((unbalanced_plan(cost, rows, cols, 0.1, col_weight=weight).plan - balanced).abs().max())
            for weight in (2.0, 20.0)]
    assert 12 * away[1] > away[0] > 8 * away[1]  # as 1 / weight


def test_unbalanced_episodes_do_not_see_each_other():
    """Each stops by itself, and a good start saves steps; far costs neither underflow nor are they followed."""
    cost, rows, cols = problems()
    cost[1] *= 20
    cost[2, 5] += 1e4  # a row far from everything
    cols[3, 0] = 0
    found = unbalanced_plan(cost, rows, cols, 0.02, 0.3, 0.3)
    assert found.converged.all() and found.plan.isfinite().all() and len(set(found.iterations.tolist())) > 1
    for e in range(4):
        alone = unbalanced_plan(cost[e : e + 1], rows[e : e + 1], cols[e : e + 1], 0.02, 0.3, 0.3)
        assert alone.iterations == found.iterations[e]
        torch.testing.assert_close(alone.plan[0], found.plan[e], atol=1e-14, rtol=0)
    assert found.plan[2, 5].sum() == 0 and found.plan[3, :, 0].sum() == 0
    again = unbalanced_plan(cost, rows, cols, 0.02, 0.3, 0.3, start=found)
    assert (again.iterations <= 2).all()
    assert not unbalanced_plan(cost, rows, cols, 0.02, 0.3, 0.3, max_iterations=2).converged.any()


def test_mistakes_of_unbalanced_transport_are_named():
    cost, rows, cols = problems()
    for weights, message in [((np.inf, np.inf), "entropic_plan"), ((-1, 1), "row_weight=-1"), ((1, np.nan), "col_weight")]:
        with pytest.raises(FewshotError, match=message):
            unbalanced_plan(cost, rows, cols, 0.1, *weights)
    with pytest.raises(FewshotError, match="non-negative with positive sums"):
        unbalanced_plan(cost, rows, -cols, 0.1, 1, 1)


def test_mistakes_are_named():
    cost, rows, cols = problems()
    with pytest.raises(FewshotError, match="reg=0"):
        entropic_plan(cost, rows, cols, 0)
    with pytest.raises(FewshotError, match="expected"):
        sinkhorn(cost, cols, rows, 0.1)
    with pytest.raises(FewshotError, match="equal, positive sums"):
        entropic_plan(cost, rows, cols * 2, 0.1)
    with pytest.raises(FewshotError, match="stop='never'"):
        sinkhorn(cost, rows, cols, 0.1, stop="never")
    for prior in ("even", (1, 1), (1, -1, 1, 1), (0, 0, 0, 0)):
        with pytest.raises(FewshotError, match="query_prior"):
            query_marginals(prior, cost)


@pytest.fixture
def many(monkeypatch):
    """Few classes are solved as many are."""
    monkeypatch.setattr("fewshot.ops.transport._MANY", 2)


@pytest.mark.parametrize("reg", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_plans_of_many_classes_are_those_of_few(monkeypatch, reg, spread):
    """Kept factors change the way to the plan, not the plan."""
    generator = torch.Generator().manual_seed(0)
    cost = spread * torch.rand(3, 120, 30, generator=generator)
    rows, cols = torch.ones(3, 120), torch.full((3, 30), 4.0)
    cols[1, :2] = torch.tensor([0.0, 8.0])
    wanted = entropic_plan(cost.double(), rows, cols, reg, tolerance=1e-11)
    monkeypatch.setattr("fewshot.ops.transport._MANY", 2)
    found = entropic_plan(cost, rows, cols, reg, tolerance=1e-11)
    assert found.converged.all() and found.plan.dtype == torch.float32
    torch.testing.assert_close(found.plan, wanted.plan.float(), atol=1e-7, rtol=0)
    torch.testing.assert_close(found.plan.sum(1), cols, atol=1e-5, rtol=0)
    alone = entropic_plan(cost[1:2], rows[1:2], cols[1:2], reg, tolerance=1e-11)
    assert alone.iterations[0] == found.iterations[1]
    torch.testing.assert_close(alone.plan[0], found.plan[1], atol=1e-7, rtol=0)


def test_kept_factors_save_hessians_and_those_of_another_problem_do_no_harm(many, monkeypatch):
    made = []
    hessian = transport._hessian
    monkeypatch.setattr("fewshot.ops.transport._hessian", lambda mass, *rest: made.append(len(mass)) or hessian(mass, *rest))
    cost, rows, cols = problems(queries=60, ways=10)
    cold = entropic_plan(cost, rows, cols, 0.05)
    assert 0 < sum(made) < int(cold.iterations.sum()), "not every step makes one"
    before = [x.clone() for x in (cold.potentials, *cold.factors)]
    made.clear()
    warm = entropic_plan(cost * 1.001, rows, cols, 0.05, start=cold)
    assert warm.converged.all() and sum(made) == 0
    other = entropic_plan(problems(queries=60, ways=10, seed=1)[0], rows, cols, 0.05, start=cold)
    torch.testing.assert_close(other.plan, entropic_plan(problems(queries=60, ways=10, seed=1)[0], rows, cols, 0.05).plan,
                               atol=1e-8, rtol=0)
    assert sum(made) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, (cold.potentials, *cold.factors), strict=True))


def test_a_start_that_needed_no_step_has_factors_that_can_be_used(many):
    cost, rows, cols = problems(ways=6)
    flat = entropic_plan(torch.zeros_like(cost), rows, torch.full_like(cols, 1 / 6), 0.05)
    assert (flat.iterations == 0).all()
    found = entropic_plan(cost, rows, cols, 0.05, start=flat)
    assert found.converged.all()
    torch.testing.assert_close(found.plan, entropic_plan(cost, rows, cols, 0.05).plan, atol=1e-8, rtol=0)


@pytest.mark.parametrize("reg", [1e-2, 1e-3, 1e-4])
def test_many_classes_converge_at_small_regularisation(many, reg):
    cost, rows, cols = problems(episodes=8, queries=40, seed=1, dtype=torch.float32)
    found = entropic_plan(cost, rows, cols, reg)
    assert found.converged.all()
    torch.testing.assert_close(found.plan.sum(1), cols, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_a_thousand_clear_classes_converge_in_few_steps():
    """Nearly hard plans, whose column sums are known only as well as the precision of the exponentials allows."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(1, 1000, 32, generator=generator).relu()
    points = (centres.repeat(1, 2, 1) + 0.3 * torch.randn(1, 2000, 32, generator=generator)).relu()
    cost = torch.cdist(points / points.norm(dim=-1, keepdim=True), centres / centres.norm(dim=-1, keepdim=True)).square()
    found = entropic_plan(cost, torch.ones(1, 2000), torch.full((1, 1000), 2.0), 0.1)
    assert found.converged.all() and found.iterations.max() < 20
