"""The grid searches of Tip-Adapter, TIP-X and APE: `fewshot.search_grid` beside the loops of the official programs.

    git clone https://github.com/gaopengcuhk/Tip-Adapter; git clone https://github.com/vishaal27/SuS-X
    git clone https://github.com/yangyangyang127/APE
    python benchmarks/text_search.py Tip-Adapter SuS-X APE [--rounds 3] [--write docs/speed_text.md]

100 classes, 16 shots, 2,500 queries, in float32 and one thread. In every round an official program answers the first
settings of its grid and is then stopped, and `search_grid` searches the whole grid; seconds of the official search are those
of its part, times the settings of the grid over those of the part. In float64 both must find the same best setting.
On a small task (20 classes, 4 shots, 300 queries, float64) the official programs search their whole grids, and both
must find the same. The official programs run on the CPU, with `.cuda()` and `.half()` left out.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from common import clock, conditions, interleave, markdown, seconds_of, spread
from processes import peak_memory, run

from fewshot.core.files import write_atomically
from fewshot.episodes.types import Episodes
from fewshot.methods import METHODS, create_method
from fewshot.methods.bases.grid_search import GridSearch, search_grid
from fewshot.ops.distances import l2_normalise

ROOT = Path(__file__).resolve().parents[1]
CRITERION_CLASSES = 10  # of which APE's loop over pairs is timed


@dataclass(frozen=True)
class Search:
    """title        of the row
    method, fixed   ours
    grid            of the official program, the outermost loop first
    part            settings of it that are timed at 100 classes
    """

    title: str
    method: str
    fixed: dict
    grid: dict[str, list[float]]
    part: int

    def settings(self) -> list[dict[str, float]]:
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]

    def ours(self, task: Task, grid: dict | None = None) -> GridSearch:
        return search_grid(create_method(self.method, **self.fixed), task.episodes, task.labels[None], grid or self.grid)

    def of_part(self) -> dict[str, list[float]]:
        """The grid of the first `part` settings, whole loops of all but the first names."""
        inner, grid = 1, {}
        for name, values in reversed(self.grid.items()):
            grid[name] = values[: max(1, self.part // inner)]
            inner *= len(values)
        return dict(reversed(grid.items()))


SEARCHES = {
    "tip": Search("Tip-Adapter", "tip_adapter", {}, METHODS["tip_adapter"].searched_grid, 200),
    "tipx": Search("TIP-X", "tip_x", {"variant": "official"}, METHODS["tip_x"].searched_grid, 500),
    "ape": Search("APE", "ape", {"channels": 200}, METHODS["ape"].searched_grid, 400)}


@dataclass(frozen=True)
class Task:
    """One task: unit features of support [S, D] and queries [Q, D], texts [N, D], labels."""

    support: torch.Tensor
    support_labels: torch.Tensor
    query: torch.Tensor
    labels: torch.Tensor
    text: torch.Tensor

    @property
    def episodes(self) -> Episodes:
        return Episodes(support=self.support[None], support_labels=self.support_labels[None], query=self.query[None],
                        ways=len(self.text), text=self.text[None])


def task(dim: int, classes: int, shots: int, queries: int, dtype: torch.dtype = torch.float32) -> Task:
    """Clusters around centres with one direction in common, as CLIP's features have; texts far from their centres."""
    draw = torch.Generator().manual_seed(0)

    def noise(rows: int) -> torch.Tensor:
        return torch.randn(rows, dim, generator=draw)

    common, centres = noise(1), noise(classes)
    support_labels, labels = torch.arange(classes).repeat_interleave(shots), torch.arange(queries) % classes
    support, query = (common + 5 / dim**0.5 * centres[y] + noise(len(y)) for y in (support_labels, labels))
    text = common / 2 + noise(1) + 0.4 * centres + noise(classes) / 2
    return Task(*(l2_normalise(x).to(dtype) if x.is_floating_point() else x
                  for x in (support, support_labels, query, labels, text)))


class Enough(Exception):
    """So many settings were answered."""


class Counted:
    """In the place of the official function of the accuracy, which is called once a setting: keeps what it returns and stops
    the program after `most` settings. The first `before` calls are none."""

    def __init__(self, accuracy: Callable, most: int, before: int = 0):
        self.accuracy, self.most, self.before, self.values = accuracy, most, before, []
        self.start, self.seconds = clock()(), 0.0

    def __call__(self, output: torch.Tensor, target: torch.Tensor, topk=1) -> object:
        found = self.accuracy(output, target, topk)
        if self.before:
            self.before, self.start = self.before - 1, clock()()
            return found
        self.values.append(found)
        if len(self.values) == self.most:
            self.seconds = clock()() - self.start
            raise Enough
        return found

    def right(self, queries: int) -> list[int]:
        """Right answers of each setting: TIP-X counts those among the first and the first five, the others say percent."""
        return [round(each * queries / 100) if isinstance(each, float) else round(each[0]) for each in self.values]


@contextlib.contextmanager
def counting(function: Callable, name: str, most: int, before: int = 0):
    """`function` with a `Counted` in the place of what it calls `name`; ends with the program."""
    scope, given = function.__globals__, function.__globals__[name]
    scope[name] = counted = Counted(given, most, before)
    try:
        # NumPy no longer makes a number of an array of one element, as all three programs expect.
        with mock.patch.object(torch.Tensor, "numpy", torch.Tensor.item), contextlib.suppress(Enough):
            yield counted
    finally:
        scope[name] = given


class Official:
    """The three programs on one task. Each method answers the first `most` settings and returns their accuracies and the
    seconds that they took."""

    def __init__(self, checkouts: dict[str, Path], given: Task):
        sys.path.append(str(ROOT))
        from tests.official.cache_models import official_program

        dtype = given.query.dtype
        self.open = {name: functools.partial(official_program, checkouts[name], module, absent, dtype)
                     for name, module, absent in (("tip", "main", ()), ("tipx", "tipx", ("utils",)), ("ape", "main", ()))}
        self.task, self.values = given, torch.nn.functional.one_hot(given.support_labels).to(dtype)
        self.keys, self.weights = given.support.T.contiguous(), given.text.T.contiguous()

    def tip(self, most: int) -> Counted:
        settings = {"search_hp": True, "search_scale": [7, 3], "search_step": [200, 20]}
        with self.open["tip"]() as program, counting(program.search_hp, "cls_acc", most) as counted:
            program.search_hp(settings, self.keys, self.values, self.task.query, self.task.labels, self.weights)
        return counted

    def divergences(self) -> torch.Tensor:
        with self.open["tipx"]() as program:
            query = self.task.query
            of_support, of_query, _ = program.compute_image_text_distributions(0.5, self.keys, query, query, self.weights)
            return program.get_kl_divergence_sims(of_support, of_query).to(self.task.query.dtype)

    @functools.cached_property
    def known_divergences(self) -> torch.Tensor:
        return self.divergences()

    def tipx(self, most: int) -> Counted:
        far, query, labels = self.known_divergences, self.task.query, self.task.labels
        with self.open["tipx"]() as program, counting(program.hparam_search, "accuracy", most) as counted:
            program.hparam_search(query, labels, query, labels, self.keys, self.values, self.weights, far, far)
        return counted

    def ape(self, most: int) -> Counted:
        shots = len(self.task.support) // len(self.task.text)
        settings = {"shots": shots, "w_training_free": None, "init_beta": 1, "init_alpha": 1, "init_gamma": 0.1,
                    "search_scale": [7, 7, 1], "search_step": [200, 20, 20]}
        kept = create_method("ape", **SEARCHES["ape"].fixed).chosen_channels(self.task.episodes)[0]
        query, labels = self.task.query, self.task.labels
        with self.open["ape"]() as program, counting(program.APE, "cls_acc", most, before=2) as counted:
            program.APE.__globals__["cal_criterion"] = lambda *given, **named: kept
            program.APE(settings, self.keys, self.values, query, labels, query, labels, self.weights)
        return counted

    def criterion_seconds(self) -> float:
        """Of APE's choice of channels, from its loop over the pairs of some of the classes."""
        classes, shots = len(self.task.text), len(self.task.support) // len(self.task.text)
        few = min(classes, CRITERION_CLASSES)
        settings = {"shots": shots, "dataset": "", "backbone": "", "w": (0.5, 0.5),
                    "training_free_feat_num": 10}
        with self.open["ape"]() as program:
            start = clock()()
            program.cal_criterion(settings, self.weights[:, :few], self.task.support[: few * shots], only_use_txt=False)
            return (clock()() - start) * (classes / few) ** 2


def same_best(search: Search, counted: Counted, found: GridSearch) -> bool:
    """Whether the official loop, whose first best wins, ends at the setting that was found, with as many right answers."""
    right = counted.right(found.queries)
    best = max(range(len(right)), key=right.__getitem__)
    return search.settings()[best] == found.values and right[best] == found.correct


def measure(dim: int, checkouts: dict[str, Path], rounds: int) -> list[list[str]]:
    """Rows of the table for features of `dim` channels."""
    given = task(dim, 100, 16, 2500)
    official, rows = Official(checkouts, given), []
    zero_shot = float((create_method("zero_shot")(given.episodes)[0].argmax(-1) == given.labels).float().mean())
    print(f"{dim} channels: zero-shot {zero_shot:.1%}", file=sys.stderr, flush=True)
    official.known_divergences  # noqa: B018 - before anything is timed
    for name, search in SEARCHES.items():
        last: dict[str, object] = {}

        def theirs(name=name, search=search, last=last) -> None:
            last["theirs"] = getattr(official, name)(search.part)

        def ours(search=search, last=last) -> None:
            last["ours"] = search.ours(given)

        seconds = interleave({"theirs": theirs, "ours": ours}, rounds)
        total, counted = len(search.settings()), last["theirs"]
        whole = counted.seconds / search.part * total
        equal = same_best(search, counted, search.ours(given, search.of_part()))
        mine = statistics.median(seconds["ours"])
        memory = float(run([Path(__file__).resolve(), *checkouts.values(), "--one", name, "--dim", dim],
                           OMP_NUM_THREADS="1").output.split()[-1])
        rows.append([f"{search.title}, D = {dim}", f"{total:,}", f"{whole:,.0f}", spread(seconds["ours"]),
                     f"{whole / mine:,.0f}", "yes" if equal else "no", f"{memory:,.0f}"])
        print(*rows[-1], last["ours"], sep=" | ", file=sys.stderr, flush=True)
    return rows


def one_answer(dim: int, checkouts: dict[str, Path]) -> list[list[str]]:
    """Rows of the table of a single setting."""
    given = task(dim, 100, 16, 2500)
    official, rows, episodes = Official(checkouts, given), [], given.episodes
    for name, search in SEARCHES.items():
        now = clock()
        first = getattr(official, name)(1).seconds  # warm
        first = statistics.median(getattr(official, name)(1).seconds for _ in range(3))
        if name == "tipx":
            start = now()
            official.divergences()
            first += now() - start
        if name == "ape":
            first += official.criterion_seconds()
        method = create_method(search.method, **{**search.fixed, **search.settings()[0]})
        mine = seconds_of(lambda method=method: method(episodes))
        rows.append([f"{search.title}, D = {dim}", f"{first:,.2f}", f"{mine:.3f}", f"{first / mine:,.1f}"])
        print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    return rows


def whole_grids(checkouts: dict[str, Path]) -> list[list[str]]:
    """Rows of the table of the small task, whose grids the official programs search to the end."""
    given = task(256, 20, 4, 300, torch.float64)
    official, rows = Official(checkouts, given), []
    for name, search in SEARCHES.items():
        total = len(search.settings())
        counted = getattr(official, name)(total)
        start = clock()()
        found = search.ours(given)
        mine = clock()() - start
        setting = ", ".join(f"{key} {value:.4g}" for key, value in found.values.items())
        equal = same_best(search, counted, found)
        rows.append([search.title, f"{total:,}", f"{counted.seconds:,.0f}", f"{mine:.2f}", setting,
                     f"{found.correct} of {found.queries}", "yes" if equal else "no"])
        print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    repositories = {"tip": "gaopengcuhk/Tip-Adapter", "tipx": "vishaal27/SuS-X", "ape": "yangyangyang127/APE"}
    for name, repository in repositories.items():
        parser.add_argument(name, type=Path, help=f"folder of a clone of {repository}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the page there")
    parser.add_argument("--one", choices=list(SEARCHES), help=argparse.SUPPRESS)
    parser.add_argument("--dim", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    checkouts = {name: getattr(given, name).resolve() for name in SEARCHES}
    if given.one:  # the memory of one search, in a process that does nothing else
        small = task(given.dim, 100, 16, 2500)
        before = peak_memory()
        SEARCHES[given.one].ours(small, SEARCHES[given.one].of_part())  # more settings take time, not memory
        print(peak_memory() - before)
        return
    answers = [row for dim in (512, 1024) for row in one_answer(dim, checkouts)]
    rows = [row for dim in (512, 1024) for row in measure(dim, checkouts, given.rounds)]
    small = whole_grids(checkouts)
    page = PAGE.format(
        date=time.strftime("%Y-%m-%d"), conditions=conditions(), rounds=given.rounds, classes=CRITERION_CLASSES,
        searches="\n".join(markdown(["search", "settings", "official, s", "search_grid, s", "times", "same best", "MiB"],
                                    rows)),
        small="\n".join(markdown(["search", "settings", "official, s", "search_grid, s", "best", "right", "same"], small)),
        answers="\n".join(markdown(["one answer", "official, s", "ours, s", "times"], answers)))
    if given.write:
        write_atomically(given.write, page.encode())
    print(page)


PAGE = """# Searches of methods on image and text features

Written by `python benchmarks/text_search.py Tip-Adapter SuS-X APE --rounds {rounds} --write docs/speed_text.md`
on {date}: {conditions}.
`fewshot.search_grid` beside the loops of the official programs, which run on the CPU: 100 classes, 16 shots, 2,500 queries
in float32; median (and range) of {rounds} interleaved round(s).

- *official*: seconds of the first settings of its loop, times the settings of the grid over those (Tip-Adapter 200, TIP-X
  500, APE 400, its channels given).
- *same best*: of these first settings both find the same one, with as many right answers. Divergences of TIP-X are small
  differences, of which float32 loses a part in both programs, so that some counts differ by one or two; in float64, below,
  none does.
- *MiB*: what the peak of a process rises by over that with the features.

{searches}

How: similarities are computed once; the exponentials once for each `beta`, and summed over the items of a class. For a
fixed `beta` the logits are linear in `alpha` (and `gamma` of TIP-X), so that a query is right in an interval whose ends
follow from one comparison with every other class, whatever the number of values. Where rounding decides, the method itself
is asked: the counts are those of a loop.

## Whole grids of a small task

20 classes, 4 shots, 300 queries of 256 channels in float64; the official programs to the end of their loops.

{small}

## One answer

Of one setting to all queries. The official programs compute the divergences of TIP-X by repeating rows, and the channels of
APE in a loop over all pairs of items (timed on {classes} of the classes and scaled by the number of pairs); of Tip-Adapter
most is one product of queries and support, which takes both as long.

{answers}
"""

if __name__ == "__main__":
    main()
