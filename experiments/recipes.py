"""Training recipes and classifiers on their features: does the best head depend on how the backbone was trained?

    python experiments/recipes.py --data-root DATA                   # about 15 minutes on one CPU core, given the weights
    python experiments/recipes.py --data-root DATA --train           # first 22 trainings, three to eight minutes each

Every recipe of fewshot/training/recipes trains one backbone on Omniglot's background alphabets (Conv-4, 28 pixels, grey) and
one on 60 classes of Caltech-101 (ResNet-12 with 8, 20, 40 and 80 channels, 64 pixels); alphabets and classes of the test are
new. Optimiser, schedule, batches and augmentation are the same for all: SGD with Nesterov momentum, 0.05, cosine, weight
decay 5e-4, bfloat16; what differs is the loss, and the number of epochs, so that each takes three to eight minutes of one
CPU core. These are not the settings of the papers and the numbers are not theirs. `rfs` is the second of two generations.
Weights are the best on 1-shot validation episodes every few epochs, of `simclr` and `beclr`, which see no label, the last.
`simpleshot`, to which the others are compared, is trained with three seeds; tables of recipes show the first.

Each is evaluated with four heads at 5-way 1- and 5-shot, 10,000 episodes: nearest prototype of unit-length features
(`simple_shot`), logistic regression, soft k-means and PT-MAP, the last two transductive with balanced queries.

`results/recipes_<data set>_<shots>.md`: recipe x head, the best recipe of every head and those not told apart from it, the
ranks of the heads under every recipe, and Kendall's W, how far the recipes agree about them (arXiv:2301.12246 claims that
training and adaptation algorithms can be chosen apart from each other). `..._differences.md`: the paired differences from
`simpleshot`, head by head. `results/recipes_seeds.md`: `simpleshot` over training seeds.
"""

from __future__ import annotations

from fewshot.evaluation.result import Result, compare
from fewshot.evaluation.run import Run
from fewshot.experiments.published import find_results
from fewshot.experiments.running import TrainingPlan, run_experiment, weights_file, write_table
from fewshot.reporting.metric_tables import seeds_table
from fewshot.reporting.table import BEST, TIED, Cell, Table
from fewshot.statistics import rank
from fewshot.training import recipe_config

HEADS = {"simple_shot": {"norm": "l2n"}, "logistic_regression": {}, "soft_kmeans": {}, "pt_map": {}}
BASE = "simpleshot"
SEEDS = (0, 1, 2)  # of BASE
# Epochs of three to eight minutes on one core: (Omniglot, Caltech-101). rfs has so many in each of its two generations.
EPOCHS = {"simpleshot": (30, 12), "rfs": (14, 5), "easy": (15, 7), "s2m2": (8, 4), "baseline_pp": (30, 12),
          "nsae": (4, 2), "hct": (7, 4), "simclr": (9, 7), "beclr": (4, 3)}
PARAMETERS = {"s2m2": {"rotation_share": 0.5}, "beclr": {"clusters": 100, "cluster_size": 20, "momentum": 0.99}}
# data set -> name of the weights, data options, backbone, its options, settings of the training
PLACES = {
    "omniglot": ("conv4_omniglot", {}, "conv4", {}, {"batch_size": 128, "augmentation": "affine", "validate_every": 3}),
    "caltech101": ("resnet12_caltech101", {"image_size": 64}, "resnet12", {"width": 8, "drop_rate": 0.0},
                   {"batch_size": 64, "augmentation": "resized_crop(0.2),color_jitter(0.4),flip", "validate_every": 2})}


def name_of(recipe: str, dataset: str, seed: int = 0) -> str:
    return f"{PLACES[dataset][0]}_{recipe}" + (f"_seed{seed}" if seed else "")


def training(recipe: str, dataset: str, seed: int = 0) -> TrainingPlan:
    _, data_options, backbone, options, settings = PLACES[dataset]
    if recipe in ("simclr", "beclr"):
        settings = {**settings, "validate_every": 0}
    config = recipe_config(recipe, **{
        "epochs": EPOCHS[recipe][list(PLACES).index(dataset)], "optimiser": "sgd", "lr": 0.05, "nesterov": True,
        "weight_decay": 5e-4, "schedule": "cosine", "cycles": 1, "precision": "bfloat16", "validation_episodes": 300,
        "seed": seed, "recipe_parameters": PARAMETERS.get(recipe, {}), **settings})
    return TrainingPlan(config, dataset, data_options, backbone=backbone, backbone_options=options,
                  generations=2 if recipe == "rfs" else 1)


def run_of(recipe: str, dataset: str, head: str, shots: int, seed: int = 0) -> Run:
    _, data_options, backbone, _, _ = PLACES[dataset]
    return Run(dataset=dataset, data_options=data_options, backbone=backbone, method=head, parameters=HEADS[head],
               shots=shots, weights=weights_file(__file__, name_of(recipe, dataset, seed)))


TRAINED = [*((recipe, 0) for recipe in EPOCHS), *((BASE, seed) for seed in SEEDS[1:])]
PLANS = {name_of(recipe, dataset, seed): training(recipe, dataset, seed)
           for dataset in PLACES for recipe, seed in TRAINED}
RUNS = [run_of(recipe, dataset, head, shots, seed)
        for dataset in PLACES for recipe, seed in TRAINED for head in HEADS for shots in (1, 5)]


def recipe_table(results: dict[str, dict[str, Result]], protocol: str) -> Table:
    """TrainingPlan x head of results [recipe][head]; the ranks of the heads under every recipe behind the accuracies."""
    best = {head: max((found[head] for found in results.values()), key=lambda r: r.accuracy.mean) for head in HEADS}
    ranking = rank([[found[head].accuracy.mean for found in results.values()] for head in HEADS])

    def cell(result: Result) -> Cell:
        top = best[result.record.method]
        mark = BEST if result is top else "" if compare(top, result).significant else TIED
        return Cell(result.accuracy.mean, result.accuracy.half_width, mark, result.record.key)

    cells = []
    for found in results.values():
        order = sorted(HEADS, key=lambda head: -found[head].accuracy.mean)
        ranks = [Cell(order.index(head) + 1, factor=1, digits=0) for head in HEADS]
        cells.append((*(cell(found[head]) for head in HEADS), *ranks))
    means = [Cell(mean, factor=1, digits=2) for mean in ranking.ranks]
    notes = (f"{protocol}. Accuracy in percent ± half width of the 95 % interval over "
             f"{len(next(iter(best.values())).correct)} episodes, the same for all; it does not cover the training seed.",
             f"Ranks: of the heads under one recipe. Kendall's W of the {len(results)} recipes: {ranking.concordance:.2f} "
             f"(1: all rank the heads alike), Friedman's p {ranking.p_value:.2g}; the recipes share data and architecture.")
    return Table(("recipe",), (*((name,) for name in results), ("mean rank",)),
                 (*HEADS, *(f"rank of {head}" for head in HEADS)), (*cells, (*[None] * len(HEADS), *means)),
                 {BEST: "best recipe of the head.", TIED: "paired difference from it includes zero."}, notes, ())


def difference_table(results: dict[str, dict[str, Result]], protocol: str) -> Table:
    """TrainingPlan x head: accuracy minus that of BASE with the same head, on the same episodes."""
    cells, records = [], []
    for name, found in results.items():
        row = []
        for head in HEADS:
            if name == BASE:
                row.append(None)
                continue
            paired = compare(found[head], results[BASE][head])
            gap = paired.difference
            row.append(Cell(gap.mean, gap.half_width, "" if paired.significant else TIED, found[head].record.key))
            records.append({"recipe": name, "head": head, "difference_percent": 100 * gap.mean,
                            "half_width_percent": 100 * gap.half_width, "p_value": paired.p_value})
        cells.append(tuple(row))
    notes = (f"{protocol}. Accuracy minus that of {BASE} with the same head, percentage points ± half width of the 95 % "
             "interval of paired episodes; it does not cover the training seed.",)
    return Table(("recipe",), tuple((name,) for name in results), tuple(HEADS), tuple(cells),
                 {TIED: "the interval includes zero."}, notes, tuple(records), signed=True)


def write_tables(results: list[Result]) -> None:
    found = find_results(RUNS, results)
    for dataset in PLACES:
        for shots in (1, 5):
            rows = {recipe: {head: found.get(run_of(recipe, dataset, head, shots).key) for head in HEADS}
                    for recipe in EPOCHS}
            rows = {recipe: row for recipe, row in rows.items() if all(row.values())}
            if len(rows) < 2 or BASE not in rows:
                continue
            protocol = f"{dataset}, 5-way {shots}-shot"
            for kind, table in (("", recipe_table(rows, protocol)), ("_differences", difference_table(rows, protocol))):
                table.print()
                write_table(__file__, f"{dataset}_{shots}{kind}", table)
    seeds = [found.get(run_of(BASE, dataset, head, shots, seed).key)
             for dataset in PLACES for head in HEADS for shots in (1, 5) for seed in SEEDS]
    if all(seeds):
        table = seeds_table(seeds)
        table.print()
        write_table(__file__, "seeds", table)


if __name__ == "__main__":
    outcome = run_experiment(__file__, RUNS, rows=("backbone", "weights", "method"), plans=PLANS)
    if all(r.record.episodes == Run.episodes for r in outcome):
        write_tables(outcome)
