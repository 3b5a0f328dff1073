"""Lists of episodes as files: drawn once, shared, and evaluated elsewhere on the same data."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from fewshot.core.errors import FewshotError
from fewshot.core.files import read_safetensors, replacing, save_tensors
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.episodes.sampler import EpisodeIndices, Sampler, joined

_BLOCK = 2048  # episodes whose row numbers are drawn in one call; the fingerprint is taken over such blocks
_BLOCK_BYTES = 64 << 20  # of row numbers and labels; only episodes of more than about 250 classes come in smaller blocks
_FIELDS = ("support", "support_labels", "query", "query_labels", "classes")


class EpisodeDigest:
    """sha256 of the identity of the data and the row numbers and query labels of episodes, block by block."""

    def __init__(self, identity: str):
        self._digest = hashlib.sha256(identity.encode())

    def update(self, indices: EpisodeIndices) -> None:
        for rows in (indices.support, indices.query, indices.query_labels):
            self._digest.update(rows.contiguous().flatten().numpy().data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def block_size(drawn_from: Sampler | EpisodeList) -> int:
    """Episodes of the blocks of which fingerprints are made."""
    one = drawn_from.indices(0, 1)
    return max(1, min(_BLOCK, _BLOCK_BYTES // (one.support.nbytes + one.query.nbytes + one.query_labels.nbytes)))


def blocks(drawn_from: Sampler | EpisodeList, episodes: int) -> Iterator[EpisodeIndices]:
    """The first `episodes` episodes, block by block."""
    size = block_size(drawn_from)
    for start in range(0, episodes, size):
        yield drawn_from.indices(start, min(size, episodes - start))


@dataclass(frozen=True, eq=False)
class EpisodeList:
    """Episodes of one data set.

    all        the row numbers of all episodes
    identity   of the data they belong to: `bank.identity` (items and labels, whatever the features)
    protocol   settings of a `Run` that describe them
    name, split, items   of the data, for messages
    """

    all: EpisodeIndices
    identity: str
    protocol: dict
    name: str
    split: str
    items: int

    @classmethod
    def draw(cls, sampler: Sampler, episodes: int, bank: ImageBank | FeatureBank, protocol: dict) -> EpisodeList:
        """The first `episodes` episodes of `sampler`, which was made for `bank` and has the settings `protocol`."""
        drawn = joined(list(blocks(sampler, episodes)))
        return cls(drawn, bank.identity, protocol, bank.name, bank.split, len(bank))

    def __len__(self) -> int:
        return len(self.all)

    @cached_property
    def fingerprint(self) -> str:
        """Equal to that of a `Result` on these episodes."""
        digest = EpisodeDigest(self.identity)
        for indices in blocks(self, len(self)):
            digest.update(indices)
        return digest.hexdigest()

    @property
    def described(self) -> dict:
        """The settings of the protocol alone."""
        return {name: value for name, value in self.protocol.items() if name not in ("episodes", "seed")}

    def indices(self, start: int, count: int) -> EpisodeIndices:
        """Row numbers of episodes start .. start+count-1, as those of a sampler."""
        return self.all[start : start + count]

    def of(self, bank: ImageBank | FeatureBank) -> EpisodeList:
        """This list, if `bank` holds the items it was made from and its labels are theirs; else FewshotError."""
        if bank.identity != self.identity:
            raise FewshotError(f"the episodes were made from {self.items} items of {self.name}, split {self.split} "
                               f"(identity {self.identity[:12]}); the bank holds {len(bank)} items of {bank.name}, split "
                               f"{bank.split} ({bank.identity[:12]}): evaluate them on the same items")
        each = (self.all.support, self.all.query, self.all.validation)
        rows = torch.cat([rows for rows in each if rows is not None], 1).sort(1).values
        inside = len(rows) == 0 or (int(rows[:, 0].min()) >= 0 and int(rows[:, -1].max()) < len(bank))
        if not inside or (rows[:, 1:] == rows[:, :-1]).any():
            raise FewshotError("an episode of the list holds an item twice, or one that the data do not have; support and "
                               "query must not overlap: save it again")
        for name in ("support", "query"):
            labels, found = getattr(self.all, f"{name}_labels"), bank.labels[getattr(self.all, name)]
            known = labels >= 0
            named = self.all.classes.gather(1, labels.clamp(min=0))
            if (named != found)[known].any() or (found[~known][:, None] == self._ways_of(~known)).any():
                raise FewshotError(f"the {name} labels of the list are not those of the data; save it again")
        return self

    def _ways_of(self, which: torch.Tensor) -> torch.Tensor:
        """[n, N] the classes of the episode of each of the queries marked in [E, Q]."""
        return self.all.classes[which.nonzero()[:, 0]]

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file atomically: row numbers as int32, labels as int16, ids of classes as they are where they
        need it, the rest as metadata."""
        narrow = {name: rows.to(torch.int16 if name.endswith("labels") else torch.int32)
                  for name, rows in self.all.columns.items()}
        if not torch.equal(narrow["classes"], self.all.classes):
            narrow["classes"] = self.all.classes
        about = {"identity": self.identity, "protocol": json.dumps(self.protocol, sort_keys=True), "name": self.name,
                 "split": self.split, "items": str(self.items), "fingerprint": self.fingerprint}
        with replacing(path) as temporary:
            save_tensors(temporary, narrow, about)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> EpisodeList:
        """Read a file written by `save`; raises FewshotError if it is missing, no such file, or altered."""
        tensors, about = read_safetensors(path, "episodes", "a readable list of episodes",
                                          f"save some with `fewshot episodes save --out {path}`", "save it again")
        rows = {field.name: tensors[field.name].long() for field in dataclasses.fields(EpisodeIndices)
                if field.name in tensors}
        if not rows.keys() >= set(_FIELDS) or "fingerprint" not in about:
            raise FewshotError(f"{path} is no list of episodes; it was not written by EpisodeList.save")
        found = cls(EpisodeIndices(**rows), about["identity"], json.loads(about["protocol"]), about["name"], about["split"],
                    int(about["items"]))
        if found.fingerprint != about["fingerprint"]:
            raise FewshotError(f"{path} does not match its fingerprint; it was altered: save or copy it again")
        return found
