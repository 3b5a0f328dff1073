"""`FewShotClassifier`: any method as a scikit-learn estimator."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from fewshot.backbones import Backbone, create_backbone, input_for
from fewshot.core.arrays import as_array, as_tensor
from fewshot.core.checked import check_integer
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.evaluation.decisions import COVERAGE, Decided, Decisions, check_coverage
from fewshot.evaluation.one_episode import (
    answer,
    decide,
    doubt,
    fitted_method,
    nearest_examples,
    parameters_of_own_data,
)
from fewshot.features.extract import embed
from fewshot.features.transforms import TransformChain
from fewshot.methods.contract import Method


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """`fit` stores X as the support; `predict` answers all given X together, as the queries of one episode.

    With a transductive method (pt_map is one) an answer therefore depends on the other rows of the same call: splitting X
    into several calls changes it, and cross-validation scores each fold as one episode. It needs about 5 rows a class, and
    warns where it gets fewer.

    method              name of a method on features, see `fewshot.list_methods()`. By default the nearest class mean: it is
                        inductive, needs one row a class, has nothing to tune, and a shift or rotation of all features does
                        not change it, as it does methods that compare directions. For features of a network, transforms="l2"
                        is usually better
    method_parameters   its hyper-parameters; in a grid: {"method_parameters": [{"scale": 5}, {"scale": 20}]}. A prior of the
                        queries (query_prior) is "unknown" unless given: rows of one's own need not be balanced
    transforms          feature transforms before the method, e.g. "l2"
    backbone            None: X is features [n, D], float32 or float64 and computed in that. A name or a Backbone: X is
                        uint8 images [n, C, H, W], C = 1 or 3, all of one shape
    weights             of the backbone, as for `create_backbone`
    base                features [M, D] (with a backbone: images) of base classes, for methods and transforms that need
                        their statistics
    batch_size          images that go through the backbone at once
    decisions           of `fewshot.choose_decisions`, for the same method, transforms and weights: `predict_set` and
                        `is_unknown` follow them, and probabilities are calibrated. Or a number: `predict_set` gives sets
                        from the support alone, that are to hold the true class at this rate

    After `fit`: classes_ [N] sorted labels; n_features_in_, D (with a backbone: C H W); support_ [S, D], the features,
    support_labels_ [S], positions in classes_, and base_, the features of `base`; with a backbone also image_shape_ and
    backbone_.

    Raises FewshotError, which is a ValueError, for wrong input of this package, besides what scikit-learn's own checks
    raise. Two classes at least are needed.
    """

    def __init__(self, method: str = "protonet", method_parameters: dict | None = None, transforms: str = "",
                 backbone: str | Backbone | None = None, weights: str | Path | None = None, base: ArrayLike | None = None,
                 batch_size: int = 64, decisions: Decisions | float = COVERAGE):
        self.method = method
        self.method_parameters = method_parameters
        self.transforms = transforms
        self.backbone = backbone
        self.weights = weights
        self.base = base
        self.batch_size = batch_size
        self.decisions = decisions

    def fit(self, X: ArrayLike, y: ArrayLike) -> FewShotClassifier:
        """Store the support: X [S, D] or images, y [S] labels of any kind that sorts."""
        if self.backbone is None:
            rows, targets = validate_data(self, X, y, dtype=(np.float64, np.float32))
            rows = as_array("X", rows)
        else:
            rows, targets = self._images(X, reset=True), column_or_1d(y, warn=True)
            if len(rows) != len(targets):
                raise FewshotError(f"{len(rows)} images and {len(targets)} labels; give one label per image")
        check_classification_targets(targets)
        self.classes_, labels = np.unique(targets, return_inverse=True)
        if len(self.classes_) < 2:
            raise FewshotError(f"y holds only one class ({self.classes_[0]!r}); a classifier needs at least 2")
        self.support_, self.support_labels_ = self._features(rows), labels.astype(np.int64)
        self.base_ = None if self.base is None else self._base(as_array("base", self.base))
        self._fitted()  # a wrong hyper-parameter is named now
        if isinstance(self.decisions, Decisions) and (doubtful := self.decisions.doubt(torch.tensor(self.support_labels_),
                                                                                       len(self.classes_))):
            warnings.warn(doubtful, stacklevel=2)
        return self

    def predict(self, X: ArrayLike) -> NDArray:
        """Labels [n] of X [n, D] or images [n, C, H, W]: one episode."""
        chosen = self.predict_proba(X).argmax(1)
        return self.classes_[chosen]

    def predict_proba(self, X: ArrayLike) -> NDArray:
        """Probabilities [n, N] in the order of classes_: the softmax of the method's logits, calibrated where `decisions`
        say how."""
        features = self._asked(X)
        if not len(features):
            return np.empty((0, len(self.classes_)), dtype=self.support_.dtype)
        fitted = self._fitted()
        # Of a single row the method itself says so.
        if len(features) > 1 and (doubtful := doubt(*fitted, len(features), len(self.classes_))):
            warnings.warn(f"{self.method}: {doubtful}", stacklevel=2)
        episode = *self._support(), torch.tensor(features), len(self.classes_), *fitted
        decided = decide(*episode, self.decisions) if isinstance(self.decisions, Decisions) else None
        calibrated = None if decided is None else decided.probabilities
        return (answer(*episode) if calibrated is None else calibrated).numpy()

    def predict_set(self, X: ArrayLike) -> NDArray:
        """bool [n, N] in the order of classes_: the classes in the set of each row, which holds the true class at the rate
        of `decisions`; a set may be empty.

        Raises FewshotError where sets cannot be had from the support: without a class of 2 examples, and for a transductive
        answer. With fewer examples than coverage / (1 - coverage) such a set holds all classes.
        """
        found = self._decided(X)
        if found is None:
            raise FewshotError("sets from the support alone need an inductive method and a class of 2 examples or more; "
                               "give decisions=, chosen on validation episodes (fewshot.choose_decisions)")
        return found.sets.numpy()

    def is_unknown(self, X: ArrayLike) -> NDArray:
        """bool [n]: whether a row seems to be of none of classes_. Raises FewshotError unless `decisions` are given."""
        found = self._decided(X)
        if found is None or found.unknown is None:
            raise FewshotError('"unknown" needs a threshold chosen on validation episodes; give decisions='
                               "fewshot.choose_decisions(run)")
        return found.unknown.numpy()

    def nearest_examples(self, X: ArrayLike, count: int = 3) -> NDArray:
        """Positions [n, count or fewer] in the support of the examples nearest to each row, nearest first, after the
        transforms."""
        count = check_integer("count", count, 1)
        features = self._asked(X)
        if not len(features):
            return np.empty((0, min(count, len(self.support_))), dtype=np.int64)
        found = nearest_examples(*self._support(), torch.tensor(features), len(self.classes_), self._fitted()[1], count)
        return found.numpy()

    def _decided(self, X: ArrayLike) -> Decided | None:
        features = self._asked(X)
        if not len(features):
            none = torch.zeros(0, len(self.classes_), dtype=torch.bool)
            return Decided(COVERAGE, none, none, none.any(1) if isinstance(self.decisions, Decisions) else None)
        return decide(*self._support(), torch.tensor(features), len(self.classes_), *self._fitted(), self.decisions)

    def _support(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(self.support_), torch.tensor(self.support_labels_)

    def _asked(self, X: ArrayLike) -> NDArray:
        """Features of rows that are asked about."""
        check_is_fitted(self)
        if self.backbone is None:
            rows = as_array("X", validate_data(self, X, dtype=(np.float64, np.float32), reset=False, ensure_min_samples=0))
        else:
            rows = self._images(X, reset=False)
        return self._features(rows).astype(self.support_.dtype, copy=False) if len(rows) else rows

    def _fitted(self) -> tuple[Method, TransformChain]:
        """(method, transforms), with the statistics of the base classes where they need them."""
        base = None
        if self.base_ is not None:
            base = FeatureBank(as_tensor("base", self.base_), torch.zeros(len(self.base_), dtype=torch.int64), name="base",
                               split="train")
        method, chain = fitted_method(self.method, self.method_parameters or {}, self.transforms, base)
        if isinstance(self.decisions, Decisions):
            self.decisions.check(self.method, parameters_of_own_data(self.method, self.method_parameters or {}), str(chain),
                                 None if self.backbone is None else self.backbone_.weights_id)
        else:
            check_coverage(self.decisions, "decisions")
        return method, chain

    def _base(self, base: NDArray) -> NDArray:
        values = self._features(base).astype(self.support_.dtype, copy=False)
        if values.ndim != 2 or not len(values) or values.shape[1] != self.support_.shape[1]:
            raise FewshotError(f"base has shape {values.shape}; expected [M, {self.support_.shape[1]}], as X")
        return values

    def _features(self, X: NDArray) -> NDArray:
        if self.backbone is None:
            return X
        bank = ImageBank(as_tensor("X", X), torch.zeros(len(X), dtype=torch.int64), name="X")
        return embed(bank, self.backbone_, batch_size=self.batch_size, progress=False).features.numpy()

    def _images(self, given: ArrayLike, reset: bool) -> NDArray:
        X = as_array("X", given)
        if X.ndim != 4 or X.dtype != np.uint8 or X.shape[1] not in (1, 3):
            raise FewshotError(f"X has dtype {X.dtype} and shape {X.shape}; with a backbone it must be uint8 images "
                               "[n, C, H, W] with C = 1 or 3")
        if reset:
            if isinstance(self.backbone, Backbone):
                self.backbone_ = self.backbone
            elif self.backbone is not None:
                made = input_for(self.backbone, as_tensor("X", X))
                self.backbone_ = create_backbone(self.backbone, weights=self.weights, **made)
            self.image_shape_, self.n_features_in_ = X.shape[1:], int(np.prod(X.shape[1:]))
        elif X.shape[1:] != self.image_shape_:
            raise FewshotError(f"images of shape {X.shape[1:]}; those of the support have {self.image_shape_}")
        return X
