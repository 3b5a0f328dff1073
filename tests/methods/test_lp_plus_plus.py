from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from fewshot.ops.heads import uniform
from tests.methods.agreement import check_soft
from tests.methods.test_gda import uneven_episodes

AGREEMENT = [("lp_plus_plus", {"variant": "official"}, "lp_plus_plus")]


@pytest.mark.parametrize(("name", "params", "official"), AGREEMENT)
def test_agreement(oracles, name, params, official):
    check_soft(oracles, name, params, official)


def start(support, labels, texts):
    """Class means [N, D] and what all texts are first multiplied by."""
    means = torch.stack([support[labels == n].mean(0) for n in range(3)])
    own = [float((support[labels == n] @ texts[n]).mean()) for n in range(3)]
    return means, 250 * sum(own) / 3


def test_without_steps_class_means_and_texts_vote():
    e = uneven_episodes()
    logits = create_method("lp_plus_plus", steps=0, text_scale=0.5)(e)
    for i in range(len(e)):
        support, texts, query = (normalize(x[i], dim=-1) for x in (e.support, e.text, e.query))
        means, alpha = start(support, e.support_labels[i], texts)
        assert torch.allclose(logits[i], query @ means.T + 0.5 * alpha * query @ texts.T, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dim", [16, 4])  # more channels than items, and fewer
@pytest.mark.parametrize("variant", ["sane", "official"])
def test_against_torch(variant, dim):
    """Autograd and torch's SGD on weights, intercept and multiples, an episode at a time."""
    e, steps = uneven_episodes(dim), 25
    e = e.replace(text=e.text.roll(1, dims=1))  # texts of other classes, of which less is to be made
    moved = []
    found = create_method("lp_plus_plus", steps=steps, text_scale=0.5, variant=variant)(e)
    for i in range(len(e)):
        support, texts, query = (normalize(x[i], dim=-1) for x in (e.support, e.text, e.query))
        labels, official = e.support_labels[i], variant == "official"
        means, first = start(support, labels, texts)
        head = torch.nn.Linear(dim, 3).double()
        head.weight.data = means * torch.tensor([[1.0], [2.0], [3.0]]) if official else means.clone()  # sums of 1, 2, 3
        head.bias.data = uniform((3, 1), dim**-0.5, 0, "lp_plus_plus")[:, 0] if official else torch.zeros(3).double()
        alpha = torch.full((3,), first, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.SGD(head.parameters(), 24 / float(torch.linalg.svdvals(support)[0] ** 2), momentum=0.9)
        rate = 6 / (4 * float((0.5 * support @ texts.T).square().sum(0).max()))

        def logits(points, head=head, alpha=alpha, texts=texts):
            return head(points) + alpha * 0.5 * (points @ texts.T)

        for step in range(steps):
            if not official:
                alpha.grad = None
            optimiser.zero_grad()
            cross_entropy(logits(support), labels).backward()
            optimiser.step()
            if step % 10 == 9:
                alpha.data -= rate * alpha.grad
        assert torch.allclose(found[i], logits(query), atol=1e-9, rtol=0)
        moved.append(float((alpha.detach() - first).abs().max()))
    assert max(moved) > 1e-4, "the multiples were not trained"


def test_training_lowers_the_cross_entropy_of_the_support():
    e = uneven_episodes()
    e = e.replace(query=e.support)
    losses = [float(cross_entropy(create_method("lp_plus_plus", steps=steps)(e).flatten(0, 1), e.support_labels.flatten()))
              for steps in (0, 20, 100, 300)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] / 10


def test_without_texts_none_is_read():
    e = uneven_episodes()
    method = create_method("lp_plus_plus", text_scale=0.0, steps=20)
    assert torch.equal(method(e), method(e.replace(text=e.text.flip(1))))


@pytest.mark.parametrize("params", [{"steps": -1}, {"text_scale": -1.0}, {"variant": "x"}, {"seed": -1}])
def test_refuses_what_makes_no_sense(params):
    with pytest.raises(FewshotError, match=next(iter(params))):
        create_method("lp_plus_plus", **params)
