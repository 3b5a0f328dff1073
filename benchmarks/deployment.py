"""`fewshot predict` beside the program that `fewshot export` writes: sizes, answers, seconds of a cold process.

    python benchmarks/deployment.py [--backbones conv4 ...] [--rounds 5] [--write docs/speed_deployment.md]
                                    [--figure docs/images/deployment.png]

For every backbone a weights file is written and a classifier of five characters of glyphs (three examples each) exported.
Then both label one image, each in a process of its own, once a round, so that a noisy machine disturbs both alike; and 60
images, whose probabilities are compared. Installed size is that of the files of the packages that are needed, and of those
that they need in turn.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import io
import os
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from common import machine, markdown
from packaging.requirements import Requirement
from PIL import Image
from processes import run

import fewshot
from fewshot.backbones import save_weights
from fewshot.core import provenance

ROOT = Path(__file__).resolve().parents[1]
BACKBONES = ("conv4", "resnet12", "resnet18", "wrn28_10", "efficientnet_lite0", "timm/mobilenetv3_small_050")
RUNNER = ("onnxruntime", "numpy", "pillow")


class Measured(NamedTuple):
    """Bytes of the files; the largest difference of a probability; (seconds, processor's seconds) of every round."""

    weights: int
    model: int
    difference: float
    predict: list[tuple[float, float]]
    classify: list[tuple[float, float]]


def characters(folder: Path) -> tuple[Path, Path]:
    """(support, queries): three examples of each of five characters; six others, and these upside down, to label."""
    bank = fewshot.load_dataset("glyphs", "test", cache=False)
    support, queries = folder / "support", folder / "queries"
    queries.mkdir(parents=True)
    for label in range(5):
        for place, row in enumerate((bank.labels == label).nonzero()[:9, 0].tolist()):
            image = Image.fromarray(bank.images[row, 0].numpy())
            if place < 3:
                (support / f"letter_{label}").mkdir(parents=True, exist_ok=True)
                image.save(support / f"letter_{label}" / f"{row}.png")
            else:
                image.save(queries / f"{row}.png")
                image.rotate(180).save(queries / f"{row}_turned.png")
    return support, queries


def probabilities(text: str) -> list[list[float]]:
    rows = csv.DictReader(io.StringIO(text))
    return [[float(value) for name, value in row.items() if name.startswith("p(")] for row in rows]


def measure(name: str, rounds: int, folder: Path) -> Measured:
    support, queries = characters(folder)
    weights = folder / "weights.safetensors"
    save_weights(fewshot.create_backbone(name), weights)
    made = fewshot.export_onnx(support, folder / "export", weights=weights)
    one = next(queries.iterdir())

    def predict(images: Path, out: str) -> tuple[float, float]:
        return run(["-m", "fewshot", "--quiet", "predict", "--support", support, "--queries", images, "--weights", weights,
                    "--out", folder / out], cwd=ROOT)[:2]

    predict(queries, "all")
    ours = probabilities((folder / "all" / "predictions.csv").read_text())
    found = probabilities(run([made.runner, queries]).output)
    difference = max(abs(a - b) for x, y in zip(ours, found, strict=True) for a, b in zip(x, y, strict=True))
    seconds: tuple[list, list] = [], []
    for _ in range(rounds):
        seconds[0].append(predict(one, "one"))
        seconds[1].append(run([made.runner, one])[:2])
    return Measured(weights.stat().st_size, made.model.stat().st_size, difference, *seconds)


def closure(names: tuple[str, ...]) -> set[str]:
    """The installed packages that these need, themselves included."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            wanted = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # of another system
            continue
        found.add(name)
        needs = map(Requirement, wanted)
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


def installed_size(names: tuple[str, ...]) -> int:
    """Bytes of the files of these packages and of what they need."""
    files = (Path(file.locate()) for name in closure(names) for file in importlib.metadata.files(name) or ())
    return sum(file.stat().st_size for file in set(files) if file.is_file())


def ratios(measured: Measured, which: int) -> list[float]:
    return [a[which] / b[which] for a, b in zip(measured.predict, measured.classify, strict=True)]


def _cell(values: list[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def page(found: dict[str, Measured], sizes: tuple[int, int], loads: tuple[float, float]) -> str:
    rounds, versions = len(next(iter(found.values())).predict), provenance.versions()
    lines = ["# Deployment: size and cold start", "",
             "`fewshot predict` beside the exported `classify.py`, on five characters of glyphs. Seconds are those of a "
             f"process that labels one image, from its start to its end: median (and range) of {rounds} interleaved rounds, "
             "files in memory; ratios are of the two processes of a round. `fewshot predict` embeds the 15 examples first. "
             "The processor's seconds depend less on what else the machine does. Differences are the largest of a "
             "probability over 60 images, as both programs print them, to six digits. Weights are random, but for "
             "those of ImageNet where a backbone has them. Installed size is that of "
             "the packages as they are here, torch's libraries for GPUs included. Written by "
             "`python benchmarks/deployment.py --write docs/speed_deployment.md`.", "",
             f"{machine()}; {torch.get_num_threads()} thread(s) of torch; Python {versions['python']}, torch "
             f"{versions['torch']}, onnxruntime {importlib.metadata.version('onnxruntime')}; load average {loads[0]:.1f} at "
             f"the start, {loads[1]:.1f} at the end.", ""]
    lines += markdown(["backbone", "weights, MB", "model.onnx, MB", "difference", "predict, s", "classify.py, s",
                       "ratio", "ratio of the processor's seconds"],
                      [[name, f"{m.weights / 1e6:.2f}", f"{m.model / 1e6:.2f}", f"{m.difference:.0e}",
                        _cell([wall for wall, _ in m.predict]), _cell([wall for wall, _ in m.classify]),
                        _cell(ratios(m, 0), 1), _cell(ratios(m, 1), 1)] for name, m in found.items()])
    whole, small = sizes
    return "\n".join([*lines, "", f"Installed, with everything that they need: fewshot {whole / 1e6:,.0f} MB; "
                      f"{', '.join(RUNNER)} {small / 1e6:,.0f} MB, a ratio of {whole / small:.0f}.", ""])


def draw(found: dict[str, Measured], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.55 * len(found) + 1), layout="constrained")
    axes, names = figure.subplots(), list(found)[::-1]
    for offset, label, field in ((0.2, "fewshot predict", "predict"), (-0.2, "classify.py", "classify")):
        seconds = [statistics.median(used for _, used in getattr(found[name], field)) for name in names]
        bars = axes.barh([place + offset for place in range(len(names))], seconds, 0.38, label=label)
        axes.bar_label(bars, [f"{value:.2f}" for value in seconds], padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("processor's seconds of a process that labels one image")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    axes.margins(x=0.1)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="write the table to this file too")
    parser.add_argument("--figure", type=Path, help="draw the seconds into this file")
    given = parser.parse_args()
    before, found = os.getloadavg()[0], {}
    for name in given.backbones:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(name, given.rounds, Path(folder))
    text = page(found, (installed_size(("fewshot",)), installed_size(RUNNER)), (before, os.getloadavg()[0]))
    print(text)
    if given.write:
        given.write.write_text(text)
    if given.figure:
        draw(found, given.figure)


if __name__ == "__main__":
    main()
