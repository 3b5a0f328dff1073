"""What class names add to few images: all 100 classes of Caltech-101 at once, every method with texts.

    python experiments/names_and_images.py --data-root DATA

The published division of the images (caltech101/split_zhou_Caltech101.json), protocol `all_classes`: 1 to 16 training images
a class, 10 draws, 2,465 test images. Features of EfficientNet-Lite0, names through its own classifier by MiniLM
(experiments/name_tower.py): ImageNet, on which that classifier was trained, has many of these classes, so the numbers
compare methods and are no accuracy on unseen kinds of objects. The mean that is subtracted is that of the training images.

- *validation-free*: the methods at their defaults. The scale of the texts' logits, which a model with a text tower brings
  along, is that of `name_tower`, chosen on the project's 16 validation classes, which are among these 100.
- *searched*: the grid of each paper, with the weight of the texts (0, 1/4, 1, 4) before it, on min(K, 4) validation images a
  class, anew in each draw (`searched`).
- *names exchanged*: as validation-free, each class with the name of another one: the control.

The extraction of 8,242 images comes first, once; finished runs are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

import fewshot
from fewshot.core.files import write_atomically
from fewshot.data.banks import FeatureBank
from fewshot.episodes.protocol import AllClassesProtocol
from fewshot.evaluation.result import Result, compare
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store
from fewshot.methods import METHODS
from fewshot.reporting.table import Cell, Table

ROOT = Path(__file__).resolve().parent.parent
WORDS = ROOT / "experiments" / "caltech101_words.json"
TEMPLATES = ("a photo of a {}.", "a painting of a {}.", "a drawing of a {}.", "the {}.", "a cropped photo of a {}.", "{}")
SHOTS = (1, 2, 4, 8, 16)
TEXT_SCALES = (1.0, 0.25, 4.0, 0.0)  # of equally good ones the first is taken: what the method does by itself
IMAGES = "channels(0,1280),l2"
IMAGE_ONLY = {"protonet": {}, "ridge": {}, "logistic_regression": {}, "proker": {"text_scale": 0.0}}
NAMED = ("zero_shot", "tip_adapter", "tip_x", "ape", "gda", "proker", "proto_clip", "lfa", "lp_plus_plus", "clip_adapter",
         "cross_modal", "wise_ft", "transclip")
SEARCHED = ("tip_adapter", "tip_x", "ape", "gda", "proker", "proto_clip", "lfa", "transclip")
FIXED = {"lfa": {"steps": 0}}  # a search would refine it for every value
TRAINED = {"tip_adapter": {"trained": True}, "ape": {"trained": True}}


def embedded(root: Path | None, cache: Path) -> FeatureBank:
    """The published parts, features and names in one space."""
    backbone = fewshot.create_backbone("efficientnet_lite0")
    whole = fewshot.embed(fewshot.load_dataset("caltech101", "all", root=root, protocol="zhou"), backbone, cache=cache)
    training = whole.parts == 0
    base = FeatureBank(whole.features[training], whole.labels[training], whole.class_names, "caltech101", "train",
                       whole.provenance)
    return fewshot.name_tower(backbone, whole.class_names, TEMPLATES, words=WORDS).joint(whole, base)


def rows() -> list[tuple[str, str, str, dict, str]]:
    """(kind, what the table calls it, method, parameters, transforms)."""
    found = [("images alone", f"`{name}`", name, parameters, IMAGES) for name, parameters in IMAGE_ONLY.items()]
    found += [("validation-free", f"`{name}`", name, FIXED.get(name, {}), "") for name in NAMED]
    found += [("validation-free", f"`{name}`, trained", name, parameters, "") for name, parameters in TRAINED.items()]
    for name in SEARCHED:
        grid = {"text_scale": TEXT_SCALES, **METHODS[name].searched_grid}
        parameters = {"method": name, "parameters": FIXED.get(name, {}), "grid": grid}
        found.append(("searched", f"`{name}`", "searched", parameters, ""))
    return found


def percent(result: Result) -> Cell:
    interval = result.accuracy
    return Cell(interval.mean, interval.half_width, "", result.record.key)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, help="folder that holds the data sets")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of stored results and features")
    parser.add_argument("--episodes", type=int, default=10, help="draws")
    parser.add_argument("--shots", type=int, nargs="+", default=SHOTS)
    parser.add_argument("--method", nargs="+", help="only these, printed and not written")
    options = parser.parse_args()
    bank = embedded(options.data_root, options.runs / "cache")
    order = torch.randperm(len(bank.texts), generator=torch.Generator().manual_seed(0))
    exchanged = bank.with_texts(dataclasses.replace(bank.texts, vectors=bank.texts.vectors[order], prompts=(),
                                                    prompt_vectors=None))
    wanted = rows()
    wanted += [("names exchanged", *row[1:]) for row in wanted if row[0] == "validation-free"]
    wanted = [row for row in wanted if options.method is None or row[2] in options.method]
    store, found = Store(options.runs), {}
    for number, (kind, label, method, parameters, transforms) in enumerate(wanted, 1):
        for shots in options.shots:
            run = Run(method=method, parameters=parameters, transforms=transforms, episodes=options.episodes,
                      protocol=AllClassesProtocol(shots=shots))
            data = exchanged if kind == "names exchanged" else bank
            found[kind, label, shots] = fewshot.evaluate(run, data, store=store, progress=False)
        shown = ", ".join(f"{100 * found[kind, label, shots].accuracy.mean:.1f}" for shots in options.shots)
        seconds = sum(found[kind, label, shots].seconds for shots in options.shots)
        print(f"[{number}/{len(wanted)}] {kind}, {label}: {shown} in {seconds:.0f} s", flush=True)
    if options.method is not None or options.episodes != 10 or tuple(options.shots) != SHOTS:
        return
    columns = tuple(f"{shots} shot{'s' * (shots > 1)}" for shots in SHOTS)
    named = [(kind, label) for kind, label, *_ in wanted]
    best = {shots: max((found["images alone", label, shots] for kind, label in named if kind == "images alone"),
                       key=lambda result: result.accuracy.mean) for shots in SHOTS}
    gains = []
    for kind, label in named:
        cells = []
        for shots in SHOTS:
            gap = compare(found[kind, label, shots], best[shots])
            cells.append(Cell(gap.difference.mean, gap.difference.half_width, "" if gap.significant else "†",
                              found[kind, label, shots].record.key))
        gains.append(tuple(cells))
    notes = (f"Caltech-101, published division, {options.episodes} draws of the training images, 2,465 test images; "
             "accuracy in percent ± half width of the 95 % interval over draws (Student t).",
             "EfficientNet-Lite0 was trained on ImageNet, which has many of these classes. Scale of the texts' logits: "
             f"{bank.texts.logit_scale:g}.")
    cells_of = tuple(tuple(percent(found[kind, label, shots]) for shots in SHOTS) for kind, label in named)
    accuracy = Table(("kind", "method"), tuple(named), columns, cells_of, {}, notes, ())
    difference = Table(("kind", "method"), tuple(named), columns, tuple(gains), {"†": "the interval includes zero."},
                       ("Difference in percentage points to the best method on images alone at as many shots, on the same "
                        "draws, ± half width of its 95 % interval.",), (), signed=True)
    for name, table in (("names_and_images", accuracy), ("names_and_images_gains", difference)):
        table.print()
        write_atomically(ROOT / "experiments" / "results" / f"{name}.md", table.to_markdown().encode())
    write_atomically(ROOT / "experiments" / "results" / "names_and_images.csv", accuracy.to_csv().encode())


if __name__ == "__main__":
    main()
