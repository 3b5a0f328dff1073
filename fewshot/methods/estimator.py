"""Any classifier with scikit-learn's interface, fitted to each episode by itself."""

from __future__ import annotations

import importlib
import inspect
import sys
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewshot.core.checked import check_integer
from fewshot.core.errors import FewshotError
from fewshot.core.frozen import FrozenDict, frozen_dict
from fewshot.core.registry import unknown_message
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method

_ZERO = float(torch.finfo(torch.float32).tiny)  # stands for a probability of 0, whose logarithm would not be finite
# Some solvers draw from a generator that a whole process shares (liblinear, libsvm), and limits of BLAS threads are global.
_ONE_AT_A_TIME = threading.Lock()


@METHODS.register("estimator")
@dataclass(frozen=True, eq=False)
class Estimator(Method):
    """One classifier an episode: a fresh copy is fitted to the support features [S, D], in float64, and scores the queries.

    estimator   dotted path of the class, which is imported (and its module run), such as "sklearn.svm.SVC"; in Python also
                the class, or an instance, whose settings are then written into `params`
    params      its keyword arguments, plain values. An estimator inside it is {"estimator": path, "params": {...}}: steps of
                a pipeline are [["scale", {"estimator": "sklearn.preprocessing.StandardScaler"}], ["svc", {...}]]
    seed        for every `random_state` that is not set, the same in all episodes
    library     names and versions of the packages, filled in: a stored result is found with these alone

    Logits are decision_function, else log predict_proba (0 counts as 1e-38), else the logarithms of one-hot labels of
    `predict`: then all other classes tie, and measures of probabilities say nothing. Of two classes, decisions d become
    (-d/2, d/2). Decisions need not be log-odds; those of an SVM are none.

    The support is handed over sorted by its features and the classes numbered in that order, so that an estimator to which
    order matters (trees, stochastic solvers, ties) answers alike whatever the classes are called. Episodes of one process
    are answered one after the other, each on one core unless `params` says otherwise: `workers` of an evaluation share
    them. The estimator must answer each query by itself, which `check_method` examines.

    Raises FewshotError for a path that leads nowhere or to no classifier, for parameters that it refuses or that cannot be
    written down, for another version than `library`, and where it fails on an episode.
    """

    paper = "scikit-learn's interface: Buitinck et al. 2013, arXiv:1309.0238"

    estimator: object = "sklearn.linear_model.LogisticRegression"
    params: Mapping = FrozenDict()
    seed: int = 0
    library: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_integer("seed", self.seed, 0, 2**32 - 1))
        if (self.estimator, self.params, self.library) != (Estimator.estimator, Estimator.params, Estimator.library):
            for name, value in self.recorded.items():
                object.__setattr__(self, name, value)

    @cached_property
    def _made(self) -> tuple[Any, FrozenDict]:
        """(the estimator, not fitted; what a record keeps). The default one is made when it is needed: a list of all methods
        need not import scikit-learn."""
        from sklearn.base import is_classifier

        given = self.estimator
        if not isinstance(given, (str, type)):
            if not hasattr(given, "get_params"):
                raise FewshotError(f"estimator={given!r} of estimator; expected the dotted path of a class, a class or an "
                                   "instance")
            if self.params:
                raise FewshotError(f"params={dict(self.params)!r} beside an instance of {type(given).__name__}, which has "
                                   "its own; give the class with params, or the instance alone")
            asked = _written("estimator", given)
        else:
            asked = {"estimator": given if isinstance(given, str) else _path_of(given),
                     "params": _written("params", self.params)}
        made = _built(asked)
        if not all(hasattr(made, name) for name in ("fit", "predict", "set_params")) or not is_classifier(made):
            raise FewshotError(f"estimator={given!r} is no classifier with scikit-learn's interface (fit, predict, "
                               "get_params, set_params, and the tag or type of a classifier: derive it from "
                               "sklearn.base.ClassifierMixin and BaseEstimator)")
        written = _written("estimator", made)  # settings at their defaults are left out
        settings = made.get_params(deep=True)
        if any(name.endswith("decision_function_shape") and value == "ovo" for name, value in settings.items()):
            raise FewshotError('decision_function_shape="ovo" gives scores of pairs of classes; leave it at "ovr"')
        made.set_params(**{name: self.seed for name, value in settings.items()
                           if name.rpartition("__")[2] == "random_state" and value is None})
        library = ", ".join(_versions(written))
        if self.library not in ("", library):
            raise FewshotError(f"library={self.library!r}, and installed is {library!r}; install that version, or leave "
                               "library out")
        # Of few shots, a class in every second row is not the mistake that scikit-learn takes it for.
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%", UserWarning)
        return made, frozen_dict({**written, "library": library})

    def __reduce__(self) -> tuple:
        return Estimator, (self.estimator, self.params, self.seed, self.library)  # made anew where it arrives

    @property
    def recorded(self) -> Mapping[str, object]:
        return self._made[1]

    @torch.no_grad()
    def __call__(self, episodes: Episodes) -> Tensor:
        from threadpoolctl import threadpool_limits

        support, labels, query = (x.cpu().numpy() for x in (episodes.support.double(), episodes.support_labels,
                                                            episodes.query.double()))
        with _ONE_AT_A_TIME, threadpool_limits(1):
            found = np.stack([self._answer(*episode, episodes.ways)
                              for episode in zip(support, labels, query, strict=True)])
        return torch.from_numpy(found).to(episodes.query)  # [E, Q, N]

    def _answer(self, support: NDArray, labels: NDArray, query: NDArray, ways: int) -> NDArray:
        """Logits [Q, N] of one episode."""
        from sklearn.base import clone

        rows, names = support.tolist(), labels.tolist()
        order = sorted(range(len(rows)), key=lambda place: (rows[place], names[place]))
        number = {name: position for position, name in enumerate(dict.fromkeys(names[place] for place in order))}
        estimator = clone(self._made[0])
        try:
            estimator.fit(support[order], np.array([number[names[place]] for place in order]))
            found = _scores(estimator, query, ways)
        except Exception as error:  # whatever somebody else's code raises
            raise FewshotError(f"{self.estimator} with params={dict(self.params)} fails on an episode of {len(rows)} "
                               f"support items of {ways} classes ({error}); give it other params") from error
        return found[:, [number[name] for name in range(ways)]]


def _scores(estimator: Any, query: NDArray, ways: int) -> NDArray:
    """Logits [Q, N] in the order of the numbers that it was fitted with."""
    if hasattr(estimator, "decision_function"):
        found = np.asarray(estimator.decision_function(query), dtype=np.float64)
        if ways == 2 and found.ndim == 1:
            found = np.stack([-found / 2, found / 2], 1)
    elif hasattr(estimator, "predict_proba"):
        found = np.log(np.maximum(np.asarray(estimator.predict_proba(query), dtype=np.float64), _ZERO))
    else:
        found = np.log(np.maximum(np.asarray(estimator.predict(query))[:, None] == np.arange(ways), _ZERO))
    if found.shape != (len(query), ways):
        raise FewshotError(f"its scores have shape {found.shape}; expected {(len(query), ways)}, one column a class")
    return found


def _written(name: str, value: Any) -> Any:
    """`value` as plain values. An estimator is its path and those parameters that differ from their defaults."""
    if hasattr(value, "get_params") and not isinstance(value, type):
        defaults = {key: known.default for key, known in inspect.signature(type(value)).parameters.items()}
        given = {key: _written(key, item) for key, item in value.get_params(deep=False).items()
                 if item is not defaults.get(key)}
        return {"estimator": _path_of(type(value)),
                "params": {key: item for key, item in given.items() if item != defaults.get(key)}}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _written(str(key), item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_written(name, item) for item in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise FewshotError(f"{name}={value!r} cannot be written into a record; give numbers, texts, lists, dictionaries, or an "
                       "estimator with get_params")


def _built(value: Any) -> Any:
    """The inverse of `_written`."""
    if isinstance(value, Mapping) and "estimator" in value and value.keys() <= {"estimator", "params"}:
        cls, params = _imported(value["estimator"]), {key: _built(item) for key, item in value.get("params", {}).items()}
        try:
            return cls(**params)
        except (TypeError, ValueError) as error:
            raise FewshotError(f"{value['estimator']} refuses params={params!r}: {error}") from None
    if isinstance(value, Mapping):
        return {key: _built(item) for key, item in value.items()}
    return [_built(item) for item in value] if isinstance(value, (list, tuple)) else value


def _imported(path: Any) -> type:
    """The class at a dotted path."""
    module, _, name = str(path).rpartition(".")
    if not isinstance(path, str) or not module:
        raise FewshotError(f"estimator={path!r}; expected a dotted path such as 'sklearn.svm.SVC'")
    try:
        home = importlib.import_module(module)
    except ImportError as error:
        raise FewshotError(f"estimator={path!r} cannot be imported ({error}); install its package, or correct the "
                           "path") from None
    cls = getattr(home, name, None)
    if cls is None:
        raise FewshotError(f"estimator={path!r}: " + unknown_message(f"name in {module}", name, sorted(vars(home))))
    if not isinstance(cls, type) or not hasattr(cls, "get_params"):
        raise FewshotError(f"estimator={path!r} is no class with scikit-learn's get_params")
    return cls


def _path_of(cls: type) -> str:
    """The shortest dotted path to `cls`: "sklearn.svm.SVC", not "sklearn.svm._classes.SVC"."""
    parts = cls.__module__.split(".")
    for length in range(1, len(parts)):
        if getattr(sys.modules.get(".".join(parts[:length])), cls.__name__, None) is cls:
            return ".".join([*parts[:length], cls.__name__])
    if getattr(sys.modules.get(cls.__module__), cls.__qualname__, None) is not cls:
        raise FewshotError(f"{cls.__qualname__} cannot be found by its name in {cls.__module__}; define it at the top of a "
                           "module")
    return f"{cls.__module__}.{cls.__qualname__}"


def _versions(value: Any) -> list[str]:
    """"name version" of the packages of all estimators in `value`, sorted; a package without a version is its name alone."""
    if isinstance(value, Mapping):
        own = set()
        if isinstance(value.get("estimator"), str):
            package = value["estimator"].partition(".")[0]
            own = {f"{package} {getattr(sys.modules.get(package), '__version__', '')}".strip()}
        return sorted(own.union(*map(_versions, value.values())))
    return sorted(set().union(*map(_versions, value))) if isinstance(value, (list, tuple)) else []
