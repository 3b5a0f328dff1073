"""`ClassTexts`: what a model made of the names of a bank's classes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fewshot.core.arrays import as_tensor
from fewshot.core.checked import check_number
from fewshot.core.errors import FewshotError
from fewshot.core.files import bytes_of

_TENSORS = {"class_text": "vectors", "prompt_text": "prompt_vectors", "text_projection": "projection"}  # names in files


@dataclass(frozen=True, eq=False, repr=False)
class ClassTexts:
    """Vectors of the classes of a bank, from their names, in the space of its features.

    vectors         [C, D] floating point, finite; row i belongs to label i, that is to `class_names[i]`
    prompts         of every class the sentences that were read, where they are known
    prompt_vectors  [P, D] the vector of each sentence, class by class in the order of `prompts`; None where not kept
    templates       what the sentences were made of, such as "a photo of a {}."
    model           what read them
    logit_scale     what the model multiplies cosines by, CLIP's 100 unless it says another
    logit_bias      what it then adds (SigLIP)
    projection      [P + 1, D] takes features [P] from before the model's projection into the space of the vectors; its last
                    row is the bias. None where the features lie in that space

    Raises FewshotError for other shapes, values that are not finite, and sentences without vectors.
    """

    vectors: Tensor
    prompts: tuple[tuple[str, ...], ...] = ()
    prompt_vectors: Tensor | None = None
    templates: tuple[str, ...] = ()
    model: str = ""
    logit_scale: float = 100.0
    logit_bias: float = 0.0
    projection: Tensor | None = None

    def __post_init__(self) -> None:
        for name in _TENSORS.values():
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, _matrix(name, given))
        object.__setattr__(self, "prompts", tuple(tuple(map(str, of_class)) for of_class in self.prompts))
        object.__setattr__(self, "templates", tuple(map(str, self.templates)))
        object.__setattr__(self, "logit_scale", check_number("logit_scale", self.logit_scale, 0, low_allowed=False))
        object.__setattr__(self, "logit_bias", check_number("logit_bias", self.logit_bias))
        if self.prompts and len(self.prompts) != len(self.vectors):
            raise FewshotError(f"prompts of {len(self.prompts)} classes for {len(self.vectors)} texts; give a list of "
                               "sentences for every class")
        if self.prompt_vectors is not None and len(self.prompt_vectors) != sum(map(len, self.prompts)):
            raise FewshotError(f"{len(self.prompt_vectors)} vectors of prompts for {sum(map(len, self.prompts))} prompts; "
                               "give one vector per sentence, class by class")
        if self.projection is not None and self.projection.shape[1] != self.vectors.shape[1]:
            raise FewshotError(f"projection has shape {tuple(self.projection.shape)} and the texts {self.vectors.shape[1]} "
                               "channels; expected [features + 1, channels of the texts]")

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        made = f" of {self.model}" if self.model else ""
        return f"<ClassTexts{made}: {len(self):,} classes, {self.vectors.shape[1]} channels>"

    @cached_property
    def content_hash(self) -> str:
        """sha256 of all of it."""
        digest = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode())
        for name, values in self.tensors().items():
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
            digest.update(bytes_of(values))
        return digest.hexdigest()

    @property
    def _about(self) -> dict[str, Any]:
        fields = (field.name for field in dataclasses.fields(self))
        return {name: getattr(self, name) for name in fields if name not in _TENSORS.values()}

    def of_classes(self, classes: Tensor, dtype: torch.dtype, prompts: bool = True) -> dict[str, Any]:
        """The fields of `Episodes` for episodes of the classes [E, N], in the dtype of their features, with or without the
        vectors of single sentences, which are many."""
        found: dict[str, Any] = {"text": self.vectors.to(dtype)[classes], "logit_scale": self.logit_scale,
                                 "logit_bias": self.logit_bias}
        if prompts and self._padded_prompts is not None:
            found["prompts"] = self._padded_prompts.to(dtype)[classes]
        if self.projection is not None:
            found["projection"] = self.projection.to(dtype).expand(len(classes), -1, -1)
        return found

    @cached_property
    def _padded_prompts(self) -> Tensor | None:
        """[C, M, D] the vectors of the sentences of each class; of those with fewer than M the last rows are zero."""
        if self.prompt_vectors is None:
            return None
        each = [len(of_class) for of_class in self.prompts]
        return torch.nn.utils.rnn.pad_sequence(self.prompt_vectors.split(each), batch_first=True)

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, as a file holds them."""
        named = {name: getattr(self, field) for name, field in _TENSORS.items()}
        return {name: values for name, values in named.items() if values is not None}

    def described(self) -> str:
        """The rest, as a file holds it."""
        return json.dumps(self._about, sort_keys=True)

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], described: str) -> ClassTexts:
        """The inverse of `tensors` and `described`."""
        fields: dict[str, Any] = {field: tensors[name].clone() for name, field in _TENSORS.items() if name in tensors}
        return cls(**json.loads(described), **fields)

    def check_names(self, names: Sequence[str]) -> None:
        """Raise FewshotError unless there is one text for each of these classes."""
        if len(self) != len(names):
            raise FewshotError(f"texts of {len(self)} classes for {len(names)} class names; give every class one, in the "
                               "order of class_names")


def side_by_side(texts: Sequence[ClassTexts]) -> ClassTexts:
    """The texts of one ensemble of models: vectors concatenated as their features are. What belongs to one model alone
    (single prompts, a projection) is left out; scale and bias are those of the first."""
    first = texts[0]
    return ClassTexts(torch.cat([each.vectors for each in texts], 1), first.prompts, templates=first.templates,
                      model=" + ".join(each.model for each in texts), logit_scale=first.logit_scale,
                      logit_bias=first.logit_bias)


def _matrix(name: str, given: Tensor | ArrayLike) -> Tensor:
    values = as_tensor(name, given)
    if not values.is_floating_point() or values.ndim != 2 or 0 in values.shape:
        raise FewshotError(f"{name} have dtype {values.dtype} and shape {tuple(values.shape)}; expected floating point "
                           "[classes or sentences, channels]")
    if not torch.isfinite(values).all():
        row = int((~torch.isfinite(values)).any(1).nonzero()[0])
        raise FewshotError(f"{name} hold NaN or infinity, the first in row {row}; encode that class again, "
                           "every class needs a text")
    return values
