"""Trained on one data set, tested on others.

    python experiments/cross_domain.py --data-root DATA                     # the weights are in experiments/weights
    python experiments/cross_domain.py --data-root DATA --folder FOLDER     # also tested on own images, class folders
    python experiments/cross_domain.py --data-root DATA --weights FILE      # also trained elsewhere
    python experiments/cross_domain.py --data-root DATA --train             # train the weights of glyphs, Caltech-101 first

Rows: raw pixels (28 x 28); Conv-4 trained as a ProtoNet on the base classes of glyphs (as the demo does), of Omniglot (see
omniglot_background.py) and of Caltech-101, all at 28 pixels; EfficientNet-Lite0 trained on ImageNet, on images of 112
pixels. Columns: the test classes of glyphs, Omniglot and Caltech-101, 5-way 1- and 5-shot, 7 queries per class (a glyph
has 12 images), 10,000 episodes, two inductive methods and BD-CSPN, a transductive one.

Every network keeps the input it was trained with: a greyscale network sees photographs by their luma, one for colour sees
drawings with three equal channels, and images are resized to its side. Ink is light on dark in glyphs and Omniglot.
SimpleShot and BD-CSPN only normalise (L2N): their other form subtracts the mean of base classes, and those of the tested
data set are not what the network was trained on. Nothing is tuned. Tests on other classes of the data set that trained the
weights, and of ImageNet weights on Caltech-101, are marked: they are not across domains. Tests on classes that trained or
chose the weights are left out.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from fewshot.core.files import write_atomically
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.store import Store
from fewshot.experiments.published import obstacle
from fewshot.experiments.running import TrainingPlan, weights_file
from fewshot.experiments.transfer import TRAINED, Origin, domain_table
from fewshot.features.source import FeatureSource
from fewshot.training import TrainConfig

PLANS = {
    "conv4_glyphs_protonet": TrainingPlan(
        TrainConfig(method="protonet", ways=20, shots=1, queries=5, steps=2000, schedule="cosine", validate_every=250,
                    validation_episodes=300, validation_queries=7, checkpoint_every=250), "glyphs"),
    "conv4_caltech101_protonet": TrainingPlan(
        TrainConfig(method="protonet", ways=10, shots=1, queries=5, steps=1000, schedule="cosine", validate_every=250,
                    validation_episodes=200), "caltech101", data_options={"image_size": 28}),
}
FILES = [weights_file(__file__, name) for name in ("conv4_glyphs_protonet", "conv4_omniglot_background",
                                                   "conv4_caltech101_protonet")]
DATASETS = ("glyphs", "omniglot", "caltech101")
METHODS = {"protonet": {}, "simple_shot": {"norm": "l2n"}, "bd_cspn": {"norm": "l2n"}}


def sources(files: list[str]) -> list[Origin]:
    """Pixels, the weights that are there, ImageNet."""
    return [Origin.untrained("pixels", "nothing", image_size=28), *map(Origin.of_file, filter(_exists, files)),
            Origin.untrained("efficientnet_lite0", "ImageNet-1k", image_size=112)]


def runs_of(source: Origin, dataset: str, **settings) -> list:
    """Pixels are a reference: one method is enough."""
    methods = ("protonet",) if source.backbone == "pixels" else METHODS
    return [source.run(dataset, method, parameters=METHODS[method], shots=shots, queries=7, **settings)
            for method in methods for shots in (1, 5)]


def _exists(path: str) -> bool:
    return Path(path).is_file()


RUNS = [run for source in sources(FILES) for dataset in DATASETS for run in runs_of(source, dataset)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, help="folder of the data sets (default: FEWSHOT_DATA, else data)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of stored results")
    parser.add_argument("--weights", nargs="+", default=[], help="further weights, of `fewshot train` or `fewshot convert`")
    parser.add_argument("--folder", nargs="+", type=Path, default=[], help="further test images, a folder per class")
    parser.add_argument("--episodes", type=int, default=10_000, help="fewer for a trial, whose table is only printed")
    parser.add_argument("--train", action="store_true", help="train the weights of glyphs and Caltech-101 first")
    arguments = parser.parse_args()
    for name, recipe in PLANS.items() if arguments.train else ():
        result = recipe.train(arguments.runs / "training" / name, arguments.data_root)
        write_atomically(weights_file(__file__, name), result.weights.read_bytes())
    store, cache = Store(arguments.runs), arguments.runs / "cache"
    places = [(dataset, FeatureSource(arguments.data_root, cache, progress=True), {}) for dataset in DATASETS]
    places += [("folder", FeatureSource(folder, cache, progress=True), {"split": "all"}) for folder in arguments.folder]
    entries, left_out = [], []
    for source in sources([*FILES, *arguments.weights]):
        for dataset, images, settings in places:
            runs = [dataclasses.replace(run, episodes=arguments.episodes) for run in runs_of(source, dataset, **settings)]
            if (reason := obstacle(runs[0], images.root)) is not None:
                print(f"left out {source.name} on {dataset}, missing: {reason}", flush=True)
                continue
            relation = source.relation(dataset, runs[0].split, images.images(runs[0].subject).content_hash)
            if relation == TRAINED:
                left_out.append(f"Left out: {source.name} ({source.backbone}) on {dataset}, whose classes trained or chose "
                                "these weights, or may have.")
                continue
            for run in runs:
                entries.append((source, relation, evaluate(run, store=store, progress=True, source=images)))
                print(f"{source.name}: {entries[-1][2]!r} in {entries[-1][2].seconds:.0f} s", flush=True)
    table = domain_table(entries, left_out)
    table.print()
    if arguments.episodes == 10_000 and not arguments.folder and not arguments.weights:
        results = Path(__file__).parent / "results"
        write_atomically(results / "cross_domain.md", table.to_markdown().encode())
        write_atomically(results / "cross_domain.csv", table.to_csv().encode())


if __name__ == "__main__":
    main()
