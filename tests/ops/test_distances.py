from __future__ import annotations

import pytest
import torch

from fewshot.episodes.types import Episodes
from fewshot.ops.class_reductions import best_class
from fewshot.ops.distances import before_unit, cosine, l2_normalise, squared_euclidean
from fewshot.ops.prototypes import class_sums, one_hot, prototypes


def exact(x, y):
    return (x.double().unsqueeze(2) - y.double().unsqueeze(1)).square().sum(-1)


@pytest.mark.parametrize("offset", [0.0, 3.0, 100.0, 3000.0])
def test_distances_keep_their_digits_wherever_the_points_lie(offset):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, n, 32, generator=generator) + offset for n in (20, 5))
    error = (squared_euclidean(x, y) - exact(x, y)).abs() / exact(x, y)
    # The inputs themselves carry eps * offset; up to a ratio of 16 the points are not shifted.
    assert error.max() < 2e-5


def test_a_far_episode_changes_nothing_in_its_batch_mates():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 9, 8, generator=generator), torch.randn(2, 4, 8, generator=generator)
    alone = squared_euclidean(x[:1], y[:1])
    x[1] += 1000
    y[1] += 1000
    together = squared_euclidean(x, y)
    assert torch.equal(together[:1], alone)
    torch.testing.assert_close(together[1].double(), exact(x, y)[1], atol=1e-3, rtol=1e-4)


def test_known_lengths_give_the_same_cosines():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 9, 8, generator=generator), torch.randn(2, 4, 8, generator=generator)
    x[0, 0] = 0
    assert torch.equal(cosine(x, y, x.norm(dim=-1)), cosine(x, y))
    torch.testing.assert_close(cosine(x, y)[0, 1, 2], torch.nn.functional.cosine_similarity(x[0, 1], y[0, 2], dim=0))


def test_known_lengths_give_the_same_distances():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 9, 8, generator=generator), torch.randn(2, 4, 8, generator=generator)
    assert torch.equal(squared_euclidean(x, y, x.norm(dim=-1)), squared_euclidean(x, y))
    x[1] += 1000
    y[1] += 1000  # shifted: lengths are those of other points then
    assert torch.equal(squared_euclidean(x, y, x.norm(dim=-1)), squared_euclidean(x, y))


def test_the_gradient_before_unit_length_is_that_of_autograd():
    generator = torch.Generator().manual_seed(0)
    x, given = (torch.randn(2, 3, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    x[0, 1] = 0
    at = x.clone().requires_grad_()
    l2_normalise(at).backward(given)
    found = before_unit(given, x)
    assert torch.allclose(found[x != 0], at.grad[x != 0], atol=1e-12, rtol=0)
    assert torch.equal(found[0, 1], torch.zeros(8, dtype=torch.float64)), "a point without direction has none to go"



@pytest.mark.parametrize("shots", [1, 4])
def test_prototypes_do_not_depend_on_the_order_of_the_support(shots):
    """In the order of the sampler they are made in another way than in any other."""
    generator = torch.Generator().manual_seed(0)
    support = torch.randn(3, 5 * shots, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(5).repeat_interleave(shots).expand(3, -1)
    order = torch.randperm(5 * shots, generator=generator)

    def means(support, order):
        return prototypes(Episodes(support[:, order], labels[:, order], support[:, :2].detach(), 5))

    sampled = means(support, torch.arange(5 * shots))
    torch.testing.assert_close(sampled, support.view(3, 5, shots, 7).mean(2))
    torch.testing.assert_close(means(support, order), sampled)
    torch.autograd.gradcheck(lambda x: means(x, torch.arange(5 * shots)), support)
    sampled.detach().zero_()
    assert support.abs().min() > 0, "they may be changed in place"


def test_class_sums_count_unequal_shots_and_pass_gradients():
    labels = torch.tensor([[2, 0, 2, 2], [1, 1, 0, 1]])
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    sums, counts = class_sums(x, labels, 3)
    torch.testing.assert_close(sums, one_hot(labels, 3, x.dtype).transpose(1, 2) @ x)
    assert counts.tolist() == [[1, 0, 3], [1, 3, 0]]
    torch.autograd.gradcheck(lambda x: class_sums(x, labels, 3)[0], x)


def test_of_equal_scores_the_first_class_wins():
    assert best_class(torch.tensor([[[1.0, 0.0], [1.0, 2.0], [0.0, 2.0]]])).tolist() == [[0, 1]]
    for ways in (2, 255, 256, 300):
        scores = torch.randint(0, 5, (4, ways, 30), generator=torch.Generator().manual_seed(0)).float()
        assert torch.equal(best_class(scores), torch.from_numpy(scores.numpy().argmax(1)))  # numpy's is the first, too
