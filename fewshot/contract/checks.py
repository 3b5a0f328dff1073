"""What every method on features promises, as measurements on synthetic episodes (`fewshot.check_method`)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fewshot.contract.synthetic import above_chance, random_episodes
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.evaluation.resolve import moved
from fewshot.methods.contract import IterativeMethod, Method

CHANGE = "largest change of a probability"
T = TypeVar("T", bound=float | None)  # what a measurement returns
BOTH = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Promise:
    """`measure(candidate)` gives a number that must not exceed `limit` (must reach it, where `at_least`), or None where an
    answer only has to exist.

    says      what holds;  unit  what the number is;  remedy  what to look for where it does not hold
    applies   whether a method makes the promise
    """

    says: str
    measure: Callable[[Candidate], float | None]
    remedy: str
    limit: float = 0.0
    unit: str = CHANGE
    at_least: bool = False
    applies: Callable[[Method], bool] = lambda method: True

    def allows(self, measured: float | None) -> bool:
        return measured is None or (measured >= self.limit if self.at_least else measured <= self.limit)


PROMISES: dict[str, Promise] = {}


@dataclass(frozen=True, eq=False)
class Candidate:
    """A method under examination, fitted to synthetic base classes, for features of length `dim`. It computes on `device`;
    episodes and answers are on the CPU."""

    method: Method
    name: str
    dim: int
    device: str = "cpu"

    def episodes(self, **settings: Any) -> Any:
        text_dim = None if self.method.text_of_features else self.dim // 2
        return random_episodes(**{"dim": self.dim, "with_text": self.method.needs_text, "text_dim": text_dim, **settings})

    def answer(self, episodes: Episodes) -> Tensor:
        """Probabilities [E, Q, N]. Raises FewshotError for logits of a wrong shape or dtype, and for any not finite."""
        logits = self.call(episodes)
        expected = (len(episodes), episodes.query.shape[1], episodes.ways)
        if not isinstance(logits, Tensor) or logits.shape != expected:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise FewshotError(f"the logits are {shape}; expected [E, Q, N] = {expected}")
        if logits.dtype != episodes.support.dtype:
            raise FewshotError(f"the logits have dtype {logits.dtype}, the features {episodes.support.dtype}")
        if not logits.isfinite().all():
            episode, query, label = (~logits.isfinite()).nonzero()[0].tolist()
            raise FewshotError(f"the logit of query {query} and class {label} is {float(logits[episode, query, label])}")
        return logits.softmax(-1)

    def call(self, episodes: Episodes) -> Tensor:
        with torch.no_grad():
            return self.of_dtype(episodes.support.dtype)(episodes.to(self.device)).cpu()

    def of_dtype(self, dtype: torch.dtype) -> Method:
        """Weights follow the features; a method without any does so by itself."""
        made = copy.deepcopy(self.method).to(dtype) if isinstance(self.method, nn.Module) else self.method
        return moved(made, torch.device(self.device))


def promise(remedy: str, **options: Any) -> Callable[[Callable[[Candidate], T]], Callable[[Candidate], T]]:
    """Add the measurement below to PROMISES, which are checked in the order of this file. Its name and the first line of its
    docstring are those of the promise."""
    def register(measure: Callable[[Candidate], T]) -> Callable[[Candidate], T]:
        says = (measure.__doc__ or "").partition("\n")[0].rstrip(".")
        PROMISES[measure.__name__] = Promise(says[0].lower() + says[1:], measure, remedy, **options)
        return measure

    return register


def replaced(episodes: Episodes, **changes: Any) -> Episodes:
    fields = {field.name: getattr(episodes, field.name) for field in dataclasses.fields(Episodes) if field.init}
    return Episodes(**{**fields, **changes})


def _permuted(episodes: Episodes, order: Tensor) -> dict[str, Tensor]:
    """The texts of the episodes, that of class order[n] in the place of class n."""
    return {name: getattr(episodes, name)[:, order] for name in ("text", "prompts") if getattr(episodes, name) is not None}


def _change(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max())


@promise("Make tensors with the dtype and device of episodes.query, and reduce over no axis but features and support")
def shape_and_dtype(candidate: Candidate) -> None:
    """Logits are finite [E, Q, N] in the dtype of the features."""
    for dtype in BOTH:
        candidate.answer(candidate.episodes(dtype=dtype))


@promise("Replace in-place operations on the episodes, such as x -= y or x.normal_()",
         unit="largest change of an input")
def inputs_unchanged(candidate: Candidate) -> float:
    """Support, labels and queries are as they were."""
    episodes = candidate.episodes()
    before = [x.clone() for x in (episodes.support, episodes.support_labels, episodes.query)]
    candidate.call(episodes)
    return max(map(_change, (episodes.support, episodes.support_labels, episodes.query), before))


@promise("Use the labels to select support items and not as numbers, and treat no class apart", limit=1e-6)
def class_relabelling(candidate: Candidate) -> float:
    """Giving the classes other numbers gives the columns of the answer other places and nothing else."""
    episodes = candidate.episodes(shots=3, queries=20)
    renamed = torch.tensor([3, 0, 4, 1, 2])  # class n is then called renamed[n]
    other = replaced(episodes, support_labels=renamed[episodes.support_labels], **_permuted(episodes, renamed.argsort()))
    return _change(candidate.answer(other)[..., renamed], candidate.answer(episodes))


@promise("Read episodes.text, or declare needs_text = False", limit=1e-6, at_least=True,
         applies=lambda method: method.needs_text)
def text_order(candidate: Candidate) -> float:
    """Giving the classes each other's texts changes the answer."""
    episodes = candidate.episodes(shots=3, queries=20)
    other = replaced(episodes, **_permuted(episodes, torch.tensor([3, 0, 4, 1, 2])))
    return _change(candidate.answer(other), candidate.answer(episodes))


@promise("Use no positions of queries: samplers that do not shuffle would give the labels away", limit=1e-6)
def query_order(candidate: Candidate) -> float:
    """The order of the queries does not matter."""
    episodes = candidate.episodes(shots=3, queries=20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    other = replaced(episodes, query=episodes.query[:, order])
    return _change(candidate.answer(other), candidate.answer(episodes)[:, order])


@promise("Find the items of a class by support_labels, not by their places", limit=1e-6)
def support_order(candidate: Candidate) -> float:
    """The order of the support does not matter."""
    episodes = candidate.episodes(shots=3, queries=20)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(2))
    other = replaced(episodes, support=episodes.support[:, order], support_labels=episodes.support_labels[:, order])
    return _change(candidate.answer(other), candidate.answer(episodes))


@promise("Reduce over no episodes, and stop an iteration for each episode by itself", limit=1e-5)
def batch_invariance(candidate: Candidate) -> float:
    """An episode's answer does not depend on the other episodes of the batch, easy or hard."""
    return max(_batch_change(candidate, dtype) for dtype in BOTH)


def _batch_change(candidate: Candidate, dtype: torch.dtype) -> float:
    hard = candidate.episodes(episodes=4, spread=1.5, seed=3, dtype=dtype)
    easy = candidate.episodes(episodes=4, spread=0.1, seed=4, dtype=dtype)
    both = Episodes.joined([hard, easy])
    return _change(candidate.answer(both), torch.cat([candidate.answer(both[i]) for i in range(8)]))


@promise('Use no statistics of the query set, or declare setting = "transductive"', limit=1e-9,
         applies=lambda method: method.setting == "inductive")
def inductive(candidate: Candidate) -> float:
    """The answer to a query does not depend on the other queries."""
    episodes = candidate.episodes()
    changed = episodes.query.clone()
    changed[:, 1:] = changed[:, 1:].flip(1) * 2 + 1
    return _change(candidate.answer(replaced(episodes, query=changed))[:, 0], candidate.answer(episodes)[:, 0])


@promise('Declare setting = "inductive" if that is meant', limit=1e-6, at_least=True,
         applies=lambda method: method.setting == "transductive")
def transductive(candidate: Candidate) -> float:
    """The answer to a query depends on the other queries, as tables print."""
    episodes = candidate.episodes(spread=1.5).replace(logit_scale=10.0)  # at 100 the texts leave nothing to the queries
    changed = episodes.query.clone()
    changed[:, 1:] = candidate.episodes(spread=1.5, seed=8).query[:, 1:]
    return _change(candidate.answer(replaced(episodes, query=changed))[:, 0], candidate.answer(episodes)[:, 0])


@promise("Count the labels of a class; never reshape to (shots, ways)")
def unequal_shots(candidate: Candidate) -> None:
    """Classes may have 1, 2, 3, 4 and 6 shots."""
    full = candidate.episodes(shots=6, queries=10)
    counts = torch.tensor([1, 2, 3, 4, 6])  # 16 items: no multiple of the ways, which a reshape might accept
    kept = (torch.arange(30) // 5 < counts[full.support_labels[0]]).nonzero()[:, 0]
    candidate.answer(replaced(full, support=full.support[:, kept], support_labels=full.support_labels[:, kept]))


@promise("Take the number of classes from episodes.ways")
def ways_and_shots(candidate: Candidate) -> None:
    """2 ways and 1 shot, 5 ways and 50 shots, 100 ways and 1 shot have an answer."""
    for ways, shots in ((2, 1), (5, 50), (100, 1)):
        candidate.answer(candidate.episodes(episodes=1, ways=ways, shots=shots, queries=20))


@promise("Do not expect queries of every class, nor a multiple of the ways")
def few_queries(candidate: Candidate) -> None:
    """1 and 7 queries have an answer."""
    for queries in (1, 7):
        candidate.answer(candidate.episodes(queries=queries))


@promise("Guard divisions by the number of queries of a class")
def missing_class(candidate: Candidate) -> None:
    """A class may have no query at all."""
    episodes, labels = candidate.episodes(queries=20, spread=0.1, with_labels=True)
    kept = torch.stack([(row > 0).nonzero()[:16, 0] for row in labels])
    candidate.answer(replaced(episodes, query=episodes.query.gather(1, kept.unsqueeze(-1).expand(-1, -1, candidate.dim))))


@promise("Guard divisions by distances and by variances")
def duplicates(candidate: Candidate) -> None:
    """Equal points have a finite answer."""
    for dtype in BOTH:
        episodes = candidate.episodes(dtype=dtype)
        candidate.answer(replaced(episodes, query=episodes.query[:, :1].expand(-1, 15, -1).contiguous()))
        candidate.answer(replaced(episodes, query=episodes.support.repeat(1, 2, 1)))


@promise("Normalise with a small constant in the denominator (torch.nn.functional.normalize has one)")
def zeros(candidate: Candidate) -> None:
    """Features that are all zero have a finite answer."""
    for dtype in BOTH:
        episodes = candidate.episodes(dtype=dtype)
        query = episodes.query.clone()
        query[:, 3] = 0
        candidate.answer(replaced(episodes, query=query))
        candidate.answer(replaced(episodes, query=torch.zeros_like(query), support=torch.zeros_like(episodes.support)))


@promise("Take roots and logarithms of what cannot be negative")
def signed_features(candidate: Candidate) -> None:
    """Negative features have a finite answer."""
    candidate.answer(candidate.episodes().with_features(lambda x: x - 0.7))


@promise("Subtract the largest value before exp, and avoid differences of large numbers", limit=5e-3)
def precision(candidate: Candidate) -> float:
    """Single precision answers as double precision does.

    An iteration may amplify rounding; no prediction changes but at ties.
    """
    episodes = candidate.episodes(episodes=4, shots=3, queries=25, spread=0.7)
    return _change(candidate.answer(episodes.to(torch.float32)), candidate.answer(episodes))


@promise("Draw random numbers from a torch.Generator with a fixed seed")
def deterministic(candidate: Candidate) -> float:
    """The same episodes have the same answer, bit by bit."""
    episodes = candidate.episodes(dtype=torch.float32)
    return _change(candidate.answer(episodes), candidate.answer(episodes))


@promise("Look for sums whose order the answer depends on", limit=1e-6)
def threads(candidate: Candidate) -> float:
    """One thread and two give the same answer."""
    episodes = candidate.episodes(episodes=8, queries=25)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = candidate.answer(episodes)
        torch.set_num_threads(2)
        return _change(one, candidate.answer(episodes))
    finally:
        torch.set_num_threads(threads)


@promise("Keep nothing in the method during a call: use local variables")
def concurrent(candidate: Candidate) -> float:
    """Calls from two threads at once do not disturb each other."""
    each = [candidate.episodes(dtype=torch.float32, seed=seed) for seed in range(6)]
    alone = [candidate.answer(episodes) for episodes in each]
    with ThreadPoolExecutor(2) as pool:
        return max(map(_change, alone, pool.map(candidate.answer, each)))


@promise("Look for a wrong sign of the logits (a larger one is more likely), or for classes in another order", limit=0.05,
         unit="share of wrong answers")
def learns(candidate: Candidate) -> float:
    """Well separated classes are told apart."""
    episodes, labels = candidate.episodes(episodes=6, shots=5, queries=25, spread=0.15, with_labels=True)
    return float((candidate.answer(episodes).argmax(-1) != labels).double().mean())


@promise("Better than chance is a look at the labels of the queries; worse is a wrong sign", limit=0.03,
         unit="distance of the accuracy from 1/5")
def chance(candidate: Candidate) -> float:
    """Features that say nothing about the classes give chance accuracy.

    The classes are finite samples whose means differ a little, and 120 episodes vary by about 0.004.
    """
    return abs(above_chance(candidate.method, candidate.dim))


@promise("Return iterations [E] int64 and converged [E] bool, and prototypes [E, N, D] with their history if there are any",
         limit=1e-6, applies=lambda method: isinstance(method, IterativeMethod))
def refinement(candidate: Candidate) -> float:
    """`refine` returns the answer with steps and convergence of every episode."""
    episodes, method = candidate.episodes(), candidate.method
    assert isinstance(method, IterativeMethod), "applies"
    with torch.no_grad():
        found = method.refine(episodes, history=True)
    for name, dtype in (("iterations", torch.int64), ("converged", torch.bool)):
        value = getattr(found, name)
        if value.shape != (3,) or value.dtype != dtype:
            raise FewshotError(f"{name} has shape {tuple(value.shape)} and dtype {value.dtype}; expected [3] of {dtype}")
    if (found.iterations < 0).any():
        raise FewshotError(f"iterations are {found.iterations.tolist()}")
    if found.prototypes is not None and (found.prototypes.shape[:2] != (3, 5) or not found.history):
        raise FewshotError(f"prototypes have shape {tuple(found.prototypes.shape)} and {len(found.history or [])} steps of "
                           "history; expected [3, 5, D] and at least one")
    return _change(found.logits.softmax(-1), candidate.answer(episodes))


@promise("Give the class a docstring and paper, and assumes as a tuple of texts")
def describes_itself(candidate: Candidate) -> None:
    """Setting, paper, assumptions and a docstring are there."""
    method = candidate.method  # an instance: what a method assumes may depend on its hyper-parameters
    if method.setting not in ("inductive", "transductive"):
        raise FewshotError(f'setting is {method.setting!r}; expected "inductive" or "transductive"')
    if not (method.paper and type(method).__doc__):
        raise FewshotError(f"the {'docstring' if method.paper else 'paper'} is empty")
    if not isinstance(method.assumes, tuple) or not all(isinstance(text, str) for text in method.assumes):
        raise FewshotError(f"assumes is {method.assumes!r}")
