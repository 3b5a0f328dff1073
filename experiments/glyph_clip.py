"""A small CLIP trained on letters and their names (Radford et al. 2021, arXiv:2103.00020, method): zero-shot by names never
seen.

    python experiments/glyph_clip.py            # a minute: the weights come with the package
    python experiments/glyph_clip.py --train    # trains them again, ten minutes on one core; no data needed

`glyph_clip` is trained on the 854 base letters of `named_glyphs` and their names in Unicode, contrastively: a batch is 256
different letters, so that no caption is in it twice, each in one face, turned, moved, stretched, made thicker or thinner.
Its weights are those after the step with the best accuracy on the validation letters, of 141 at once.

Tested on 279 letters with marks whose words it has read, but not together (LATIN SMALL LETTER U WITH ACUTE: other marks on
U, an acute on other letters), and on letters of scripts whose words it has not read. As controls the same texts with the
words of the vocabulary exchanged for one another, and few-shot classification of the same features without texts.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import io
import json
import math
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from open_clip.loss import ClipLoss
from torch import Tensor
from torch.nn import functional as F

import fewshot
from fewshot.backbones import save_weights
from fewshot.backbones.glyph_clip import WEIGHTS, known_words
from fewshot.backbones.seen import seen_data
from fewshot.backbones.two_towers import TwoTowers
from fewshot.core import provenance
from fewshot.core.bars import tqdm
from fewshot.core.files import write_atomically
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.statistics import Interval, mean_interval

ROOT = Path(__file__).resolve().parent.parent
STEPS, BATCH, RATE, DECAY, WARM_UP, EVERY = 1000, 256, 2e-3, 0.2, 100, 100
LARGEST_SCALE = math.log(100)  # as CLIP's
PERMUTATIONS = 20


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images [B, 1, H, W] in [0, 1], each turned by up to 8 degrees, moved by up to 5 % of the side, scaled and sheared by
    up to 12 %, and with thicker or thinner strokes."""
    def uniform(size: float) -> Tensor:
        return (torch.rand(len(images), generator=generator) * 2 - 1) * size

    angle, wide, high = uniform(0.14), 1 + uniform(0.12), 1 + uniform(0.12)
    rows = (torch.stack([angle.cos() * wide, uniform(0.12) - angle.sin(), uniform(0.1)], 1),
            torch.stack([angle.sin(), angle.cos() * high, uniform(0.1)], 1))
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, align_corners=False)
    thicker, thinner = F.max_pool2d(images, 3, 1, 1), -F.max_pool2d(-images, 3, 1, 1)
    weight = uniform(0.5)[:, None, None, None]
    return (images + weight.clamp(min=0) * (thicker - images) - weight.clamp(max=0) * (thinner - images)).clamp(0, 1)


def every_letter(bank: FeatureBank) -> Tensor:
    """[M] whether the nearest of all texts is that of the image's class."""
    assert bank.texts is not None
    features = F.normalize(bank.features, dim=1)
    return (features @ bank.texts.vectors.T).argmax(1) == bank.labels


def embedded(model: TwoTowers, images: ImageBank) -> FeatureBank:
    bank = fewshot.embed(images, model, batch_size=256, progress=False)
    return bank.with_texts(fewshot.class_texts(model, images.class_names, "{}"))


def train(steps: int, seed: int = 0) -> tuple[TwoTowers, dict[str, Any]]:
    """(the model after its best step, how it came about)."""
    base, validation = (fewshot.load_dataset("named_glyphs", split) for split in ("train", "val"))
    model: Any = fewshot.create_backbone("glyph_clip", weights="random", seed=seed).train()
    net, loss_of, generator = model.net, ClipLoss(), torch.Generator().manual_seed(seed)
    matrices = [value for value in net.parameters() if value.ndim > 1]
    others = [value for value in net.parameters() if value.ndim <= 1]
    optimiser = torch.optim.AdamW([{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}],
                                  lr=RATE, betas=(0.9, 0.98), eps=1e-6)
    tokens, sizes = model.tokens(list(base.class_names)), base.class_sizes()
    first = sizes.cumsum(0) - sizes  # a bank's images are sorted by class
    best, kept, curve, begun = -1.0, {}, [], time.perf_counter()
    for step in tqdm(range(1, steps + 1), desc="glyph_clip"):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1, step / WARM_UP) * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
        letters = torch.randperm(len(sizes), generator=generator)[:BATCH]
        rows = first[letters] + (torch.rand(BATCH, generator=generator) * sizes[letters]).long()
        images = model.transform(augmented(base.images[rows].float() / 255, generator))
        with torch.autocast("cpu", torch.bfloat16):
            seen, read = net.encode_image(images), net.encode_text(tokens[letters])
        loss = loss_of(F.normalize(seen.float(), dim=1), F.normalize(read.float(), dim=1), net.logit_scale.exp())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            net.logit_scale.clamp_(max=LARGEST_SCALE)
        if step % EVERY == 0 or step == steps:
            accuracy = float(every_letter(embedded(model, validation)).float().mean())
            curve.append([step, round(float(loss.detach()), 4), round(accuracy, 4)])
            print(f"step {step}: loss {loss:.3f}, {accuracy:.1%} of the validation images among "
                  f"{len(validation.class_names)} letters", flush=True)
            if accuracy > best:
                best, kept = accuracy, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(kept)
    about = {"steps": steps, "batch": BATCH, "learning_rate": RATE, "weight_decay": DECAY, "warm_up": WARM_UP, "seed": seed,
             "optimiser": "AdamW (0.9, 0.98)", "schedule": "cosine", "precision": "bfloat16", "loss": "open_clip ClipLoss",
             "curve": curve, "minutes": round((time.perf_counter() - begun) / 60, 1), "versions": provenance.versions(),
             "commit": provenance.commit(), "seen": [seen_data("trained", base), seen_data("chosen", validation)]}
    return model.eval(), about


def exchanged(names: list[str], seed: int) -> list[str]:
    """The names with every word of the vocabulary replaced by another one of it, the same one everywhere."""
    words = known_words()
    other = dict(zip(words, np.random.default_rng(seed).permutation(words), strict=True))
    return [" ".join(other.get(word, word) for word in name.lower().split()) for name in names]


def measured(model: TwoTowers, episodes: int) -> tuple[pd.DataFrame, dict[str, FeatureBank]]:
    """(a row for each test, method and number of ways, the banks of the tests)."""
    rows, banks = [], {}
    for test in ("compositions", "scripts"):
        bank = banks[test] = embedded(model, fewshot.load_dataset("named_glyphs", protocol=test))
        names = list(bank.class_names)
        swapped = [bank.with_texts(fewshot.class_texts(model, exchanged(names, seed), "{}"))
                   for seed in range(PERMUTATIONS)]

        def add(method: str, ways: int, found: Interval, over: str, test: str = test) -> None:
            rows.append({"test": test, "method": method, "ways": ways, "accuracy": found.mean,
                         "half_width": found.half_width, "n": found.n, "over": over})

        for ways in (5, 20):
            run = fewshot.Run(ways=ways, shots=1, queries=3, episodes=episodes)
            by_names = dataclasses.replace(run, method="zero_shot")
            by_shots = dataclasses.replace(run, method="simple_shot", parameters={"norm": "l2n"})
            for name, asked in (("names", by_names), ("1 shot, SimpleShot", by_shots)):
                add(name, ways, fewshot.evaluate(asked, bank).over_classes, "classes")
            fewer = dataclasses.replace(by_names, episodes=max(2, episodes // PERMUTATIONS))
            add("words exchanged", ways, mean_interval([fewshot.evaluate(fewer, each).accuracy.mean for each in swapped]),
                "permutations")
        hits = every_letter(bank).double()
        by_class = torch.zeros(len(names), dtype=torch.float64).index_add(0, bank.labels, hits) / bank.class_sizes()
        add("names", len(names), mean_interval(by_class.numpy()), "classes")
        add("words exchanged", len(names), mean_interval([float(every_letter(each).double().mean()) for each in swapped]),
            "permutations")
    return pd.DataFrame(rows), banks


def table(found: pd.DataFrame) -> str:
    """Markdown: a row for each test and method, a column for each number of ways."""
    lines = ["| test | by | 5-way | 20-way | all letters |", "|---|---|---:|---:|---:|"]
    for (test, method), part in found.groupby(["test", "method"], sort=False):
        cells = [f"{100 * row.accuracy:.1f} ± {100 * row.half_width:.1f}" + (f" ({row.ways})" if row.ways > 20 else "")
                 for row in part.itertuples()]
        lines.append(f"| {test} | {method} | {' | '.join([*cells, ''][:3])} |")
    return "\n".join(lines)


def picture(bank: FeatureBank, images: ImageBank) -> bytes:
    """Letters of the test with the three names that are nearest, right ones in green."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    assert bank.texts is not None
    scores = F.normalize(bank.features, dim=1) @ bank.texts.vectors.T
    classes = np.random.default_rng(0).permutation(len(bank.class_names))[:8]
    figure, axes = plt.subplots(2, 4, figsize=(13, 5.8), layout="constrained")
    for axis, label in zip(axes.flat, classes.tolist(), strict=True):
        row = int((bank.labels == label).nonzero()[0])
        axis.imshow(images.images[row, 0], cmap="gray_r")
        axis.set(xticks=[], yticks=[])
        for place, near in enumerate(scores[row].topk(3).indices.tolist()):
            axis.text(0.5, -0.08 - 0.11 * place, bank.class_names[near].lower(), transform=axis.transAxes, ha="center",
                      va="top", fontsize=8, color="tab:green" if near == label else "0.35",
                      weight="bold" if near == label else "normal")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=80)
    plt.close(figure)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", action="store_true", help="train the weights again, and put them into the package")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training")
    parser.add_argument("--episodes", type=int, default=10_000, help="of the test")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="file to train into, or to test")
    parser.add_argument("--results", type=Path, help="folder of table and picture; by default those of the repository")
    options = parser.parse_args()
    if options.train:
        trained, about = train(options.steps)
        save_weights(copy.deepcopy(trained).half(), options.weights, about)
    model: Any = fewshot.create_backbone("glyph_clip", weights=options.weights)
    found, banks = measured(model, options.episodes)
    results = options.results or ROOT / "experiments" / "results"
    pictures = options.results or ROOT / "docs" / "images"
    print(table(found))
    note = (f"Accuracy in %, with its 95 % interval: by names and by shots over classes (n = "
            f"{', '.join(str(len(bank.class_names)) for bank in banks.values())}; {options.episodes:,} episodes), with the "
            f"words exchanged over {PERMUTATIONS} permutations of the vocabulary. Weights {model.weights_id[:16]}; commit "
            f"{provenance.commit()}, {json.dumps(provenance.versions())}")
    write_atomically(results / "glyph_clip.md", f"{table(found)}\n\n{note}\n".encode())
    write_atomically(results / "glyph_clip.csv", found.to_csv(index=False, float_format="%.6g").encode())
    write_atomically(pictures / "glyph_clip.png", picture(banks["compositions"], fewshot.load_dataset("named_glyphs")))


if __name__ == "__main__":
    main()
