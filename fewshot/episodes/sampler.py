"""`EpisodeSampler`: episode i is a pure function of (labels, protocol, seed, i).

Random numbers come from a counter-based generator (Philox): episode i owns a fixed block of the counter, so any range
of episodes is drawn in one vectorised call, and every method, worker, machine and batch size sees the same episode i.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import gammaincinv
from torch import Tensor

from fewshot.core.checked import check_integer, check_number
from fewshot.core.counted_random import below, counted_uniforms, ordered_subset
from fewshot.core.errors import FewshotError
from fewshot.core.registry import unknown_message
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.episodes.open_queries import OpenQueries
from fewshot.episodes.query_distributions import QUERY_DISTRIBUTIONS
from fewshot.episodes.types import Episodes

_STREAM = "fewshot episodes 1"  # part of the generator's key: a change of the algorithm must change this name
_BLOCK_BYTES = 64 << 20  # the shuffling tables of one internal block of episodes stay below this


@dataclass(frozen=True, eq=False)
class EpisodeIndices:
    """Row numbers of a batch of episodes of one shape.

    support, support_labels [E, S] (class-major); query, query_labels [E, Q] (shuffled, so that the order of the queries
    tells nothing about their classes); classes [E, N] the bank's label of each episode class. A query label of -1 marks a
    query of a class outside the episode. validation, validation_labels [E, V]: further images for methods that choose their
    hyper-parameters; None where there are none.
    """

    support: Tensor
    support_labels: Tensor
    query: Tensor
    query_labels: Tensor
    classes: Tensor
    validation: Tensor | None = None
    validation_labels: Tensor | None = None

    @property
    def items(self) -> int:
        """Rows that an episode reads."""
        return sum(rows.shape[1] for rows in (self.support, self.query, self.validation) if rows is not None)

    @property
    def ways(self) -> int:
        return self.classes.shape[1]

    def __len__(self) -> int:
        return len(self.support)

    def __getitem__(self, which: slice) -> EpisodeIndices:
        return EpisodeIndices(**{name: rows[which] for name, rows in self.columns.items()})

    @property
    def columns(self) -> dict[str, Tensor]:
        """Name -> rows or labels of all that there is."""
        found = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: rows for name, rows in found if rows is not None}

    def split(self, size: int) -> Iterator[EpisodeIndices]:
        """These episodes in pieces of `size`, the last one smaller."""
        columns = self.columns
        pieces = zip(*(rows.split(size) for rows in columns.values()), strict=True)
        return (EpisodeIndices(**dict(zip(columns, piece, strict=True))) for piece in pieces)

    def gather(self, bank: ImageBank | FeatureBank, room: Tensor | None = None, prompts: bool = True) -> Episodes:
        """The episodes themselves; the bank's rows were validated when it was built.

        room      [E (S + Q) or more, D] memory for the features: with its next use these are gone
        prompts   whether the vectors of single sentences about the classes come along, where the bank has them
        """
        lengths = None if bank.lengths is None else bank.lengths.take(self.query)
        wanted = [rows for rows in (self.support, self.query, self.validation) if rows is not None]
        rows = torch.cat([rows.flatten() for rows in wanted])
        taken = bank.take(rows, room) if isinstance(bank, FeatureBank) else bank.take(rows)
        found = [part.view(*rows.shape, *taken.shape[1:])
                 for rows, part in zip(wanted, taken.split([rows.numel() for rows in wanted]), strict=True)]
        texts = bank.texts if isinstance(bank, FeatureBank) else None
        of_text = {} if texts is None else texts.of_classes(self.classes, taken.dtype, prompts)
        common = {"support": found[0], "support_labels": self.support_labels, "ways": self.ways, **of_text}
        if self.validation is not None:
            validation = Episodes.trusted(**common, query=found[2])
            common |= {"validation": validation, "validation_labels": self.validation_labels}
        return Episodes.trusted(**common, query=found[1], query_lengths=lengths)


class Sampler(Protocol):
    """What draws episodes by their number."""

    def indices(self, start: int, count: int) -> EpisodeIndices:
        """Row numbers of episodes start .. start+count-1, of one shape."""

    def sample(self, bank: ImageBank | FeatureBank, start: int, count: int) -> tuple[Episodes, Tensor]:
        """These episodes of `bank` and their query labels [E, Q]."""

    def check_bank(self, bank: ImageBank | FeatureBank) -> None:
        """Raise FewshotError where the labels of the bank are others."""


def joined(parts: Sequence[EpisodeIndices]) -> EpisodeIndices:
    """The episodes of all parts, in their order."""
    return EpisodeIndices(**{name: torch.cat([part.columns[name] for part in parts]) for name in parts[0].columns})


class EpisodeSampler:
    """Draws N-way K-shot episodes without replacement; support and query never overlap.

    labels              [M] the class of every item, or a bank
    ways                N, or (low, high): uniform per episode
    shots               K, or (low, high): uniform per class, so that classes have unequal shots
    queries             per class; an episode has ways * queries queries in total
    seed                any integer
    query_distribution  "balanced": `queries` of every class
                        "dirichlet": class proportions ~ Dirichlet(alpha), rounded as in Veilleux et al. 2021; the support
                        is removed first (the official sampler lets support items into the query). A count above what
                        a class has left moves to the class of largest proportion that has room.
                        "k_eff": all queries from the pooled images of `k_eff` random classes of the N (PADDLE)
                        "natural": all queries from the pooled remaining images of the N classes
    open_classes        this many classes outside the episode give `open_queries` further queries each, with label -1,
                        shuffled among the others. The episodes are otherwise those without open queries.
    small_classes       "refuse" raises when a class has too few images, "drop" leaves such classes out

    Raises FewshotError for impossible requests, naming the class and the count.
    """

    def __init__(self, labels: ImageBank | FeatureBank | Tensor | ArrayLike, ways: int | tuple[int, int] = 5,
                 shots: int | tuple[int, int] = 1, queries: int = 15, seed: int = 0,
                 query_distribution: str = "balanced", alpha: float = 2.0, k_eff: int | None = None,
                 small_classes: str = "refuse", open_classes: int = 0, open_queries: int = 0):
        names = getattr(labels, "class_names", None)
        labels = np.asarray(getattr(labels, "labels", labels))
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or len(labels) == 0:
            raise FewshotError(f"labels have shape {labels.shape} and dtype {labels.dtype}; expected [M] integers")
        self._labels = labels
        self.ways, self.shots = _range("ways", ways, 2), _range("shots", shots, 1)
        self.queries, self.seed = check_integer("queries", queries, 1), check_integer("seed", seed)
        self.alpha = check_number("alpha", alpha, 0, low_allowed=False)
        self.query_distribution, self.k_eff = query_distribution, k_eff
        self._check_protocol(small_classes)
        self._index(labels, names, small_classes)
        low, high = self.ways
        most = high * self.queries if query_distribution != "balanced" else self.queries
        self._per_class = min(self.shots[1] + most, int(self._sizes.max()))
        # One uniform number per decision: the layout is fixed by the protocol alone, never by other episodes.
        self._layout = _layout(classes=high, ways=1, shots=high, counts=high, present=high, query_pool=high * self.queries,
                               items=high * self._per_class, order=high * self.queries)
        self._open = OpenQueries(self._classes, self._sizes, self._first, self._order, classes=open_classes,
                                 queries=open_queries, ways=high, seed=self.seed) if open_classes or open_queries else None

    # -- what users call -------------------------------------------------------------------------------------------

    def sample(self, bank: ImageBank | FeatureBank, start: int = 0, count: int = 100) -> tuple[Episodes, Tensor]:
        """Episodes start .. start+count-1 of `bank` and their query labels [E, Q]."""
        self.check_bank(bank)
        indices = self.indices(start, count)
        return indices.gather(bank), indices.query_labels

    def indices(self, start: int = 0, count: int = 100) -> EpisodeIndices:
        """Row numbers of episodes start .. start+count-1; they must share one shape (else use `buckets`)."""
        groups = list(self.buckets(start, count))
        if len(groups) != 1:
            raise FewshotError(f"episodes {start}..{start + count - 1} have {len(groups)} different shapes (variable ways "
                               "or shots); iterate over sampler.buckets(start, count)")
        return groups[0][1]

    def buckets(self, start: int = 0, count: int = 100) -> Iterator[tuple[Tensor, EpisodeIndices]]:
        """Groups of equally shaped episodes: (positions [E] within start..start+count, indices)."""
        if start < 0 or count < 1:
            raise FewshotError(f"start={start}, count={count}; start must be at least 0 and count at least 1")
        rows = max(1, _BLOCK_BYTES // (8 * self.ways[1] * int(self._sizes.max())))
        drawn = [self._draw(begin, min(rows, start + count - begin)) for begin in range(start, start + count, rows)]
        classes, ways, shots, counts, items, keys = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
        shape = np.stack([ways, shots.sum(1), counts.sum(1)], 1)
        groups = shape[:1] if (shape == shape[0]).all() else np.unique(shape, axis=0)
        for group in groups:
            where = np.flatnonzero((shape == group).all(1))
            n = int(group[0])
            found = _assemble(classes[where, :n], shots[where, :n], counts[where, :n], items[where, :n], keys[where])
            if self._open is not None:
                query, labels = self._open.add(found.query, found.query_labels, found.classes, start, count, where)
                found = dataclasses.replace(found, query=query, query_labels=labels)
            yield torch.from_numpy(where), found

    def check_bank(self, bank: ImageBank | FeatureBank) -> None:
        if not np.array_equal(bank.labels.numpy(), self._labels):
            raise FewshotError(f"the labels of the bank ({len(bank)} items) are not those the sampler was built from "
                               f"({len(self._labels)} items); build it from this bank")

    # -- checks ----------------------------------------------------------------------------------------------------

    def _check_protocol(self, small_classes: str) -> None:
        if self.query_distribution not in QUERY_DISTRIBUTIONS:
            raise FewshotError(unknown_message("query distribution", self.query_distribution, list(QUERY_DISTRIBUTIONS)))
        if small_classes not in ("refuse", "drop"):
            raise FewshotError(f"small_classes={small_classes!r}; choose 'refuse' or 'drop'")
        if (self.query_distribution == "k_eff") != (self.k_eff is not None):
            raise FewshotError(f"k_eff={self.k_eff} with query_distribution={self.query_distribution!r}; k_eff belongs to "
                               "'k_eff' and is required there")
        if self.k_eff is not None and not 1 <= self.k_eff <= self.ways[0]:
            raise FewshotError(f"k_eff={self.k_eff}; it must lie between 1 and ways={self.ways[0]}")

    def _index(self, labels: np.ndarray, names: Sequence[str] | None, small_classes: str) -> None:
        classes, sizes = np.unique(labels, return_counts=True)
        need = self.shots[1] + (self.queries if self.query_distribution == "balanced" else 0)
        small = sizes < need
        if small.any() and small_classes == "refuse":
            worst = int(np.argmin(sizes))
            name = f" ({names[classes[worst]]})" if names else ""
            raise FewshotError(
                f"class {classes[worst]}{name} has {sizes[worst]} images; {self.shots[1]} shots and {self.queries} queries "
                f"need {need} ({int(small.sum())} of {len(classes)} classes are too small): ask for fewer, or pass "
                "small_classes='drop'")
        # Rows of class c are order[first[c] : first[c] + size[c]], in the order of the data set.
        order = np.argsort(labels, kind="stable")
        first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self._classes, self._sizes, self._first, self._order = classes[~small], sizes[~small], first[~small], order
        if self.ways[1] > len(self._classes):
            raise FewshotError(f"ways={self.ways[1]} but only {len(self._classes)} classes have {need} images or more")
        if self.query_distribution != "balanced":
            drawn_from = self.k_eff or self.ways[1]
            left = int(np.sort(self._sizes - self.shots[1])[:drawn_from].sum())
            if left < self.ways[1] * self.queries:
                raise FewshotError(f"{self.ways[1] * self.queries} queries, but the {drawn_from} smallest classes have only "
                                   f"{left} images left after the support; lower queries")

    # -- drawing ---------------------------------------------------------------------------------------------------

    def _uniforms(self, start: int, count: int) -> dict[str, np.ndarray]:
        """name -> [count, length] numbers in [0, 1) of episodes start .. start+count-1."""
        return counted_uniforms(f"{_STREAM} {self.seed}", self._layout, start, count)

    def _draw(self, start: int, count: int) -> tuple[np.ndarray, ...]:
        """(classes, ways, shots, query counts, items, random keys of the queries) of episodes start .. start+count-1."""
        u = self._uniforms(start, count)
        (low, high), pool = self.ways, len(self._classes)
        chosen = ordered_subset(u["classes"], np.full(count, pool))  # [E, N]
        ways = low + below(u["ways"][:, 0], high - low + 1)
        active = np.arange(high) < ways[:, None]
        shots = np.where(active, self.shots[0] + below(u["shots"], self.shots[1] - self.shots[0] + 1), 0)
        sizes = self._sizes[chosen]
        counts = self._query_counts(u, np.where(active, sizes - shots, 0), active)
        shuffled = ordered_subset(u["items"].reshape(count * high, -1), sizes.reshape(-1))
        items = self._order[self._first[chosen][..., None] + shuffled.reshape(count, high, -1)]
        return self._classes[chosen], ways, shots, counts, items, u["order"]

    def _query_counts(self, u: dict[str, np.ndarray], left: np.ndarray, active: np.ndarray) -> np.ndarray:
        """[E, N] queries of every class, at most `left` images."""
        total = active.sum(1) * self.queries
        if self.query_distribution == "balanced":
            return np.where(active, self.queries, 0)
        if self.query_distribution == "dirichlet":
            share = _dirichlet_shares(u["counts"], self.alpha, active)
            return _cap(_published_rounding(share * total[:, None], total), left, share)
        if self.k_eff is not None:
            rank = np.argsort(np.argsort(np.where(active, u["present"], 2.0), 1), 1)
            left = np.where(rank < self.k_eff, left, 0)
        # Drawing from a pool without replacement: only how often each class is hit matters here, because
        # within a class the items are shuffled anyway.
        position = ordered_subset(u["query_pool"], left.sum(1))
        ends = np.cumsum(left, 1)
        used = np.arange(position.shape[1]) < total[:, None]
        # Classes of all episodes end to end: one search finds the class of every query, without a table [E, N, Q].
        before = (np.cumsum(ends[:, -1]) - ends[:, -1])[:, None]
        found = np.searchsorted((before + ends).ravel(), (before + position)[used], side="right")
        return np.bincount(found, minlength=ends.size).reshape(ends.shape)


def _dirichlet_shares(uniform: np.ndarray, alpha: float, active: np.ndarray) -> np.ndarray:
    """[E, N] class proportions ~ Dirichlet(alpha) of the active classes, from as many uniform numbers."""
    gamma = np.where(active, gammaincinv(alpha, uniform), 0.0)
    total = gamma.sum(1, keepdims=True)
    known = total > 0  # with a small alpha every number may be below the smallest float, or not be computed at all
    share, lost = gamma / np.where(known, total, 1), np.flatnonzero(~known)
    if len(lost):
        # So far down the quantile is (u Gamma(1 + alpha))^(1 / alpha) to rounding: proportions come from logarithms.
        logs = np.where(active[lost], np.log(np.maximum(uniform[lost], np.finfo(float).tiny)), -np.inf)
        with np.errstate(over="ignore"):
            power = np.exp((logs - logs.max(1, keepdims=True)) / alpha)
        share[lost] = power / power.sum(1, keepdims=True)
    return share


def _layout(**lengths: int) -> dict[str, int]:
    return lengths


def _published_rounding(real: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Integer counts that sum to `total`: while the rounded sum is off, floor (or ceil) the count whose fraction is
    closest to one half (Veilleux et al. 2021, half to even)."""
    real = real.copy()
    for _ in range(real.shape[1]):
        excess = np.rint(real).sum(1) - total
        wrong = np.flatnonzero(excess)
        if len(wrong) == 0:
            break
        nearest = np.argmin(np.abs(real[wrong] - np.floor(real[wrong]) - 0.5), 1)
        value = real[wrong, nearest]
        real[wrong, nearest] = np.where(excess[wrong] > 0, np.floor(value), np.ceil(value))
    return np.rint(real).astype(np.int64)


def _cap(counts: np.ndarray, left: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Move what exceeds `left` to the class of largest share that has room."""
    missing = (counts - np.minimum(counts, left)).sum(1)
    counts = np.minimum(counts, left)
    for _ in range(counts.shape[1]):
        rows = np.flatnonzero(missing)
        if len(rows) == 0:
            break
        room = left[rows] - counts[rows]
        target = np.argmax(np.where(room > 0, share[rows], -1.0), 1)
        moved = np.minimum(missing[rows], room[np.arange(len(rows)), target])
        counts[rows, target] += moved
        missing[rows] -= moved
    return counts


def _assemble(classes: np.ndarray, shots: np.ndarray, counts: np.ndarray, items: np.ndarray,
              keys: np.ndarray) -> EpisodeIndices:
    """Split each class's shuffled items into its first `shots` and the next `counts`."""
    episodes, ways, depth = items.shape
    if (shots == shots[0, 0]).all() and (counts == counts[0, 0]).all():  # slices, several times faster than masks
        ends = (0, shots[0, 0], shots[0, 0] + counts[0, 0])
        # Copies: a view would keep all items alive.
        parts = [np.ascontiguousarray(items[:, :, a:b].reshape(episodes, -1)) for a, b in itertools.pairwise(ends)]
        labels = [np.tile(np.arange(ways).repeat(b - a), (episodes, 1)) for a, b in itertools.pairwise(ends)]
    else:
        place, label = np.arange(depth), np.broadcast_to(np.arange(ways)[:, None], items.shape)
        is_support = place < shots[..., None]
        is_query = ~is_support & (place < (shots + counts)[..., None])
        parts, labels = ([values[mask].reshape(episodes, -1) for mask in (is_support, is_query)]
                         for values in (items, label))
    (support, query), (support_labels, query_labels) = ([torch.from_numpy(x) for x in pair] for pair in (parts, labels))
    order = torch.from_numpy(np.argsort(keys[:, : query.shape[1]], axis=1))
    return EpisodeIndices(support, support_labels, query.gather(1, order), query_labels.gather(1, order),
                          torch.from_numpy(np.ascontiguousarray(classes)))


def _range(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    low, high = value if isinstance(value, (tuple, list)) and len(value) == 2 else (value, value)
    low, high = check_integer(name, low, least), check_integer(name, high, least)
    if low > high:
        raise FewshotError(f"{name}={value!r}; the low end exceeds the high end")
    return low, high
