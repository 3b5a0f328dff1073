"""Names and a few images together: methods that train on features with texts, and texts as further shots of other methods.

    python experiments/texts_and_shots.py       # a quarter of an hour on one core; the weights come with the package

All 279 test letters of `named_glyphs` at once, with the features and names of `glyph_clip` (experiments/glyph_clip.py),
which has read the words of these names but not together. Each method with its default hyper-parameters; of these the
learning rates of `clip_adapter` and `prograd` were chosen on the validation letters. AMU-Tuning has the pixels as the
features of a second network. 20 draws of the images, 3 queries a letter.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd

import fewshot
from fewshot.core import provenance
from fewshot.core.bars import tqdm
from fewshot.core.files import write_atomically
from fewshot.data.banks import FeatureBank, concatenate
from fewshot.evaluation.run import Run

ROOT = Path(__file__).resolve().parent.parent
SHOTS = (1, 4)
SOUP = {"runs": 4, "dropout": 0.3}
IMAGES = {"simple_shot": {"norm": "l2n"}, "logistic_regression": {}, "ridge": {}}
# (what the table calls it, method, parameters, transforms)
ROWS: list[tuple[str, str, dict[str, Any], str]] = [("names alone: `zero_shot`", "zero_shot", {}, "")]
ROWS += [(f"images alone: `{name}`", name, parameters, "") for name, parameters in IMAGES.items()]
ROWS += [(f"`{name}` after `text_shots`", name, parameters, "text_shots") for name, parameters in IMAGES.items()]
ROWS += [("`wise_ft`", "wise_ft", {}, ""), ("`wise_ft`, alpha=1", "wise_ft", {"alpha": 1.0}, ""),
         ("`wise_ft`, mean of 4 runs", "wise_ft", SOUP, ""),
         ("`wise_ft`, Model Stock of 4 runs", "wise_ft", {**SOUP, "soup": "stock", "alpha": 1.0}, ""),
         ("`cross_modal`", "cross_modal", {}, ""), ("`prograd`", "prograd", {}, ""),
         ("`prograd`, conflict=0", "prograd", {"conflict": 0.0}, ""), ("`clip_adapter`", "clip_adapter", {}, ""),
         ("`tes`", "tes", {}, ""), ("`amu`, with pixels", "amu", {}, "")]
ALPHAS = tuple(step / 10 for step in range(11))


def banks() -> tuple[FeatureBank, FeatureBank]:
    """(the test letters with their names, the same with pixels as further channels)."""
    images, model = fewshot.load_dataset("named_glyphs"), fewshot.create_backbone("glyph_clip")
    bank = fewshot.embed(images, model, progress=False)
    bank = bank.with_texts(fewshot.class_texts(model, images.class_names, "{}"))
    return bank, concatenate([bank, fewshot.embed(images, fewshot.create_backbone("pixels"), progress=False)])


def measured(episodes: int) -> pd.DataFrame:
    """A row for each method and number of shots."""
    bank, with_pixels = banks()
    curve = [(f"alpha={alpha:g}", "wise_ft", {"alpha": alpha}, "") for alpha in ALPHAS]
    rows = []
    for (name, method, parameters, transforms), shots in tqdm(list(itertools.product(ROWS + curve, SHOTS)), desc="methods"):
        run = Run(method=method, parameters=parameters, transforms=transforms, ways=len(bank.class_names), shots=shots,
                  queries=3, episodes=episodes)
        found = fewshot.evaluate(run, with_pixels if method == "amu" else bank).accuracy
        rows.append({"name": name, "shots": shots, "accuracy": found.mean, "half_width": found.half_width, "n": found.n})
    return pd.DataFrame(rows)


def table(found: pd.DataFrame) -> str:
    """Markdown: a row for each method, a column for each number of shots."""
    lines = ["| method | " + " | ".join(f"{shots}-shot" for shots in SHOTS) + " |", "|---" + "|---:" * len(SHOTS) + "|"]
    for name, *_ in ROWS:
        part = found[found.name == name].set_index("shots")
        cells = [f"{100 * part.accuracy[shots]:.1f} ± {100 * part.half_width[shots]:.1f}" for shots in SHOTS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(found: pd.DataFrame) -> bytes:
    """Accuracy of wise_ft from zero-shot to the trained head, beside names alone and images alone."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(SHOTS), figsize=(8, 3.2), sharey=True, layout="constrained")
    for axis, shots in zip(axes, SHOTS, strict=True):
        part = found[found.shots == shots].set_index("name")
        curve = part.loc[[f"alpha={alpha:g}" for alpha in ALPHAS]]
        axis.errorbar(ALPHAS, 100 * curve.accuracy, 100 * curve.half_width, marker="o", markersize=3, capsize=2,
                      label="wise_ft")
        for row, label, style in ((0, "names alone (zero_shot)", ":"), (1, "images alone (simple_shot)", "--"),
                                  (4, "simple_shot after text_shots", "-.")):
            axis.axhline(100 * part.accuracy[ROWS[row][0]], color="0.4", linestyle=style, label=label)
        axis.set(title=f"{shots}-shot, 279 letters", xlabel="alpha: 0 zero-shot, 1 trained head")
    axes[0].set(ylabel="accuracy in %")
    axes[1].legend(loc="lower right", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    plt.close(figure)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=20, help="draws of the images")
    parser.add_argument("--results", type=Path, help="folder of table and picture; by default those of the repository")
    options = parser.parse_args()
    found = measured(options.episodes)
    print(table(found))
    note = (f"Accuracy in % on all 279 test letters, with its 95 % interval over {options.episodes} draws of support and "
            f"queries (n = {options.episodes}). Weights {fewshot.create_backbone('glyph_clip').weights_id[:16]}; commit "
            f"{provenance.commit()}, {json.dumps(provenance.versions())}")
    results = options.results or ROOT / "experiments" / "results"
    write_atomically(results / "texts_and_shots.md", f"{table(found)}\n\n{note}\n".encode())
    write_atomically(results / "texts_and_shots.csv", found.to_csv(index=False, float_format="%.6g").encode())
    write_atomically((options.results or ROOT / "docs" / "images") / "texts_and_shots.png", picture(found))


if __name__ == "__main__":
    main()
