"""The method contract: a callable from `Episodes` to logits [E, Q, N]."""

from __future__ import annotations

import abc
import dataclasses
import functools
import inspect
import numbers
import types
import typing
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fewshot.core.errors import FewshotError
from fewshot.core.registry import Registry, unknown_message
from fewshot.episodes.types import Episodes
from fewshot.ops.text import text_logits

if TYPE_CHECKING:
    from fewshot.data.banks import FeatureBank
    from fewshot.ops.point_classifier import PointClassifier

METHODS: Registry[type[Method]] = Registry("method", "fewshot.methods")

# A transductive method needs about this many queries a class. On glyphs (pixels, 5-way 1-shot, queries of classes as they
# come) pt_map and tim_adm overtake the nearest prototype between 3 and 7, most others at 2; with one or two queries in all,
# most are far below it.
ENOUGH_QUERIES = 5


def few_queries(queries: int, ways: int) -> str:
    """What to say of a transductive answer to so few queries; nothing for enough of them."""
    if queries >= ENOUGH_QUERIES * ways:
        return ""
    images = "1 query" if queries == 1 else f"{queries} queries"
    return (f"{images} may be too few for a transductive answer, which needs about {ENOUGH_QUERIES} a class, here "
            f"{ENOUGH_QUERIES * ways}; an inductive method, such as protonet or ridge, answers each alone")


def _takes_its_inputs(function: Callable) -> Callable:
    """Images given to a method on features are the first mistake one makes: it is named before any arithmetic. Features
    are then put into the precision to work in, or that of the method's own weights."""
    @functools.wraps(function)
    def checked(self: Method, episodes: Episodes, *arguments: Any, **options: Any) -> Any:
        if self.inputs != "features":
            return function(self, episodes, *arguments, **options)
        if episodes.support.ndim != 3:
            raise FewshotError(f"{type(self).__name__} takes features [E, S, D]; support has shape "
                               f"{tuple(episodes.support.shape)}: embed the images first (`fewshot.embed` for a bank)")
        if self.needs_text:
            check_text(self, episodes)
        # Only a single query is warned about here: an evaluation asks for few in thousands of calls, but for 2 at least.
        if episodes.query.shape[1] == 1 and self.setting == "transductive" and function.__name__ == _reads(self):
            warnings.warn(f"{type(self).__name__}: {few_queries(1, episodes.ways)}", stacklevel=2)
        # Of a network: learned scalars, as those of UNEM, take part in any precision.
        weights = self.parameters() if isinstance(self, nn.Module) else ()
        weight = next((values for values in weights if values.ndim > 1), None)
        working = episodes.working() if weight is None else episodes.to(weight.dtype)
        if self.needs_text and working.text is not None and working.text.dtype != working.query.dtype:
            working = working.to(working.query.dtype)
        try:
            found = function(self, working, *arguments, **options)
        except torch.linalg.LinAlgError as error:
            longest = float(torch.cat([working.support, working.query], 1).norm(dim=-1).max())
            raise FewshotError(f"{type(self).__name__} meets a linear system that {working.query.dtype} does not solve; the "
                               f"longest feature is {longest:.3g}: scale the features (transforms l2 or standardise), or "
                               f"regularise more ({str(error).partition('.')[0]})") from None
        narrow = weight is None and episodes.query.dtype != torch.float64 == working.query.dtype
        return narrowed(found) if narrow else found

    return checked


def check_text(method: Method, episodes: Episodes) -> None:
    """Raise FewshotError where a method that needs text gets none, or none of the space of the features."""
    name, text, dim = type(method).__name__, episodes.text, episodes.support.shape[-1]
    if text is None:
        raise FewshotError(f"{name} needs the texts of the classes, and these episodes have none: give text=[E, N, D], or "
                           "make a bank with texts (`fewshot embed ... --templates`, or bank.with_texts)")
    if method.text_of_features and text.shape[-1] != dim:
        raise FewshotError(f"{name} compares features of {dim} channels with texts of {text.shape[-1]}; embed images and "
                           "texts with one model")


def narrowed(found: Any) -> Any:
    """Logits in float32 of what was computed in float64 because float32 does not hold it: from each query's largest one,
    which is all that predictions and probabilities depend on."""
    if isinstance(found, Refinement):
        return dataclasses.replace(found, logits=narrowed(found.logits))
    if not isinstance(found, Tensor) or found.dtype != torch.float64:
        return found  # reduced episodes, which stay as they are until they are solved
    limits, below = torch.finfo(torch.float32), found - found.amax(-1, keepdim=True)
    widest = float(below.detach().abs().amax())
    if 0 < widest < limits.tiny:
        raise FewshotError(f"the logits differ by at most {widest:.1e}, which float32 does not hold; scale the features, or "
                           "pass them in float64")
    return below.clamp_min(limits.min).float()


def _takes_its_base(fit: Callable) -> Callable:
    @functools.wraps(fit)
    def working(self: Method, base_bank: FeatureBank) -> Method:
        return fit(self, base_bank.working())

    return working


def _reads(method: Method) -> str:
    """Which of the functions of a method the others leave its episodes to."""
    if isinstance(method, IterativeMethod):
        return "reduce" if isinstance(method, TwoStageMethod) else "refine"
    return "forward" if isinstance(method, nn.Module) else "__call__"


class Method(abc.ABC):
    """Base of all methods. A subclass is a frozen dataclass whose fields are its hyper-parameters
    (or an nn.Module where it learns weights), registered with `@METHODS.register("name")`. A call leaves nothing behind in
    it: an evaluation on features calls it from several threads at once.

    setting      "inductive": a query's logits do not depend on the other queries; else "transductive"
    inputs       "features" or "images"
    assumes      what must be true for the method to make sense, shown in tables, e.g. "balanced queries"; a property where
                 it depends on the hyper-parameters
    needs_base   True when `fit(base_bank)` must be called first (statistics of the base classes)
    needs_text   True when it reads the texts of the classes; a call without any is refused
    text_of_features   of those: features and texts have the same channels (all but methods that map one to the other)
    reads_prompts   True when it reads single sentences about the classes where there are any; others are spared them
    needs_validation   True when it reads validation images of the episodes
    searched_grid   hyper-parameter -> values that its paper searches on validation images; {} where it searches none
    needs_backbone   True when `with_backbone(backbone, ways)` must be called first: these are the hyper-parameters of a
                     method with weights of its own, which that makes
    paper        where it was published, and official code
    renamed      earlier names of hyper-parameters -> present ones, so that results and weights stored under them are found
    """

    setting: str = "inductive"
    inputs: ClassVar[str] = "features"
    needs_text: bool = False
    text_of_features: bool = True
    reads_prompts: bool = False
    needs_validation: ClassVar[bool] = False
    searched_grid: ClassVar[Mapping[str, tuple]] = {}
    paper: str = ""
    renamed: ClassVar[Mapping[str, str]] = {}

    # Properties, so that a subclass may have either: its own property, or a plain attribute of the class.
    @property
    def assumes(self) -> tuple[str, ...]:
        return ()

    @property
    def needs_base(self) -> bool:
        return False

    @property
    def needs_backbone(self) -> bool:
        return False

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        for name in ("__call__", "forward", "refine", "reduce", "shared", "point_classifier"):
            if name in cls.__dict__:
                setattr(cls, name, _takes_its_inputs(cls.__dict__[name]))
        if "fit" in cls.__dict__:
            setattr(cls, "fit", _takes_its_base(cls.__dict__["fit"]))  # noqa: B010 - a method cannot be assigned to

    @abc.abstractmethod
    def __call__(self, episodes: Episodes) -> Tensor:
        """Logits [E, Q, N]: softmax over N gives class probabilities, argmax the prediction."""

    @classmethod
    def present_names(cls, parameters: Mapping[str, object]) -> dict[str, object]:
        """Stored hyper-parameters under the names that they have today."""
        return {cls.renamed.get(name, name): value for name, value in parameters.items()}

    @property
    def recorded(self) -> Mapping[str, object]:
        """Hyper-parameters, name -> value, that a record keeps in another form than they may be given in."""
        return {}

    def fit(self, base_bank: FeatureBank) -> Method:
        """A copy that knows the statistics of the base classes; methods without any return themselves."""
        return self

    def point_classifier(self, episodes: Episodes) -> PointClassifier:
        """The method fitted to the support of a single episode, E=1, as arithmetic on one query [D]; the queries are not
        looked at. What `fewshot export` writes. Raises FewshotError for methods that do not say how."""
        known = [name for name in METHODS if METHODS[name].point_classifier is not Method.point_classifier]
        raise FewshotError(f"{type(self).__name__} does not reduce to a classifier of one image at a time that could be "
                           f"written to a file; choose one of {', '.join(known)}")

    def transfer(self, episodes: Episodes, query: Tensor, text: Tensor) -> Tensor:
        """Logits [E, Q, M] of queries [E, Q, D] among other classes, of which there are texts [E, M, D] and no images, by
        what the support of `episodes` teaches. A method that changes neither features nor texts takes the nearest text."""
        if not self.needs_text:
            raise FewshotError(f"{type(self).__name__} knows classes by their images alone; for new ones that have but "
                               "names take a method with texts, such as zero_shot")
        return text_logits(episodes.replace(query=query, text=text))

    def without_network(self) -> FewshotError:
        """What to raise where a method that needs a backbone is called without one."""
        return FewshotError(f"{type(self).__name__} has hyper-parameters but no network yet; call "
                            ".with_backbone(backbone, ways) and use what it returns")


def feature_dim_of(backbone: nn.Module, feature_dim: int | None = None) -> int:
    """D of the features of `backbone`; `feature_dim` where given. Raises FewshotError where neither says it."""
    dim = getattr(backbone, "feature_dim", None) if feature_dim is None else feature_dim
    if dim is None:
        raise FewshotError(f"{type(backbone).__name__} does not say how long its features are; pass feature_dim=")
    return dim


@runtime_checkable
class TakesBackbone(Protocol):
    """The hyper-parameters of a method with weights of its own, or of one that adapts a backbone."""

    def with_backbone(self, backbone: nn.Module, ways: int, *, seed: int = 0) -> Method:
        """The method on `backbone` for episodes of `ways`, random weights drawn from `seed`."""


@dataclass(frozen=True, eq=False)
class Refinement:
    """What an iterative method found.

    logits       [E, Q, N]
    prototypes   [E, N, D] at the end, in the space the method works in; None where the method has none
    iterations   [E] int64, steps taken by each episode
    converged    [E] bool; a method that runs a fixed number of steps reports True throughout
    history      optional list over iterations of prototypes [E, N, D]
    space        with the history: the episodes in the coordinates of the prototypes, which pictures need; None where
                 prototypes are no points among the features
    """

    logits: Tensor
    prototypes: Tensor | None
    iterations: Tensor
    converged: Tensor
    history: list[Tensor] | None = None
    space: Episodes | None = None

    @classmethod
    def of_fixed_steps(cls, logits: Tensor, prototypes: Tensor, steps: int, history: list[Tensor] | None,
                       space: Episodes | None = None) -> Refinement:
        """Of a method that always takes `steps` steps."""
        taken = torch.full((len(logits),), steps, device=logits.device)
        return cls(logits, prototypes, taken, torch.ones_like(taken, dtype=torch.bool), history, space)


class BaseMean(Method):
    """Mixin for methods with the fields `norm` and `base_mean`: norm="cl2n" subtracts the mean of the base features."""

    norm: str
    base_mean: Tensor | None

    @property
    def needs_base(self) -> bool:
        return self.norm == "cl2n"

    def fit(self, base_bank: FeatureBank) -> Method:
        made: Any = self  # a dataclass, as the mixin itself is not
        return dataclasses.replace(made, base_mean=base_bank.working().features.mean(0))


class IterativeMethod(Method):
    """A method with `refine`; calling it returns the refined logits."""

    setting = "transductive"

    @abc.abstractmethod
    def refine(self, episodes: Episodes, history: bool = False) -> Refinement:
        """Run to the end; with `history` also keep the prototypes of every iteration."""

    def __call__(self, episodes: Episodes) -> Tensor:
        return self.refine(episodes).logits


class TwoStageMethod(IterativeMethod):
    """An iterative method that reads the features once and then iterates on much smaller arrays.

    The first stage is bound by memory and wants few episodes at a time, the second by operator calls and wants many:
    `fewshot.evaluate` reduces chunks that fit the cache and solves several of them together.
    """

    @abc.abstractmethod
    def reduce(self, episodes: Episodes) -> Episodes:
        """The same episodes by the features that `solve` works on."""

    @abc.abstractmethod
    def solve(self, reduced: Episodes, history: bool = False) -> Refinement:
        """`refine` for episodes that were reduced."""

    def refine(self, episodes: Episodes, history: bool = False) -> Refinement:
        found = self.solve(self.reduce(episodes), history)
        return dataclasses.replace(found, logits=found.logits.to(episodes.query.dtype))


def create_method(name: str, **params: Any) -> Method:
    """The method `name` with hyper-parameters `params`; unknown names and parameters raise with the nearest ones."""
    cls = METHODS[name]
    known = method_parameters(name)
    for key in params:
        if key in cls.renamed:
            raise FewshotError(f"the parameter {key} of {name} is called {cls.renamed[key]} now")
        if key not in known:
            raise FewshotError(unknown_message(f"parameter of {name}", key, list(known)))
    check_types(name, cls, params)
    return cls(**params)


def complete_parameters(name: str, given: Mapping[str, object]) -> dict[str, object]:
    """Every hyper-parameter of the method `name`: those given, the others at their defaults. 10 for one that is 10.0 by
    default is 10.0, so that equal settings are equal; other values are not checked here."""
    defaults = method_parameters(name)
    alike = {key: float(value) if isinstance(defaults.get(key), float) and type(value) is int else value
             for key, value in given.items()}
    return {**defaults, **alike}


def method_parameters(name: str) -> dict[str, object]:
    """The hyper-parameters of a method with their defaults (fitted state is not a hyper-parameter)."""
    cls: type = METHODS[name]
    if not dataclasses.is_dataclass(cls):  # an nn.Module: its constructor keywords are the hyper-parameters
        return {key: parameter.default for key, parameter in inspect.signature(cls).parameters.items()}
    return {f.name: f.default for f in dataclasses.fields(cls) if f.metadata.get("fitted") is None and f.init}


def list_methods(setting: str | None = None) -> list[str]:
    """Registered names, sorted; optionally only those of one `setting`."""
    return [name for name in METHODS if setting is None or METHODS[name].setting == setting]


_KINDS = {bool: "True or False", int: "an integer", float: "a number", str: "a word", tuple: "a list", Tensor: "a tensor",
          Mapping: "a dictionary", type(None): "None"}


def check_types(name: str, cls: type, params: dict) -> None:
    """Values have the annotated types: a text where a number belongs is named here, not in the middle of a method."""
    made: Any = cls if dataclasses.is_dataclass(cls) else inspect.getattr_static(cls, "__init__")
    hints = typing.get_type_hints(made)
    for key, value in params.items():
        hint = hints[key]
        union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        kinds: list[Any] = [typing.get_origin(kind) or kind for kind in (typing.get_args(hint) if union else (hint,))]
        # Integers are numbers; lists are what JSON makes of tuples; True is no number here.
        wider: dict[Any, Any] = {float: numbers.Real, int: numbers.Integral, tuple: (tuple, list)}
        allowed: tuple[Any, ...] = tuple(wider.get(kind, kind) for kind in kinds)
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join(_KINDS.get(kind, kind.__name__) for kind in kinds)
            raise FewshotError(f"{key}={value!r} of {name}; expected {expected}")


def fitted(default: Any = None) -> Any:
    """A dataclass field that `fit` fills in: state, not a hyper-parameter."""
    return dataclasses.field(default=default, repr=False, metadata={"fitted": True})
