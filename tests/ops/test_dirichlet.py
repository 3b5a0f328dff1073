"""Leaps over MM steps against the steps themselves; tests/ops/test_mixtures.py has the M-step and its gradient."""

from __future__ import annotations

import pytest
import torch

from fewshot.ops import dirichlet
from fewshot.ops.dirichlet import dirichlet_mm


def problem(total: float, episodes=3, ways=4, dim=5, items=40, seed=0):
    """Mean log features of samples from Dirichlets whose parameters sum to about `total`."""
    generator = torch.Generator().manual_seed(seed)
    alpha = torch.rand(episodes, ways, dim, generator=generator, dtype=torch.float64) + 0.1
    alpha *= total / alpha.sum(-1, keepdim=True)
    samples = torch._sample_dirichlet(alpha.unsqueeze(2).expand(-1, -1, items, -1).contiguous(), generator)
    return torch.ones_like(alpha), samples.clamp_min(1e-15).log().mean(2)


def every_step(start, mean_log, *options):
    """Where a gradient is asked for, no step is left out."""
    result, met = dirichlet_mm(start.clone().requires_grad_(), mean_log, *options)
    return result.detach(), met


@pytest.mark.parametrize("total", [1.0, 10.0, 60.0, 300.0, 1e5])
def test_leaps_find_the_same_iterate(total):
    start, mean_log = problem(total)
    for steps in (30, 51, 70, 405):
        found, met = dirichlet_mm(start, mean_log, steps)
        expected, expected_met = every_step(start, mean_log, steps)
        torch.testing.assert_close(found, expected, rtol=3e-8, atol=0)
        assert torch.equal(met, expected_met)
    warm = dirichlet_mm(expected, mean_log - 0.01, 405)[0]  # as in the next EM step
    torch.testing.assert_close(warm, every_step(expected, mean_log - 0.01, 405)[0], rtol=3e-8, atol=0)


def test_rows_of_all_kinds_in_one_batch_keep_their_answers(monkeypatch):
    parts = [problem(total, episodes=2) for total in (2.0, 40.0, 5000.0)]
    start, mean_log = (torch.cat(x) for x in zip(*parts, strict=True))
    together, met = dirichlet_mm(start, mean_log, 405)
    for e in range(len(start)):
        alone, alone_met = dirichlet_mm(start[e : e + 1], mean_log[e : e + 1], 405)
        torch.testing.assert_close(together[e : e + 1], alone, rtol=1e-10, atol=0)
        assert met[e] == alone_met[0]
    # A row that no polynomial fits takes every step.
    monkeypatch.setattr(dirichlet, "LEAP_ERROR", 0.0)
    expected, _ = every_step(start, mean_log, 205)
    torch.testing.assert_close(dirichlet_mm(start, mean_log, 205)[0], expected, rtol=1e-12, atol=0)


def test_most_steps_are_left_out(monkeypatch):
    """Of a warm start whose target hardly moves, as in all but the first EM steps."""
    start, mean_log = problem(5000.0)
    for _ in range(3):
        start, _ = dirichlet_mm(start, mean_log)
    rows, step = [], dirichlet._mm_step
    monkeypatch.setattr(dirichlet, "_mm_step", lambda a, y: (rows.append(len(a)), step(a, y))[1])
    dirichlet_mm(start, mean_log)
    assert sum(rows) < 0.35 * 1000 * 12


def test_sums_of_polynomials_are_exact():
    nodes, weights = dirichlet._sum_rule(42)
    t = torch.arange(42, dtype=torch.float64)
    for degree in range(2 * dirichlet.GAUSS):
        torch.testing.assert_close((weights * (nodes / 42) ** degree).sum(), ((t / 42) ** degree).sum(), rtol=1e-12, atol=0)
