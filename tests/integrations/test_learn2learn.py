"""The gradient-based learners against learn2learn's, on the same weights and episodes.

learn2learn 0.2.0 builds from source only: `make learn2learn` installs it.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fewshot
from fewshot.backbones import create_backbone
from fewshot.methods import create_method
from tests.methods.image_episodes import episodes_of_images

l2l = pytest.importorskip("learn2learn", exc_type=ImportError,
                          reason="needs learn2learn 0.2.0, which has no wheel for this Python: build it from source")

CASES = {"maml": ("maml", {}, l2l.algorithms.MAML, {}),
         "maml, vectorised": ("maml", {"vectorise": True}, l2l.algorithms.MAML, {}),
         "first order": ("maml", {"first_order": True}, l2l.algorithms.MAML, {"first_order": True}),
         "meta_sgd": ("meta_sgd", {}, l2l.algorithms.MetaSGD, {}),
         "meta_sgd, first order": ("meta_sgd", {"first_order": True}, l2l.algorithms.MetaSGD, {"first_order": True})}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("steps", [1, 3])
def test_loss_and_gradients_agree(case, steps):
    name, settings, algorithm, options = CASES[case]
    episodes, labels = episodes_of_images()
    learner = create_method(name, inner_lr=0.1, inner_steps=steps, **settings).with_backbone(
        create_backbone("conv4", channels=1, image_size=28, width=8).double(), episodes.ways).train()
    # learn2learn's update needs parameters in one memory format.
    model = nn.Sequential(copy.deepcopy(learner.backbone).to(memory_format=torch.contiguous_format),
                          copy.deepcopy(learner.head)).train()
    other = algorithm(model, lr=0.1, **options)

    loss, logits = learner.loss(episodes, labels)
    loss.backward()
    total = 0
    for e in range(len(episodes)):
        clone = other.clone()
        for _ in range(steps):
            clone.adapt(F.cross_entropy(clone(episodes.support[e]), episodes.support_labels[e]))
        answer = clone(episodes.query[e])
        torch.testing.assert_close(logits[e], answer, atol=1e-9, rtol=0)
        value = F.cross_entropy(answer, labels[e]) / len(episodes)
        value.backward()
        total += value.item()

    assert abs(loss.item() - total) < 1e-9
    ours = [*learner.backbone.parameters(), *learner.head.parameters(), *getattr(learner, "rates", [])]
    theirs = [*model.parameters(), *getattr(other, "lrs", [])]
    assert len(ours) == len(theirs) == (36 if name == "meta_sgd" else 18)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, atol=1e-9, rtol=0)
    assert max(float(p.grad.abs().max()) for p in ours) > 1e-2


def test_its_own_backbone_adapts_here():
    """Any nn.Module will do, learn2learn's among them."""
    episodes, labels = episodes_of_images()
    backbone = nn.Sequential(l2l.vision.models.ConvBase(hidden=8, channels=1, max_pool=False, layers=4),
                             nn.Flatten()).double()
    learner = create_method("maml", inner_lr=0.1).with_backbone(backbone, episodes.ways, feature_dim=32).train()
    loss, logits = learner.loss(episodes, labels)
    loss.backward()
    assert logits.shape == (2, 8, 4) and all(p.grad.isfinite().all() for p in learner.parameters())


# -- fewshot.adapt, on a network that is no classifier -----------------------------------------------------------------


def regression():
    """(module, loss, support, query), in float64."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    support, query = ((torch.randn(6, 3).double(), torch.randn(6, 2).double()) for _ in range(2))
    return module, lambda model, batch: F.mse_loss(model(batch[0]), batch[1]), support, query


@pytest.mark.parametrize("first_order", [False, True])
def test_adapt_is_clone_and_adapt(first_order):
    module, loss, support, query = regression()
    maml = l2l.algorithms.MAML(copy.deepcopy(module), lr=0.3, first_order=first_order)
    learner = maml.clone()
    for _ in range(3):
        learner.adapt(loss(learner, support))
    expected = loss(learner, query)
    expected.backward()
    found = loss(fewshot.adapt(module, loss, support, steps=3, learning_rate=0.3, first_order=first_order), query)
    found.backward()
    torch.testing.assert_close(found, expected, atol=1e-15, rtol=0)
    torch.testing.assert_close([value.grad for value in module.parameters()], [value.grad for value in maml.parameters()],
                               atol=1e-14, rtol=0)


def test_adapt_with_learned_rates_is_meta_sgd():
    module, loss, support, query = regression()
    algorithm = l2l.algorithms.MetaSGD(copy.deepcopy(module), lr=0.3)
    learner = algorithm.clone()
    learner.adapt(loss(learner, support))
    loss(learner, query).backward()
    rates = {name: torch.full_like(value, 0.3).requires_grad_() for name, value in module.named_parameters()}
    loss(fewshot.adapt(module, loss, support, learning_rate=rates), query).backward()
    torch.testing.assert_close([rate.grad for rate in rates.values()], [lr.grad for lr in algorithm.lrs], atol=1e-14, rtol=0)
    torch.testing.assert_close([value.grad for value in module.parameters()],
                               [value.grad for value in algorithm.module.parameters()], atol=1e-14, rtol=0)
