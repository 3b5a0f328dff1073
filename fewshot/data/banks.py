"""`ImageBank` and `FeatureBank`: all items of one split in memory, addressed by row number."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, SupportsIndex

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fewshot.core.arrays import as_array, as_tensor
from fewshot.core.errors import FewshotError
from fewshot.core.html import html_table
from fewshot.core.registry import unknown_message
from fewshot.data import bank_files, feature_files
from fewshot.data.class_texts import ClassTexts, side_by_side
from fewshot.data.precision import row_lengths, working_dtype


def _as_labels(given: Tensor | ArrayLike, items: int) -> Tensor:
    labels = as_tensor("labels", given)
    if labels.shape != (items,):
        raise FewshotError(f"labels has shape {tuple(labels.shape)}; expected [M] = ({items},), one label per item")
    if labels.is_floating_point():
        raise FewshotError(f"labels has dtype {labels.dtype}; pass integers")
    labels = labels.to(torch.int64)
    if items and int(labels.min()) < 0:
        raise FewshotError(f"labels contain {int(labels.min())}; they must be 0 or more")
    return labels


def _numbered(labels: Any, class_names: Sequence[str] | None) -> tuple[Any, Sequence[str] | None]:
    """(labels, class names): labels that are texts become positions among the names, those of the classes that there are,
    sorted, where none are given."""
    if isinstance(labels, Tensor) or (found := as_array("labels", labels)).dtype.kind not in "US":
        return labels, class_names
    names = list(map(str, () if class_names is None else class_names)) or np.unique(found.astype(str)).tolist()
    at = {name: number for number, name in enumerate(names)}
    texts = found.astype(str).ravel().tolist()
    if strangers := [text for text in texts if text not in at]:
        raise FewshotError(unknown_message("label", strangers[0], names) + "; class_names must have all of them")
    return np.reshape([at[text] for text in texts], found.shape), names


class NumberedNames(Sequence[str]):
    """The names "class 0", "class 1", ... of `count` classes, each made when it is looked at: labels may be ids of any
    size, and what they cost follows the number of items."""

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, label: Any) -> Any:
        return f"class {range(self._count)[operator.index(label)]}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NumberedNames) and len(self) == len(other)

    def __hash__(self) -> int:
        return hash((NumberedNames, self._count))

    def __repr__(self) -> str:
        return f"NumberedNames({self._count})"


def _as_names(given: Sequence[str] | None, labels: Tensor) -> Sequence[str]:
    classes = int(labels.max()) + 1 if len(labels) else 0
    names: Sequence[str]
    if given is None or not len(given):
        names = NumberedNames(classes)
        names = tuple(names) if classes <= len(labels) else names  # with more ids than items most have none
    else:
        names = given if isinstance(given, NumberedNames) else tuple(map(str, given))
    if len(names) < classes:
        raise FewshotError(f"{len(names)} class names for labels up to {classes - 1}; give one name per class, or leave "
                           "class_names out, and classes are called by their number")
    return names


_UNNAMED = ("custom", "folder", "csv", "webdataset", "parquet")  # names that say nothing of whose items these are


def _plain_names(names: Sequence[str]) -> Sequence[str] | int:
    """For JSON; of names that are only numbered how many."""
    return len(names) if isinstance(names, NumberedNames) else names


def _identity(name: str, split: str, class_names: Sequence[str], labels: Tensor, parts: Tensor | None) -> str:
    digest = hashlib.sha256(json.dumps([name, split, _plain_names(class_names)]).encode())
    for values in (labels, parts):
        if values is not None:
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _as_parts(given: Tensor | ArrayLike | None, items: int) -> Tensor | None:
    if given is None:
        return None
    parts = as_tensor("parts", given)
    whole = parts.shape == (items,) and not parts.is_floating_point()
    if not whole or (items and not 0 <= int(parts.min()) <= int(parts.max()) <= 2):
        raise FewshotError(f"parts has dtype {parts.dtype}, shape {tuple(parts.shape)}; expected one of 0 (training image), "
                           f"1 (validation) and 2 (test) for each of {items} items")
    return parts.to(torch.int8)


def _with_texts(identity: str, texts: ClassTexts | None) -> str:
    return identity if texts is None else identity + texts.content_hash


class _Bank:
    """What both banks share: labels, names and an identity that does not depend on the features."""

    labels: Tensor
    class_names: Sequence[str]
    name: str
    split: str
    title: str
    parts: Tensor | None
    items: ClassVar[str]  # what they are called

    @property
    def lengths(self) -> Tensor | None:
        """|z| of every row [M], where a bank has them."""
        return None

    def __len__(self) -> int:
        return len(self.labels)

    def _label(self, items: int) -> None:
        """Check labels and class names, and put what they mean in their place."""
        labels, names = _numbered(self.labels, self.class_names)
        labels = _as_labels(labels, items)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "class_names", _as_names(names, labels))
        object.__setattr__(self, "parts", _as_parts(self.parts, items))

    @property
    def _data(self) -> Tensor:
        """What is stored of each item, [M, ...]."""
        raise NotImplementedError

    @property
    def _small(self) -> bool:
        """Whether all of it may be looked through."""
        return True

    @property
    def _images_hash(self) -> str:
        """Of the images, as far as they are known: equal for every backbone's features of them."""
        raise NotImplementedError

    @property
    def shown_name(self) -> str:
        """What results call it: the name; of own data the title and the beginning of a hash, "flowers#3fa2c1"."""
        return f"{self.title}#{self._images_hash[:6]}" if self.title else self.name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.shown_name}, split {self.split}: {self.counted}>"

    def _repr_html_(self) -> str:
        return html_table(f"{type(self).__name__} of {self.shown_name}, split {self.split}", [
            ("held", self.counted), ("each", f"{list(self._data.shape[1:])} {self._data.dtype}".replace("torch.", ""))])

    @property
    def counted(self) -> str:
        """How much there is, in words: "24 classes, 1,210 images, 12 to 96 each"."""
        sizes = self.class_sizes().tolist() or [0]
        each = f"{min(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,} to {max(sizes):,}"
        return f"{len(self.classes):,} classes, {len(self):,} {self.items}, {each} each"

    @cached_property
    def repeated(self) -> tuple[int, int]:
        """(items that are identical to one before them of their class, items that are identical to one of another class)."""
        if not self._small or not len(self):
            return 0, 0
        rows = self._data.contiguous().view(torch.uint8).flatten(1).numpy()
        some = np.ascontiguousarray(rows[:, :: max(1, rows.shape[1] // 64)])  # tells most rows apart, at a tenth of the time
        parts = [row.tobytes() for row in some]
        alike = Counter(parts)
        homes: dict[bytes, set[int]] = {}
        keys = []
        for row, part, label in zip(rows, parts, self.labels.tolist(), strict=True):
            if alike[part] > 1:
                keys.append(hashlib.sha1(row, usedforsecurity=False).digest())
                homes.setdefault(keys[-1], set()).add(label)
        inside = len(keys) - sum(map(len, homes.values()))
        return inside, sum(len(homes[key]) > 1 for key in keys)

    @cached_property
    def identity(self) -> str:
        """sha256 over data set, split, labels, class names and parts: equal for every backbone's features of the same items,
        so that results on different backbones can be paired."""
        return _identity(self.name, self.split, self.class_names, self.labels, self.parts)

    @cached_property
    def classes(self) -> Tensor:
        """[C] int64 labels that occur, ascending. Labels are ids: nothing is counted up to the largest one."""
        return torch.unique(self.labels)

    def class_sizes(self) -> Tensor:
        """[C] number of items of each of `classes`."""
        return torch.unique(self.labels, return_counts=True)[1]


@dataclass(frozen=True, eq=False, repr=False)
class ImageBank(_Bank):
    """Images of one split, held as uint8.

    images       [M, C, H, W] uint8 (tensor or array), C is 1 or 3
    labels       [M] integers, kept as int64; or texts, the class names
    class_names  by label, one for each up to the largest; left out, classes are called by their number
    name, split  data set and split, for provenance
    files        optional [M] source names, for error messages and galleries
    title        of own data: what results call it, the name of its folder; no part of its identity
    parts        optional [M] 0, 1 or 2: a training, validation or test image of a bank with all three (protocol all_classes)
    """

    images: Tensor
    labels: Tensor
    class_names: Sequence[str] = ()
    name: str = "custom"
    split: str = "all"
    files: tuple[str, ...] | None = None
    title: str = ""
    parts: Tensor | None = None

    def __post_init__(self) -> None:
        images = as_tensor("images", self.images)
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise FewshotError(f"images have dtype {images.dtype} and shape {tuple(images.shape)}; "
                               "expected uint8 [M, C, H, W] with C = 1 or 3")
        object.__setattr__(self, "images", images)
        self._label(len(images))

    items = "images"

    @property
    def _data(self) -> Tensor:
        return self.images

    @property
    def _images_hash(self) -> str:
        return self.content_hash

    @cached_property
    def brightness(self) -> float:
        """Mean of all pixels, 0 black to 1 white."""
        total = sum(int(part.sum(dtype=torch.int64)) for part in self.images.split(1024))
        return total / max(1, self.images.numel()) / 255

    def take(self, indices: Tensor) -> Tensor:
        """uint8 images [*indices.shape, C, H, W]."""
        return self.images[indices]

    @cached_property
    def content_hash(self) -> str:
        """sha256 of pixels, labels and names: what a cached extraction of this bank is addressed by."""
        digest = hashlib.sha256(self.identity.encode())
        digest.update(str(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False, repr=False)
class FeatureBank(_Bank):
    """Features of one split.

    features     [M, D] floating point (tensor, array or data frame), finite; of a large file the file itself, mapped for
                 reading
    labels       [M] integers, kept as int64; or texts, the class names
    class_names  by label, one for each up to the largest; left out, classes are called by their number
    provenance   plain dictionary: backbone, weights sha256, transform, ... stored with the features
    title        of own data: what results call it, the name of its folder or file; no part of its identity
    texts        what a model made of the class names, which methods with texts need; or their vectors [C, D] alone
    parts        optional [M] 0, 1 or 2: of a training, validation or test image, as in `ImageBank`
    """

    features: Tensor
    labels: Tensor
    class_names: Sequence[str] = ()
    name: str = "custom"
    split: str = "all"
    provenance: dict = field(default_factory=dict)
    title: str = ""
    texts: ClassTexts | None = None
    parts: Tensor | None = None

    def __post_init__(self) -> None:
        features = as_tensor("features", self.features)
        if not features.is_floating_point() or features.ndim != 2:
            raise FewshotError(f"features have dtype {features.dtype} and shape {tuple(features.shape)}; "
                               "expected floating point [M, D]")
        bank_files.check_finite(features)
        object.__setattr__(self, "features", features)
        self._label(len(features))
        if self.texts is not None:
            texts = self.texts if isinstance(self.texts, ClassTexts) else ClassTexts(self.texts)
            texts.check_names(self.class_names)
            object.__setattr__(self, "texts", texts)

    items = "rows of features"

    @property
    def _data(self) -> Tensor:
        return self.features

    @property
    def _small(self) -> bool:
        return self.features.nbytes < bank_files.MAP_BYTES

    @property
    def _images_hash(self) -> str:
        return self.provenance.get("images_sha256", self.identity)

    def take(self, indices: Tensor, room: Tensor | None = None) -> Tensor:
        """Features [*indices.shape, D] in the precision to work in, in the first rows of `room` [m, D] where that is their
        own and room is given."""
        # index_select is the fastest gather on CPU: it copies whole rows.
        rows, widened = indices.reshape(-1), self.working_dtype != self.features.dtype
        out = None if room is None or widened else room[: indices.numel()]
        return torch.index_select(self.features, 0, rows, out=out).to(self.working_dtype).view(*indices.shape, -1)

    @cached_property
    def working_dtype(self) -> torch.dtype:
        """What arithmetic on the features takes, see `precision.working_dtype`; of a bank of the size that is left in its
        file judged by a thousandth of its rows."""
        features = self.features
        return working_dtype(features[::1000] if features.nbytes >= bank_files.MAP_BYTES else features)

    def working(self) -> FeatureBank:
        """This bank with the features in the precision to work in."""
        if self.working_dtype == self.features.dtype:
            return self
        return dataclasses.replace(self, features=self.features.to(self.working_dtype))

    @cached_property
    def lengths(self) -> Tensor | None:
        """|z| of every row [M]: distances need it in every episode again. None for a bank of the size that is left in its
        file: a few episodes of it need not read all."""
        if self.features.nbytes >= bank_files.MAP_BYTES:
            return None
        return row_lengths(self.features, self.working_dtype)

    @cached_property
    def content_hash(self) -> str:
        """sha256 of the feature values, labels, names and texts."""
        return bank_files.content_hash(_with_texts(self.identity, self.texts), bank_files.blocks_of(self.features))

    def with_texts(self, texts: ClassTexts | Tensor | ArrayLike) -> FeatureBank:
        """This bank with texts of its classes, or with their vectors [C, D] alone, row i of label i."""
        known = texts if isinstance(texts, ClassTexts) else ClassTexts(as_tensor("texts", texts))
        return dataclasses.replace(self, texts=known)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file atomically: it is complete or absent."""
        pieces, dim = bank_files.blocks_of(self.features), self.features.shape[1]
        return FeatureBank.save_pieces(path, pieces, dim, self.features.dtype, labels=self.labels, name=self.name,
                                       class_names=self.class_names, split=self.split, provenance=self.provenance,
                                       title=self.title, texts=self.texts, parts=self.parts)

    @staticmethod
    def save_pieces(path: str | Path, pieces: Iterable[Tensor], dim: int, dtype: torch.dtype = torch.float32, *,
                    labels: Tensor | Sequence[int], class_names: Sequence[str] | None = None, name: str = "custom",
                    split: str = "all", provenance: dict | None = None, title: str = "",
                    texts: ClassTexts | None = None, parts: Tensor | None = None) -> Path:
        """Write a bank that need not fit into memory, as `save` does: its features come in pieces [m, dim], in order.

        Raises FewshotError for wrong labels, features that are not finite, and when they are not as many as the labels.
        """
        labels, class_names = _numbered(labels, class_names)
        labels = _as_labels(labels, len(labels))
        names = _as_names(class_names, labels)
        about = {"name": name, "split": split, "class_names": json.dumps(_plain_names(names)),
                 "provenance": json.dumps(provenance or {}, sort_keys=True), **({"title": title} if title else {})}
        parts = _as_parts(parts, len(labels))
        identity = _identity(name, split, names, labels, parts)
        small = {"labels": labels} if parts is None else {"labels": labels, "parts": parts}
        if texts is not None:
            texts.check_names(names)
            about, small = {**about, "texts": texts.described()}, {**small, **texts.tensors()}
        return bank_files.write(path, pieces, (len(labels), dim), dtype, small, _with_texts(identity, texts), about)

    @classmethod
    def load(cls, path: str | Path, mmap: bool | None = None) -> FeatureBank:
        """Read a file written by `save`; raises FewshotError if it is missing, corrupt or altered. Or the features that
        another program wrote into a .npz or .parquet file (`fewshot/data/feature_files.py` says how).

        mmap  leave the features in the file, from which rows come when they are used: the bank may be larger than memory,
              and its features must not be written to. None: for files from 256 MB on. Such a file is read in full once, by
              `save` or the first `load`, which note its content hash, size and time of change in PATH.checked; while these
              agree the hash is taken from there. Delete that file to have everything read and compared again.
        """
        if Path(path).suffix.lower() in feature_files.SUFFIXES:
            given = feature_files.read_features(Path(path))
            return cls(**given, title=_title_of_file(Path(path), given.get("name", "custom"), {}))
        tensors, meta, mapped, vouched = bank_files.read(path, mmap)
        bank, labels = object.__new__(cls), _as_labels(tensors["labels"].clone(), len(tensors["features"]))
        names = json.loads(meta["class_names"])
        values = {"features": tensors["features"], "labels": labels, "name": meta["name"], "split": meta["split"],
                  "class_names": NumberedNames(names) if isinstance(names, int) else tuple(names),
                  "provenance": json.loads(meta["provenance"]), "content_hash": meta["content_hash"]}
        values["parts"] = tensors["parts"].clone() if "parts" in tensors else None
        values["texts"] = ClassTexts.read(tensors, meta["texts"]) if "texts" in meta else None
        values["title"] = meta.get("title") or _title_of_file(Path(path), meta["name"], values["provenance"])
        bank.__dict__.update(values)  # verified below, or before: the checks of a new bank would read everything again
        if not vouched:
            bank_files.verify(path, bank.features, _with_texts(bank.identity, bank.texts), bank.content_hash)
        if mapped:
            bank.__dict__["_file"] = Path(path).resolve()
        return bank

    def mapped(self, folder: str | Path) -> FeatureBank:
        """This bank, mapped from a file: its own, or else one that is written into `folder`."""
        if "_file" in self.__dict__:
            return self
        return FeatureBank.load(self.save(Path(folder) / "bank.safetensors"), mmap=True)

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        # Another process maps the file, too: features larger than memory cannot be sent.
        file = self.__dict__.get("_file")
        return super().__reduce_ex__(protocol) if file is None else (FeatureBank.load, (file, True))


def _title_of_file(path: Path, name: str, provenance: dict) -> str:
    """What features without a title are called: "" where they are those of a data set, the name that their maker gave, or
    that of the file where there is none."""
    if name in _UNNAMED:
        return path.stem
    return "" if provenance.get("dataset") == name else name


def concatenate(banks: Sequence[FeatureBank]) -> FeatureBank:
    """The same items with the features of all `banks` side by side, in this order: an ensemble of backbones (EASY).

    Normalise after this, not before: then a backbone with longer features has more say, as in EASY, whose backbones are of
    one kind. Texts are put side by side as well where all banks have some; where only the first has, they stay those of its
    channels, and the others are auxiliary. Raises FewshotError for fewer than two banks, for banks of other items, and
    where a bank after the first has texts and another has none.
    """
    if len(banks) < 2:
        raise FewshotError(f"{len(banks)} feature bank given; an ensemble needs at least 2")
    first, described = banks[0], [bank.provenance for bank in banks]
    for bank in banks[1:]:
        if bank.identity != first.identity:
            raise FewshotError(f"{bank.name}/{bank.split} with {len(bank)} items and {first.name}/{first.split} with "
                               f"{len(first)} are not the same items; embed the same split with every backbone")
    members = [made_by.get("weights_id", bank.content_hash) for made_by, bank in zip(described, banks, strict=True)]
    provenance: dict = {"backbone": " + ".join(str(made_by.get("backbone", "features")) for made_by in described),
                        "weights_id": hashlib.sha256(json.dumps(members).encode()).hexdigest(), "members": described}
    pretrained = dict.fromkeys(made_by["pretrained_on"] for made_by in described if made_by.get("pretrained_on"))
    provenance["pretrained_on"] = " and ".join(pretrained) or None
    if seen := [item for made_by in described for item in made_by.get("seen", [])]:
        provenance["seen"] = [item for place, item in enumerate(seen) if item not in seen[:place]]
    for known in ("dataset", "images_sha256"):
        if len(found := {made_by.get(known) for made_by in described}) == 1 and None not in found:
            provenance[known] = found.pop()
    if len(crops := {made_by.get("crops", "") for made_by in described}) == 1:
        provenance["crops"] = crops.pop()  # otherwise only the members tell
    texts = [bank.texts for bank in banks if bank.texts is not None]
    if len(texts) not in (0, len(banks)) and (len(texts) > 1 or first.texts is None):
        raise FewshotError(f"{len(texts)} of {len(banks)} banks have texts; put the one with texts first, or drop them "
                           "with dataclasses.replace(bank, texts=None)")
    joint = side_by_side(texts) if len(texts) > 1 else first.texts
    return dataclasses.replace(first, features=torch.cat([bank.features for bank in banks], 1), provenance=provenance,
                               texts=joint)
