from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from fewshot.backbones import create_backbone
from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.episodes.types import Episodes
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.one_episode import fitted_method
from fewshot.evaluation.run import Run
from fewshot.methods import create_method
from fewshot.methods.relation_net import RelationModule, RelationNet
from fewshot.ops import chunked
from tests.methods.agreement import check_soft
from tests.methods.metric_learning import fit_four_episodes
from tests.training.runs import tiny

C = 2
AGREEMENT = [("relation_net", {}, "relation_module")]


def module(side: int = 5, dtype=torch.float64, **settings) -> RelationModule:
    """On maps of 2 channels. Running statistics and the last layers differ from the initial ones, with which all scores are
    nearly equal."""
    made = RelationNet(channels=C, **settings).with_backbone(torch.nn.Linear(1, 1, dtype=dtype), 5,
                                                             feature_dim=C * side * side, seed=3)
    with torch.no_grad():
        for layer in (made.rest[0], made.rest[4]):
            layer.running_mean.copy_(torch.tensor([0.3, -0.2]))
            layer.running_var.copy_(torch.tensor([0.5, 1.7]))
        for layer in (made.rest[8], made.rest[10]):
            layer.weight.mul_(50)
    return made


def maps(side: int = 5, **options):
    return random_episodes(dim=C * side * side, **options)


def of_pairs(made: RelationModule, episodes: Episodes, side: int) -> torch.Tensor:
    """Scores as written down: sum of a class's maps and a query's map, concatenated, through every layer in turn."""
    scores = torch.empty(len(episodes), episodes.query.shape[1], episodes.ways, dtype=torch.float64)
    padding = 1 if side < 10 else 0
    for e in range(len(episodes)):
        for q in range(scores.shape[1]):
            for n in range(episodes.ways):
                of_class = episodes.support[e][episodes.support_labels[e] == n].sum(0)
                x = torch.cat([of_class.view(1, C, side, side), episodes.query[e, q].view(1, C, side, side)], dim=1)
                for convolution, norm in ((made.first, made.rest[0]), (made.rest[3], made.rest[4])):
                    x = F.conv2d(x, convolution.weight, convolution.bias, padding=padding)
                    x = F.max_pool2d(norm(x).relu(), 2)
                hidden = made.rest[8](x.flatten(1)).relu()
                scores[e, q, n] = made.rest[10](hidden)
    return scores


def test_agrees_with_official_code(oracles):
    """With initial weights, where scores are nearly equal: they spread over 0.0005 to 0.002. The tolerance is 1e-8, as the
    weights are drawn in float32, and their last bit hangs on the processor (2.3e-9 was seen on one without AVX)."""
    check_soft(oracles, *AGREEMENT[0])


@pytest.mark.parametrize("side", [5, 7, 10, 19])
def test_against_a_loop(side):
    """Padded and unpadded maps; unequal shots."""
    full = maps(side, shots=3, queries=4)
    kept = torch.tensor([12, 0, 1, 7, 5, 2, 3, 4, 10])
    episodes = Episodes(full.support[:, kept], full.support_labels[:, kept], full.query, 5)
    made = module(side)
    with torch.no_grad():
        scores = made(episodes)
        assert scores.std(-1).min() > 1e-3
        torch.testing.assert_close(scores, of_pairs(made, episodes, side), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("image_size", "side", "inputs"), [(28, 7, 64), (84, 21, 576)])
def test_the_networks_of_the_paper(image_size, side, inputs):
    """128 channels in, 64 inside, and 8 hidden units: after two poolings 1x1 positions of small maps, 3x3 of large."""
    backbone = create_backbone("conv4", channels=1, image_size=image_size, pools=2)
    made = create_method("relation_net").with_backbone(backbone, 5)
    assert made.side == side and made.first.weight.shape == (64, 128, 3, 3)
    assert made.rest[8].weight.shape == (8, inputs) and made.rest[10].weight.shape == (1, 8)
    assert (made.rest[8].bias == 1).all() and made.rest[8].weight.std().item() == pytest.approx(0.01, rel=0.2)
    assert made.first.weight.std().item() == pytest.approx((2 / 576) ** 0.5, rel=0.02) and not made.first.bias.any()


def test_losses():
    episodes, labels = maps(with_labels=True)
    made, other = module(), module(loss="cross_entropy")
    with torch.no_grad():
        (mse, logits), (entropy, same) = made.loss(episodes, labels), other.loss(episodes, labels)
    assert torch.equal(logits, same) and torch.equal(logits, made(episodes))
    relations = 1 / (1 + (-logits).exp())
    expected = ((relations - torch.eye(5, dtype=torch.float64)[labels]) ** 2).mean()
    torch.testing.assert_close(mse, expected)
    torch.testing.assert_close(entropy, -logits.softmax(-1).gather(2, labels.unsqueeze(-1)).log().mean())


def test_batch_norm():
    """Evaluation mode does not look at other queries and records nothing; training mode does both."""
    episodes, made = maps(), module()
    other = Episodes(episodes.support, episodes.support_labels,
                     torch.cat([episodes.query[:, :1], 5 * episodes.query[:, 1:]], 1), 5)
    before = copy.deepcopy(made.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(made(other)[:, 0], made(episodes)[:, 0], atol=1e-12, rtol=0)
        assert all(torch.equal(value, made.state_dict()[name]) for name, value in before.items())
        made.train()
        assert (made(other)[:, 0] - made(episodes)[:, 0]).abs().max() > 1e-6
    assert not torch.equal(made.rest[0].running_mean, before["rest.0.running_mean"])


def test_blocks_do_not_matter(monkeypatch):
    episodes, made = maps(), module()
    with torch.no_grad():
        whole = made(episodes)
        for limit in (1, 4 * 5 * C * 25, 30 * 5 * C * 25):
            monkeypatch.setattr(chunked, "_ELEMENTS", limit)
            torch.testing.assert_close(made(episodes), whole, atol=1e-13, rtol=0)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("training", [False, True])
def test_gradients(loss, training):
    episodes, labels = maps(episodes=1, ways=2, shots=2, queries=3, with_labels=True)
    made = module(loss=loss).train(training)

    def value(support, query, *weights):
        return torch.func.functional_call(Loss(made), dict(zip(names, weights, strict=True)),
                                          (Episodes(support, episodes.support_labels, query, 2), labels))

    names = [f"made.{name}" for name, _ in made.named_parameters()]
    inputs = [x.detach().clone().requires_grad_() for x in (episodes.support, episodes.query, *made.parameters())]
    assert torch.autograd.gradcheck(value, inputs, fast_mode=True)


class Loss(torch.nn.Module):
    def __init__(self, made: RelationModule):
        super().__init__()
        self.made = made

    def forward(self, *arguments):
        return self.made.loss(*arguments)[0]


@pytest.mark.parametrize(("loss", "steps"), [("mse", 100), ("cross_entropy", 30)])  # squares of sigmoids go down slowly
def test_four_episodes_are_fitted(loss, steps):
    losses, right = fit_four_episodes(create_method("relation_net", channels=16, loss=loss), steps, shots=2)
    assert losses[0] > 0.2 and losses[-1] < 0.02 and right


def test_weights_come_from_the_seed():
    backbone, settings = create_backbone("conv4", channels=1, image_size=28, width=4, pools=2), RelationNet(channels=4)
    before = torch.get_rng_state()
    first, again, other = (settings.with_backbone(backbone, 5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.first.weight, again.first.weight) and not torch.equal(first.first.weight, other.first.weight)
    assert not first.training


def test_run_and_evaluate():
    """A Run holds the hyper-parameters; weights are evaluated as an instance."""
    run = Run(method="relation_net", parameters={"channels": C}, episodes=20, queries=3)
    assert run.parameters == {"channels": C, "hidden": 8, "loss": "mse"}
    bank = FeatureBank(torch.rand(60, C * 25, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 6)
    with pytest.raises(FewshotError, match="weights of its own"):
        evaluate(run, bank)
    with pytest.raises(FewshotError, match="weights of its own"):
        fitted_method("relation_net", {}, "", None)
    result = evaluate(run, bank, method=module(dtype=torch.float32))
    assert result.setting == "inductive" and 0 < result.accuracy.mean < 1


def test_mistakes_are_named():
    with pytest.raises(FewshotError, match="no network yet; call .with_backbone"):
        RelationNet()(maps())
    with pytest.raises(FewshotError, match="embed the images first"):
        module()(Episodes(torch.zeros(1, 2, 1, 8, 8), torch.tensor([[0, 1]]), torch.zeros(1, 2, 1, 8, 8), 2))
    with pytest.raises(FewshotError, match="loss='hinge'"):
        RelationNet(loss="hinge")
    with pytest.raises(FewshotError, match="hidden=0"):
        RelationNet(hidden=0)
    with pytest.raises(FewshotError, match="length 50 are no square maps of channels=64"):
        RelationNet().with_backbone(torch.nn.Linear(1, 1), 5, feature_dim=50)
    with pytest.raises(FewshotError, match="maps of 3x3 are too small"):
        RelationNet(channels=1).with_backbone(torch.nn.Linear(1, 1), 5, feature_dim=9)
    with pytest.raises(FewshotError, match="feature_dim="):
        RelationNet().with_backbone(torch.nn.Linear(1, 1), 5)
    with pytest.raises(FewshotError, match="channels=64"):
        RelationNet().with_backbone(tiny(), 5)
