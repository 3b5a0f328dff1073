"""What a classifier knows, as a value and as a file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.core.files import read_safetensors, replacing, save_tensors
from fewshot.core.frozen import frozen_dict, plain
from fewshot.core.hashing import state_sha256
from fewshot.core.registry import unknown_message
from fewshot.data.banks import FeatureBank
from fewshot.datasets.files import composed
from fewshot.evaluation.decisions import Decisions
from fewshot.evaluation.method_spec import MethodSpec

# The version goes up where an older reader would misread the file. One of version 1 would forget decisions: a file that has
# some is of version 2, any other still of version 1.
FORMAT, VERSION = "fewshot classifier", 2
_TEXTS = ("classifier", "a readable classifier", "make one with `fewshot classifier create`", "restore it from a copy")
_BEGINNING = 8  # digits of a hash that name an image


@dataclass(frozen=True, eq=False)
class Example:
    """An image that a classifier has learned from.

    name       its class
    file       its folder and file when it came, for people
    sha256     of its pixels as they were decoded for the network: which image it is, whatever its file is called
    features   [D] float32
    """

    name: str
    file: str
    sha256: str
    features: Tensor


@dataclass(frozen=True, eq=False)
class Contents:
    """A function of which image is in which class, and of its settings: examples are kept in the order of their classes and
    pixels, each image once, so that neither the order in which they came nor what has been removed is seen in it.

    backbone     `Backbone.describe()` of the network that made the features
    image_size   side in pixels of the decoded images
    spec         method, all its hyper-parameters, transforms
    base         features of the base classes, where the method or a transform needs their statistics
    decisions    what turns its answers into sets, calibrated probabilities and "unknown", where it has any
    """

    backbone: dict
    image_size: int
    spec: MethodSpec
    base: FeatureBank | None = None
    examples: tuple[Example, ...] = ()
    decisions: Decisions | None = None

    def __post_init__(self) -> None:
        ordered = sorted(self.examples, key=lambda example: (example.name, example.sha256))
        object.__setattr__(self, "examples", tuple(ordered))

    @cached_property
    def held(self) -> dict[str, Example]:
        """sha256 -> example."""
        return {example.sha256: example for example in self.examples}

    @property
    def class_sizes(self) -> dict[str, int]:
        """Class -> number of its examples, by name."""
        return dict(Counter(example.name for example in self.examples))

    @property
    def features(self) -> Tensor:
        """[S, D]"""
        return torch.stack([example.features for example in self.examples]) if self.examples else torch.empty(0, 0)

    @property
    def labels(self) -> Tensor:
        """[S] positions of the examples' classes among those of `class_sizes`."""
        at = {name: label for label, name in enumerate(self.class_sizes)}
        return torch.tensor([at[example.name] for example in self.examples], dtype=torch.int64)

    def check_class(self, name: str) -> str:
        """`name` as classes have it, or FewshotError where there is no such class."""
        name = composed(name).strip()
        if name not in self.class_sizes:
            raise FewshotError(unknown_message("class", name, list(self.class_sizes))
                               + " (a new one begins with add_class or --new-class)")
        return name

    def find(self, key: str) -> Example:
        """The example with this file, or this beginning of its sha256, of 8 digits at least. Raises FewshotError where there
        is none, or more than one."""
        found = [example for example in self.examples
                 if example.file == key or (len(key) >= _BEGINNING and example.sha256.startswith(key))]
        if len(found) == 1:
            return found[0]
        if not found:
            raise FewshotError(unknown_message("image", key, [example.file for example in self.examples][:1000])
                               + " (or give the beginning of its hash)")
        hashes = ", ".join(f"{example.sha256[:12]} in {example.name}" for example in found)
        raise FewshotError(f"{len(found)} images are called {key!r}; give the beginning of a hash instead: {hashes}")

    def having(self, more: Iterable[Example]) -> Contents:
        """With these examples, too; one takes the place of that of the same image. Raises FewshotError where that leaves a
        class without an example."""
        return self._kept(self.held | {example.sha256: example for example in more})

    def without_images(self, keys: Collection[str]) -> Contents:
        """Without the examples that `find` finds. Raises FewshotError where that leaves a class without an example."""
        gone = {self.find(key).sha256 for key in keys}
        return self._kept({key: example for key, example in self.held.items() if key not in gone})

    def without_class(self, name: str) -> Contents:
        """Without a class and its examples; raises FewshotError where there is no such class."""
        name = self.check_class(name)
        return dataclasses.replace(self, examples=tuple(one for one in self.examples if one.name != name))

    def deciding(self, decisions: Decisions | None) -> Contents:
        """With these decisions. Raises FewshotError where they were chosen for another method, transforms or network; warns
        where the classes are more or fewer, or have more or fewer examples, than on the validation episodes."""
        if decisions is not None:
            spec = self.spec
            decisions.check(spec.method, spec.parameters, spec.transforms,
                            (self.backbone["backbone"], self.backbone["weights_id"]))
            if self.examples and (doubtful := decisions.doubt(self.labels, len(self.class_sizes))):
                warnings.warn(doubtful, stacklevel=3)
        return dataclasses.replace(self, decisions=decisions)

    def _kept(self, examples: dict[str, Example]) -> Contents:
        changed = dataclasses.replace(self, examples=tuple(examples.values()))
        if lost := [name for name in self.class_sizes if name not in changed.class_sizes]:
            raise FewshotError(f"class {lost[0]!r} would be left without an example; remove the class, or add images to it "
                               "first")
        return changed

    def write(self, path: str | Path) -> Path:
        """Write a safetensors file atomically. Equal contents give equal bytes."""
        about: dict = {"backbone": self.backbone, "image_size": self.image_size, "method": self.spec.method,
                       "parameters": plain(self.spec.parameters), "transforms": self.spec.transforms,
                       "examples": [[example.name, example.file, example.sha256] for example in self.examples]}
        tensors = {"features": self.features}
        if self.base is not None:
            about["base"] = [self.base.name, self.base.split]
            tensors |= {"base_features": self.base.features, "base_labels": self.base.labels}
        if self.decisions is not None:
            about["decisions"] = self.decisions.to_dict()
        version = "1" if self.decisions is None else "2"
        text = json.dumps(about, sort_keys=True)
        with replacing(path) as temporary:
            save_tensors(temporary, tensors, {"format": FORMAT, "version": version, "about": text,
                                              "sha256": _checksum(text, tensors)})
        return Path(path)

    @classmethod
    def read(cls, path: str | Path) -> Contents:
        """Read a file by `write`. Raises FewshotError where it is missing, damaged, something else, or of a newer format."""
        tensors, meta = read_safetensors(path, *_TEXTS)
        if meta.get("format") != FORMAT:
            raise FewshotError(f"{path} is not a classifier; make one with `fewshot classifier create` or Classifier.save")
        if int(meta["version"]) > VERSION:
            raise FewshotError(f"{path} has version {meta['version']} of the format of classifiers, and this fewshot reads "
                               f"up to version {VERSION}; install a newer fewshot")
        if _checksum(meta["about"], tensors) != meta["sha256"]:
            raise FewshotError(f"{path} does not match its checksum; it was altered or damaged: restore it from a copy")
        about = json.loads(meta["about"])
        examples = tuple(Example(name, file, sha256, features) for (name, file, sha256), features
                         in zip(about["examples"], tensors["features"], strict=True))
        base = None
        if "base" in about:
            name, split = about["base"]
            base = FeatureBank(tensors["base_features"], tensors["base_labels"], name=name, split=split)
        spec = MethodSpec(about["method"], frozen_dict(about["parameters"]), about["transforms"])
        decisions = Decisions.from_dict(about["decisions"]) if "decisions" in about else None
        return cls(about["backbone"], about["image_size"], spec, base, examples, decisions)


def _checksum(about: str, tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(f"{about} {state_sha256(tensors)}".encode()).hexdigest()
