"""Lists of episodes that others published, as text: which images, by path or row number, are support and which query."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.core.registry import nearest
from fewshot.core.seeding import derived_seed
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.episodes.protocol import EpisodicProtocol
from fewshot.episodes.sampler import EpisodeIndices
from fewshot.episodes.saved import EpisodeList

ROLES = ("support", "query")
Items = dict[str, list[Any]]  # role -> what the file calls its items


def import_episodes(path: str | Path, bank: ImageBank | FeatureBank) -> EpisodeList:
    """The episodes that a CSV or JSON file lists, as an `EpisodeList` of `bank`.

    path   CSV with the columns episode, role (support or query) and item, a row for each image; episodes in the order in
           which they first appear. Or JSON: a list with {"support": [items], "query": [items]} for each episode
    bank   where the items are. An item is a row number of it (from 0), or the path of an image, as many of its last parts as
           tell it apart: "1019_08.png" or "Atlantean/character09/1019_08.png"; features know no paths

    Classes are those of the data, numbered in the order of the support. All episodes have as many classes, the same number
    of support images for each class, and together as many queries, a multiple of the classes; where these are not equally
    many of each class, the protocol says "natural". Queries are shuffled, so that their order tells nothing.

    Raises FewshotError, with the episode, for items that are not there, are ambiguous or come twice, for queries of other
    classes, for episodes of different shapes, and for a file that is neither.
    """
    listed, rows_of = _read(Path(path)), _Finder(bank)
    episodes = [(name, {role: rows_of(name, items[role]) for role in ROLES}) for name, items in listed]
    if len(episodes) < 2:
        raise FewshotError(f"{path} lists {len(episodes)} episode; an interval needs at least 2")
    drawn = [_indices(name, number, bank, rows) for number, (name, rows) in enumerate(episodes)]
    shapes = [(each.ways, each.support.shape[1], each.query.shape[1]) for each in drawn]
    for (name, _), shape in zip(episodes, shapes, strict=True):
        if shape != shapes[0]:
            raise FewshotError(f"episode {name} has {_text(shape)}, episode {episodes[0][0]} {_text(shapes[0])}; one list "
                               "holds episodes of one shape: write one file for each")
    ways, support, queries = shapes[0]
    if queries % ways:
        raise FewshotError(f"{path} has {queries} queries an episode and {ways} classes; give a multiple of the classes")
    columns = {name: torch.cat([getattr(each, name) for each in drawn])
               for name in ("support", "support_labels", "query", "query_labels", "classes")}
    balanced = all((_counts(labels, ways) == queries // ways).all() for labels in columns["query_labels"])
    protocol = EpisodicProtocol(ways=ways, shots=support // ways, queries=queries // ways,
                                query_distribution="balanced" if balanced else "natural")
    about = {**protocol.settings(), "episodes": len(drawn), "seed": 0}
    return EpisodeList(EpisodeIndices(**columns), bank.identity, about, bank.name, bank.split, len(bank)).of(bank)


def _indices(name: str, number: int, bank: ImageBank | FeatureBank, rows: dict[str, Tensor]) -> EpisodeIndices:
    """One episode, checked; `number` decides the order of its queries."""
    both = torch.cat([rows["support"], rows["query"]])
    if len(both.unique()) < len(both):
        values, counts = both.unique(return_counts=True)
        raise FewshotError(f"episode {name} holds item {_called(bank, int(values[counts > 1][0]))} twice; support and query "
                           "must not overlap")
    found = bank.labels[rows["support"]].tolist()
    place = {label: position for position, label in enumerate(dict.fromkeys(found))}
    if len(place) < 2:
        raise FewshotError(f"the support of episode {name} has {len(place)} class; an episode needs at least 2")
    labels = torch.tensor([place[label] for label in found])
    counts = _counts(labels, len(place))
    if (counts != counts[0]).any():
        raise FewshotError(f"the support of episode {name} has {counts.tolist()} images of its classes; a list needs the "
                           "same number of each")
    asked = bank.labels[rows["query"]].tolist()
    strangers = [row for row, label in zip(rows["query"].tolist(), asked, strict=True) if label not in place]
    if strangers:
        raise FewshotError(f"query {_called(bank, strangers[0])} of episode {name} is of class "
                           f"{bank.class_names[int(bank.labels[strangers[0]])]}, which its support does not have")
    by_class = labels.argsort(stable=True)
    order = torch.randperm(len(asked), generator=torch.Generator().manual_seed(derived_seed("imported queries", number)))
    answers = torch.tensor([place[label] for label in asked])
    return EpisodeIndices(rows["support"][by_class][None], labels[by_class][None], rows["query"][order][None],
                          answers[order][None], torch.tensor(list(place))[None])


def _counts(labels: Tensor, ways: int) -> Tensor:
    return torch.bincount(labels, minlength=ways)


def _text(shape: tuple[int, int, int]) -> str:
    return f"{shape[0]} classes, {shape[1]} support images and {shape[2]} queries"


def _called(bank: ImageBank | FeatureBank, row: int) -> str:
    files = getattr(bank, "files", None)
    return str(row) if files is None else files[row]


class _Finder:
    """From what a file calls an item to its row of `bank`."""

    def __init__(self, bank: ImageBank | FeatureBank):
        self._bank = bank
        self._named: defaultdict[str, list[int]] = defaultdict(list)  # last part of a path -> rows
        for row, file in enumerate(getattr(bank, "files", None) or ()):
            self._named[PurePosixPath(file).name].append(row)

    def __call__(self, episode: str, items: Sequence[Any]) -> Tensor:
        return torch.tensor([self._row(episode, item) for item in items], dtype=torch.int64)

    def _row(self, episode: str, item: Any) -> int:
        bank = self._bank
        if isinstance(item, int) and not isinstance(item, bool) or isinstance(item, str) and item.strip().isdecimal():
            if 0 <= int(item) < len(bank):
                return int(item)
            raise FewshotError(f"episode {episode} names row {item}; {bank.name}, split {bank.split}, has rows 0 to "
                               f"{len(bank) - 1}")
        if not isinstance(item, str):
            raise FewshotError(f"episode {episode} names the item {item!r}; give a row number or a path")
        if not self._named:
            raise FewshotError(f"episode {episode} names {item!r}, and features know no paths; give row numbers, or the "
                               "data set")
        parts = PurePosixPath(item.strip().replace("\\", "/")).parts
        alike = self._named.get(parts[-1] if parts else "", [])
        found = [row for row in alike if _same_end(parts, PurePosixPath(_called(bank, row)).parts)]
        if len(found) == 1:
            return found[0]
        if not found:
            known = [_called(bank, row) for row in alike] or nearest(item, [_called(bank, row) for row in range(len(bank))])
            raise FewshotError(f"episode {episode} names {item!r}, which {bank.name}, split {bank.split}, does not have"
                               + (f"; did you mean {known[0]!r}?" if known else "; is it another data set or split?"))
        raise FewshotError(f"episode {episode} names {item!r}, which may be {_called(bank, found[0])} or "
                           f"{_called(bank, found[1])}; give more of the path")


def _same_end(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether the shorter path is the end of the longer one."""
    shared = min(len(one), len(other))
    return one[-shared:] == other[-shared:]


def _read(path: Path) -> list[tuple[str, Items]]:
    """(name, items) of each episode of the file."""
    if not path.is_file():
        raise FewshotError(f"no list of episodes at {path}; give a CSV or JSON file")
    try:
        text = path.read_text("utf-8-sig")
        found = _of_json(json.loads(text)) if path.suffix.lower() == ".json" else _of_csv(text)
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError, _Unlike) as error:
        raise FewshotError(f"{path} is no list of episodes ({error}); expected CSV with the columns episode, role, item, or "
                           'JSON: [{"support": [item, ...], "query": [item, ...]}, ...]') from None
    for name, items in found:
        if not items["support"] or not items["query"]:
            raise FewshotError(f"episode {name} of {path} has {len(items['support'])} support items and "
                               f"{len(items['query'])} queries; it needs both")
    return found


class _Unlike(Exception):
    """The file has another form."""


def _of_csv(text: str) -> list[tuple[str, Items]]:
    reader = csv.DictReader(io.StringIO(text))
    if missing := {"episode", "role", "item"} - set(reader.fieldnames or ()):
        raise _Unlike(f"no column {', '.join(sorted(missing))}")
    found: dict[str, Items] = {}
    for number, row in enumerate(reader, start=2):
        if row["role"] not in ROLES or not row["item"]:
            raise _Unlike(f"line {number} has role {row['role']!r} and item {row['item']!r}")
        found.setdefault(row["episode"], {role: [] for role in ROLES})[row["role"]].append(row["item"])
    return list(found.items())


def _of_json(given: Any) -> list[tuple[str, Items]]:
    if not isinstance(given, list):
        raise _Unlike("it holds no list")
    for number, each in enumerate(given):
        if not isinstance(each, dict) or not all(isinstance(each.get(role), list) for role in ROLES):
            raise _Unlike(f"entry {number} has no lists support and query")
    return [(str(number), {role: each[role] for role in ROLES}) for number, each in enumerate(given)]
