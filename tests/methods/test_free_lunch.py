from __future__ import annotations

import numpy as np
import pytest
import sklearn.linear_model
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.episodes.types import Episodes
from fewshot.methods.free_lunch import FreeLunch
from fewshot.methods.logistic_regression import LogisticRegression
from fewshot.ops.features import tukey_transform


def base_bank(classes=8, items=30, dim=16, dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    labels = torch.arange(classes * items) % classes
    centres = 2 * torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    features = centres[labels] + torch.randn(len(labels), dim, generator=generator, dtype=torch.float64)
    return FeatureBank(features.relu().to(dtype), labels)


@pytest.mark.parametrize("options", [{}, {"tukey_base": True, "neighbours": 3, "beta": 0.7},
                                     {"dispersion": "diagonal", "alpha": 0.5}])
def test_against_a_loop(options):
    """One support item at a time, with unequal shots, and scikit-learn on the outcome."""
    method = FreeLunch(samples=60, **options).fit(base_bank())
    full = random_episodes(shots=3)
    kept = torch.tensor([0, 1, 2, 3, 4, 5, 7, 10, 12])
    episodes = Episodes(full.support[:, kept], full.support_labels[:, kept], full.query, 5)
    found = method(episodes).softmax(-1)
    power = options.get("beta", 0.5)
    bank = base_bank()
    x = bank.features ** power if options.get("tukey_base") else bank.features
    means = torch.stack([x[bank.labels == n].mean(0) for n in range(8)])
    spread = method._gaussian("dispersion", 16 if options.get("dispersion") == "diagonal" else 1)
    for e in range(3):
        support, labels = episodes.support[e] ** power, episodes.support_labels[e]
        features, answers = list(support), labels.tolist()
        for n in range(5):
            items = sorted((s for s, label in zip(support, labels, strict=True) if label == n), key=lambda s: float(s.sum()))
            for t in range(60):
                item = items[t % len(items)]
                nearest = (means - item).square().sum(1).argsort()[:method.neighbours]
                sample = (item + means[nearest].sum(0)) / (method.neighbours + 1)
                for b in nearest:
                    sample = sample + method.base.draws[b, t] / method.neighbours**0.5
                features.append(sample + method.alpha**0.5 * spread[t])
                answers.append(n)
        official = sklearn.linear_model.LogisticRegression(tol=1e-10, max_iter=10000)
        official.fit(torch.stack(features).numpy(), np.array(answers))
        expected = official.predict_proba((episodes.query[e] ** power).numpy())
        np.testing.assert_allclose(found[e].numpy(), expected, atol=1e-5, rtol=0)


def test_draws_have_the_covariance_of_each_base_class():
    """Also of a class with fewer items than channels, whose covariance is singular: no draw leaves its span."""
    bank = base_bank(items=10)
    base = FreeLunch(samples=40_000).fit(bank).base
    for n in range(8):
        items = bank.features[bank.labels == n].numpy()
        expected = np.cov(items.T)
        np.testing.assert_allclose(np.cov(base.draws[n].numpy().T), expected, atol=0.05 * np.trace(expected) / 4, rtol=0)
        assert base.draws[n].mean(0).abs().max() < 0.03
        assert np.linalg.matrix_rank(base.draws[n].numpy(), tol=1e-8) == np.linalg.matrix_rank(expected, tol=1e-8) < 16


@pytest.mark.parametrize("dispersion", ["all", "diagonal"])
def test_samples_have_the_calibrated_distribution(dispersion):
    """Equations 5 and 6 of the paper, to what 40,000 draws can tell."""
    method = FreeLunch(samples=40_000, dispersion=dispersion, alpha=0.3).fit(base_bank())
    e = random_episodes(episodes=1, shots=1).with_features(lambda x: tukey_transform(x, 0.5))
    samples, labels = method.sample(e)
    bank = base_bank()
    for n in range(5):
        item = e.support[0, n]
        nearest = (method.base.means - item).square().sum(1).argsort()[:2]
        covariance = sum(np.cov(bank.features[bank.labels == b].numpy().T) for b in nearest) / 2
        covariance = covariance + 0.3 * (np.eye(16) if dispersion == "diagonal" else np.ones((16, 16)))
        found = samples[0, labels[0] == n]
        torch.testing.assert_close(found.mean(0), (item + method.base.means[nearest].sum(0)) / 3, atol=0.02, rtol=0)
        np.testing.assert_allclose(np.cov(found.numpy().T), covariance, atol=0.06, rtol=0)


def test_samples_are_shared_among_the_shots():
    method = FreeLunch(samples=750, neighbours=1, alpha=0.0).fit(base_bank())
    full = random_episodes(shots=5)
    kept = torch.tensor([i for i in range(25) if i // 5 <= int(full.support_labels[0, i])])
    e = Episodes(full.support[:, kept], full.support_labels[:, kept], full.query, 5)
    samples, labels = method.sample(e)
    assert samples.shape == (3, 3750, 16) and torch.bincount(labels[0]).tolist() == [750] * 5
    nearest = torch.cdist(e.support, method.base.means).argmin(-1)
    centres = (e.support + method.base.means[nearest]) / 2
    for n in range(5):
        draws = method.base.draws[nearest[0][e.support_labels[0] == n]]  # of each item's base class
        rest = (samples[0, labels[0] == n].unsqueeze(0) - draws)  # a centre, where the item is the one the sample is around
        hits = (rest.unsqueeze(1) - centres[0, e.support_labels[0] == n].unsqueeze(1).unsqueeze(0)).abs().amax(-1) < 1e-9
        counts = hits.diagonal().sum(0)
        assert counts.sum() == 750 and counts.max() - counts.min() <= 1


def test_the_seed_changes_the_draws_and_nothing_else_does():
    episodes, bank = random_episodes(), base_bank()
    first, again, other = (FreeLunch(samples=30, seed=seed).fit(bank)(episodes) for seed in (0, 0, 1))
    assert torch.equal(first, again) and (first - other).abs().max() > 1e-3
    state = torch.get_rng_state()
    FreeLunch(samples=30).fit(bank)(episodes)
    assert torch.equal(state, torch.get_rng_state())


def test_base_classes_that_know_the_spread_help():
    """Base classes vary along channels that say nothing about the class; one support item cannot know that."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.cat([torch.full((24,), 3.0), torch.full((8,), 0.3)]).double()

    def around(centres, labels):
        return centres[labels] + noise * torch.randn(len(labels), 32, generator=generator, dtype=torch.float64)

    def centres(count):
        signal = torch.randn(count, 32, generator=generator, dtype=torch.float64)
        return 10 + signal * (noise < 1)

    labels = torch.arange(30).repeat_interleave(100)
    bank = FeatureBank(around(centres(30), labels), labels)
    gained = []
    for _ in range(10):
        novel, query_labels = centres(5), torch.arange(5).repeat(20)
        e = Episodes(around(novel, torch.arange(5))[None], torch.arange(5)[None], around(novel, query_labels)[None], 5)
        right = [(m(e)[0].argmax(-1) == query_labels).double().mean() for m in
                 (FreeLunch(beta=1.0, samples=200, alpha=0.0).fit(bank), LogisticRegression(norm="un"))]
        gained.append(right[0] - right[1])
    assert torch.stack(gained).mean() > 0.2


def test_wrong_values():
    for options, message in (({"neighbours": 0}, "neighbours=0"), ({"alpha": -1.0}, "alpha=-1.0"), ({"beta": 0.0}, "beta=0"),
                             ({"samples": 0}, "samples=0"), ({"dispersion": "row"}, "choose one of all, diagonal")):
        with pytest.raises(FewshotError, match=message):
            FreeLunch(**options)
    with pytest.raises(FewshotError, match=r"call method.fit\(base_bank\)"):
        FreeLunch()(random_episodes())
    with pytest.raises(FewshotError, match="neighbours=9, but custom/all has 8 base classes"):
        FreeLunch(neighbours=9).fit(base_bank())
