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
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.evaluation.one_episode import answer, doubt, fitted_method
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

    After `fit`: classes_ [N] sorted labels; n_features_in_, D (with a backbone: C H W); support_ [S, D], the features,
    support_labels_ [S], positions in classes_, and base_, the features of `base`; with a backbone also image_shape_ and
    backbone_.

    Raises FewshotError, which is a ValueError, for wrong input of this package, besides what scikit-learn's own checks
    raise. Two classes at least are needed.
    """

    def __init__(self, method: str = "protonet", method_parameters: dict | None = None, transforms: str = "",
                 backbone: str | Backbone | None = None, weights: str | Path | None = None, base: ArrayLike | None = None,
                 batch_size: int = 64):
        self.method = method
        self.method_parameters = method_parameters
        self.transforms = transforms
        self.backbone = backbone
        self.weights = weights
        self.base = base
        self.batch_size = batch_size

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
        return self

    def predict(self, X: ArrayLike) -> NDArray:
        """Labels [n] of X [n, D] or images [n, C, H, W]: one episode."""
        chosen = self.predict_proba(X).argmax(1)
        return self.classes_[chosen]

    def predict_proba(self, X: ArrayLike) -> NDArray:
        """Probabilities [n, N] in the order of classes_: the softmax of the method's logits, not calibrated."""
        check_is_fitted(self)
        if self.backbone is None:
            rows = as_array("X", validate_data(self, X, dtype=(np.float64, np.float32), reset=False, ensure_min_samples=0))
        else:
            rows = self._images(X, reset=False)
        if not len(rows):
            return np.empty((0, len(self.classes_)), dtype=self.support_.dtype)
        features = self._features(rows).astype(self.support_.dtype, copy=False)
        fitted = self._fitted()
        # Of a single row the method itself says so.
        if len(rows) > 1 and (doubtful := doubt(*fitted, len(rows), len(self.classes_))):
            warnings.warn(f"{self.method}: {doubtful}", stacklevel=2)
        found = answer(torch.tensor(self.support_), torch.tensor(self.support_labels_), torch.tensor(features),
                       len(self.classes_), *fitted)
        return found.numpy()

    def _fitted(self) -> tuple[Method, TransformChain]:
        """(method, transforms), with the statistics of the base classes where they need them."""
        base = None
        if self.base_ is not None:
            base = FeatureBank(as_tensor("base", self.base_), torch.zeros(len(self.base_), dtype=torch.int64), name="base",
                               split="train")
        return fitted_method(self.method, self.method_parameters or {}, self.transforms, base)

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
