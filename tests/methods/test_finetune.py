from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from fewshot.ops.distances import l2_normalise
from tests.methods.fine_tuning import check_against, features_of, learner, two_blocks
from tests.methods.image_episodes import image_episodes, replaced

ADAPTED = {"head": [], "last_block": ["blocks.1", "last"], "all": ["blocks", "last"], "0": ["blocks.0"],
           "0,1": ["blocks", "last"]}


class Head(nn.Module):
    """W z + b of unit features that starts as the nearest mean; with `cosine` s cos(z, w)."""

    def __init__(self, network, support, labels, cosine):
        super().__init__()
        z = F.normalize(network(support), dim=-1).detach()
        means = torch.stack([z[labels == n].mean(0) for n in range(3)])
        self.cosine = cosine
        self.weight = nn.Parameter(2 * means)
        self.bias = nn.Parameter(means.new_tensor(10.0) if cosine else -means.square().sum(-1))

    def forward(self, z):
        z = F.normalize(z, dim=-1)
        if self.cosine:
            return self.bias * z @ F.normalize(self.weight, dim=-1).T
        return F.linear(z, self.weight, self.bias)


@pytest.mark.parametrize("layers", list(ADAPTED))
@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_against_a_plain_loop(layers, head):
    def by_hand(network, labels, support):
        network.head = Head(network, support, labels, head == "cosine")
        body = [p for name in ADAPTED[layers] for p in network.get_submodule(name).parameters()]
        groups = [{"params": network.head.parameters(), "lr": 0.1}]
        return (lambda net, support, x: net.head(net(x))), groups + [{"params": body, "lr": 0.05}] * bool(body)

    check_against("finetune", by_hand, "sgd", 5, layers=layers, head=head, lr=0.05, schedule="constant")


def test_cosine_schedule_and_mini_batches():
    """The rates of the official code, and batches that together are the support in every pass."""
    rates = []

    def schedule(step, groups):
        for group, first in zip(groups, (0.1, 0.05), strict=True):
            group["lr"] = first * 0.5 * (1 + math.cos(math.pi * step / 6))
        rates.append(groups[0]["lr"])

    made = create_method("finetune", batch_size=4, lr=0.05, steps=6)
    batches = [made.rows(step, 6) for step in range(6)]
    for one, other in zip(batches[::2], batches[1::2], strict=True):
        assert (len(one), len(other)) == (4, 2) and sorted(torch.cat([one, other]).tolist()) == list(range(6))
    assert batches[0].tolist() != batches[2].tolist() and made.rows(0, 4) is None

    def by_hand(network, labels, support):
        network.head = Head(network, support, labels, False)
        groups = [{"params": network.head.parameters(), "lr": 0.1},
                  {"params": [*network.blocks.parameters(), *network.last.parameters()], "lr": 0.05}]
        return (lambda net, support, x: net.head(net(x))), groups

    check_against("finetune", by_hand, "sgd", 6, lr=0.05, batch_size=4, rows=lambda step: batches[step],
                  each_step=schedule)
    assert rates[0] == 0.1 and rates[-1] < 0.01


@pytest.mark.parametrize("norm", ["un", "l2n"])
def test_without_steps_it_is_protonet(norm):
    episodes, _ = image_episodes()
    features = features_of(two_blocks(), episodes)
    if norm == "l2n":
        features = features.with_features(l2_normalise)
    expected = create_method("protonet")(features)
    for settings in ({"steps": 0}, {"lr": 0.0, "head_lr": 0.0}):
        found = learner("finetune", norm=norm, **settings)(episodes)
        torch.testing.assert_close(found.log_softmax(-1), expected.log_softmax(-1), atol=1e-11, rtol=0)


def test_random_heads_come_from_the_seed_alone():
    """The same for every episode and dtype, whatever the state of the global generator."""
    episodes, _ = image_episodes()
    zero, other = (learner("finetune", initial="random", steps=0, seed=seed)(episodes) for seed in (0, 1))
    torch.manual_seed(7)
    assert torch.equal(learner("finetune", initial="random", steps=0)(episodes), zero) and not torch.equal(zero, other)
    single = learner("finetune", two_blocks(dtype=torch.float32), initial="random", steps=0)(episodes.to(torch.float32))
    torch.testing.assert_close(single.double(), zero, atol=1e-5, rtol=0)
    same = replaced(episodes, support=episodes.support[:1].expand_as(episodes.support).contiguous(),
                    query=episodes.query[:1].expand_as(episodes.query).contiguous())
    answers = learner("finetune", initial="random", batch_size=2)(same)
    assert torch.equal(answers[0], answers[1])


def test_frozen_blocks_run_once_for_each_image():
    seen = []
    network = two_blocks()
    # A hook is part of the module, and copied with it.
    network.blocks[0].register_forward_hook(lambda module, arguments, output: seen.append(len(arguments[0])))
    learner("finetune", network, layers="last_block", steps=5)(image_episodes()[0])
    assert [n for n in seen if n > 2] == [6, 7] * 3, "the two images of a trial run aside"


def test_a_diverging_loss_is_named():
    with pytest.raises(FewshotError, match=r"loss of Finetune is (nan|inf).*lower the learning rate"):
        learner("finetune", norm="un", lr=1e200, head_lr=1e200, schedule="constant")(image_episodes()[0])


@pytest.mark.parametrize(("settings", "message"), [
    ({"layers": "first"}, "layers='first'; choose 'head', 'last_block', 'all' or numbers"),
    ({"head": "mlp"}, "head='mlp'"), ({"initial": "zeros"}, "initial='zeros'"), ({"norm": "cl2n"}, "norm='cl2n'"),
    ({"head_lr": -1.0}, "head_lr=-1.0"), ({"head_lr": math.inf}, "head_lr=inf"), ({"batch_size": 0}, "batch_size=0"),
    ({"optimiser": "lbfgs"}, "optimiser='lbfgs'"), ({"schedule": "step"}, "schedule='step'"), ({"scale": 0.0}, "scale=0.0"),
    ({"lr": math.nan}, "lr=nan")])
def test_wrong_values(settings, message):
    with pytest.raises(FewshotError, match=message):
        create_method("finetune", **settings)


def test_what_does_not_fit_is_named():
    episodes, _ = image_episodes()
    with pytest.raises(FewshotError, match=r"this network has 2 blocks, 0 to 1"):
        learner("finetune", layers="1,2")
    with pytest.raises(FewshotError, match=r"feature\s+vector \[D\] per image: add nn.Flatten"):
        learner("finetune", nn.Conv2d(1, 1, 1).double())(episodes)
    with pytest.raises(FewshotError, match="apply backbone.transform first"):
        learner("finetune")(features_of(two_blocks(), episodes))
    with pytest.raises(FewshotError, match="keeps no running statistics"):
        learner("finetune", two_blocks(norm=lambda n: nn.BatchNorm2d(n, track_running_stats=False)))(episodes)
