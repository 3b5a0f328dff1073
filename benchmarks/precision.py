"""What bfloat16 in the backbone gains in extraction and costs in accuracy, on data and weights at hand.

    python benchmarks/precision.py --data-root DATA

Caltech-101's test classes with EfficientNet-Lite0 at 224 pixels and with the ResNet-12 of experiments/recipes.py at 64,
Omniglot's test alphabets with the Conv-4 of experiments/omniglot_background.py. Images per second of both precisions in
turns, transform included, on as many threads as PyTorch uses; then accuracy with float32 features, and the paired
difference of those of bfloat16 on the same episodes (5-way, nearest class mean and logistic regression). Five minutes.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path

from common import conditions, interleave, markdown, rate

from fewshot.backbones.base import PRECISIONS
from fewshot.data.banks import ImageBank
from fewshot.datasets import load_dataset
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.result import compare
from fewshot.evaluation.run import Run
from fewshot.features.extract import embed
from fewshot.features.source import backbone_for

WEIGHTS = Path(__file__).parents[1] / "experiments" / "weights"
PLACES = {"caltech101, efficientnet_lite0, 224 pixels": Run(dataset="caltech101", backbone="efficientnet_lite0"),
          "caltech101, resnet12 of width 8, 64 pixels": Run(
              dataset="caltech101", backbone="resnet12", data_options={"image_size": 64},
              weights=str(WEIGHTS / "resnet12_caltech101_simpleshot.safetensors")),
          "omniglot, conv4, 28 pixels": Run(
              dataset="omniglot", backbone="conv4", weights=str(WEIGHTS / "conv4_omniglot_background.safetensors"))}
METHODS = ("simple_shot", "logistic_regression")
ROUNDS, SOME = 3, 256  # images of a round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path)
    arguments = parser.parse_args()
    rows = []
    for label, run in PLACES.items():
        images = load_dataset(run.dataset, "test", root=arguments.data_root, **run.data_options)
        backbone = backbone_for(run.subject, images)
        some = ImageBank(images.images[:SOME], images.labels[:SOME])
        seconds = interleave({precision: partial(embed, some, backbone, progress=False, precision=precision)
                              for precision in PRECISIONS}, ROUNDS)
        speed = {precision: SOME / statistics.median(found) for precision, found in seconds.items()}
        banks = [embed(images, backbone, progress=False, precision=precision) for precision in PRECISIONS]
        queries = 5 if run.dataset == "omniglot" else 15
        for method in METHODS:
            parameters = {"norm": "l2n"} if method == "simple_shot" else {}
            for shots in (1, 5):
                exact, short = (evaluate(Run(method=method, parameters=parameters, shots=shots, queries=queries), bank)
                                for bank in banks)
                gap = compare(short, exact).difference
                rows.append([label, f"{method}, {shots}-shot", rate(speed["float32"]), rate(speed["bfloat16"]),
                             exact.accuracy.percent(), f"{100 * gap.mean:+.3f} ± {100 * gap.half_width:.3f}"])
    print(conditions())
    print("\n".join(markdown(["features", "classifier", "float32 images/s", "bfloat16 images/s", "accuracy, float32",
                              "bfloat16 minus float32"], rows, 2)))


if __name__ == "__main__":
    main()
