"""learn2learn's tasks, networks and algorithms with this package. What needs learn2learn itself skips without it."""

from __future__ import annotations

import copy
import functools
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fewshot.backbones import create_backbone, load_weights, save_weights
from fewshot.backbones.weights import read_method
from fewshot.core.errors import FewshotError
from fewshot.core.seeding import isolated_rng
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.datasets import load_dataset
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.episodes.types import Episodes
from fewshot.evaluation.evaluate import evaluate
from fewshot.features.extract import embed
from fewshot.integrations.learn2learn import EpisodeTasks, episodes_from_taskset, wrap_algorithm, wrap_backbone
from fewshot.methods import create_method
from fewshot.methods.bases.own_weights import load_own_state
from fewshot.training import TrainConfig, train
from tests.methods.image_episodes import episodes_of_images


@pytest.fixture(scope="module")
def l2l():
    return pytest.importorskip("learn2learn", exc_type=ImportError,
                               reason="needs learn2learn 0.2.0: `make learn2learn` builds it from source")


def numbered_bank(classes=6, size=9) -> FeatureBank:
    """Item i has the features (i, its class)."""
    labels = torch.arange(classes).repeat_interleave(size)
    return FeatureBank(torch.stack([torch.arange(len(labels)), labels], 1).double(), labels)


@functools.cache
def digits(split="val") -> ImageBank:
    return load_dataset("glyphs", split)


def small_network(ways=4, width=8, seed=0) -> nn.Sequential:
    backbone = create_backbone("conv4", channels=1, image_size=28, width=width, seed=seed)
    with isolated_rng(seed):
        return nn.Sequential(backbone, nn.Linear(backbone.feature_dim, ways))


class Tasks:
    """As learn2learn's Taskset, of given tasks."""

    def __init__(self, *tasks):
        self.tasks, self.num_tasks = tasks, len(tasks)

    def __getitem__(self, number):
        return self.tasks[number]


# -- tasks -----------------------------------------------------------------------------------------------------------


def test_tasks_of_any_order_and_labels_become_episodes():
    labels = torch.tensor([9, 4, 4, 9, 7, 4, 7, 9, 7])
    data = torch.stack([torch.arange(9), labels], 1).float()
    episodes, query_labels = episodes_from_taskset(Tasks((data, labels), (data.flip(0), labels.flip(0))), 3, 1, 2, 2)
    assert episodes.support[0].tolist() == [[1, 4], [4, 7], [0, 9]] and episodes.support_labels[0].tolist() == [0, 1, 2]
    assert episodes.support[1, :, 0].tolist() == [5, 8, 7]
    assert torch.equal(torch.tensor([4, 7, 9])[query_labels], episodes.query[..., 1].long())
    for episode in range(2):
        items = torch.cat([episodes.support[episode, :, 0], episodes.query[episode, :, 0]])
        assert sorted(items.tolist()) == list(range(9))
    assert (query_labels.diff(dim=1) < 0).any(), "the order of the queries tells their classes"


def test_even_places_can_be_the_support():
    data, labels = torch.arange(8.0)[:, None], torch.arange(2).repeat_interleave(4)
    episodes, _ = episodes_from_taskset(Tasks((data, labels)), 2, 2, 2, 1, even_odd=True)
    assert episodes.support.flatten().tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize(("arguments", "message"), [
    ((2, 1, 2, 2), r"task 1 holds 6 items, \{3: 2, 8: 4\}"),
    ((3, 1, 2, 1), r"task 0 .*NWays\(dataset, 3\) and KShots\(dataset, 3\)"),
    ((2, 1, 1, 1), "task 0"),
    ((2, 1, 2, 3), "num_tasks=2"),
    ((2, 0, 3, 1), "shots=0"),
])
def test_tasks_that_do_not_fit_are_refused(arguments, message):
    fits = torch.zeros(6, 2), torch.tensor([0, 0, 0, 1, 1, 1])
    uneven = torch.zeros(6, 2), torch.tensor([8, 8, 8, 8, 3, 3])
    with pytest.raises(FewshotError, match=message):
        episodes_from_taskset(Tasks(fits, uneven), *arguments)


@pytest.mark.parametrize("even_odd", [False, True])
def test_episode_tasks_are_the_samplers_episodes(even_odd):
    bank = numbered_bank()
    tasks = EpisodeTasks(bank, 4, 3, 3, seed=7, num_tasks=20, even_odd=even_odd)
    episodes, query_labels = EpisodeSampler(bank, 4, 3, 3, seed=7).sample(bank, 0, 20)
    for i, (data, labels) in enumerate(tasks):
        assert labels.tolist() == sorted(labels.tolist()) and data.shape == (24, 2)
        (support, support_labels), (query, of_query) = tasks.split(data, labels)
        assert torch.equal(support, episodes.support[i]) and torch.equal(support_labels, episodes.support_labels[i])
        drawn = set(zip(episodes.query[i, :, 0].tolist(), query_labels[i].tolist(), strict=True))
        assert set(zip(query[:, 0].tolist(), of_query.tolist(), strict=True)) == drawn and len(query) == len(drawn) == 12
    again, answers = episodes_from_taskset(tasks, 4, 3, 3, 20, even_odd=even_odd)
    assert torch.equal(again.support, episodes.support)
    assert torch.equal(again.query[..., 0].sort(1)[0], episodes.query[..., 0].sort(1)[0])
    nearest = create_method("protonet")
    correct, expected = ((nearest(e.to(torch.float64)).argmax(-1) == y).double().mean(1)
                         for e, y in ((again, answers), (episodes, query_labels)))
    assert torch.equal(correct, expected)


def test_episode_tasks_by_index_iteration_and_sample_agree():
    tasks = EpisodeTasks(digits(), 5, 1, 2, seed=1, num_tasks=3)
    assert len(tasks) == 3 and len(list(tasks)) == 3
    sampled = [tasks.sample()[0] for _ in range(4)]
    for number in range(4):
        assert torch.equal(sampled[number], tasks[number % 3][0])
    assert not torch.equal(sampled[0], sampled[1])
    assert sampled[0].dtype == torch.float32 and sampled[0].min() >= 0 and 0.5 < sampled[0].max() <= 1
    assert torch.equal(tasks[-1][0], tasks[2][0])
    with pytest.raises(IndexError):
        tasks[3]
    loader = torch.utils.data.DataLoader(tasks, batch_size=None)
    assert torch.equal(next(iter(loader))[0], sampled[0])
    moved = EpisodeTasks(digits(), 5, 1, 2, seed=1, transform=lambda images: 1 - images / 255.0)
    torch.testing.assert_close(moved[0][0], 1 - sampled[0])


@pytest.mark.parametrize(("changes", "message"), [
    ({"ways": (3, 5)}, r"ways=\(3, 5\)"), ({"num_tasks": 0}, "num_tasks=0"),
    ({"even_odd": True}, "equal with even_odd"), ({"shots": 9}, "class 0"),
])
def test_impossible_episode_tasks_are_refused(changes, message):
    with pytest.raises(FewshotError, match=message):
        EpisodeTasks(numbered_bank(), **{"ways": 3, "shots": 1, "queries": 2, **changes})


def test_its_partitions_find_the_support(l2l):
    for even_odd in (False, True):
        tasks = EpisodeTasks(numbered_bank(), 3, 2, 2, even_odd=even_odd)
        data, labels = tasks.sample()
        (support, _), (query, _) = tasks.split(data, labels)
        if even_odd:
            adaptation = torch.zeros(len(data), dtype=torch.bool)
            adaptation[torch.arange(2 * 3) * 2] = True
            found = data[adaptation], data[~adaptation]
        else:
            found = (part[0] for part in l2l.data.partition_task(data, labels, shots=2))
        for mine, theirs in zip((support, query), found, strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("num_tasks", [-1, 5])
def test_its_task_sets_become_episodes(l2l, num_tasks):
    """Shuffled labels of N-way K-shot tasks, finite and endless."""
    bank = numbered_bank()
    dataset = l2l.data.MetaDataset(torch.utils.data.TensorDataset(bank.features, bank.labels))
    transforms = l2l.data.transforms
    steps = [transforms.NWays(dataset, 4), transforms.KShots(dataset, 5), transforms.LoadData(dataset),
             transforms.RemapLabels(dataset, shuffle=True)]
    taskset = l2l.data.Taskset(dataset, steps, num_tasks=num_tasks)
    episodes, query_labels = episodes_from_taskset(taskset, 4, 2, 3, 5)
    assert episodes.support.shape == (5, 8, 2) and episodes.query.shape == (5, 12, 2)
    for e in range(5):
        of_class = {int(label): int(item[1]) for item, label in
                    zip(episodes.support[e], episodes.support_labels[e], strict=True)}
        assert len(set(of_class.values())) == 4
        assert [of_class[int(label)] for label in query_labels[e]] == episodes.query[e, :, 1].tolist()
        assert len({*episodes.support[e, :, 0].tolist(), *episodes.query[e, :, 0].tolist()}) == 20
    with pytest.raises(FewshotError, match="task 0 holds 20 items"):
        episodes_from_taskset(taskset, 4, 1, 3, 1)
    raw = l2l.data.Taskset(dataset, steps[:3], num_tasks=5)  # with the labels of the data set
    kept, _ = episodes_from_taskset(raw, 4, 2, 3, 5)
    assert kept.support_labels.max() == 3


# -- networks --------------------------------------------------------------------------------------------------------


def test_any_module_is_a_backbone(tmp_path):
    with isolated_rng(0):
        module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    backbone = wrap_backbone(module, 3, 10, mean=(0.5,), std=(0.25,))
    assert backbone.feature_dim == 6 * 8 * 8 and not backbone.training
    assert wrap_backbone(module, 3, 10, pool="mean").feature_dim == 6
    images = torch.randint(0, 256, (12, 1, 14, 14), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    bank = ImageBank(images, torch.arange(12) // 4)
    features = embed(bank, backbone, progress=False)
    torch.testing.assert_close(features.features, module(backbone.transform(images)).flatten(1))
    assert features.provenance["backbone"] == "Sequential" and features.provenance["options"]["image_size"] == 10

    save_weights(backbone, tmp_path / "w.safetensors")
    other = wrap_backbone(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), 3, 10)
    assert other.describe()["weights_id"] != backbone.describe()["weights_id"]
    load_weights(other, tmp_path / "w.safetensors")
    assert other.describe() == backbone.describe()
    strided = wrap_backbone(nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU()), 3, 10)
    assert strided.options != backbone.options, "equal weights would find the features of another network"


@pytest.mark.parametrize(("module", "options", "message"), [
    (nn.Linear(3, 2), {}, "does not take images"),
    (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(100, track_running_stats=False)), {}, "batch_norm='batch'"),
    (nn.Flatten(), {"pool": "max"}, "pool='max'"),
    (nn.Flatten(0), {}, r"Tensor \(200,\)"),
])
def test_modules_that_are_no_backbone_are_refused(module, options, message):
    with pytest.raises(FewshotError, match=message):
        wrap_backbone(module, 1, 10, **options)


@pytest.mark.slow
def test_its_backbone_trains_and_is_evaluated(l2l, tmp_path):
    with isolated_rng(0):
        module = l2l.vision.models.CNN4Backbone(hidden_size=16, channels=1, max_pool=True)
    backbone = wrap_backbone(module, 1, 28)
    assert backbone.feature_dim == 16 and backbone.name == "CNN4Backbone"
    config = TrainConfig(ways=10, queries=3, steps=30, lr=5e-3, validate_every=30, validation_episodes=20)
    trained = train(config, digits("train"), digits(), backbone, out=tmp_path, progress=False)
    run = {"ways": 5, "shots": 1, "queries": 5, "episodes": 200}
    before, after = (evaluate(bank=embed(digits("test"), network, progress=False), **run)
                     for network in (backbone, trained.backbone))
    assert after.accuracy.mean > before.accuracy.mean + 0.05 and after.record.backbone == "CNN4Backbone"
    load_weights(backbone, trained.weights)
    assert torch.equal(evaluate(bank=embed(digits("test"), backbone, progress=False), **run).correct, after.correct)


def test_its_network_of_batch_statistics_says_so(l2l):
    with pytest.raises(FewshotError, match="without running statistics"):
        wrap_backbone(l2l.vision.models.OmniglotFC(28**2, 5), 1, 28)
    assert wrap_backbone(l2l.vision.models.OmniglotFC(28**2, 5), 1, 28, batch_norm="batch").feature_dim == 5


# -- algorithms ------------------------------------------------------------------------------------------------------


def ours_and_theirs(l2l, name, steps=2, batch_norm="batch", first_order=False, eval_steps=None):
    """The learner of this package and learn2learn's on copies of the same network."""
    network = small_network().double()
    ours = create_method(name, inner_lr=0.1, inner_steps=steps, batch_norm=batch_norm, first_order=first_order,
                         eval_steps=eval_steps).with_backbone(copy.deepcopy(network[0]), 4)
    ours.head = copy.deepcopy(network[1])
    kind = {"maml": l2l.algorithms.MAML, "meta_sgd": l2l.algorithms.MetaSGD}[name]
    algorithm = kind(network, lr=0.1, first_order=first_order)
    return ours.eval(), wrap_algorithm(algorithm, 1, 28, steps=steps, batch_norm=batch_norm, eval_steps=eval_steps)


@pytest.mark.parametrize("name", ["maml", "meta_sgd"])
@pytest.mark.parametrize("first_order", [False, True])
def test_algorithms_equal_ours_in_training(l2l, name, first_order):
    ours, theirs = ours_and_theirs(l2l, name, first_order=first_order)
    episodes, labels = episodes_of_images()
    (loss, logits), (other, answer) = (learner.train().loss(episodes, labels) for learner in (ours, theirs))
    torch.testing.assert_close(answer, logits, atol=1e-9, rtol=0)
    assert abs(loss.item() - other.item()) < 1e-9
    loss.backward()
    other.backward()
    mine = [*ours.backbone.parameters(), *ours.head.parameters(), *getattr(ours, "rates", ())]
    reference = list(theirs.parameters())
    assert len(mine) == len(reference) == (36 if name == "meta_sgd" else 18)
    for one, two in zip(mine, reference, strict=True):
        torch.testing.assert_close(one.grad, two.grad, atol=1e-9, rtol=0)


@pytest.mark.parametrize("batch_norm", ["batch", "running"])
def test_algorithms_equal_ours_in_evaluation(l2l, batch_norm):
    """With other steps, where nothing can be differentiated outside; and the setting reported is the one measured."""
    ours, theirs = ours_and_theirs(l2l, "maml", steps=1, eval_steps=3, batch_norm=batch_norm)
    episodes, _ = episodes_of_images()
    with torch.inference_mode():
        episodes = episodes.with_features(torch.clone)
        before = {name: value.clone() for name, value in theirs.state_dict().items()}
        torch.testing.assert_close(theirs(episodes), ours(episodes), atol=1e-9, rtol=0)
        assert all(torch.equal(value, before[name]) for name, value in theirs.state_dict().items())
        alone = theirs(Episodes(episodes.support, episodes.support_labels, episodes.query[:, :3], 4))
        independent = torch.allclose(alone, theirs(episodes)[:, :3], atol=1e-9)
    assert theirs.setting == ours.setting == ("inductive" if independent else "transductive")


@pytest.mark.parametrize("name", ["maml", "meta_sgd"])
def test_an_algorithm_trains_as_ours_and_is_evaluated(l2l, name, tmp_path):
    ours, theirs = (learner.float() for learner in ours_and_theirs(l2l, name, steps=1))
    options = {"parameters": {"inner_lr": 0.1, "inner_steps": 1}, "ways": 4, "queries": 3, "steps": 3, "log_every": 1}
    # Small steps: rounding of float32 that flips a maximum of a pooling would be amplified by large ones.
    config = TrainConfig(method=name, lr=1e-3, optimiser="sgd", episodes_per_step=2, validation_ways=4, validate_every=3,
                         validation_episodes=4, **options)
    runs = [train(config, digits("train"), digits(), learner.backbone, method=learner, out=tmp_path / out, progress=False)
            for out, learner in (("ours", ours), ("theirs", theirs))]
    for mine, reference in zip(*(run.history for run in runs), strict=True):
        assert reference["loss"] == pytest.approx(mine["loss"], abs=1e-4)
        assert reference["gradient_norm"] == pytest.approx(mine["gradient_norm"], rel=1e-2)
    protocol = {"bank": digits("test"), "ways": 4, "queries": 3, "episodes": 20}
    results = [evaluate(method=run.method, **protocol) for run in runs]
    assert results[0].setting == results[1].setting == "transductive"
    assert abs(results[0].accuracy.mean - results[1].accuracy.mean) < 0.02
    assert len({result.fingerprint for result in results}) == 1

    restored = ours_and_theirs(l2l, name, steps=1)[1].float()
    load_weights(restored.backbone, runs[1].weights)
    if name == "meta_sgd":
        assert restored.algorithm.lrs[0] is restored.rates[0]
        load_own_state(restored, read_method(runs[1].weights)[0], runs[1].weights)
    else:
        assert read_method(runs[1].weights) is None
    assert torch.equal(evaluate(method=restored, **protocol).correct, results[1].correct)


def test_its_whole_network_is_a_method(l2l):
    network = l2l.vision.models.OmniglotCNN(output_size=5, hidden_size=8)
    learner = wrap_algorithm(l2l.algorithms.MAML(network, lr=0.4), 1, 28, steps=1)
    result = evaluate(bank=digits("test"), method=learner, shots=1, queries=3, episodes=10)
    assert 0.2 < result.accuracy.mean <= 1
    with pytest.raises(FewshotError, match="ways=4 for a network of 5"):
        learner(episodes_of_images()[0])


def test_algorithms_that_would_fail_are_refused(l2l):
    network = small_network()
    with pytest.raises(FewshotError, match="algorithm is a Sequential"):
        wrap_algorithm(network, 1, 28)
    network[1].bias.requires_grad_(False)
    with pytest.raises(FewshotError, match="1.bias is frozen"):
        wrap_algorithm(l2l.algorithms.MAML(network, lr=0.1), 1, 28)
    episodes = episodes_of_images()[0].to(torch.float32)
    free = wrap_algorithm(l2l.algorithms.MAML(network, lr=0.1, allow_nograd=True), 1, 28)
    assert free(episodes).isfinite().all()


def test_absence_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    with pytest.raises(FewshotError, match="make learn2learn"):
        wrap_algorithm(object(), 1, 28)


@pytest.mark.slow
def test_its_meta_training_loop_takes_episode_tasks(l2l):
    """The usual loop, with the even-odd partition: accuracy on fixed tasks of other classes rises."""
    ways, shots = 5, 1
    tasks = EpisodeTasks(digits("train"), ways, shots, shots, even_odd=True)
    maml = l2l.algorithms.MAML(small_network(ways, width=16), lr=0.2)
    optimiser = torch.optim.Adam(maml.parameters(), 3e-3)

    def fast_adapt(data, labels):
        learner = maml.clone()
        adaptation = torch.zeros(len(data), dtype=torch.bool)
        adaptation[torch.arange(shots * ways) * 2] = True
        learner.adapt(F.cross_entropy(learner(data[adaptation]), labels[adaptation]))
        logits = learner(data[~adaptation])
        return F.cross_entropy(logits, labels[~adaptation]), (logits.argmax(1) == labels[~adaptation]).double().mean()

    def accuracy():
        fixed = EpisodeTasks(digits(), ways, shots, shots, num_tasks=40, even_odd=True)
        return sum(float(fast_adapt(*task)[1]) for task in fixed) / 40

    maml.train()
    before = accuracy()
    for _ in range(25):
        optimiser.zero_grad()
        for _ in range(4):
            (fast_adapt(*tasks.sample())[0] / 4).backward()
        optimiser.step()
    assert accuracy() > before + 0.1
