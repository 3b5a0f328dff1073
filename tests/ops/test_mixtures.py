from __future__ import annotations

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.ops.dirichlet import dirichlet_mm
from fewshot.ops.mixtures import (
    GaussianStatistics,
    dirichlet_log_density,
    gaussian_em,
    simplex_features,
    without_denormals,
)


def dirichlet_problem(seed=0, episodes=3, ways=2, dim=4):
    generator = torch.Generator().manual_seed(seed)
    alpha = torch.rand(episodes, ways, dim, generator=generator, dtype=torch.float64) * 4 + 0.2
    alpha[1:] *= torch.tensor([8.0, 40.0], dtype=torch.float64)[:episodes - 1, None, None]
    samples = torch._sample_dirichlet(alpha.unsqueeze(2).expand(-1, -1, 30, -1).contiguous(), generator)
    return alpha, samples.log().mean(2)


def unrolled(alpha, mean_log, steps, tolerance):
    """One episode at a time, in plain operations that autograd can follow."""
    results, taken = [], []
    for a, y in zip(alpha, mean_log, strict=True):
        for step in range(steps):
            psi = torch.digamma(a + 1)
            c = 2 * (a * psi - torch.lgamma(a + 1)) / a**2
            b = psi - torch.digamma(a.sum(-1, keepdim=True)) - c * a - y
            old, a = a, (-b + (b**2 + 4 * c).sqrt()) / (2 * c)
            if step and step % 50 == 0 and (a - old).norm() ** 2 / old.norm() ** 2 < tolerance:
                break
        results.append(a)
        taken.append(step + 1)
    return torch.stack(results), taken


@pytest.mark.parametrize(("steps", "tolerance"), [(7, 0.0), (51, 0.0), (230, 1e-7)])
def test_mm_and_its_gradient_equal_the_unrolled_loop(steps, tolerance):
    start, mean_log = dirichlet_problem()
    start = torch.rand_like(start) + 0.5
    weights = torch.randn(start.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, expected = [], []
    for solve, into in ((dirichlet_mm, found), (unrolled, expected)):
        a, y = start.clone().requires_grad_(), mean_log.clone().requires_grad_()
        result, extra = solve(a, y, steps, tolerance)
        into += [result.detach(), *torch.autograd.grad((result * weights).sum(), (a, y)), extra]
    for x, y in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-12)
    if tolerance:
        assert len(set(expected[3])) > 1, "the episodes should stop at different steps"
        assert found[3].tolist() == [taken < steps for taken in expected[3]]


def test_mm_gradcheck():
    start, mean_log = dirichlet_problem()
    inputs = (torch.ones_like(start).requires_grad_(), mean_log.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, y: dirichlet_mm(a, y, 20, 0.0)[0], inputs)


def test_mm_never_lowers_the_likelihood_and_finds_its_maximum():
    alpha, mean_log = dirichlet_problem()

    def likelihood(a):
        return torch.lgamma(a.sum(-1)) - torch.lgamma(a).sum(-1) + ((a - 1) * mean_log).sum(-1)

    a, values = torch.ones_like(alpha), []
    for _ in range(40):
        values.append(likelihood(a))
        a, _ = dirichlet_mm(a, mean_log, 1)
    assert torch.stack(values).diff(dim=0).min() > -1e-12
    a, met = dirichlet_mm(a, mean_log, 100_000, 1e-26)
    assert met.all()
    # At the maximum psi(a) - psi(sum a) is the mean log feature.
    torch.testing.assert_close(torch.digamma(a) - torch.digamma(a.sum(-1, keepdim=True)), mean_log, atol=1e-9, rtol=0)


def test_density_is_that_of_torch():
    alpha, _ = dirichlet_problem()
    x = torch.rand(3, 6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64).softmax(-1)
    found = dirichlet_log_density(alpha, x.log())
    expected = torch.distributions.Dirichlet(alpha.unsqueeze(2)).log_prob(x.unsqueeze(1))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("queries", [6, 15])
def test_scores_are_distances_to_the_centroids_by_either_product(queries):
    generator = torch.Generator().manual_seed(3)
    query, sums = (torch.randn(2, n, 7, generator=generator, dtype=torch.float64) for n in (queries, 3))
    u = torch.rand(2, 3, queries, generator=generator, dtype=torch.float64).softmax(1)
    counts = torch.tensor([[1., 2, 4]] * 2)
    statistics = GaussianStatistics.of(query, sums, counts.double())
    w = (sums + u @ query) / (counts + u.sum(-1)).unsqueeze(-1)
    torch.testing.assert_close(statistics.scores(u), -(query[:, None] - w[:, :, None]).square().sum(-1) / 2)
    torch.testing.assert_close(statistics.scaled(torch.tensor(3.0)).scores(u), 9 * statistics.scores(u))
    alone = (sums / counts.unsqueeze(-1)).unsqueeze(2)
    torch.testing.assert_close(statistics.scores(None), -(query[:, None] - alone).square().sum(-1) / 2)


def test_probabilities_too_small_to_matter_are_zero():
    """Products with denormal numbers take a hundred times as long."""
    p = torch.tensor([[100.0, 70.0, 0.0]]).softmax(-1)
    assert p[0, 2] > 0
    assert torch.equal(without_denormals(p.clone()), torch.tensor([[1.0, p[0, 1], 0.0]]))


@pytest.mark.parametrize("queries", [5, 9])
def test_em_gradcheck(queries):
    generator = torch.Generator().manual_seed(4)
    query, sums = (torch.randn(2, n, 4, generator=generator, dtype=torch.float64) for n in (queries, 3))
    statistics = GaussianStatistics.of(query, sums, torch.ones(2, 3, dtype=torch.float64))

    def run(prior, temperature, factor):
        return gaussian_em(statistics.scaled(factor), prior, temperature)[0]

    values = (torch.rand(4, generator=generator, dtype=torch.float64) + shift for shift in (0.0, 1.0))
    inputs = [value.requires_grad_() for value in (*values, torch.tensor(0.7, dtype=torch.float64))]
    assert torch.autograd.gradcheck(run, inputs)


def simplex_episodes(dim=5):
    episodes = random_episodes(dim=dim)
    return episodes, episodes.with_features(lambda x: x.softmax(-1))


def test_probability_rows_are_recognised_per_episode():
    plain, rows = simplex_episodes()
    mixed = Episodes(torch.cat([plain.support, rows.support]), torch.cat([plain.support_labels, rows.support_labels]),
                     torch.cat([plain.query, rows.query]), 5)
    support, query = simplex_features(mixed, "auto")
    torch.testing.assert_close(query.sum(-1), torch.ones_like(query[..., 0]))
    assert torch.equal(support[3:], rows.support) and torch.equal(query[3:], rows.query)
    torch.testing.assert_close(query[:3], simplex_features(plain, "prototypes")[1])


def test_text_comes_before_prototypes():
    episodes = random_episodes(dim=8)
    text = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    with_text = Episodes(episodes.support, episodes.support_labels, episodes.query, 5, text=text)
    cosines = torch.nn.functional.cosine_similarity(episodes.query.unsqueeze(2), text.unsqueeze(1), dim=-1)
    torch.testing.assert_close(simplex_features(with_text, "auto")[1], (30 * cosines).softmax(-1))
    sharper = simplex_features(with_text, "text", torch.tensor(60.0))[1]
    # Rows made with 30 and sharpened by a learned 60 are the rows of 60.
    rows = episodes.with_features(lambda x: (30 * torch.nn.functional.cosine_similarity(
        x.unsqueeze(2), text.unsqueeze(1), dim=-1)).softmax(-1))
    torch.testing.assert_close(simplex_features(rows, "rows", torch.tensor(60.0))[1], sharper)


@pytest.mark.parametrize("simplex", ["rows", "cosines", "text"])
def test_a_choice_that_does_not_fit_raises(simplex):
    with pytest.raises(FewshotError, match="choose simplex"):
        simplex_features(random_episodes(dim=8), simplex)
