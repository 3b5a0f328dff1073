"""Every file of experiments/ can be read, its runs can be made, and its published numbers are those that were collected."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from fewshot.backbones import list_backbones
from fewshot.datasets import DATASETS
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.experiments.published import load_experiment
from fewshot.features.transforms import parse_transforms
from fewshot.methods.contract import create_method
from tests.conftest import SHARED

FOLDER = Path(__file__).resolve().parents[2] / "experiments"
# Which make no list of runs.
PROGRAMS = ("demo", "glyph_clip", "lake_runs", "name_tower", "names_and_images", "sinusoid", "texts_and_shots")
FILES = sorted(path for path in FOLDER.glob("*.py") if path.stem not in PROGRAMS)
PAPERS = ("alpha_tim", "beclr", "channel_importance", "clustering", "cosoc", "easy", "em_dirichlet", "free_lunch",
          "laplacian_shot", "paddle", "pt_map", "putm", "rfs", "s2m2", "simpleshot", "tim", "unem")
# Images in the smallest test class; the transductive protocols must fit into it.
SMALLEST = {"omniglot": 20, "caltech101": 31, "cub": 41, "glyphs": 12}

METHODS = {"PT-MAP": "pt_map", "TIM-GD": "tim_gd", "TIM-ADM": "tim_adm", "alpha-TIM": "alpha_tim",
           "LaplacianShot": "laplacian_shot", "BD-CSPN": "bd_cspn", "K-means": "kmeans", "K-modes": "slk_ms",
           "SLK-Means": "slk_means", "SLK-MS": "slk_ms", "PADDLE": "paddle", "EM-Dirichlet": "em_dirichlet",
           "Hard EM-Dirichlet": "hard_em_dirichlet", "UNEM-Dirichlet": "unem_dirichlet",
           "SimpleShot": "simple_shot", "RFS-simple": "logistic_regression",
           "COSOC": "cosoc", "S2M2+LR": "logistic_regression"}
DATASET_NAMES = {"miniImageNet": "mini_imagenet", "tieredImageNet": "tiered_imagenet", "CUB": "cub", "CIFAR-FS": "cifar_fs",
                 "FC100": "fc100", "Caltech101": "caltech101", "Average11": "average of 11"}
BACKBONES = {"WRN28-10 S2M2_R": "wrn28_10", "WRN28-10": "wrn28_10", "ResNet18": "resnet18", "ResNet12": "resnet12",
             "ResNet12 (MetaOpt)": "resnet12",
             "Conv64F": "conv4", "Conv4-64": "conv4"}
EASY = {"EASY 3xResNet12": "3 x resnet12", "EASY 2xResNet12(1/sqrt2)": "2 x resnet12 (1/sqrt2)", "ASY ResNet12": "resnet12"}


def translated(row: dict) -> tuple | None:
    """A row of published.csv under this project's names; None where it is not one of the papers here."""
    method, backbone = METHODS.get(row["method"]), BACKBONES.get(row["backbone"], row["backbone"])
    if row["method"] in EASY:
        method = "simple_shot" if row["setting"] == "inductive" else "easy_transductive"
        backbone = EASY[row["method"]]
    if method is None or row["dataset"] not in DATASET_NAMES:
        return None
    ways = None if row["ways"] == "all" else int(row["ways"])
    distribution = {"b": "balanced", "d": "dirichlet", "k": "k_eff"}[row["balance"][0]]
    return (method, DATASET_NAMES[row["dataset"]], backbone, ways, int(row["shots"]), distribution, float(row["accuracy"]),
            float(row["ci95"]) if row["ci95"] else None, row["source"])


def test_there_is_a_file_for_every_paper():
    assert {path.stem for path in FILES} >= set(PAPERS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_runs_are_valid(path):
    experiment = load_experiment(path)
    assert experiment.runs and len({run.key for run in experiment.runs}) == len(experiment.runs)
    assert f"python experiments/{path.name}" in path.read_text().split('"""')[1]
    for run in experiment.runs:
        assert run.split == "test"
        create_method(run.method, **run.parameters)
        parse_transforms(run.transforms)
        assert run.backbone in list_backbones()
        options = {key: value for key, value in run.data_options.items() if key != "image_size"}
        dataset = DATASETS[run.dataset](**options)
        labels = np.arange(dataset.classes.get("test", 94)).repeat(SMALLEST.get(run.dataset, 500))
        EpisodeSampler(labels, run.ways, run.shots, run.queries, run.seed, run.query_distribution, run.alpha, run.k_eff)
        if run.weights is not None:
            assert Path(run.weights).parent == FOLDER / "weights" and Path(run.weights).name.startswith(run.backbone)


def test_published_numbers_of_varying_episodes():
    """P>M>F reports nothing that has a run here; its numbers are those that were collected."""
    experiment = load_experiment(FOLDER / "pmf.py")
    assert not any(number.matches(run) for number in experiment.published for run in experiment.runs)
    assert experiment.published[0].protocol == "5-50-way variable-shot"
    file = SHARED / "published.csv"
    if not file.is_file():
        pytest.skip(f"needs the collected numbers, not found at {file}")
    names = {"P>M>F (8 domains)": "8 domains", "P>M>F (ImageNet only)": "ImageNet"}
    with file.open(newline="") as handle:
        known = [(row["dataset"], f"{row['backbone']}, {names[row['method']]}", row["ways"], float(row["accuracy"]),
                  float(row["ci95"]), row["source"]) for row in csv.DictReader(handle) if row["method"] in names]
    given = [(n.dataset, n.backbone, n.ways, n.accuracy, n.interval, n.source) for n in experiment.published]
    assert len(given) == 20 and sorted(given) == sorted(known)


@pytest.mark.parametrize("name", PAPERS)
def test_papers(name):
    """The runs on small data are there, their Dirichlet queries can be unbalanced, and published numbers have a run where
    the file does not say why not."""
    experiment = load_experiment(FOLDER / f"{name}.py")
    assert {run.dataset for run in experiment.runs} >= {"omniglot", "caltech101"}
    for run in experiment.runs:
        if run.dataset == "omniglot" and run.query_distribution == "dirichlet":
            assert run.ways * run.queries <= 2 * (20 - run.shots), "otherwise the 20 drawings make the queries balanced"
    alone = [n for n in experiment.published if not any(n.matches(run) for run in experiment.runs)]
    assert all("CLIP" in n.backbone or " x " in n.backbone for n in alone), alone
    for number in experiment.published:
        assert number.source and 0 < number.accuracy < 100 and (number.interval is None or 0 < number.interval < 2)
        create_method(number.method, **number.parameters)


def test_published_numbers_are_those_collected():
    file = SHARED / "published.csv"
    if not file.is_file():
        pytest.skip(f"needs the collected numbers, not found at {file}")
    with file.open(newline="") as handle:
        known = {row for row in map(translated, csv.DictReader(handle)) if row is not None}
    given = [(n.method, n.dataset, n.backbone, n.ways, n.shots, n.query_distribution, n.accuracy, n.interval, n.source)
             for name in PAPERS for n in load_experiment(FOLDER / f"{name}.py").published]
    assert len(given) > 100 and not [entry for entry in given if entry not in known]
    # Everything the papers' own pages report is there; the rest of the list quotes other pages.
    sources = {entry[-1] for entry in given if "CLIP" not in entry[2]}
    left = [row for row in known if row[-1] in sources and row not in given]
    assert all(row[0] in ("bd_cspn", "simple_shot") for row in left), left
