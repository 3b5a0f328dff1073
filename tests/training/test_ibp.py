"""Interval bound propagation and interpolation in training, for a method on features and for a gradient-based learner."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fewshot.backbones import create_backbone
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods import create_method
from fewshot.ops.intervals import IntervalNetwork
from fewshot.training import Learner, TrainConfig
from fewshot.training.checkpoint import load_checkpoint
from fewshot.training.learner import make_learner
from fewshot.training.losses import create_loss
from fewshot.training.losses.ibi import Ibi
from fewshot.training.types import Moment
from tests.training.runs import fails_at, run

WAYS = 3
BOTH = pytest.mark.parametrize("method", ["protonet", "maml"])
PARAMETERS = {"maml": {"inner_lr": 0.1, "inner_steps": 2}, "protonet": {}}


def conv4(seed=0, width=4):
    return create_backbone("conv4", channels=1, image_size=16, width=width, seed=seed)


class Pixels:
    """Instead of the backbone's own transform, which makes float32."""

    channels, size = 1, 16

    def __call__(self, pixels):
        return pixels.double() / 255


def images(episodes=3, shots=2, queries=3, seed=0):
    """Noisy copies of one pattern a class, in random order; uint8 as in a bank."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(episodes, WAYS, 1, 16, 16, generator=generator)

    def draw(count):
        labels = torch.arange(WAYS).repeat(count)[torch.randperm(WAYS * count, generator=generator)].expand(episodes, -1)
        noise = torch.rand(episodes, WAYS * count, 1, 16, 16, generator=generator)
        chosen = patterns[torch.arange(episodes).unsqueeze(1), labels]
        return (255 * (0.6 * chosen + 0.4 * noise)).to(torch.uint8), labels.contiguous()

    (support, labels), (query, query_labels) = draw(shots), draw(queries)
    return Episodes(support, labels, query, WAYS), query_labels


def learner(method, loss, episodes=3, double=True, backbone=None, settings=None, **parameters):
    config = TrainConfig(method=method, parameters={**PARAMETERS[method], **(settings or {})}, ways=WAYS,
                         validation_ways=WAYS, loss=loss, loss_parameters={loss: parameters} if parameters else {},
                         episodes_per_step=episodes, steps=10)
    made = make_learner(config, backbone or conv4(), None).train()
    if double:
        made.double().backbone.transform = Pixels()
    return made


def value_and_gradients(made, e, labels, **options):
    made.zero_grad()
    value, logits = made.loss(e, labels, **options)
    value.backward()
    return value.detach(), logits.detach(), {n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None}


# -- limits ------------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("options", [{"bound_weight": 0.0, "ramp": 0.0}, {"temperature": 1e-3, "epsilon": 1e-3}], ids=str)
def test_without_weight_on_the_bounds_it_is_the_plain_loss(method, options):
    """By a weight of 0, and by a softmax that takes the largest part. Logits, gradients and statistics agree, too."""
    e, labels = images()
    plain, bounded = learner(method, "cross_entropy"), learner(method, "ibp", **options)
    expected, found = (value_and_gradients(made, e, labels) for made in (plain, bounded))
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(bounded.state_dict(), plain.state_dict(), atol=1e-10, rtol=0)


@BOTH
def test_a_twin_without_interpolation_is_its_episode(method, monkeypatch):
    e, labels = images()
    blocks = 4 if method == "protonet" else 2  # there, BatchNorm behind the cut sees the twin beside the other episodes
    expected = value_and_gradients(learner(method, "ibp", ramp=0.0, blocks=blocks), e, labels)
    monkeypatch.setattr(Ibi, "_twin", lambda self, moment, ways: (1, torch.zeros(ways, dtype=torch.float64)))
    found = value_and_gradients(learner(method, "ibi", ramp=0.0, blocks=blocks), e, labels)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-9)


# -- references --------------------------------------------------------------------------------------------------------


def softmax_total(parts):
    parts = torch.stack(parts)
    return (parts.softmax(0) * parts).sum()


def mse(a, b):
    return ((a - b) ** 2).mean()


def reference(method, made, e, labels, epsilon, blocks, chosen=None, mix=None):
    """Value, and gradient of the first convolution: one episode after the other, adapted by hand, so that the gradient is
    that of first order. The bounds come from IntervalNetwork, which has tests of its own."""
    e = e.with_features(made.backbone.transform)
    losses, networks = [], []
    if method == "protonet":  # one pass of everything, since BatchNorm sees all of it
        x = torch.cat([torch.cat([e.support[i], e.query[i]]) for i in range(len(e))])
        cut = IntervalNetwork(made.backbone, blocks, epsilon)
        found, shots, n = cut.bounds(x), e.support.shape[1], len(x) // len(e)
        maps = [found.nominal]
        if chosen is not None:
            rows = range(chosen * n, (chosen + 1) * n)
            shares = mix[torch.cat([e.support_labels[chosen], labels[chosen]])]
            maps += [torch.stack([(1 - abs(t)) * found.nominal[r] + abs(t) * (found.upper if t > 0 else found.lower)[r]
                                  for r, t in zip(rows, shares, strict=True)])]
        features = cut.finish(torch.cat(maps)).split(n)

        def task(z, i):
            centres = torch.stack([z[:shots][e.support_labels[i] == c].mean(0) for c in range(WAYS)])
            return F.cross_entropy(-torch.cdist(z[shots:], centres) ** 2, labels[i])

        for i in range(len(e)):
            rows = slice(i * n + shots, (i + 1) * n)
            first = task(features[i], i)
            first = (first + task(features[-1], i)) / 2 if i == chosen else first
            losses.append(softmax_total([first, mse(found.upper[rows], found.nominal[rows]),
                                         mse(found.lower[rows], found.nominal[rows])]))
        value = sum(losses) / len(e)
        value.backward()
        return value.detach(), made.backbone.blocks[0][0].weight.grad

    for i in range(len(e)):
        network = nn.ModuleList([copy.deepcopy(made.backbone), copy.deepcopy(made.method.head)])
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.track_running_stats = False
        cut = IntervalNetwork(network[0], blocks, epsilon)

        def cross_entropy(x, y, cut=cut, head=network[1], twin=i == chosen):
            found = cut.bounds(x)
            if not twin:
                return F.cross_entropy(head(cut.finish(found.nominal)), y), found
            shares = mix[y].view(-1, 1, 1, 1)
            bound = torch.where(shares > 0, found.upper, found.lower)
            logits = head(cut.finish(torch.cat([found.nominal, (1 - shares.abs()) * found.nominal + shares.abs() * bound])))
            return (F.cross_entropy(logits[: len(x)], y) + F.cross_entropy(logits[len(x) :], y)) / 2, found

        for _ in range(2):
            gradients = torch.autograd.grad(cross_entropy(e.support[i], e.support_labels[i])[0], list(network.parameters()))
            with torch.no_grad():
                for p, g in zip(network.parameters(), gradients, strict=True):
                    p -= 0.1 * g
        task, found = cross_entropy(e.query[i], labels[i])
        losses.append(softmax_total([task, mse(found.upper, found.nominal), mse(found.lower, found.nominal)]))
        networks.append(network)
    value = sum(losses) / len(e)
    value.backward()
    return value.detach(), sum(network[0].blocks[0][0].weight.grad for network in networks)


@BOTH
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("chosen", [None, 0, 2])
def test_equals_the_reference(method, blocks, chosen, monkeypatch):
    e, labels = images()
    mix = torch.tensor([0.7, -0.4, 1.0], dtype=torch.float64)
    monkeypatch.setattr(Ibi, "_twin", lambda self, moment, ways: (chosen, mix))
    made = learner(method, "ibp" if chosen is None else "ibi", epsilon=0.2, blocks=blocks, ramp=0.0,
                   settings={"first_order": True} if method == "maml" else None)
    expected = reference(method, copy.deepcopy(made), e, labels, 0.2, blocks, chosen, mix)
    value, logits, gradients = value_and_gradients(made, e, labels)
    torch.testing.assert_close((value, gradients["backbone.blocks.0.0.weight"]), expected, atol=1e-10, rtol=1e-8)
    assert logits.shape == (3, labels.shape[1], WAYS)


# -- how it is computed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["ibp", "ibi"])
@pytest.mark.parametrize("batch_norm", ["batch", "running"])
def test_ways_of_computing_agree(loss, batch_norm):
    """All episodes in one vmap, one by one, and with checkpoints."""
    e, labels = images()
    found = []
    for options in ({"vectorise": False}, {"vectorise": True}, {"checkpoint": True}):
        made = learner("maml", loss, ramp=0.0, settings={"batch_norm": batch_norm, **options})
        found.append((*value_and_gradients(made, e, labels), made.state_dict()))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("loss", ["ibp", "ibi"])
def test_a_step_of_several_passes_is_the_same_step(loss):
    """Every pass knows which episodes it has, so the twin is made once."""
    e, labels = images(episodes=4)
    numbers = torch.arange(20, 24)
    whole = learner("maml", loss, episodes=4)
    expected = value_and_gradients(whole, e, labels, numbers=numbers)
    made = learner("maml", loss, episodes=4)
    total = sum(made.loss(e[some], labels[some], numbers[some])[0] / 2 for some in torch.arange(4).chunk(2))
    total.backward()
    torch.testing.assert_close(total.detach(), expected[0], atol=1e-12, rtol=0)
    torch.testing.assert_close({n: p.grad for n, p in made.named_parameters()}, expected[2], atol=1e-10, rtol=1e-8)


def test_every_episode_gets_a_twin_at_times():
    """The branch that never fires in the published code does: one episode of every step, each place equally often."""
    loss, places, mixes = create_loss("ibi", alpha=2.0, beta=5.0), [], []
    for step in range(600):
        moment = Moment(torch.arange(4 * step, 4 * step + 4), seed=3, episodes_per_step=4, steps=600)
        place, mix = loss._twin(moment, 5)
        again = loss._twin(moment, 5)
        assert place == again[0] and torch.equal(mix, again[1])
        places.append(place)
        mixes.append(mix)
    counts = torch.bincount(torch.tensor(places), minlength=4)
    assert (counts - 150).abs().max() < 45  # 4 standard deviations
    mix = torch.stack(mixes)
    assert mix.abs().max() <= 1 and abs((mix > 0).double().mean() - 0.5) < 0.04
    assert abs(mix.abs().mean() - 2 / 7) < 0.012  # the mean of Beta(2, 5)
    other = loss._twin(Moment(torch.arange(4), seed=4, episodes_per_step=4), 5)[1]
    assert not torch.equal(other, mixes[0])


def test_epsilon_grows_from_nothing():
    e, labels = images()
    made = learner("protonet", "ibp", bound_weight=1.0, ramp=0.5)  # 10 steps of 3 episodes
    task = learner("protonet", "cross_entropy").loss(e, labels)[0]
    excess = [(made.loss(e, labels, torch.arange(3 * step, 3 * step + 3))[0] - task).item() for step in (0, 1, 4, 5, 9)]
    assert abs(excess[0]) < 1e-12 < excess[1] < excess[2] < excess[3]
    assert excess[3] == pytest.approx(excess[4], rel=1e-12)


# -- in the training loop ----------------------------------------------------------------------------------------------


SETTINGS = {"ways": WAYS, "validation_ways": WAYS, "validation_episodes": 4, "steps": 6, "validate_every": 3,
            "checkpoint_every": 2, "log_every": 2}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "loss"), [("protonet", "ibp"), ("maml", "ibi"), ("protonet", "ibi"), ("maml", "ibp")])
def test_a_resumed_run_is_the_same_to_the_bit(tmp_path, method, loss):
    settings = {**SETTINGS, "method_name": method, "loss": loss, "parameters": PARAMETERS[method]}
    expected = run(tmp_path / "whole", backbone=conv4(), **settings)
    with fails_at(3), pytest.raises(ZeroDivisionError):
        run(tmp_path / "cut", backbone=conv4(), **settings)
    found = run(tmp_path / "cut", backbone=conv4(), **settings)
    assert found.history == expected.history
    ends = [load_checkpoint(tmp_path / name / "checkpoints")["learner"] for name in ("whole", "cut")]
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@BOTH
@pytest.mark.parametrize("loss", ["ibp", "ibi"])
def test_a_few_episodes_are_fitted(method, loss):
    """With a rate that falls to zero: at a constant one some steps spoil what is learned, and rounding decides which."""
    e, labels = images(episodes=3, shots=1, queries=2)
    made = learner(method, loss, double=False, backbone=conv4(width=8), epsilon=0.05, ramp=0.0, blocks=1,
                   settings={"first_order": True, "inner_steps": 1} if method == "maml" else None)
    optimiser = torch.optim.Adam(made.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, 25)
    losses = []
    for step in range(25):
        optimiser.zero_grad()
        loss_now, logits = made.loss(e, labels, torch.arange(3 * step, 3 * step + 3))
        loss_now.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss_now.item())
    assert losses[-1] < 0.3 * losses[0]
    assert torch.equal(logits.argmax(-1), labels)


def test_bfloat16():
    e, labels = images()
    config = TrainConfig(loss="ibi", loss_parameters={"ibi": {"ramp": 0.0}}, precision="bfloat16", episodes_per_step=3)
    half = Learner(conv4().train(), create_method("protonet"), "bfloat16", config)
    full = Learner(conv4().train(), create_method("protonet"), config=config)
    found, expected = (made.loss(e, labels)[0] for made in (half, full))
    assert found.dtype == torch.float32 and found.item() == pytest.approx(expected.item(), rel=0.05)


@pytest.mark.parametrize(("method", "parameters", "loss_parameters", "message"), [
    ("reptile", {}, {}, "Reptile with these parameters has a loss of its own"),
    ("maml", {"multi_step_episodes": 10}, {}, "Maml with these parameters has a loss of its own.*multi_step_episodes=0"),
    ("maml", {}, {"blocks": 5}, "blocks=5; the backbone has 4"),
    ("protonet", {}, {"blocks": 0}, "blocks=0"),
])
def test_what_does_not_fit_is_refused_before_training(tmp_path, method, parameters, loss_parameters, message):
    with pytest.raises(FewshotError, match=message):
        run(tmp_path, backbone=conv4(), method_name=method, parameters=parameters, loss="ibp",
            loss_parameters={"ibp": loss_parameters}, **SETTINGS)
    assert not list(tmp_path.iterdir())


def test_other_backbones_are_refused_before_training(tmp_path):
    with pytest.raises(FewshotError, match="Tiny is not a plain sequence of blocks"):
        run(tmp_path, loss="ibi", **SETTINGS)
