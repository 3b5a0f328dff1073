from __future__ import annotations

import torch

from fewshot.ops.head_training import cross_entropy, gradient_of, head_gradient, head_logits, train
from tests.methods.trained_heads import fitted


def problem():
    generator = torch.Generator().manual_seed(0)
    head, points = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((2, 3, 4), (2, 6, 4)))
    return head, points, torch.rand(2, 6, 3, generator=generator, dtype=torch.float64).softmax(-1)


def test_training_is_that_of_pytorch_for_each_episode_alone():
    head, points, targets = problem()
    before, settings = head.clone(), {"steps": 9, "learning_rate": 0.2, "weight_decay": 0.1, "epsilon": 1e-3}
    gradient = gradient_of(lambda values: cross_entropy(head_logits(values["head"], points), targets))
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            found = train({"head": head}, gradient, **settings)["head"]
        assert torch.equal(head, before) and not found.requires_grad
        for i in range(2):
            expected, = fitted(lambda h, i=i: torch.nn.functional.cross_entropy(points[i] @ h.T, targets[i]), head[i],
                               **settings)
            torch.testing.assert_close(found[i], expected)


def test_the_gradient_of_a_head_is_that_of_autograd():
    head, points, targets = problem()
    weights = torch.arange(12, dtype=torch.float64).view(2, 6)
    head.requires_grad_()
    each = torch.nn.functional.cross_entropy((points @ head.transpose(1, 2)).flatten(0, 1), targets.flatten(0, 1),
                                             reduction="none")
    expected, = torch.autograd.grad((each * weights.flatten()).sum(), head)
    torch.testing.assert_close(head_gradient(head.detach(), points, targets, weights), expected)
