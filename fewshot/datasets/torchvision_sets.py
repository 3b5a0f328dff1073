"""Any classification set of torchvision, under the name "torchvision:CIFAR10"."""

from __future__ import annotations

import functools
import inspect
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from fewshot.core.errors import FewshotError
from fewshot.core.frozen import FrozenDict, frozen_dict
from fewshot.core.registry import unknown_message
from fewshot.data.banks import ImageBank
from fewshot.datasets.base import DATASETS, Dataset, Request
from fewshot.datasets.own import Item, LabelledImages, class_of, read_names

_OURS = ("self", "root", "train", "download", "transform", "target_transform", "transforms", "loader")
# What its sets call their parts. Of several names for one part the first one that a set knows counts.
_PARTS = {"train": ("train", "trainval", "train-standard"), "val": ("val", "valid"), "test": ("test",)}
_TARGETS = ("targets", "labels", "_labels", "y")
_ONE_AT_A_TIME = threading.Lock()  # its sets are not made for threads: FakeData sets the global seed for every image
_BROKEN = (RuntimeError, OSError, ValueError, TypeError, KeyError, IndexError, EOFError, AttributeError)


class Part:
    """One part of a set of torchvision; images come decoded."""

    def __init__(self, name: str, images: Any):
        self.name, self._images = name, images
        self.targets = _targets(images)

    def stamp(self, name: str) -> tuple[int, int]:
        return 0, 0  # nothing tells whether it has changed: decoded images are not kept

    def read(self, name: str) -> Image.Image:
        row = int(name.rpartition("/")[2])
        with _ONE_AT_A_TIME:
            image, target = self._images[row]
        if not isinstance(image, Image.Image):
            raise ValueError(f"a {type(image).__name__}, not an image")
        if _plain(target) != self.targets[row]:
            raise ValueError(f"label {target!r} where the list of labels has {self.targets[row]!r}")
        return image

    def where(self, name: str) -> str:
        return f"image {name}"


@dataclass(frozen=True)
class TorchvisionSet(LabelledImages):
    """`torchvision:NAME`: a set of `torchvision.datasets` with one label an image; its files lie below the data root where
    torchvision puts them.

    arguments   more arguments of its class, e.g. {"split": "balanced"} of EMNIST
    splits, split_seed, channels, invert, class_names   see `LabelledImages`; a filename is "PART/ROW". Own splits are the
                parts (train, val, test), which share classes in most sets

    All parts together are the set, in the order train, val, test, and are decoded anew each time.
    """

    description = "a classification set of torchvision"
    licence = "see its page"
    homepage = "https://docs.pytorch.org/vision/stable/datasets.html"

    arguments: Mapping[str, Any] = FrozenDict()

    def __post_init__(self) -> None:
        super().__post_init__()
        known = _arguments(self._class)
        if not isinstance(self.arguments, Mapping):
            raise FewshotError(f"arguments={self.arguments!r}; pass a dictionary, name -> value")
        for name in self.arguments:
            if name in _OURS or name not in known:
                raise FewshotError(unknown_message(f"argument of {self.name}", name, sorted(known - set(_OURS))))
        object.__setattr__(self, "arguments", frozen_dict(dict(self.arguments)))

    @property
    def member(self) -> str:
        return self.name.removeprefix("torchvision:")

    @property
    def _class(self) -> Any:
        import torchvision.datasets

        return getattr(torchvision.datasets, self.member)

    @property
    def can_fetch(self) -> bool:
        return "download" in _arguments(self._class)

    def find(self, root: Path) -> Path | None:
        """The root itself: only the set knows its files."""
        return root

    def fetch(self, root: Path) -> None:
        if not self.can_fetch:
            raise FewshotError(f"{self.name} cannot be downloaded automatically.\n{self.instructions(root)}")
        root.mkdir(parents=True, exist_ok=True)
        self._parts(root, download=True)

    def load(self, request: Request) -> ImageBank:
        return super().load(replace(request, cache=None))

    def collect(self, where: Path) -> tuple[list[Item], dict[str, str]]:
        items, own, given = list[Item](), dict[str, str](), read_names(self.class_names)
        for name, images in self._parts(where).items():
            try:
                part = Part(name, images)
            except _BROKEN as error:
                raise FewshotError(f"{self.name} cannot be read ({error}); it has no plain label for each image, or its "
                                   "files are damaged") from error
            names = given or _names(images)
            for row, target in enumerate(part.targets):
                file = f"{name}/{row}"
                items.append(Item(part, file, class_of(target, names, f"{self.name}, {file}")))
                if name in _PARTS:
                    own[file] = name
        return items, own

    def _parts(self, root: Path, **more: Any) -> dict[str, Any]:
        """Part -> data set, of all parts that this class has."""
        known = _arguments(self._class)
        choices: dict[str, list[dict[str, Any]]] = {"all": [{}]}
        if "split" in known and "split" not in self.arguments:
            choices = {part: [{"split": name} for name in names] for part, names in _PARTS.items()}
        elif "train" in known:
            choices = {"train": [{"train": True}], "test": [{"train": False}]}
        common = {**self.arguments, **more, **({"root": str(root)} if "root" in known else {})}
        found, refused = {}, ""
        for part, alternatives in choices.items():
            for chosen in alternatives:
                try:
                    found[part] = self._class(**common, **chosen)
                    break
                except ValueError as error:  # it knows no part of that name
                    refused = str(error)
                except _BROKEN as error:
                    raise FewshotError(f"{self.name} cannot be opened below {root} ({error}).\n"
                                       f"{self.instructions(root)}") from error
                except ImportError as error:
                    raise FewshotError(f"{self.name} needs a package more ({error})") from error
        if not found:
            raise FewshotError(f"{self.name} has no parts train, val or test ({refused}); pass "
                               'arguments={"split": "..."} for one that it has')
        return found


@DATASETS.families.register("torchvision")
@functools.cache
def torchvision_set(member: str) -> type[Dataset]:
    """The data set `torchvision:member`."""
    import torchvision.datasets

    known = [name for name in torchvision.datasets.__all__ if inspect.isclass(getattr(torchvision.datasets, name))]
    if member not in known:
        raise FewshotError(unknown_message("data set of torchvision", member, known))
    return type("TorchvisionSet", (TorchvisionSet,), {"name": f"torchvision:{member}",
                                                      "layout": ("where torchvision puts it",)})


def _arguments(cls: Any) -> set[str]:
    """What a class can be made with; **kwargs are those of its base."""
    found: set[str] = set()
    for base in inspect.getmro(cls):
        parameters = inspect.signature(vars(base).get("__init__", base)).parameters
        found |= {name for name, about in parameters.items() if about.kind not in (about.VAR_KEYWORD, about.VAR_POSITIONAL)}
        if all(about.kind != about.VAR_KEYWORD for about in parameters.values()):
            break
    return found


def _targets(images: Any) -> list[int | str]:
    """The label of every image: the list that the set keeps, else by asking for each, which decodes it. Every image's own
    label is compared when it is read."""
    for name in _TARGETS:
        kept = getattr(images, name, None)
        if kept is not None and len(kept) == len(images):
            return [_plain(target) for target in kept]
    return [_plain(images[row][1]) for row in range(len(images))]


def _plain(target: Any) -> int | str:
    value = target.item() if hasattr(target, "item") else target
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f"a label is {target!r}, neither a number nor a name")
    return value


def _names(images: Any) -> list[str] | None:
    """The names of its classes; those that are called alike are told apart by their number."""
    kept = getattr(images, "classes", None) or getattr(images, "categories", None)
    if not kept:
        return None
    names = [name if isinstance(name, str) else ", ".join(map(str, name)) for name in kept]
    count = Counter(names)
    return [f"{name} ({number})" if count[name] > 1 else name for number, name in enumerate(names)]
