"""`Run`: the frozen specification of one evaluation. Command line, notebooks and experiments all build this."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from fewshot.core.errors import FewshotError
from fewshot.core.registry import unknown_message
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.episodes.sampler import QUERY_DISTRIBUTIONS, EpisodeSampler
from fewshot.episodes.saved import PROTOCOL, EpisodeList
from fewshot.features.crops import parse_crops
from fewshot.features.subject import Subject
from fewshot.features.transforms import parse_transforms
from fewshot.methods.contract import METHODS, create_method, method_parameters

# Settings that came later: left out of the key where they are not used, so that earlier results keep theirs.
_WHERE_USED = ("base", "crops", "open_classes", "open_queries", "episode_list")


@dataclass(frozen=True)
class Run:
    """One evaluation, written out in full.

    dataset, split       names; data_options are passed to `load_dataset`
    backbone, weights    backbone name (with backbone_options) and the identity of its weights: a file path when
                         given by a user, replaced by the sha256 of the weights in stored results
    data                 content hash of the images, or of a feature bank supplied directly (then dataset and
                         backbone are labels only); filled in by `evaluate`
    base                 content hash of the base classes' images or features, where the method or a transform uses them;
                         filled in by `evaluate`
    crops                random crops of every image instead of the whole, "mean(30)" or "keep(7)" (`features/crops.py`);
                         those of the features where these are given; kept with all settings written out
    transforms           feature transforms before the method, e.g. "center_base,l2"; kept with all arguments written out
    method, parameters   every hyper-parameter; those left out are filled in: with the values a method was trained with
                         where the file `weights` holds its own weights, else with the defaults
    ways, shots, queries (queries per class), query_distribution, alpha, k_eff, episodes, seed: the protocol
    open_classes, open_queries   further queries of classes outside the episode, see `EpisodeSampler`
    episode_list         fingerprint of a saved list of episodes, where these are taken and not drawn from `seed`; filled in
                         by `evaluate`

    Raises FewshotError for unknown names and wrong values of the method, the transforms and the query distribution; what
    depends on the data is checked by `evaluate`.
    """

    dataset: str = "glyphs"
    split: str = "test"
    backbone: str = "conv4"
    weights: str | None = None
    data: str | None = None
    base: str | None = None
    crops: str = ""
    transforms: str = ""
    method: str = "protonet"
    parameters: dict = field(default_factory=dict)
    ways: int = 5
    shots: int = 1
    queries: int = 15
    query_distribution: str = "balanced"
    alpha: float = 2.0
    k_eff: int | None = None
    episodes: int = 10_000
    seed: int = 0
    open_classes: int = 0
    open_queries: int = 0
    episode_list: str | None = None
    data_options: dict = field(default_factory=dict)
    backbone_options: dict = field(default_factory=dict)

    def __post_init__(self):
        defaults = method_parameters(self.method)
        for key in self.parameters:
            if key not in defaults:
                raise FewshotError(unknown_message(f"parameter of {self.method}", key, list(defaults)))
        if self.weights is not None and Path(self.weights).is_file() and hasattr(METHODS[self.method], "with_backbone"):
            from fewshot.methods.bases.own_weights import trained_parameters

            defaults |= trained_parameters(self.method, self.weights)
        # 10 and 10.0 are the same hyper-parameter and must give the same key.
        given = {key: float(value) if isinstance(defaults[key], float) and type(value) is int else value
                 for key, value in self.parameters.items()}
        object.__setattr__(self, "parameters", {**defaults, **given})
        create_method(self.method, **self.parameters)  # a wrong value is named now, not after the features are made
        object.__setattr__(self, "transforms", str(parse_transforms(self.transforms)))
        object.__setattr__(self, "crops", str(parse_crops(self.crops) or ""))
        if self.query_distribution not in QUERY_DISTRIBUTIONS:
            raise FewshotError(unknown_message("query distribution", self.query_distribution, list(QUERY_DISTRIBUTIONS)))
        if isinstance(self.episodes, bool) or not isinstance(self.episodes, int) or self.episodes < 2:
            raise FewshotError(f"episodes={self.episodes!r}; an interval needs an integer of at least 2")

    def to_dict(self) -> dict:
        """Plain values only, as stored in run.json; those of `_WHERE_USED` only where they matter."""
        return {key: plain(value) for key, value in dataclasses.asdict(self).items() if key not in _WHERE_USED or value}

    @classmethod
    def from_dict(cls, values: dict) -> Run:
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise FewshotError(unknown_message("run setting", key, known))
        return cls(**values)

    @property
    def subject(self) -> Subject:
        return Subject(self.dataset, self.split, self.backbone, self.weights, self.crops, self.data_options,
                       self.backbone_options)

    @property
    def needs_base(self) -> bool:
        """Whether the method or a transform needs statistics of the base classes."""
        return create_method(self.method, **self.parameters).needs_base or parse_transforms(self.transforms).needs_base

    @property
    def key(self) -> str:
        """16 hexadecimal digits that name the run's folder."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def protocol(self) -> str:
        """`5-way 1-shot`, with the query distribution when it is not balanced."""
        name = f"{self.ways}-way {self.shots}-shot"
        extra = {"balanced": "", "dirichlet": f", Dirichlet({self.alpha:g})", "k_eff": f", {self.k_eff} classes present",
                 "natural": ", natural"}
        return name + extra[self.query_distribution] + (f", {self.open_classes} open classes" if self.open_classes else "")

    def sampler(self, bank) -> EpisodeSampler:
        """The sampler of this protocol on `bank`."""
        return EpisodeSampler(bank, ways=self.ways, shots=self.shots, queries=self.queries, seed=self.seed,
                              query_distribution=self.query_distribution, alpha=self.alpha, k_eff=self.k_eff,
                              open_classes=self.open_classes, open_queries=self.open_queries)

    def drawn(self, bank: ImageBank | FeatureBank) -> EpisodeList:
        """The episodes that evaluating this on `bank` draws."""
        return EpisodeList.draw(self.sampler(bank), self.episodes, bank, {name: getattr(self, name) for name in PROTOCOL})


def plain(value):
    """Tensors and tuples as lists, NumPy numbers as Python's, all the way down: what JSON can hold."""
    if isinstance(value, (torch.Tensor, np.generic)):
        return value.tolist()
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value
