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
from fewshot.evaluation.decisions import COVERAGE, Decisions, check_coverage
from fewshot.evaluation.one_episode import (
    decide,
    doubt,
    fitted_method,
    logits_of,
    nearest_examples,
    parameters_of_own_data,
)
from fewshot.features.extract import embed
from fewshot.features.transforms import TransformChain
from fewshot.methods.contract import Method

Episode = tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, Method, TransformChain]  # what `logits_of` takes


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """`fit` stores X as the support, `partial_fit` adds to it; `predict` answers all given X together, as the queries of one
    episode.

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
        rows, targets = self._checked(X, y, reset=True)
        classes, labels = np.unique(targets, return_inverse=True)
        if len(classes) < 2:
            raise FewshotError(f"y holds only one class ({classes[0]!r}); a classifier needs at least 2")
        return self._store(self._features(rows), labels, classes, False)

    def partial_fit(self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None = None) -> FewShotClassifier:
        """Add to the support, or begin it: the answers are those of `fit` on all rows in their order (of images: up to
        rounding, because what goes through the backbone together shows in the last bits).

        classes   at the first call: all labels that there will be, as scikit-learn has it; later ones may repeat them. A
                  class without a row so far has the probability 0. Left out at the first call, new classes may arrive with
                  any call

        Raises FewshotError for a label outside of `classes`, and for others in a later call.
        """
        first = not hasattr(self, "support_")
        rows, targets = self._checked(X, y, reset=first)
        given = None if classes is None else np.unique(as_array("classes", classes))
        if not first and given is not None and not np.array_equal(given, self.classes_):
            raise FewshotError(f"classes={given.tolist()}; the classes so far are {self.classes_.tolist()}, and a later "
                               "call may leave them out or repeat them")
        closed = given is not None if first else self._closed
        known = given if given is not None else targets[:0] if first else self.classes_
        if len(known) and (known.dtype.kind in "OUS") != (targets.dtype.kind in "OUS"):
            raise FewshotError(f"y holds {targets.dtype} and the classes so far are {known.dtype}; give labels of one kind")
        found = np.union1d(known, targets)
        if closed and len(found) > len(known):
            raise FewshotError(f"y holds {np.setdiff1d(targets, known).tolist()}, which are not among the classes of the "
                               f"first call, {known.tolist()}; name them there, or leave classes out to let new ones arrive")
        features = self._features(rows)
        if not first:
            features = np.concatenate([self.support_, features])
            targets = np.concatenate([self.classes_[self.support_labels_], targets])
        return self._store(features, np.searchsorted(found, targets), found, closed)

    def _checked(self, X: ArrayLike, y: ArrayLike, reset: bool) -> tuple[NDArray, NDArray]:
        """X and y as arrays of one length; reset: of a new support, whose shape others must have."""
        if self.backbone is None:
            rows, targets = validate_data(self, X, y, dtype=(np.float64, np.float32), reset=reset)
            rows = as_array("X", rows)
        else:
            rows, targets = self._images(X, reset=reset), column_or_1d(y, warn=True)
            if len(rows) != len(targets):
                raise FewshotError(f"{len(rows)} images and {len(targets)} labels; give one label per image")
        check_classification_targets(targets)
        return rows, targets

    def _store(self, features: NDArray, labels: NDArray, classes: NDArray, closed: bool) -> FewShotClassifier:
        base = None if self.base is None else self._base(as_array("base", self.base), features)
        self._fitted(base)  # a wrong hyper-parameter is named now
        self.support_, self.support_labels_, self.base_ = features, labels.astype(np.int64), base
        self.classes_, self._closed = classes, closed
        return self

    def predict(self, X: ArrayLike) -> NDArray:
        """Labels [n] of X [n, D] or images [n, C, H, W]: one episode."""
        chosen = self._logits(X).argmax(1)
        return self.classes_[chosen]

    def predict_proba(self, X: ArrayLike) -> NDArray:
        """Probabilities [n, N] in the order of classes_: the softmax of the method's logits, calibrated where `decisions`
        are those of validation episodes."""
        logits = torch.tensor(self._logits(X))
        found = self.decisions.probabilities(logits) if isinstance(self.decisions, Decisions) else logits.softmax(1)
        return found.numpy()

    def decision_function(self, X: ArrayLike) -> NDArray:
        """The method's logits [n, N] in the order of classes_; of two classes, as scikit-learn has it, those of the second
        less those of the first, [n]. A class without a row (`partial_fit`) has minus infinity."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_set(self, X: ArrayLike) -> NDArray:
        """bool [n, N] in the order of classes_: the classes in the set of each row, which holds the true class at the rate
        of `decisions`; a set may be empty. A class without a row (`partial_fit`) is in none.

        Raises FewshotError where sets cannot be had from the support: without a class of 2 examples, and for a transductive
        answer. With fewer examples than coverage / (1 - coverage) such a set holds all classes.
        """
        seen, episode = self._episode(X)
        sets = np.zeros((len(episode[2]), len(self.classes_)), dtype=bool)
        if not len(sets):
            return sets
        if isinstance(self.decisions, Decisions) and (doubtful := self.decisions.doubt(episode[1], len(seen))):
            warnings.warn(doubtful, stacklevel=2)
        found = decide(*episode, self.decisions)
        if found is None:
            raise FewshotError("sets from the support alone need an inductive method and a class of 2 examples or more; "
                               "give decisions=, chosen on validation episodes (fewshot.choose_decisions)")
        sets[:, seen] = found.sets.numpy()
        return sets

    def is_unknown(self, X: ArrayLike) -> NDArray:
        """bool [n]: whether a row seems to be of none of classes_. Raises FewshotError unless `decisions` are those of
        validation episodes."""
        if not isinstance(self.decisions, Decisions):
            raise FewshotError(f"decisions={self.decisions!r}; unknown rows are told by a threshold chosen on validation "
                               "episodes, decisions=fewshot.choose_decisions(run)")
        return self.decisions.unknown(torch.tensor(self._logits(X))).numpy()

    def nearest_examples(self, X: ArrayLike, count: int = 3) -> NDArray:
        """Positions [n, count or fewer] in support_ of the examples nearest to each row, nearest first, after the
        transforms."""
        count = check_integer("count", count, 1)
        _, episode = self._episode(X)
        if not len(episode[2]):
            return np.empty((0, min(count, len(self.support_))), dtype=np.int64)
        return nearest_examples(*episode, count).numpy()

    def _logits(self, X: ArrayLike) -> NDArray:
        """[n, N]"""
        seen, episode = self._episode(X)
        rows, method, chain = len(episode[2]), *episode[4:]
        if not rows:
            return np.empty((0, len(self.classes_)), dtype=self.support_.dtype)
        # Of a single row the method itself says so.
        if rows > 1 and (doubtful := doubt(method, chain, rows, len(seen))):
            warnings.warn(f"{self.method}: {doubtful}", stacklevel=3)
        found = logits_of(*episode).numpy()
        logits = np.full((rows, len(self.classes_)), -np.inf, dtype=found.dtype)
        logits[:, seen] = found
        return logits

    def _episode(self, X: ArrayLike) -> tuple[NDArray, Episode]:
        """Positions in classes_ of the classes of the support, and what the rows of X are asked with."""
        check_is_fitted(self)
        if self.backbone is None:
            rows = as_array("X", validate_data(self, X, dtype=(np.float64, np.float32), reset=False, ensure_min_samples=0))
        else:
            rows = self._images(X, reset=False)
        seen, labels = np.unique(self.support_labels_, return_inverse=True)
        if len(rows) and len(seen) < 2:
            raise FewshotError(f"the support holds only one class so far ({self.classes_[seen[0]]!r}); add rows of another "
                               "with partial_fit")
        features = self._features(rows).astype(self.support_.dtype, copy=False) if len(rows) else rows
        return seen, (torch.tensor(self.support_), torch.tensor(labels), torch.tensor(features), len(seen),
                      *self._fitted(self.base_))

    def _fitted(self, base: NDArray | None) -> tuple[Method, TransformChain]:
        """(method, transforms), with the statistics of the base classes [M, D] where they need them."""
        bank = None
        if base is not None:
            bank = FeatureBank(as_tensor("base", base), torch.zeros(len(base), dtype=torch.int64), name="base",
                               split="train")
        method, chain = fitted_method(self.method, self.method_parameters or {}, self.transforms, bank)
        if isinstance(self.decisions, Decisions):
            self.decisions.check(self.method, parameters_of_own_data(self.method, self.method_parameters or {}), str(chain),
                                 None if self.backbone is None else (self.backbone_.name, self.backbone_.weights_id))
        else:
            check_coverage(self.decisions, "decisions")
        return method, chain

    def _base(self, base: NDArray, support: NDArray) -> NDArray:
        values = self._features(base).astype(support.dtype, copy=False)
        if values.ndim != 2 or not len(values) or values.shape[1] != support.shape[1]:
            raise FewshotError(f"base has shape {values.shape}; expected [M, {support.shape[1]}], as X")
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
