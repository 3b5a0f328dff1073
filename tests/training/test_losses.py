"""Episodic losses: float64 loops as references, limits, invariances, derivatives, and that training lowers them."""

from __future__ import annotations

import math

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods import create_method
from fewshot.training import Learner, TrainConfig
from fewshot.training.losses import LOSSES, NetworkLoss, create_loss, list_losses, parse_losses
from tests.methods.image_episodes import image_episodes
from tests.methods.image_episodes import network as image_network
from tests.training.runs import bank, run, tiny

NAMES = [name for name in LOSSES if not issubclass(LOSSES[name], NetworkLoss)]
METRIC = ["icnn", "nca", "proto_triplet"]
every_loss = pytest.mark.parametrize("name", NAMES)


def made(episodes=3, ways=4, shots=2, queries=12, dim=6, seed=0, **options):
    """Episodes without coinciding points: the fixture's ReLU leaves equal zeros, where neighbours are ambiguous."""
    e, labels = random_episodes(episodes, ways, shots, queries, dim, seed, with_labels=True, **options)
    generator = torch.Generator().manual_seed(seed + 1)
    e = e.with_features(lambda x: x + 0.3 * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype))
    return e, labels, create_method("protonet")(e)


# -- references: one episode, plain loops ------------------------------------------------------------------------------


def loop_proto_triplet(support, support_labels, query, query_labels, ways, margin=0.5):
    def distance(a, b):
        return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) + 1e-6)

    centres = []
    for n in range(ways):
        own = [x for x, y in zip(support, support_labels, strict=True) if y == n]
        centres.append([sum(column) / len(own) for column in zip(*own, strict=True)])
    total = 0.0
    for z, y in zip(query, query_labels, strict=True):
        far = min(distance(z, centres[n]) for n in range(ways) if n != y)
        total += max(0.0, distance(z, centres[y]) - far + margin)
    return total / len(query)


def loop_nca(x, labels, temperature=1.0):
    total, counted = 0.0, 0
    for i in range(len(x)):
        near = {j: math.exp(-sum((a - b) ** 2 for a, b in zip(x[i], x[j], strict=True)) / temperature)
                for j in range(len(x)) if j != i}
        own = [near[j] for j in near if labels[j] == labels[i]]
        if own:
            total, counted = total - math.log(sum(own) / sum(near.values())), counted + 1
    return total / counted


def loop_icnn(x, labels, k=4):
    """Written from the formula of the authors' file."""
    n = len(x)
    share_is_one = k + 2 >= n
    k = min(k, n - 2)
    d = [[math.sqrt(sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) + 1e-6) for q in x] for p in x]
    near = [sorted((j for j in range(n) if j != i), key=lambda j: d[i][j])[:k] for i in range(n)]  # noqa: B023
    largest = max([d[i][j] for i in range(n) for j in near[i] if labels[i] != labels[j]], default=0.0)
    compact, separate, share = [], [], 0.0
    for i in range(n):
        other = min(d[i][j] for j in range(n) if labels[j] != labels[i])
        scaled = {j: d[i][j] / (other + 1e-7) for j in near[i]}
        top = max(1.0, *scaled.values())
        same = [scaled[j] / top for j in near[i] if labels[j] == labels[i]]
        diff = [d[i][j] / (largest + 1e-7) for j in near[i] if labels[j] != labels[i]]
        share += len(same) / k
        if same:
            compact.append(sum(same) / (len(same) + 1e-7))
        if diff:
            separate.append(sum(diff) / (len(diff) + 1e-7))
    first = 1 - sum(compact) / (len(compact) + 1e-7)
    second = sum(separate) / (len(separate) + 1e-7) if separate else 1.0
    return -math.log(((first + second) / 2 + (1.0 if share_is_one else share / n)) / 2)


def reference(name, e, labels, logits, i, **params):
    support, query = e.support[i].tolist(), e.query[i].tolist()
    own, asked = e.support_labels[i].tolist(), labels[i].tolist()
    if name == "cross_entropy":
        return float(torch.stack([row.logsumexp(0) - row[y] for row, y in zip(logits[i], asked, strict=True)]).mean())
    if name == "proto_triplet":
        return loop_proto_triplet(support, own, query, asked, e.ways, **params)
    return {"nca": loop_nca, "icnn": loop_icnn}[name](support + query, own + asked, *params.values())


@pytest.mark.parametrize(("name", "params"), [
    ("cross_entropy", {}), ("proto_triplet", {}), ("proto_triplet", {"margin": 2.0}), ("nca", {}),
    ("nca", {"temperature": 5.0}), ("icnn", {}), ("icnn", {"neighbours": 7}), ("icnn", {"neighbours": 40})], ids=str)
@pytest.mark.parametrize("shape", [{}, {"shots": 1, "queries": 4, "ways": 4}, {"queries": 7, "spread": 0.2, "dim": 3}],
                         ids=str)
def test_equals_the_loop(name, params, shape):
    e, labels, logits = made(**shape)
    expected = [reference(name, e, labels, logits, i, **params) for i in range(len(e))]
    found = create_loss(name, **params)(e, labels, logits)
    assert found.shape == ()
    torch.testing.assert_close(found.item(), sum(expected) / 3, atol=1e-9, rtol=1e-9)
    for i in range(3):  # an episode's share of the mean does not depend on its batch mates
        torch.testing.assert_close(create_loss(name, **params)(e[i], labels[i : i + 1], logits[i : i + 1]).item(),
                                   expected[i], atol=1e-9, rtol=1e-9)


def clusters(gap, noise=1e-3):
    """Classes on axes, far from each other compared with their width; 6 images a class."""
    labels = torch.arange(4).repeat(2).expand(2, -1)
    query_labels = torch.arange(4).repeat(4).expand(2, -1)
    generator = torch.Generator().manual_seed(0)
    centres = gap * torch.eye(4, 5, dtype=torch.float64)
    support, query = (centres[y] + noise * torch.randn(*y.shape, 5, generator=generator, dtype=torch.float64)
                      for y in (labels, query_labels))
    e = Episodes(support, labels.contiguous(), query, 4)
    return e, query_labels, create_method("protonet")(e)


@every_loss
def test_perfectly_separated_classes_cost_nothing(name):
    assert create_loss(name)(*clusters(gap=100.0)).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("name", METRIC)
def test_wrong_labels_cost(name):
    e, labels, logits = clusters(gap=100.0)
    assert create_loss(name)(e, (labels + 1) % 4, logits).item() > 0.3


@every_loss
def test_orders_and_names_of_classes_do_not_matter(name):
    e, labels, _ = made(ways=4)
    first, second, renamed = torch.randperm(8), torch.randperm(12), torch.tensor([2, 3, 1, 0])
    other = Episodes(e.support[:, first], renamed[e.support_labels[:, first]], e.query[:, second], 4)
    loss = create_loss(name)
    torch.testing.assert_close(loss(other, renamed[labels[:, second]], create_method("protonet")(other)),
                               loss(e, labels, create_method("protonet")(e)), atol=1e-10, rtol=0)


def test_nca_and_icnn_do_not_distinguish_support_and_queries():
    e, labels, logits = made(queries=8, shots=2)
    swapped = Episodes(e.query, labels, e.support, 4)
    for name in ("nca", "icnn"):
        torch.testing.assert_close(create_loss(name)(swapped, e.support_labels, logits),
                                   create_loss(name)(e, labels, logits), atol=1e-12, rtol=0)


@every_loss
def test_gradcheck(name):
    """At random points, which are away from kinks; two episodes."""
    e, labels, _ = made(episodes=2, ways=3, shots=2, queries=6, dim=3, seed=3)

    def value(support, query):
        moved = Episodes.trusted(support=support, support_labels=e.support_labels, query=query, ways=3)
        return create_loss(name)(moved, labels, create_method("protonet")(moved))

    points = [x.clone().requires_grad_() for x in (e.support, e.query)]
    gradients = torch.autograd.grad(value(*points), points)
    assert all(g.abs().max() > 1e-3 for g in gradients)
    assert torch.autograd.gradcheck(value, points, eps=1e-6, atol=1e-6)


@every_loss
def test_coinciding_embeddings_have_finite_gradients(name):
    e, labels, _ = made(dtype=torch.float32)
    z = [torch.zeros_like(x).requires_grad_() for x in (e.support, e.query)]
    same = Episodes.trusted(support=z[0], support_labels=e.support_labels, query=z[1], ways=4)
    loss = create_loss(name)(same, labels, create_method("protonet")(same))
    assert loss.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(loss, z))


def test_nca_far_apart_and_alone():
    """No underflow where exp(-distance) is 0, and images without a second one of their class are left out."""
    e, labels, logits = made(episodes=1, ways=4, shots=1, queries=1)
    found = create_loss("nca")(e, labels, logits).item()
    torch.testing.assert_close(found, reference("nca", e, labels, logits, 0), atol=1e-9, rtol=0)
    far = Episodes(1e3 * e.support, e.support_labels, 1e3 * e.query, 4)
    z = far.query.clone().requires_grad_()
    loss = create_loss("nca")(Episodes.trusted(support=far.support, support_labels=far.support_labels, query=z, ways=4),
                              (labels + 1) % 4, logits)
    loss.backward()
    assert 1e3 < loss.item() < math.inf and z.grad.abs().max() > 1


# -- in training -------------------------------------------------------------------------------------------------------


@every_loss
def test_training_lowers_the_loss(name, tmp_path):
    result = run(tmp_path, backbone=tiny(dropout=0.0), loss=name, steps=50, log_every=10, validate_every=0, queries=5,
                 lr=0.03)
    losses = [row["loss"] for row in result.history]
    assert losses[-1] < 0.9 * losses[0]


def test_mean_of_several_losses():
    config = TrainConfig(loss="cross_entropy, nca,proto_triplet",
                         loss_parameters={"nca": {"temperature": 3.0}, "proto_triplet": {"margin": 1.0}})
    learner = Learner(tiny(dropout=0.0).eval(), create_method("protonet"), config=config)
    images = bank().images[:40].view(1, 40, 1, 8, 8)
    labels = torch.arange(4).repeat(10).view(1, -1)
    episodes = Episodes(images[:, :8], labels[:, :8], images[:, 8:], 4)
    found, logits = learner.loss(episodes, labels[:, 8:])
    features = episodes.with_features(
        lambda x: learner.backbone(learner.backbone.transform(x.flatten(0, 1))).unflatten(0, x.shape[:2]))
    each = [create_loss("cross_entropy"), create_loss("nca", temperature=3.0), create_loss("proto_triplet", margin=1.0)]
    torch.testing.assert_close(found, sum(loss(features, labels[:, 8:], logits) for loss in each) / 3)


def test_a_method_with_its_own_loss_takes_no_other(tmp_path):
    with pytest.raises(FewshotError, match="loss='nca', but maml has a loss of its own; leave loss at 'cross_entropy'"):
        run(tmp_path, method_name="maml", loss="nca")
    episodes, labels = image_episodes(dtype=torch.float32)
    backbone = image_network(dtype=torch.float32)
    backbone.transform = lambda images: images
    method = create_method("maml", inner_steps=1).with_backbone(backbone, 3)
    assert torch.equal(Learner(backbone, method).loss(episodes, labels)[0], method.loss(episodes, labels)[0])


def test_every_loss_describes_itself():
    assert list_losses() == sorted(LOSSES) and set(METRIC) | {"cross_entropy"} == set(NAMES)
    for name in LOSSES:
        assert create_loss(name).paper and LOSSES[name].__doc__


@pytest.mark.parametrize(("names", "parameters", "message"), [
    ("cross_entropi", {}, "unknown loss 'cross_entropi'; did you mean 'cross_entropy'"),
    ("", {}, "unknown loss ''"),
    ("nca,,icnn", {}, "unknown loss ''"),
    ("nca,nca", {}, "names 'nca' twice"),
    ("nca", {"icnn": {}}, "loss_parameters for 'icnn', but loss='nca'"),
    ("nca", {"nca": {"temprature": 1.0}}, "unknown parameter of loss nca 'temprature'; did you mean 'temperature'"),
    ("nca", {"nca": 2.0}, "loss_parameters['nca']=2.0; pass a dictionary"),
    ("nca", {"nca": {"temperature": "1"}}, "temperature='1' of nca; expected a number"),
    ("nca", {"nca": {"temperature": 0.0}}, "temperature=0.0; give a positive number"),
    ("icnn", {"icnn": {"neighbours": 0}}, "neighbours=0"),
    ("proto_triplet", {"proto_triplet": {"margin": -1.0}}, "margin=-1.0"),
    ("ibp", {"ibp": {"epsilon": -1.0}}, "epsilon=-1.0"),
    ("ibp", {"ibp": {"ramp": 2.0}}, "ramp=2.0"),
    ("ibi", {"ibi": {"alpha": 0.0}}, "alpha=0.0"),
    ("cross_entropy,ibp", {}, "ibp contains the cross-entropy of the task already"),
    (["nca"], {}, "pass names separated by commas"),
    ("nca", None, "pass names separated by commas"),
])
def test_wrong_settings_are_refused(names, parameters, message):
    for make in (lambda: parse_losses(names, parameters), lambda: TrainConfig(loss=names, loss_parameters=parameters)):
        with pytest.raises(FewshotError) as caught:
            make()
        assert message in str(caught.value)


def test_the_default_loss_is_not_stored():
    """Runs from before there was a choice have the same settings and can be continued."""
    assert not {"loss", "loss_parameters"} & set(TrainConfig().to_dict())
    other = TrainConfig(loss="nca", loss_parameters={"nca": {"temperature": 2.0}})
    assert TrainConfig.from_dict(other.to_dict()) == other
    assert other.fingerprint != TrainConfig(loss="nca").fingerprint != TrainConfig().fingerprint
    # Of the settings before the change, by its own definition.
    assert TrainConfig().fingerprint == "e50aee7e6ceb47a0"
