from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from tests.methods.image_episodes import image_episodes, loss_and_gradients, network


def learner(**settings):
    settings = {"inner_lr": 0.1, "inner_steps": 4, "eval_steps": None, **settings}
    return create_method("reptile", **settings).with_backbone(network(), 3).train()


def trained(made, episodes, optimiser, batches=None):
    """Backbone and head after ordinary training on the support of one episode."""
    model = nn.Sequential(copy.deepcopy(made.backbone), copy.deepcopy(made.head)).train()
    optimiser = optimiser(model.parameters())
    for step in range(made.settings.inner_steps):
        batch = torch.arange(episodes.support.shape[1]) if batches is None else batches[step]
        optimiser.zero_grad()
        F.cross_entropy(model(episodes.support[0, batch]), episodes.support_labels[0, batch]).backward()
        optimiser.step()
    return model


def test_one_sgd_step_is_joint_training():
    """The pseudo-gradient is inner_lr times the gradient of the mean loss of all supports."""
    episodes, labels = image_episodes()
    made = learner(inner_steps=1, inner_optimiser="sgd", inner_batch=None)
    _, found = loss_and_gradients(made, episodes, labels)
    joint = torch.stack([F.cross_entropy(made.head(made.backbone(x)), y)
                         for x, y in zip(episodes.support, episodes.support_labels, strict=True)]).mean()
    expected = torch.autograd.grad(joint, list(made.parameters()))
    torch.testing.assert_close(list(found.values()), [0.1 * g for g in expected], atol=1e-13, rtol=0)


@pytest.mark.parametrize("inner_batch", [None, 4])
@pytest.mark.parametrize("inner_optimiser", ["sgd", "adam"])
def test_update_moves_towards_what_ordinary_training_ends_in(inner_optimiser, inner_batch):
    """w + epsilon mean(w_e - w), with torch's optimisers for the inner training."""
    episodes, labels = image_episodes()
    made = learner(inner_optimiser=inner_optimiser, inner_lr=0.01, inner_batch=inner_batch)
    start = [p.detach().clone() for p in made.parameters()]
    optimiser = (lambda p: torch.optim.SGD(p, lr=0.01)) if inner_optimiser == "sgd" else (
        lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.0, 0.999)))
    batches = [made._batch(step, 6) for step in range(4)]
    models = [trained(made, episodes[i], optimiser, batches) for i in range(3)]
    outer = torch.optim.SGD(made.parameters(), lr=0.5)
    loss, logits = made.loss(episodes, labels)
    loss.backward()
    outer.step()
    for (name, now), before, *ends in zip(made.named_parameters(), start, *(m.parameters() for m in models), strict=True):
        expected = before + 0.5 * (torch.stack(ends).mean(0) - before)
        # A bias before BatchNorm has the gradient 0, whose rounding errors Adam enlarges to steps.
        if name != "backbone.layers.0.bias":
            torch.testing.assert_close(now, expected, atol=1e-9, rtol=0)
    answers = torch.stack([model(x) for model, x in zip(models, episodes.query, strict=True)])
    torch.testing.assert_close(logits, answers, atol=1e-7, rtol=0)
    torch.testing.assert_close(loss.detach(), F.cross_entropy(answers.flatten(0, 1), labels.flatten()).detach(), atol=1e-7,
                               rtol=0)


def test_batches_go_through_the_support_in_epochs():
    made = learner(inner_batch=4, eval_batch=5)
    batches = [made._batch(step, 10) for step in range(5)]
    assert all(len(batch) == len(set(batch.tolist())) or step == 2 for step, batch in enumerate(batches))
    flat = torch.cat(batches)
    assert flat[:10].sort().values.tolist() == flat[10:].sort().values.tolist() == list(range(10))
    assert flat[:10].tolist() != flat[10:].tolist() and flat[:10].tolist() != list(range(10))
    assert [made._batch(0, shots).tolist() for shots in (3, 4)] == [[0, 1, 2], [0, 1, 2, 3]]
    assert len(made.eval()._batch(0, 10)) == 5
    other = learner(inner_batch=4, batch_seed=1)
    assert other._batch(0, 10).tolist() != batches[0].tolist()


def test_the_answer_alone_cannot_be_trained():
    """Its gradient would be that of first-order MAML."""
    episodes, _ = image_episodes()
    assert not learner()(episodes).requires_grad


def test_mistakes_are_named():
    with pytest.raises(FewshotError, match="inner_optimiser='rmsprop'"):
        create_method("reptile", inner_optimiser="rmsprop")
    with pytest.raises(FewshotError, match="eval_batch=0"):
        create_method("reptile", eval_batch=0)
