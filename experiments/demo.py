"""The main job on the embedded data set: train, evaluate, compare, report.

    python experiments/demo.py --out runs/demo

Trains a ProtoNet (Conv-4) on the base characters of `glyphs` (Latin, Greek, digits), then evaluates it beside raw pixels,
an untrained Conv-4 and other methods on characters of scripts it has never seen (Georgian, Armenian): 5-way 1- and
5-shot and 20-way 1-shot. Writes table.md, table.csv, figures and report.html. Needs no data; under five minutes on two
CPU cores. What is done already is used again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from fewshot.backbones import create_backbone
from fewshot.core.files import write_atomically
from fewshot.datasets import load_dataset
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.result import Result
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store
from fewshot.features.extract import embed_episodes
from fewshot.features.source import FeatureSource
from fewshot.methods import create_method
from fewshot.reporting.accuracy_figures import accuracy_against_shots, accuracy_dots, save_figure, training_curve
from fewshot.reporting.accuracy_tables import results_table
from fewshot.reporting.episode_figure import episode_figure
from fewshot.reporting.page import write_report
from fewshot.training import TrainConfig, TrainResult, train

PROTOCOLS = ((5, 1), (5, 5), (20, 1))
QUERIES = 7  # a class has 12 faces or more: 5 shots leave 7
EPISODES = 10_000
METHODS = ("protonet", "nearest_neighbour", "simple_shot", "matching_net", "logistic_regression", "ridge", "soft_kmeans",
           "pt_map", "laplacian_shot")
CURVE_SHOTS = (1, 2, 3, 4, 5)
TRAINING = TrainConfig(method="protonet", ways=20, shots=1, queries=5, steps=2000, schedule="cosine", validate_every=250,
                       validation_episodes=300, validation_queries=7, checkpoint_every=250)


def train_backbone(out: Path) -> TrainResult:
    base, validation = load_dataset("glyphs", "train"), load_dataset("glyphs", "val")
    backbone = create_backbone("conv4", channels=1, image_size=28, seed=TRAINING.seed)
    return train(TRAINING, base, validation, backbone, out=out)


def run_of(backbone: str, weights: Path | None, method: str, ways: int, shots: int) -> Run:
    return Run(dataset="glyphs", backbone=backbone, weights=None if weights is None else str(weights), method=method,
               ways=ways, shots=shots, queries=QUERIES, episodes=EPISODES)


def evaluate_all(weights: Path, out: Path) -> tuple[list[Result], list[Result]]:
    """(results of the table, further shots for the curve)."""
    store, source = Store(out / "results"), FeatureSource(cache=out / "cache", progress=True)
    subjects = [("pixels", None, "protonet"), ("conv4", None, "protonet"), *(("conv4", weights, m) for m in METHODS)]
    table = [evaluate(run_of(*subject, ways, shots), store=store, source=source, progress=True)
             for subject in subjects for ways, shots in PROTOCOLS]
    curve = [evaluate(run_of(*subject, 5, shots), store=store, source=source, progress=True)
             for subject in [("pixels", None, "protonet"), ("conv4", weights, "protonet"), ("conv4", weights, "pt_map")]
             for shots in CURVE_SHOTS]
    return table, curve


def draw_episode(trained: TrainResult, number: int):
    """Episode `number` of the test classes with the trained ProtoNet's predictions."""
    images = load_dataset("glyphs", "test")
    sampler = EpisodeSampler(images, ways=5, shots=1, queries=QUERIES)
    indices = sampler.indices(number, 1)
    episodes = indices.gather(images)
    with torch.inference_mode():
        predicted = create_method("protonet")(embed_episodes(episodes, trained.backbone.eval())).argmax(-1)
    # "ARMENIAN CAPITAL LETTER AYB" is Ayb: script and case are seen in the picture.
    names = [images.class_names[c].split()[-1].title() for c in indices.classes[0]]
    return episode_figure(episodes.support[0], episodes.support_labels[0], episodes.query[0], predicted[0],
                          indices.query_labels[0], names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    out = parser.parse_args().out
    trained = train_backbone(out / "training")
    print(trained)
    results, curve = evaluate_all(trained.weights, out)
    table = results_table(results)
    table.print()
    write_atomically(out / "table.md", table.to_markdown().encode())
    write_atomically(out / "table.csv", table.to_csv().encode())
    hardest = int(next(r for r in results if r.record.weights == curve[len(CURVE_SHOTS)].record.weights).correct.argmin())
    save_figure(accuracy_dots(results), out / "accuracy")  # the report draws these dots by itself
    figures = {
        "shots": (accuracy_against_shots(curve), "5-way accuracy against the number of shots."),
        "training": (training_curve(trained.history), "Training loss, and accuracy on validation characters (Cyrillic)."),
        "episode": (draw_episode(trained, 0), "Episode 0 of the test characters, predictions of the trained ProtoNet."),
        "hardest episode": (draw_episode(trained, hardest), f"Its hardest episode, number {hardest}."),
    }
    for name, (figure, _) in figures.items():
        save_figure(figure, out / name.replace(" ", "_"))
    report = write_report(out / "report.html", title="fewshot demo: characters of unseen scripts", results=results,
                          figures=figures, text=__doc__.split("\n\n")[2].replace("`", ""), commands=("make demo",))
    print(f"table, figures and report are in {out}; open {report}")


if __name__ == "__main__":
    sys.exit(main())
