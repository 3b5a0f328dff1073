"""What is said of a query beyond the most probable class: a set that holds the true class at a stated rate, "unknown",
and calibrated probabilities. The values behind them come from validation episodes (`calibration.py`) or from the support."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewshot.core.checked import check_number
from fewshot.core.errors import FewshotError
from fewshot.core.files import write_atomically
from fewshot.core.frozen import FrozenDict, frozen_dict, plain
from fewshot.episodes.types import Episodes
from fewshot.evaluation.batching import answers
from fewshot.evaluation.record import present_parameters
from fewshot.methods.contract import Method, complete_parameters
from fewshot.statistics.conformal import conformal_rank

COVERAGE, KEEP = 0.9, 0.95
_FOLDS = 10  # of a support: each costs an answer to all queries


def check_coverage(coverage: object, name: str = "coverage") -> float:
    """`coverage` as a float; raises FewshotError unless it is a rate between 0 and 1, both excluded."""
    return check_number(name, coverage, 0, 1, low_allowed=False, high_allowed=False)


@dataclass(frozen=True, eq=False)
class Decided:
    """What was decided on queries [Q]; None where only values chosen on validation episodes could tell.

    coverage        the share of sets that are meant to hold the true class
    sets            bool [Q, N], the classes in the set of each query; a set may be empty: no class is probable enough
    probabilities   [Q, N] calibrated
    unknown         bool [Q], whether the query seems to be of no class of the support
    """

    coverage: float
    sets: Tensor
    probabilities: Tensor | None = None
    unknown: Tensor | None = None


@dataclass(frozen=True)
class Decisions:
    """Values chosen on validation episodes (`fewshot.choose_decisions`) that turn logits into decisions.

    coverage, threshold, slope   a class is in the set where its score (`class_scores`) is at most threshold + slope *
                  difficulty (`difficulty`, of the support); with slope 0 the support is not looked at. The set holds the
                  true class at the rate `coverage`
    temperature   that divides the logits before the softmax
    keep, unknown_below   a query whose highest logit is below `unknown_below` is "unknown", as a share 1 - keep of the
                  validation queries was at most
    chosen_on     the record of the validation episodes, plain values: method, parameters, transforms, backbone, weights,
                  data set, ways, shots, episodes, seed

    Equal values are equal decisions; `to_dict` and `from_dict`, `save` and `load` lose nothing.
    Raises FewshotError for values out of range.
    """

    coverage: float
    threshold: float
    slope: float
    temperature: float
    keep: float
    unknown_below: float
    chosen_on: FrozenDict = dataclasses.field(default_factory=FrozenDict)

    def __post_init__(self) -> None:
        for name in ("coverage", "keep"):
            check_coverage(getattr(self, name), name)
        check_number("temperature", self.temperature, 0, low_allowed=False)
        for name in ("threshold", "unknown_below"):
            check_number(name, getattr(self, name))
        check_number("slope", self.slope, 0)
        object.__setattr__(self, "chosen_on", frozen_dict(self.chosen_on))

    def sets(self, logits: Tensor, difficulty: Tensor | None = None) -> Tensor:
        """bool [E, Q, N] of logits [E, Q, N]; difficulty [E] of the supports, needed where `slope` is not 0."""
        limit = torch.full((len(logits), 1, 1), self.threshold, dtype=torch.float64)
        if self.slope:
            if difficulty is None:
                raise FewshotError(f"slope={self.slope:g} and no difficulty; give that of the support, `difficulty(method, "
                                   "episodes, temperature)`")
            limit += self.slope * difficulty[:, None, None]
        return class_scores(logits, self.temperature) <= limit

    def probabilities(self, logits: Tensor) -> Tensor:
        """[..., N] calibrated, of logits [..., N]."""
        return (logits.double() / self.temperature).softmax(-1).to(logits.dtype)

    def unknown(self, logits: Tensor) -> Tensor:
        """bool [...] of logits [..., N]."""
        return logits.double().amax(-1) < self.unknown_below

    def check(self, method: str, parameters: Mapping[str, Any], transforms: str,
              network: tuple[str, str] | None = None) -> None:
        """Raise FewshotError unless they were chosen for this method after these transforms, on features of this network:
        the name of the backbone and the identity of its weights (None: not known here), of whole images."""
        here: dict[str, Any] = {"method": method, "transforms": transforms}
        if network is not None:
            # Networks without weights, and untrained ones of one seed, are told apart by their names alone.
            here |= {"backbone": network[0], "weights": network[1], "crops": ""}
        chosen = {"crops": "", **self.chosen_on}
        if chosen.get("method") == method:  # hyper-parameters may be in a file that is older than the method's newest one
            here["parameters"] = frozen_dict(complete_parameters(method, dict(parameters)))
            stored = present_parameters(method, chosen.get("parameters", {}))
            chosen["parameters"] = frozen_dict(complete_parameters(method, stored))
        for name, value in here.items():
            if chosen.get(name) != value:
                raise FewshotError(f"the decisions were chosen with {name}={plain(chosen.get(name))}, here it is "
                                   f"{plain(value)}; use the same, or choose them anew (fewshot decide)")

    @property
    def origin(self) -> str:
        """Where they were found, as words."""
        ways, shots, episodes, dataset, seed = (self.chosen_on.get(name, "?")
                                                for name in ("ways", "shots", "episodes", "dataset", "seed"))
        return f"{episodes} {ways}-way {shots}-shot validation episodes of {dataset}, seed {seed}"

    def describe(self) -> str:
        """The values and where they were found, as one line."""
        adapts = f", and follows the difficulty of the support with slope {self.slope:.3g}" if self.slope else ""
        return (f"temperature {self.temperature:.4g}; a class is in the set up to log odds of {self.threshold:.4g} against "
                f"it{adapts}; unknown below a logit of {self.unknown_below:.4g}; chosen on {self.origin}")

    def doubt(self, labels: Tensor, ways: int) -> str:
        """What to say where the support with these labels [S] has other ways or shots than the validation episodes."""
        shots = torch.bincount(labels, minlength=ways)
        low, high = int(shots.min()), int(shots.max())
        chosen = self.chosen_on.get("ways"), self.chosen_on.get("shots")
        if chosen == (ways, low) and low == high:
            return ""
        nearest = "" if chosen == (ways, low) else f"; choose them anew on {ways}-way {low}-shot episodes (fewshot decide)"
        return (f"the decisions were chosen on {chosen[0]}-way {chosen[1]}-shot episodes, and here are {ways} classes with "
                f"{low if low == high else f'{low} to {high}'} examples each: their rates may not hold{nearest}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON writes them."""
        return {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Decisions:
        """The inverse of `to_dict`; raises FewshotError for missing and unknown names."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, Mapping) or set(values) != names or not isinstance(values["chosen_on"], Mapping):
            raise FewshotError(f"decisions hold {', '.join(sorted(names))}, and these hold "
                               f"{', '.join(sorted(map(str, values)))}; choose them anew (fewshot decide)")
        return cls(**values)

    def save(self, path: str | Path) -> Path:
        """Write a JSON file."""
        return write_atomically(path, (json.dumps(self.to_dict(), indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Decisions:
        """Read what `save` wrote; raises FewshotError for a missing file and for any other."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text("utf-8")))
        except (OSError, ValueError) as error:
            reason = str(error) if isinstance(error, FewshotError) else f"{type(error).__name__}: {error}"
            raise FewshotError(f"no decisions in {path} ({reason}); `fewshot decide` writes them") from None


def class_scores(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """How ill each class fits, float64 [..., N]: the log odds against it, log((1 - p) / p) with p = softmax(logits /
    temperature), computed without the cancellation in 1 - p.

    A set of the classes below a threshold has the fewest classes for its coverage when p is right (Sadinle, Lei and
    Wasserman 2019, "least ambiguous set-valued classifiers"); it may be empty. A shift of log odds means the same for any p.
    """
    scaled = logits.double() / temperature
    log_p = scaled.log_softmax(-1)
    # Only p of the largest logit may exceed 1/2: there log(1 - p) would cancel, and comes from the other logits instead.
    top = scaled.argmax(-1, keepdim=True)
    others = scaled.scatter(-1, top, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.log1p(-log_p.exp()).sub(log_p).scatter(-1, top, others - scaled.gather(-1, top))


def score_of(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """`class_scores` of the true class: logits [..., N], labels [...] -> [...]."""
    return class_scores(logits, temperature).gather(-1, labels.clamp(min=0)[..., None])[..., 0]


def fewest_shots(episodes: Episodes) -> int:
    """Examples of the class that has fewest of them, in any of the episodes."""
    ones = torch.nn.functional.one_hot(episodes.support_labels, episodes.ways)
    return int(ones.sum(1).min())


def left_out(method: Method, episodes: Episodes, queries: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """Answers to support examples by the rest of the support: (logits [E, L, N], labels [E, L]) fold after fold.

    Fold k holds the k-th example of every class, and of a large class also the (k + 10)-th and so on. A class with one
    example is never asked about.
    queries   answer the queries of the episodes, too, behind the L examples: logits [E, L + Q, N]

    For an inductive method on features. All episodes must have as many examples in a fold, as those of one support have.
    """
    labels, support = episodes.support_labels, episodes.support
    same = labels[:, :, None] == labels[:, None, :]
    rank, count = same.tril(-1).sum(-1), same.sum(-1)  # [E, S]
    most = int(count.max())
    for fold in range(min(most, _FOLDS) if most > 1 else 0):
        out = (rank % _FOLDS == fold) & (count > 1)
        size = len(episodes), -1
        asked, answer = support[out].view(*size, support.shape[2]), labels[out].view(size)
        if queries:
            asked = torch.cat([asked, episodes.query], 1)
        rest = episodes.replace(support=support[~out].view(*size, support.shape[2]), support_labels=labels[~out].view(size),
                                query=asked, unlabelled=None, working_dtype=episodes.working_dtype)
        yield torch.cat([logits.cpu() for logits, _ in answers(method, [rest])]), answer.cpu()


def difficulty(method: Method, episodes: Episodes, temperature: float) -> Tensor:
    """[E] float64, how hard the classes of each episode are, by its support alone: the mean score of its examples when they
    are left out. Raises FewshotError where no class has a second example."""
    found = [score_of(logits, labels, temperature) for logits, labels in left_out(method, episodes)]
    if not found:
        raise FewshotError("these decisions look at the support, where each class has one example only; give more, or "
                           "choose decisions on 1-shot episodes (fewshot decide --shots 1)")
    return torch.cat(found, 1).mean(1)


def support_sets(method: Method, episodes: Episodes, coverage: float = COVERAGE) -> Tensor | None:
    """Sets from the support alone, bool [E, Q, N]: CV+ in at most 10 folds (Barber, Candes, Ramdas and Tibshirani 2021,
    section 3; for classes Romano, Sesia and Candes 2020, section 2.3).

    A class is in the set of a query unless, in at least coverage * (n + 1) of the n left-out examples, the support without
    the example's fold fits the example better than it fits the class to the query. What is sure is a rate of at least
    2 coverage - 1 and a little less with few folds; in practice it lies above `coverage`, as the supports are smaller.

    episodes   of an inductive method on features, after its transforms

    None where no class has a second example. With n below coverage / (1 - coverage), 9 for 0.9, every set holds all
    classes.
    """
    shape = *episodes.query.shape[:2], episodes.ways
    beaten, n = torch.zeros(shape, dtype=torch.int64), 0
    for logits, labels in left_out(method, episodes, queries=True):
        left = labels.shape[1]
        mine, theirs = score_of(logits[:, :left], labels), class_scores(logits[:, left:])
        beaten += torch.searchsorted(mine.sort(dim=1).values, theirs.flatten(1)).view(shape)  # examples that fit better
        n += left
    return beaten < conformal_rank(n, coverage) if n else None
