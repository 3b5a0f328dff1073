"""learn2learn in both directions: its tasks, networks and algorithms here, and the episodes of this package there.

learn2learn (Arnold et al. 2020, arXiv:2008.12284; learnables/learn2learn 0.2.0) is optional; only `wrap_algorithm` imports
it. Its task is one pair (data [B, ...], labels [B]) with equally many items of every class. Which of them are the support
is a convention of the loop that uses it: the first `shots` of each class (learn2learn.data.partition_task), or, `even_odd`,
those at even places, with shots = queries and the items of a class side by side (the loops of its MAML examples).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fewshot.backbones.transform import ImageTransform
from fewshot.backbones.wrapped import WrappedBackbone, batch_norms, wrap_backbone
from fewshot.core.checked import check_integer
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.episodes.types import Episodes
from fewshot.methods.bases.gradient_learner import GradientMethod, mean_cross_entropy
from fewshot.methods.contract import Method, create_method

Task = tuple[Tensor, Tensor]


def episodes_from_taskset(taskset: Any, ways: int, shots: int, queries: int, count: int, *, even_odd: bool = False,
                          seed: int = 0) -> tuple[Episodes, Tensor]:
    """`count` tasks as Episodes of E = count, and their query labels [E, Q].

    taskset    as learn2learn.data.Taskset: tasks 0 .. count-1 where `num_tasks` is finite, else calls of `sample()`. A task
               holds shots + queries items of each class in any order, with any labels; ascending, they become 0 .. ways-1
    even_odd   the support of a class are its items at even places, else its first
    seed       of the order of the queries, which must not tell their classes, as that of a sorted task does

    No backbone's transform is applied. Raises FewshotError for a task with other classes or counts, naming it, and for
    more tasks than there are.
    """
    support_at, query_at = _places(shots, queries, even_odd)
    available = getattr(taskset, "num_tasks", -1)  # -1: without end
    if count < 1 or 0 <= available < count:
        raise FewshotError(f"count={count} of num_tasks={available}; ask for at least one task and at most all")
    generator, parts = torch.Generator().manual_seed(seed), []
    for number in range(count):
        data, labels = taskset.sample() if available < 0 else taskset[number]
        found, labels, sizes = torch.as_tensor(labels).flatten().unique(return_inverse=True, return_counts=True)
        if len(data) != len(labels) or len(found) != ways or (sizes != shots + queries).any():
            counts = dict(zip(found.tolist(), sizes.tolist(), strict=True))
            raise FewshotError(f"task {number} holds {len(data)} items, {counts} of the labels; ways={ways}, shots={shots}, "
                               f"queries={queries} take NWays(dataset, {ways}) and KShots(dataset, {shots + queries})")
        rows = labels.argsort(stable=True).view(ways, -1)  # [N, K + Q per class], in the order of the task
        support = rows[:, support_at].flatten()
        query = rows[:, query_at].flatten()[torch.randperm(ways * queries, generator=generator)]
        parts.append((data[support], labels[support], data[query], labels[query]))
    support, support_labels, query, query_labels = (torch.stack(part) for part in zip(*parts, strict=True))
    return Episodes(support, support_labels, query, ways), query_labels


class EpisodeTasks:
    """The episodes of this package as a task set: `tasks[i]`, `sample()`, `len`, iteration, DataLoader(batch_size=None).

    A task is (data [N (K + Q), ...], labels [N (K + Q)]), sorted by class, labels 0 .. N-1. Within a class the support is
    first or, with `even_odd`, at even places; `split` finds it, and task i is then exactly episode i of
    EpisodeSampler(bank, ways, shots, queries, seed), queries sorted by class.

    num_tasks   tasks 0 .. num_tasks-1 exist; each is drawn when asked for, so a large number costs nothing
    transform   of the items [B, ...] of a task, e.g. a backbone's; by default images become float32 in [0, 1]
    """

    def __init__(self, bank: ImageBank | FeatureBank, ways: int, shots: int, queries: int, seed: int = 0,
                 num_tasks: int = 10_000, *, even_odd: bool = False, transform: Callable[[Tensor], Tensor] | None = None,
                 small_classes: str = "refuse"):
        ways, shots = check_integer("ways", ways, 2), check_integer("shots", shots, 1)  # no ranges, which the sampler takes
        num_tasks = check_integer("num_tasks", num_tasks, 1)
        self.sampler = EpisodeSampler(bank, ways, shots, queries, seed, small_classes=small_classes)
        self._support_at, self._query_at = _places(shots, queries, even_odd)
        if transform is None and isinstance(bank, ImageBank):
            transform = ImageTransform(bank.images.shape[1])
        self.bank, self.ways, self.num_tasks, self.transform, self._next = bank, ways, num_tasks, transform, 0

    def __len__(self) -> int:
        return self.num_tasks

    def __getitem__(self, number: int) -> Task:
        drawn = self.sampler.indices(range(self.num_tasks)[operator.index(number)], 1)
        rows = torch.empty(self.ways, len(self._support_at) + len(self._query_at), dtype=torch.int64)
        rows[:, self._support_at] = drawn.support.view(self.ways, -1)
        rows[:, self._query_at] = drawn.query[0, drawn.query_labels[0].argsort(stable=True)].view(self.ways, -1)
        data, labels = self.bank.take(rows.flatten()), torch.arange(self.ways).repeat_interleave(rows.shape[1])
        return data if self.transform is None else self.transform(data), labels

    def __iter__(self) -> Iterator[Task]:
        return (self[number] for number in range(self.num_tasks))

    def sample(self) -> Task:
        """The task after that of the last call, from 0 on, and again from 0 after the last: nothing here is random."""
        number, self._next = self._next, (self._next + 1) % self.num_tasks
        return self[number]

    def split(self, data: Tensor, labels: Tensor) -> tuple[Task, Task]:
        """((support, labels), (queries, labels)) of a task, both sorted by class."""
        data, labels = data.unflatten(0, (self.ways, -1)), labels.view(self.ways, -1)
        support, query = ((data[:, at].flatten(0, 1), labels[:, at].flatten()) for at in (self._support_at, self._query_at))
        return support, query


def _places(shots: int, queries: int, even_odd: bool) -> tuple[Tensor, Tensor]:
    """Where the support [K] and the queries [Q] of a class lie among its items."""
    if shots < 1 or queries < 1 or (even_odd and shots != queries):
        raise FewshotError(f"shots={shots}, queries={queries}; both must be at least 1, and equal with even_odd=True")
    places = torch.arange(shots + queries)
    return (places[::2], places[1::2]) if even_odd else (places[:shots], places[shots:])


class AlgorithmLearner(nn.Module, Method):
    """learn2learn's MAML or MetaSGD as a method on images; made by `wrap_algorithm`.

    settings   the hyper-parameters, those of the equal method here: `maml`, or `meta_sgd` (inner_lr: mean of the rates)
    backbone   the whole network, held, not copied: its "features" are the logits, `ways` many;  rates: MetaSGD's, else none
    setting    "transductive" where BatchNorm sees the other queries in evaluation, else "inductive"
    """

    inputs = "images"

    algorithm: Any
    backbone: WrappedBackbone

    def __init__(self, algorithm: Any, backbone: WrappedBackbone, rates: nn.ParameterList, settings: GradientMethod):
        super().__init__()
        self.__dict__["algorithm"] = algorithm  # no submodule: its network would be in the state dict twice
        self.backbone, self.rates, self.settings, self.ways = backbone, rates, settings, backbone.feature_dim
        self.paper = f"{settings.paper}; learnables/learn2learn"
        self.setting = "transductive" if backbone.batch_norm == "batch" and batch_norms(backbone) else "inductive"

    def adapt(self, support: Tensor, labels: Tensor, first_order: bool) -> Any:
        """A clone of the algorithm after the inner steps of the present mode on support [S, C, H, W], labels [S]."""
        s, clone = self.settings, self.algorithm.clone()
        for _ in range(s.inner_steps if self.training or s.eval_steps is None else s.eval_steps):
            clone.adapt(mean_cross_entropy(clone(support)[None], labels[None]), first_order=first_order)
        return clone

    def forward(self, episodes: Episodes) -> Tensor:
        """Logits [E, Q, N] of images that went through the backbone's transform, one episode after the other."""
        if episodes.ways != self.ways:
            raise FewshotError(f"episodes of ways={episodes.ways} for a network of {self.ways} outputs; make them equal")
        self.backbone.check(episodes.query[0])
        differentiable, logits = torch.is_grad_enabled(), []
        with torch.inference_mode(False):  # inside, nothing could be differentiated, not even for the inner loop
            for e in episodes:
                support, labels, query = (x[0].clone() for x in (e.support, e.support_labels, e.query))  # ordinary tensors
                with torch.enable_grad():
                    adapted = self.adapt(support, labels, self.settings.first_order or not differentiable)
                with torch.set_grad_enabled(differentiable):
                    logits.append(adapted(query))
        return torch.stack(logits)

    def loss(self, episodes: Episodes, query_labels: Tensor) -> tuple[Tensor, Tensor]:
        """(mean query cross-entropy after the inner loop, logits [E, Q, N])."""
        logits = self(episodes)
        return mean_cross_entropy(logits, query_labels), logits


def wrap_algorithm(algorithm: Any, channels: int, image_size: int, *, steps: int = 1, eval_steps: int | None = None,
                   batch_norm: str = "batch", **options: Any) -> AlgorithmLearner:
    """learn2learn's `MAML(network, lr)` or `MetaSGD(network, lr)`, of a network from images [B, C, H, W] to logits [B, N],
    as a method in eval mode, for `evaluate(method=learner)` and `train(..., learner.backbone, method=learner)`.

    steps, eval_steps   inner steps in training, and in evaluation (None: the same)
    batch_norm          of queries in evaluation: "batch" statistics, as in learn2learn's loops, which never leave training
                        mode, or the recorded "running" ones
    options             of `wrap_backbone`

    Raises FewshotError for another algorithm, for frozen weights that it fails on, and where learn2learn is absent.
    """
    try:
        from learn2learn import algorithms
    except ImportError as error:
        raise FewshotError(f"learn2learn cannot be imported ({error}); `make learn2learn` installs it") from error
    name = {algorithms.MAML: "maml", algorithms.MetaSGD: "meta_sgd"}.get(type(algorithm))
    if name is None:
        raise FewshotError(f"algorithm is a {type(algorithm).__name__}; pass learn2learn's MAML or MetaSGD")
    frozen = [key for key, weight in algorithm.module.named_parameters() if not weight.requires_grad]
    if frozen and not getattr(algorithm, "allow_nograd", False):
        raise FewshotError(f"{frozen[0]} is frozen: learn2learn needs MAML(network, lr, allow_nograd=True) for that")
    rates = nn.ParameterList(algorithm.lrs if name == "meta_sgd" else ())
    lr = algorithm.lr if name == "maml" else torch.cat([rate.detach().flatten() for rate in rates]).mean()
    settings = create_method(name, inner_lr=float(lr), inner_steps=steps, eval_steps=eval_steps,
                             first_order=algorithm.first_order, batch_norm=batch_norm)
    assert isinstance(settings, GradientMethod), "maml and meta_sgd are"
    backbone = wrap_backbone(algorithm.module, channels, image_size, batch_norm=batch_norm, **options)
    return AlgorithmLearner(algorithm, backbone, rates, settings).eval()
