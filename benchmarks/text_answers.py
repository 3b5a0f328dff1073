"""gda, proker, proto_clip, lfa and lp_plus_plus beside the official programs: seconds of an answer and of a search.

    python benchmarks/text_answers.py OFFICIAL [--dims 512 1024] [--rounds 3] [--write docs/speed_text_answers.md]

OFFICIAL is a folder with clones of omarnust/BReg-Adapter, IRVLUTD/Proto-CLIP, saic-fi/LFA and
FereshteShakeri/FewShot-CLIP-Strong-Baseline. 100 classes of 16 shots, 2,500 queries, synthetic features and texts, one
thread, float32. Each official function is called as its program does, on features that are there.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import io
import itertools
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from common import conditions, interleave, markdown, spread
from torch import Tensor

from fewshot.episodes.types import Episodes
from fewshot.methods import create_method
from fewshot.methods.bases.grid_search import search_grid
from fewshot.ops.distances import l2_normalise

WAYS, SHOTS, QUERIES = 100, 16, 2500
# Modules that the official files import for other purposes: reading images and data sets, logging, losses.
OUTSIDE = ("clip", "info_nce", "loguru", "alignment_utils", "save_features")
GRIDS: dict[str, dict[str, list[float]]] = {
    "gda": {"alpha": [10.0**power for power in range(-4, 3)]},
    "proker": {"beta": torch.linspace(0.5, 3, 20).tolist(), "ridge": torch.linspace(0.001, 1, 10).tolist()},
    "proto_clip": {"alpha": [i / 10 for i in range(11)],
                   "beta": [*(i / 10 for i in range(1, 10)), *map(float, range(1, 21))]}}


class Data:
    """Unit features of classes around their texts, about three quarters of which zero-shot classification gets right."""

    def __init__(self, dim: int):
        generator = torch.Generator().manual_seed(0)
        self.text = l2_normalise(torch.randn(WAYS, dim, generator=generator))
        centres = self.text + 0.8 * l2_normalise(torch.randn(WAYS, dim, generator=generator))

        def around(labels: Tensor) -> Tensor:
            return l2_normalise(centres[labels] + 6 * l2_normalise(torch.randn(len(labels), dim, generator=generator)))

        self.labels = torch.arange(WAYS).repeat_interleave(SHOTS)
        self.query_labels = torch.arange(QUERIES) % WAYS
        self.support, self.query = around(self.labels), around(self.query_labels)
        self.episodes = Episodes(support=self.support[None], support_labels=self.labels[None], query=self.query[None],
                                 ways=WAYS, text=self.text[None])


class Official:
    """The official functions, each of which returns logits [Q, N], or the best setting of a search."""

    def __init__(self, folder: Path):
        self.folder = folder
        baseline = folder / "FewShot-CLIP-Strong-Baseline"
        package = ModuleType("methods")
        package.__path__ = [str(baseline / "methods")]
        # The official accuracy converts an array in a way that NumPy has given up.
        shared: Any = SimpleNamespace(save_hps=lambda *_: None, cls_acc=lambda logits, labels: 100 * float(
            (logits.argmax(1) == labels).float().mean()))
        sys.modules |= {name: mock.MagicMock() for name in OUTSIDE} | {"methods": package}
        self.probe = importlib.import_module("methods.linear_probe_p2")
        sys.modules["utils"] = shared  # three repositories have one
        self.of_gda = self._file("BReg-Adapter/trainers/gda.py")
        self.of_proker = self._file("BReg-Adapter/trainers/proker.py")
        self.of_proto_clip = self._file("Proto-CLIP/utils.py")
        sys.modules["utils"] = mock.MagicMock()
        self.of_lfa = self._file("LFA/feature_alignment.py")

    def _file(self, path: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(Path(path).stem, self.folder / path)
        assert spec is not None and spec.loader is not None, path
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def _answer(self, function: Callable, d: Data, searched: int, selection: str) -> Any:
        """A trainer of BReg-Adapter, which searches on the first queries; it reads its settings from its folder."""
        shown = slice(searched)
        tested = d.query[:1] if searched > 1 else d.query
        with contextlib.chdir(self.folder / "BReg-Adapter"), contextlib.redirect_stderr(io.StringIO()):
            return function(d.support, d.labels, d.query[shown], d.query_labels[shown], tested, d.text.T, "caltech101",
                            SHOTS, 0, selection)

    def gda(self, d: Data) -> Tensor:
        return self._answer(self.of_gda.GDA, d, 1, "full")

    def search_gda(self, d: Data) -> Tensor:
        return self._answer(self.of_gda.GDA, d, QUERIES, "full")

    def proker(self, d: Data) -> Tensor:
        return self._answer(self.of_proker.ProKeR, d, 1, "imagenet")

    def search_proker(self, d: Data) -> Tensor:
        return self._answer(self.of_proker.ProKeR, d, QUERIES, "full")

    def proto_clip(self, d: Data, alpha: float = 0.5, beta: float = 5.0) -> Tensor:
        images = d.support.view(WAYS, SHOTS, -1).mean(dim=1)
        return self.of_proto_clip.P(d.query, images / images.norm(dim=-1, keepdim=True), d.text, alpha, beta)

    def search_proto_clip(self, d: Data) -> None:
        """As the program does on validation images."""
        images = d.support.view(WAYS, SHOTS, -1).mean(dim=1)
        images, found = images / images.norm(dim=-1, keepdim=True), []
        for alpha, beta in itertools.product(*GRIDS["proto_clip"].values()):
            p = self.of_proto_clip.P(d.query, images, d.text, alpha, beta)
            found.append((p.max(1)[1] == d.query_labels).float().mean().item())

    def lfa(self, d: Data) -> Tensor:
        moved = d.query @ self.of_lfa.procrustes_align(d.support, d.text[d.labels], beta=0.85)
        return moved / moved.norm(dim=-1, keepdim=True) @ d.text.T

    def lp_plus_plus(self, d: Data) -> Tensor:
        """Without its evaluation after each of the 300 steps, but of one image."""
        made: dict[str, Any] = {}
        linear, variable = torch.nn.Linear, self.probe.Variable

        def head(*sizes: int, **options: Any) -> torch.nn.Linear:
            return made.setdefault("head", linear(*sizes, **options))

        def multiples(*values: Any, **options: Any) -> Tensor:
            return made.setdefault("alpha", variable(*values, **options))

        model = SimpleNamespace(encode_image=torch.clone, dtype=torch.float32)
        with (mock.patch.object(torch.nn, "Linear", head), mock.patch.object(self.probe, "Variable", multiples),
              mock.patch.object(torch, "float16", torch.float32), contextlib.redirect_stderr(io.StringIO())):
            program = self.probe.LinearProbe_P2({"train_epoch": 300, "shots": SHOTS, "dataset": "", "output_dir": ""})
            program([(d.support, d.labels)], [(d.query[:1], d.query_labels[:1])], d.query[:1], d.query_labels[:1], d.text.T,
                    model, [])
        return (made["head"](d.query) + made["alpha"] * (d.query @ d.text.T)).detach()


def measure(official: Official, dim: int, rounds: int) -> list[list[str]]:
    """Rows of the table for features of `dim` channels."""
    d, rows = Data(dim), []
    # The program takes its smallest alpha for a search on one image that the texts get right.
    ours = {"gda": create_method("gda", alpha=1e-4), "proker": create_method("proker", beta=1.7, ridge=0.1),
            "proto_clip": create_method("proto_clip", beta=5.0), "lfa": create_method("lfa", steps=0),
            "lp_plus_plus": create_method("lp_plus_plus", variant="official")}
    for name, method in ours.items():
        theirs = getattr(official, name)
        same = float((method(d.episodes)[0].argmax(-1) == theirs(d).argmax(-1)).float().mean())
        found = interleave({"official": lambda theirs=theirs: theirs(d), "ours": lambda method=method: method(d.episodes)},
                           rounds)
        rows.append([f"{name}, one answer", str(dim), *cells(found), f"{same:.2%}"])
        print(rows[-1], file=sys.stderr)
    for name, grid in GRIDS.items():
        theirs = getattr(official, f"search_{name}")
        # The first search of a process is slower.
        search_grid(ours[name], d.episodes, d.query_labels[None], {key: values[:1] for key, values in grid.items()})
        found = interleave({"official": lambda theirs=theirs: theirs(d), "ours": lambda name=name, grid=grid: search_grid(
            ours[name], d.episodes, d.query_labels[None], grid)}, 1)
        settings = len(list(itertools.product(*grid.values())))
        rows.append([f"{name}, search of {settings}", str(dim), *cells(found), ""])
        print(rows[-1], file=sys.stderr)
    return rows


def cells(found: dict[str, list[float]]) -> list[str]:
    """Official and our milliseconds, and their ratio in the rounds."""
    ratios = [a / b for a, b in zip(found["official"], found["ours"], strict=True)]
    return [f"{1000 * statistics.median(found[side]):,.1f}" for side in ("official", "ours")] + [spread(ratios)]


def page(rows: list[list[str]], rounds: int) -> str:
    header = ["what", "D", "official, ms", "fewshot, ms", "ratio", "equal predictions"]
    return "\n".join([
        "# Speed: answers from texts and images", "",
        f"The methods beside the official programs, on synthetic features: {WAYS} classes with texts and {SHOTS} shots, "
        f"{QUERIES:,} queries, float32. An answer is everything from features to logits; medians of {rounds} interleaved "
        "rounds, the ratio with its range. A search is that of the official grid on labelled queries, once (`gda`: 7 values "
        "of alpha; `proker`: 20 of beta and 10 of its ridge; `proto_clip`: 11 of alpha and 29 of beta), by "
        "`fewshot.search_grid`. `proker` solves one system for each setting, here as there. `lfa` is without refinement; "
        "`lp_plus_plus` has its 300 steps, without the program's evaluation after each of them, and begins with a random "
        "intercept, which is another one there. Written by `python benchmarks/text_answers.py OFFICIAL --write "
        "docs/speed_text_answers.md`.", "",
        f"{datetime.date.today()}; {conditions()}.", "", *markdown(header, rows), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("official", type=Path, help="folder of clones of the official repositories")
    parser.add_argument("--dims", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cuda = (mock.patch.object(torch.Tensor, "cuda", lambda x: x), mock.patch.object(torch.nn.Module, "cuda", lambda x: x))
    with cuda[0], cuda[1], contextlib.redirect_stdout(io.StringIO()):
        official = Official(arguments.official.resolve())
        rows = [row for dim in arguments.dims for row in measure(official, dim, arguments.rounds)]
    text = page(rows, arguments.rounds)
    if arguments.write:
        arguments.write.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
