"""Own images in tar files as WebDataset writes them: 0001.jpg beside 0001.cls or 0001.json."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

from fewshot.core.columns import picked
from fewshot.core.errors import FewshotError
from fewshot.datasets.base import DATASETS
from fewshot.datasets.files import IMAGE_SUFFIXES
from fewshot.datasets.own import Item, LabelledImages, class_of, inside, natural, read_names, split_of

_LABEL = ("label", "cls", "class", "class_name", "category", "target")
_LONGEST_LABEL = 1 << 20  # bytes of a .cls or .json: beyond that it is something else


class Tar:
    """A tar file, read in place: nothing is unpacked, and nothing in it is executed."""

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        self.members: dict[str, tuple[int, int]] = {}  # name -> place and length of its bytes
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    self._add(member)
            self._changed = path.stat().st_mtime_ns
        except (OSError, tarfile.TarError, EOFError, ValueError) as error:
            raise FewshotError(f"{path} is not a readable tar file ({error}); it is compressed, damaged or incomplete: "
                               "unpack a .gz first (gunzip), or copy it again") from None

    def _add(self, member: tarfile.TarInfo) -> None:
        if member.isdir():
            return
        if not member.isreg() or member.issparse() or inside(member.name) is None:
            raise FewshotError(f"{self.path} holds {member.name!r}, which is a link, no plain file, or leads out of the "
                               "archive; make the archive of plain files alone")
        if member.name in self.members:
            raise FewshotError(f"{self.path} holds {member.name!r} twice; give every sample a key of its own")
        self.members[member.name] = member.offset_data, member.size

    def stamp(self, name: str) -> tuple[int, int]:
        """Length and the time of change of the archive."""
        return self.members[self._member(name)][1], self._changed

    def read(self, name: str) -> bytes:
        start, size = self.members[self._member(name)]
        with self.path.open("rb") as file:
            file.seek(start)
            data = file.read(size)
        if len(data) < size:
            raise EOFError("the archive ends before it")
        return data

    def where(self, name: str) -> str:
        return f"{self.path}:{self._member(name)}"

    def _member(self, name: str) -> str:
        return name.removeprefix(f"{self.name}:")


@DATASETS.register("webdataset")
@dataclass(frozen=True)
class WebDataset(LabelledImages):
    """`root` is a tar file, or a folder of them. A sample is the files of a tar whose names agree up to the first dot of
    the last part: an image and KEY.cls (a number or a name) or KEY.json (an object with the label). Half samples are
    refused.

    label_key   of the JSON; None: KEY.cls where there is one, else the only key with a usual name (label, cls, class, ...)
    splits, split_seed, channels, invert, class_names   see `LabelledImages`; a filename is "SHARD.tar:MEMBER". Own splits
                are those that the tar files, or their folders, are named by (train-0000.tar)
    """

    name = "webdataset"
    description = "own images in tar files, as WebDataset writes them"
    layout = ("<shard>.tar (root is the file, or the folder of such files)",)
    root_is = "a tar file, or a folder of them"

    label_key: str | None = None

    def find(self, root: Path) -> Path | None:
        return root if root.is_file() or root.is_dir() else None

    def collect(self, where: Path) -> tuple[list[Item], dict[str, str]]:
        top = where if where.is_dir() else where.parent
        found = where.rglob("*.tar") if where.is_dir() else [where]
        shards = sorted((path.relative_to(top).as_posix() for path in found), key=natural)
        if not shards:
            raise FewshotError(f"{where} holds no .tar files; root is a tar file, or a folder of them")
        names = read_names(self.class_names)
        items, own = list[Item](), dict[str, str]()
        for shard in shards:
            split, added = split_of(shard), self._samples(Tar(top / shard, shard), names)
            items += added
            own |= {item.file: split for item in added} if split else {}
        if not items:
            raise FewshotError(f"{where} holds no samples; expected KEY.jpg beside KEY.cls or KEY.json")
        return items, own

    def _samples(self, tar: Tar, names: list[str] | None) -> list[Item]:
        samples: dict[str, dict[str, str]] = {}  # key -> extension -> member
        for member in tar.members:
            folder, _, last = member.rpartition("/")
            key, _, extension = last.partition(".")
            if key:
                samples.setdefault(f"{folder}/{key}", {})[extension.lower()] = member
        found = []
        for files in samples.values():
            images = [member for extension, member in files.items() if f".{extension}" in IMAGE_SUFFIXES]
            labels = [files[extension] for extension in ("cls", "json") if extension in files]
            if len(images) != 1 or not labels:
                raise FewshotError(f"{tar.path} holds {', '.join(files.values())} as one sample; expected one image beside "
                                   "KEY.cls or KEY.json with the same name up to the first dot")
            label = class_of(self._label(tar, files), names, tar.where(labels[0]))
            found.append(Item(tar, f"{tar.name}:{images[0]}", label))
        return found

    def _label(self, tar: Tar, files: dict[str, str]) -> object:
        member = files["cls"] if "cls" in files and self.label_key is None else files.get("json")
        if member is None:
            raise FewshotError(f"{tar.where(files['cls'])} has no JSON beside it for label_key={self.label_key!r}; leave "
                               "label_key out to read the .cls files")
        try:
            if tar.members[member][1] > _LONGEST_LABEL:
                raise ValueError(f"it has {tar.members[member][1]:,} bytes")
            text = tar.read(member).decode("utf-8")
            if member == files.get("cls"):
                return text
            values = json.loads(text)
            if not isinstance(values, dict):
                raise ValueError("it is not an object")
        except (ValueError, EOFError, RecursionError) as error:
            raise FewshotError(f"{tar.where(member)} holds no label ({error}); expected a number or a name in UTF-8, or a "
                               "JSON object with it") from None
        return values[picked("label", self.label_key, list(values), _LABEL, tar.where(member), "pass label_key=NAME")]
