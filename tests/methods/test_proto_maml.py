from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from fewshot.episodes.types import Episodes
from fewshot.methods import create_method
from fewshot.methods.protonet import ProtoNet
from tests.methods.image_episodes import image_episodes, loss_and_gradients, network


def learner(**settings):
    settings = {"inner_lr": 0.05, "inner_steps": 2, **settings}
    return create_method("proto_maml", **settings).with_backbone(network(), 3).train()


def features(backbone, images):
    return torch.stack([backbone(x) for x in images])  # train mode: batch statistics of each episode


def protonet(backbone, episodes):
    return ProtoNet()(Episodes.trusted(support=features(backbone, episodes.support), ways=episodes.ways,
                                       query=features(backbone, episodes.query), support_labels=episodes.support_labels))


@pytest.mark.parametrize("ways", [3, 6])
def test_without_steps_it_is_protonet(ways):
    """Logits up to |z|^2 of each query, hence the same classes, the same loss, and the same gradients."""
    episodes, labels = image_episodes(ways=ways, queries=12)
    made = learner(inner_steps=0)
    expected, logits = protonet(made.backbone, episodes), made(episodes)
    square = features(made.backbone, episodes.query).square().sum(-1, keepdim=True)
    torch.testing.assert_close(logits - square, expected, atol=1e-12, rtol=0)
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))
    loss, found = loss_and_gradients(made, episodes, labels)
    value = F.cross_entropy(expected.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(loss, value.detach(), atol=1e-12, rtol=0)
    expected = torch.autograd.grad(value, list(made.backbone.parameters()))
    torch.testing.assert_close(list(found.values()), list(expected), atol=1e-12, rtol=0)


@pytest.mark.parametrize("first_order", [False, True])
def test_inner_gradients_are_partial_and_the_outer_one_total(first_order):
    """A step changes backbone and head as independent weights, but the meta-gradient sees that the initial head comes
    from the backbone: compared with a functional loop written out."""
    episodes, labels = image_episodes(episodes=1, spread=0.8)
    made = learner(first_order=first_order)
    loss, found = loss_and_gradients(made, episodes, labels)

    backbone = copy.deepcopy(made.backbone)
    backbone.layers[1].track_running_stats = False  # batch statistics without updates, which torch.func.grad refuses
    own = dict(backbone.named_parameters())

    def body(weights, images):
        return torch.func.functional_call(backbone, weights, (images,))

    support = body(own, episodes.support[0])
    means = torch.stack([support[episodes.support_labels[0] == n].mean(0) for n in range(3)])
    weights, head = dict(own), [2 * means, -means.square().sum(1)]
    for _ in range(2):
        def inner(*values):
            logits = F.linear(body(dict(zip(own, values[:-2], strict=True)), episodes.support[0]), *values[-2:])  # noqa: B023
            return F.cross_entropy(logits, episodes.support_labels[0])

        values = (*weights.values(), *head)
        steps = torch.func.grad(inner, argnums=tuple(range(len(values))))(*values)  # partial derivatives by definition
        steps = [step.detach() if first_order else step for step in steps]
        weights = {name: w - 0.05 * step for (name, w), step in zip(weights.items(), steps, strict=False)}
        head = [w - 0.05 * step for w, step in zip(head, steps[-2:], strict=True)]
    value = F.cross_entropy(F.linear(body(weights, episodes.query[0]), *head), labels[0])
    torch.testing.assert_close(loss, value.detach(), atol=1e-12, rtol=0)
    expected = torch.autograd.grad(value, list(own.values()))
    torch.testing.assert_close(list(found.values()), list(expected), atol=1e-11, rtol=0)
