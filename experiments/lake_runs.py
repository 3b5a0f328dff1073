"""The 20 published one-shot runs on Omniglot (Lake, Salakhutdinov, Tenenbaum 2015, Science 350:1332).

    python experiments/lake_runs.py --data-root DATA    # a minute: the weights are in experiments/weights

A run has 20 characters of one alphabet of the evaluation set, drawn once by one person (`training`) and once by another
(`test`); two runs each for ten alphabets. The list is published as images, `all_runs.zip` with runNN/training/classNN.png,
runNN/test/itemNN.png and runNN/class_labels.txt, in the folder one-shot-classification of the repository of the data set:
put it, or the folders in it, beside images_evaluation.zip as all_runs.zip or all_runs. Each of its 800 images is a drawing
of the evaluation set; it is looked up by its pixels, and RUNS/lake_runs.csv has the list as `fewshot episodes import` reads
it.

Backbone: Conv-4 trained on background alphabets only (omniglot_background.py). Within an alphabet characters are more
alike than in episodes over all alphabets (93.2 % for protonet, 20-way 1-shot). Twenty runs leave an interval of three
points, of one query for each class. Transductive methods that assume balanced queries are told more than the task tells:
that each character is asked for exactly once.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

from fewshot.core.errors import FewshotError
from fewshot.core.files import write_atomically
from fewshot.datasets import load_dataset
from fewshot.datasets.base import DATASETS, default_root
from fewshot.datasets.files import open_tree
from fewshot.datasets.images import decode
from fewshot.episodes.imported import import_episodes
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store
from fewshot.experiments.running import weights_file
from fewshot.features.source import FeatureSource
from fewshot.reporting.accuracy_tables import results_table

SIDE = 105  # of the published drawings, in pixels
WEIGHTS = weights_file(__file__, "conv4_omniglot_background")
SUBJECTS = (("pixels", None, "protonet", {}), ("conv4", WEIGHTS, "protonet", {}),
            ("conv4", WEIGHTS, "nearest_neighbour", {}), ("conv4", WEIGHTS, "simple_shot", {"norm": "l2n"}),
            ("conv4", WEIGHTS, "logistic_regression", {}), ("conv4", WEIGHTS, "soft_kmeans", {}),
            ("conv4", WEIGHTS, "pt_map", {}))


def as_text(published: Path, root: Path | None) -> bytes:
    """The runs in the archive or folder `published` as CSV of paths. Raises FewshotError where an image is no drawing of the
    evaluation set or is several, or where class_labels.txt says another class than the drawings."""
    drawings = load_dataset("omniglot", "test", root=root, image_size=SIDE)
    known: dict[bytes, list[int]] = {}
    for row, image in enumerate(drawings.images.numpy()):
        known.setdefault(image.tobytes(), []).append(row)
    tree = open_tree(published)
    names = {"/".join(name.split("/")[-3:]): name for name in tree.names()}  # images only

    def row_of(name: str) -> int:
        if name not in names:
            raise FewshotError(f"{published} lacks {name}; unpack or download it again")
        found = known.get((255 - decode(tree.read(names[name]), SIDE, 1)).tobytes(), [])
        if len(found) != 1:
            raise FewshotError(f"{tree.where(names[name])} is {len(found)} of the drawings of the evaluation set; one was "
                               "expected")
        return found[0]

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("episode", "role", "item"))
    prefix = next(iter(names.values())).removesuffix(next(iter(names)))  # of an archive with one more folder around
    for number in range(1, 21):
        run = f"run{number:02d}"
        for line in tree.read(f"{prefix}{run}/class_labels.txt").decode().split("\n"):
            if line.strip():
                query, support = map(row_of, line.split())
                if drawings.labels[query] != drawings.labels[support]:
                    raise FewshotError(f"{line.strip()!r} in {published} pairs drawings of two characters")
                for role, row in (("support", support), ("query", query)):
                    writer.writerow((run, role, drawings.files[row]))
    return text.getvalue().encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, help="folder of the data sets (default: FEWSHOT_DATA, else data)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of stored results")
    arguments = parser.parse_args()
    where = DATASETS["omniglot"]().require(default_root(arguments.data_root))
    published = next((where / name for name in ("all_runs", "all_runs.zip") if (where / name).exists()), None)
    if published is None:
        raise SystemExit(f"no all_runs.zip in {where}; the head of {Path(__file__).name} says where it is published")
    text, listed = arguments.runs / "lake_runs.csv", arguments.runs / "lake_runs.safetensors"
    write_atomically(text, as_text(published, arguments.data_root))
    import_episodes(text, load_dataset("omniglot", "test", root=arguments.data_root)).save(listed)
    store = Store(arguments.runs)
    source = FeatureSource(arguments.data_root, arguments.runs / "cache", progress=True)
    runs = [Run(dataset="omniglot", backbone=backbone, weights=weights, method=method, parameters=parameters)
            for backbone, weights, method, parameters in SUBJECTS]  # the file says which episodes
    table = results_table([evaluate(run, episodes_file=listed, store=store, source=source) for run in runs],
                          rows=("backbone", "method"))
    table.print()
    results = Path(__file__).parent / "results"
    write_atomically(results / "lake_runs.md", table.to_markdown().encode())
    write_atomically(results / "lake_runs.csv", table.to_csv().encode())


if __name__ == "__main__":
    main()
