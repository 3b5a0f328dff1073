"""The command line as a user meets it. A mistake is one line on stderr and exit code 2, never a traceback."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewshot import __version__, list_methods
from fewshot.cli.main import main
from fewshot.cli.options import method_names
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.features import extract
from fewshot.training import TrainingInterrupted

EVAL = ["eval", "--backbone", "pixels", "--episodes", "60", "--queries", "5"]
TRAIN = ["train", "--steps", "6", "--ways", "3", "--queries", "2", "--config", "validate_every=0", "--config",
         "checkpoint_every=2"]


@pytest.fixture(scope="session")
def glyph_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch, glyph_cache):
    """Commands write into an empty folder, find no data there, and share one thread; glyphs are rendered once."""
    monkeypatch.setenv("FEWSHOT_CACHE", str(glyph_cache))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEWSHOT_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def features(tmp_path_factory):
    """A small feature bank on disk."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(8).repeat_interleave(12)
    centres = torch.randn(8, 6, generator=generator)
    bank = FeatureBank(centres[labels] + torch.randn(96, 6, generator=generator), labels, name="toy", split="test",
                       provenance={"backbone": "resnet18", "weights_id": "a" * 64, "pretrained_on": None})
    return str(bank.save(tmp_path_factory.mktemp("bank") / "toy.safetensors"))


@pytest.fixture
def run(capsys):
    """Call the entry point as the shell does: (exit code, stdout, stderr)."""
    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return call


@pytest.fixture
def mistake(run):
    """The one line that a mistaken command answers with."""
    def call(*arguments: str) -> str:
        code, out, err = run(*arguments)
        assert code == 2 and "Traceback" not in err, err
        return err.partition("error: ")[2].rstrip("\n")  # a finished progress bar may stand before it

    return call


def images_in(folder, classes=4, each=9):
    generator = np.random.default_rng(0)
    for name in range(classes):
        (folder / f"class{name}").mkdir(parents=True)
        for number in range(each):
            pixels = np.clip(generator.normal(60 * name, 20, (12, 12, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class{name}" / f"{number}.png")


def test_the_main_job_in_processes_of_its_own(tmp_path):
    """eval on glyphs with pixels, its JSON, and a second call that finds the finished runs."""
    command = [sys.executable, "-m", "fewshot", *EVAL, "--json", "out.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    records = json.loads((tmp_path / "out.json").read_text())
    assert [r["run"]["shots"] for r in records] == [1, 5]
    assert 0.6 < records[0]["accuracy"] < records[1]["accuracy"] < 1 and records[0]["interval95"] > 0
    assert records[0]["run"]["weights"] == "none"
    assert f"{100 * records[0]['accuracy']:.2f} ± {100 * records[0]['interval95']:.2f}" in done.stdout
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {records[0]["key"], records[1]["key"], "cache"}


@pytest.mark.slow
def test_training_is_interrupted_and_resumed(tmp_path, run):
    command = [sys.executable, "-m", "fewshot", *TRAIN, "--config", "steps=100000", "--out", "interrupted"]
    command[command.index("--steps"):command.index("--steps") + 2] = []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started = time.monotonic()
    while not list(tmp_path.glob("interrupted/checkpoints/*.pt")) and process.poll() is None:
        assert time.monotonic() - started < 100, "no checkpoint was written"
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "interrupted by SIGTERM at step" in err and "resume with the same command" in err and "Traceback" not in err
    code, out, err = run(*TRAIN, "--out", "interrupted")
    assert code == 2 and "steps: 100000 there, 6 here" in err, "another run must not be continued by accident"
    code, out, err = run(*TRAIN, "--out", "interrupted", "--no-resume")
    assert code == 0 and "6 steps (all steps)" in out and (tmp_path / "interrupted" / "weights.safetensors").is_file()
    assert run(*TRAIN, "--out", "interrupted")[1] == out, "a finished run is returned"


@pytest.mark.slow
def test_supervised_training(tmp_path, run):
    images_in(tmp_path / "mine", classes=6)
    rows = [f"class{n},{'train' if n < 3 else 'val'}" for n in range(6)]
    (tmp_path / "splits.csv").write_text("\n".join(["class,split", *rows]))
    command = ["train", "--dataset", "./mine", "--data-option", "splits=splits.csv", "--recipe", "cross_entropy", "--epochs",
               "1", "--config", "validation_episodes=20", "--config", "validation_ways=3", "--config",
               "validation_queries=2", "--config", "head=cosine", "--out", "classes"]
    code, out, err = run(*command)
    assert code == 0 and "steps (all steps)" in out and "validation accuracy" in out, err
    settings = json.loads((tmp_path / "classes" / "result.json").read_text())["run"]["config"]
    assert (settings["recipe"], settings["head"], settings["lr"], settings["epochs"]) == ("cross_entropy", "cosine", 0.05, 1)
    assert run(*command)[1] == out, "a finished run is returned"
    command = [part for part in command if part != "head=cosine"][:-3]
    command[command.index("cross_entropy")] = "rfs"
    code, out, err = run(*command, "--generations", "2", "--set", "temperature=2", "--out", "born_again")
    assert code == 0 and "born_again/weights.safetensors" in out, err
    stored = json.loads((tmp_path / "born_again" / "result.json").read_text())["run"]
    assert stored["config"]["milestones"] == [60, 80] and stored["config"]["lr"] == 0.05
    assert stored["config"]["recipe_parameters"] == {"temperature": 2} and "temperature=2" in stored["method"]
    first = json.loads((tmp_path / "born_again" / "generation_1" / "result.json").read_text())["run"]
    assert "no teacher" in first["method"]


def test_results_are_compared_tabulated_and_reported(tmp_path, run, features):
    code, out, _ = run("eval", "--features", features, "--method", "protonet, soft_kmeans", "--shots", "1,2", "--queries",
                       "4", "--episodes", "80", "--query-distribution", "balanced,dirichlet", "--runs", "store")
    assert code == 0 and out.count("protonet") >= 1 and "Dirichlet(2)" in out and "resnet18" in out
    keys = {(r["run"]["method"], r["run"]["shots"], r["run"]["query_distribution"]): key for key, r in stored(tmp_path)}
    assert len(keys) == 8
    pair = [keys["protonet", 1, "balanced"], keys["soft_kmeans", 1, "balanced"]]
    code, out, _ = run("compare", *pair, "--runs", "store")
    assert code == 0 and "80 paired episodes" in out
    assert run("compare", pair[0][:12], f"store/{pair[1]}", "--runs", "store")[1] == out, "a key's start or a path will do"
    forms = {"terminal": "5-way 1-shot", "markdown": "| ---", "csv": "accuracy_percent", "latex": r"\toprule"}
    for form, part in forms.items():
        code, out, _ = run("table", "--runs", "store", "--format", form)
        assert code == 0 and part in out
    code, out, _ = run("report", "--runs", "store", "--out", "pages/report.html", "--title", "Mine")
    page = (tmp_path / "pages" / "report.html").read_text()
    assert code == 0 and "<h1>Mine</h1>" in page and "Accuracy against shots." in page


def test_metrics_plans_and_ranks(tmp_path, run, features, mistake):
    """The statistics of stored results, from one evaluation with open queries and calibration."""
    bank = FeatureBank.load(features)
    FeatureBank(bank.features, bank.labels, name="toy", split="val").save("val.safetensors")
    code, out, _ = run("eval", "--features", features, "--method", "protonet,nearest_neighbour,soft_kmeans", "--shots", "1",
                       "--queries", "4", "--episodes", "80", "--open-classes", "2", "--open-queries", "3", "--calibrate",
                       "--calibration-features", "val.safetensors")
    assert code == 0 and "2 open classes" in out and "AUROC" in out and "ECE" in out and "temperature" in out
    keys = [path.parent.name for path in sorted(tmp_path.glob("runs/*/run.json"))]
    code, out, _ = run("compare", *keys)
    assert code == 0 and "p (Holm)" in out and "over classes" in out and "critical difference" in out
    assert "mean rank" in run("compare", *keys, "--ranks")[1] and "NLL" in run("table", "--metrics")[1]
    assert "novel classes" in run("table", "--interval", "classes")[1]
    code, out, _ = run("plan", *keys[:2], "--difference", "0.5")
    words = out.split()
    assert code == 0 and int(words[0]) > 100 and "times as many" in out and "0.8" in out
    assert "a plan is for two" in mistake("plan", *keys, "--difference", "1")
    assert "positive" in mistake("plan", *keys[:2], "--difference", "0")
    assert "one at a time" in mistake("table", "--metrics", "--over-seeds")
    assert "1 result; a spread" in mistake("table", "--over-seeds")


@pytest.mark.slow
def test_lists_of_queries_and_alphas_and_their_figure(tmp_path, run, features, mistake):
    small = ["eval", "--features", features, "--shots", "1", "--episodes", "20"]
    code, out, _ = run(*small, "--queries", "3", "--query-distribution", "balanced,dirichlet", "--alpha", "0.5,2,8",
                       "--figure", "figures/alpha")
    assert len(set(re.findall(r"Dirichlet\([\d.]+\)", out))) == 3
    assert code == 0 and "wrote figures/alpha.png and figures/alpha.pdf" in out
    assert len(list(tmp_path.glob("runs/*/run.json"))) == 4, "alpha means nothing for balanced queries"
    assert Image.open("figures/alpha.png").format == "PNG"
    assert "--figure f, but no list" in mistake(*small, "--queries", "3", "--figure", "f")
    code, out, _ = run(*small, "--queries", "2,4", "--ways", "3", "--figure", "queries")
    assert code == 0 and "Queries per class: 2, 4." in out and (tmp_path / "queries.pdf").is_file()


def test_episodes_are_saved_shown_and_evaluated_elsewhere(tmp_path, run, features, mistake):
    protocol = ["--ways", "4", "--shots", "2", "--queries", "3", "--episodes", "30", "--seed", "7"]
    code, out, _ = run("episodes", "save", "--features", features, *protocol, "--out", "list.safetensors")
    assert code == 0 and "wrote list.safetensors: 30 episodes, fingerprint" in out
    fingerprint = out.split()[-1]
    code, out, _ = run("episodes", "show", "list.safetensors")
    assert code == 0 and "30 episodes of toy, split test (96 items)" in out and "ways 4, shots 2" in out
    assert fingerprint in out
    code, out, _ = run("eval", "--features", features, "--episode-file", "list.safetensors", "--json", "out.json")
    (record,) = json.loads(Path("out.json").read_text())
    assert code == 0 and record["fingerprint"] == fingerprint and record["run"]["seed"] == 7
    run("eval", "--features", features, *protocol, "--runs", "drawn", "--json", "drawn.json")
    assert json.loads(Path("drawn.json").read_text())[0]["accuracy"] == record["accuracy"]
    assert "--ways beside --episode-file" in mistake("eval", "--features", features, "--ways", "3", "--episode-file", "l")
    bank = FeatureBank.load(features)
    FeatureBank(bank.features, bank.labels, name="other").save("other.safetensors")
    assert "same items" in mistake("eval", "--features", "other.safetensors", "--episode-file", "list.safetensors")


def test_published_lists_are_imported(tmp_path, run, features, mistake):
    rows = [{"support": [0, 12], "query": [1, 13]}, {"support": [24, 12], "query": [25, 13]}]
    Path("list.json").write_text(json.dumps(rows))
    code, out, _ = run("episodes", "import", "list.json", "--features", features, "--out", "list.safetensors")
    assert code == 0 and "wrote list.safetensors: 2 episodes, 2-way 1-shot, fingerprint" in out
    code, out, _ = run("eval", "--features", features, "--episode-file", "list.safetensors")
    assert code == 0 and "2-way 1-shot" in out and "Episodes of a file, fingerprint" in out
    assert "no list of episodes at lost" in mistake("episodes", "import", "lost", "--features", features, "--out", "x")


def stored(folder):
    for path in sorted(folder.glob("store/*/run.json")):
        yield path.parent.name, {"run": json.loads(path.read_text())}


def test_embedding_then_evaluating_the_file(tmp_path, run):
    images_in(tmp_path / "mine")
    code, out, err = run("embed", "--dataset", "mine", "--backbone", "pixels", "--out", "bank.safetensors")
    assert code == 0 and out == "wrote bank.safetensors: 36 x 21168\n"
    (name,) = re.findall(r"(?:^|\r)(mine#[0-9a-f]{6}), all: 4 classes, 36 images, 9 each$", err, re.MULTILINE)
    code, out, _ = run("eval", "--features", "bank.safetensors", "--ways", "3", "--queries", "3", "--shots", "1",
                       "--episodes", "20")
    assert code == 0 and f"Data: {name}, split all" in out and "pixels" in out
    # The same images by their path, and in a renamed folder: one key, the name of today.
    images, again = ["eval", "--backbone", "pixels", "--ways", "3", "--queries", "3", "--shots", "1", "--episodes", "20"], []
    for place in ("mine", "renamed"):
        Path("mine").rename(place)
        again.append(json.loads(run(*images, "--dataset", f"./{place}", "--json", "-")[1])[0])
        Path(place).rename("mine")
    assert [found["title"] for found in again] == [name, name.replace("mine", "renamed")]
    assert again[0]["key"] == again[1]["key"] and again[0]["run"]["dataset"] == "folder"


@pytest.mark.slow
def test_easy_from_the_command_line(tmp_path, run):
    """Crops averaged, two backbones side by side, minus the mean of the base classes, unit length, nearest mean."""
    images_in(tmp_path / "mine", classes=8)
    (tmp_path / "splits.csv").write_text("filename,label,split\n" + "\n".join(
        f"class{n}/{i}.png,class{n},{'train' if n < 4 else 'test'}" for n in range(8) for i in range(9)))
    for split in ("train", "test"):
        for number, backbone in enumerate(("conv4", "pixels")):
            code, out, err = run("embed", "--dataset", "mine", "--data-option", "splits=splits.csv", "--split", split,
                                 "--backbone", backbone, *["--weights", "random"][: 2 * (backbone == "conv4")], "--crops",
                                 f"mean(3,seed={number})", "--out", f"{split}{number}.safetensors")
            assert code == 0, err
        code, out, err = run("join", f"{split}0.safetensors", f"{split}1.safetensors", "--out", f"{split}.safetensors")
        assert code == 0 and "36 x " in out, err
    code, out, err = run("eval", "--features", "test.safetensors", "--base-features", "train.safetensors", "--method",
                         "simple_shot,soft_kmeans", "--ways", "3", "--queries", "3", "--shots", "1", "--episodes", "20")
    assert code == 0 and "conv4 + pixels" in out and "soft_kmeans" in out, err


@pytest.mark.parametrize("how", [["--dataset", "mine"], ["--dataset", "folder", "--data-root", "mine"]])
def test_own_images_in_one_flag(tmp_path, run, how):
    images_in(tmp_path / "mine")
    code, out, _ = run(*EVAL, *how, "--ways", "3", "--shots", "1")
    assert code == 0 and re.search(r"Data: mine#[0-9a-f]{6}, split all\.", out) and str(tmp_path) not in out
    assert run("report", "--no-images")[0] == 0
    page = Path("report.html").read_text()
    assert re.search(r"1 result on mine#[0-9a-f]{6} \(all\)", page) and str(tmp_path) not in page
    assert "# PLACE: mine, a folder that holds one folder of images per class" in page and "--data-root PLACE" in page


def test_own_images_with_splits(tmp_path, run):
    images_in(tmp_path / "mine", classes=6)
    rows = [f"class{n},{split}" for n, split in enumerate(["train", "train", "train", "test", "test", "test"])]
    (tmp_path / "splits.csv").write_text("\n".join(["class,split", *rows]))
    code, out, _ = run(*EVAL, "--dataset", "./mine", "--data-option", "splits=splits.csv", "--ways", "3", "--shots", "1",
                       "--method", "simple_shot")
    assert code == 0 and re.search(r"mine#[0-9a-f]{6}, split test", out)


def test_lists(run):
    code, out, _ = run("list", "methods")
    assert code == 0 and "protonet" in out and "temperature=1.0" in out
    assert "conv4" in run("list", "backbones")[1] and "omniglot" in run("list", "datasets")[1]
    code, out, _ = run("data")
    assert code == 0 and "glyphs" in out and "built in" in out and "missing" in out
    code, out, _ = run("data", "--how", "omniglot", "--data-root", "elsewhere")
    assert code == 0 and "elsewhere/omniglot/images_background.zip" in out and "MD5" in out


def test_contact_sheet(tmp_path, run):
    code, out, _ = run("data", "--sheet", "pictures/glyphs.png", "--split", "val")
    assert code == 0 and Image.open(tmp_path / "pictures" / "glyphs.png").format == "PNG"


def test_help_shows_defaults(run):
    code, out, _ = run()
    assert code == 0 and "eval" in out and "compare" in out
    code, out, _ = run("eval", "--help")
    assert code == 0 and "10,000" in out and "--set" in out and "pixels" not in out


@pytest.mark.parametrize(("arguments", "message"), [
    (["evl"], "No such command 'evl'. Did you mean 'eval'?"),
    (["eval", "--shot", "1"], "--shots"),
    (["eval", "--queries", "many"], "--queries='many'; expected integers"),
    (["eval", "--shots", "1;5"], "--shots='1;5'; expected integers separated by commas"),
    (["eval", "--shots", ""], "--shots='' is empty"),
    (["eval", "--runs="], "--runs='' is empty"),
    (["eval", "--features", "bank", "--json", "."], ". is a folder; name a file to write"),
    (["embed", "--out", "."], ". is a folder"),
    (["eval", "--episodes", "1000000000000000000000"], "expected an integer from 2 to 100000000"),
    (["data", "--split", "val"], "--split without --sheet"),
    (["eval", "--method", " , "], "is an empty list"),
    (["eval", "--method", "protnet"], "unknown method 'protnet'; did you mean 'protonet'"),
    (["eval", "--set", "temprature=1"], "unknown parameter of protonet 'temprature'; did you mean 'temperature'?"),
    (["eval", "--set", "temperature=hot"], "temperature='hot' of protonet; expected a number"),
    (["eval", "--set", "temperature=0"], "it must be positive"),
    (["eval", "--set", "temperature"], "'temperature' is not NAME=VALUE"),
    (["eval", "--set", "temperature=1", "--set", "temperature=2"], "temperature is given twice"),
    (["eval", "--method", "kmeans", "--set", "norm=l3"], "norm='l3'; choose one of un, l2n, cl2n"),
    (["eval", "--method", "kmeans", "--set", "max_iterations=1.5"], "max_iterations=1.5 of kmeans; expected an integer"),
    (["eval", "--method", "pt_map", "--set", "scale=0"], "give a positive number"),
    (["eval", "--backbone", "conv5"], "unknown backbone 'conv5'; did you mean 'conv4'?"),
    (["eval", "--weights", "lost.safetensors"], "weights='lost.safetensors' is neither a file nor one of those of conv4"),
    (["eval", "--dataset", "glyph"], "unknown dataset 'glyph'; did you mean 'glyphs' or 'named_glyphs'?"),
    (["eval", "--dataset", "./nothing"], "nothing is not a folder"),
    (["eval", "--dataset", "folder"], "needs root=..."),
    (["eval", "--split", "novel"], "did you mean 'test'?"),
    (["eval", "--query-distribution", "balancd"], "did you mean 'balanced'?"),
    (["eval", "--alpha", "1;2"], "--alpha='1;2'; expected numbers"),
    (["eval", "--open-classes", "2", "--backbone", "pixels", "--queries", "5"], "open_queries=0"),
    (["eval", "--calibrate", "--features", "x"], "--calibration-features FILE"),
    (["eval", "--episode-file", "lost"], "no episodes at lost"),
    (["eval", "--k-eff", "3"], "--k-eff=3 with --query-distribution=balanced"),
    (["eval", "--query-distribution", "k_eff", "--backbone", "pixels"], "k_eff=None"),
    (["eval", "--transforms", "l3"], "unknown transform 'l3'; did you mean 'l2'?"),
    (["eval", "--episodes", "1"], "episodes=1"),
    (["eval", "--backbone", "pixels", "--ways", "500", "--queries", "5"], "ways=500 but only 94 classes"),
    (["eval", "--backbone", "pixels", "--ways", "1"], "ways=1"),
    (["eval", "--backbone", "pixels", "--queries", "50"], "50 queries need 51"),
    (["eval", "--features", "lost.safetensors"], "no feature bank at lost.safetensors"),
    (["eval", "--features", "bank", "--weights", "w"], "--weights beside --features"),
    (["eval", "--features", "bank", "--crops", "mean(2)"], "--crops beside --features"),
    (["eval", "--crops", "30"], "cannot read the crops '30'"),
    (["join", "lost.safetensors", "--out", "b"], "no feature bank at lost.safetensors"),
    (["tune", "--method", "ridge", "--features", "bank", "--crops", "mean(2)"], "--crops beside --features"),
    (["eval", "--base-features", "bank"], "--base-features without --features"),
    (["eval", "--data-option", "protocl=vinyals", "--dataset", "omniglot"], "did you mean 'protocol'"),
    (["train", "--config", "ema=0.9"], "'ema_decay'"),
    (["train", "--lr", "-1"], "lr=-1.0"),
    (["train", "--epochs", "3"], "--epochs without --recipe"),
    (["train", "--recipe", "cross_entropi"], "did you mean 'cross_entropy'?"),
    (["train", "--recipe", "cross_entropy", "--ways", "5", "--shots", "1"], "--ways, --shots beside --recipe"),
    (["train", "--recipe", "rfs", "--set", "temprature=1"], "did you mean 'temperature'?"),
    (["train", "--generations", "2"], "--generations without --recipe"),
    (["train", "--recipe", "easy", "--generations", "2"], "recipe easy has no teacher"),
    (["train", "--recipe", "easy", "--config", "augmentation=flipp"], "did you mean 'flip'?"),
    (["train", "--recipe", "cross_entropy", "--config", "epoch=1"], "did you mean 'epochs'"),
    (["train", "--device", "gpu"], "device 'gpu' cannot be used here"),
    (["train", "--backbone", "conv5"], "did you mean 'conv4'?"),
    (["train", "--backbone", "pixels"], "nothing to train"),
    (["embed"], "Missing option '--out'"),
    (["list", "method"], "did you mean 'methods'?"),
    (["data", "--how", "omniglt"], "did you mean 'omniglot'"),
    (["table"], "0 results in runs; this needs at least 1: run `fewshot eval` first"),
    (["table", "lost"], "0 results in runs begin with 'lost'"),
    (["report"], "0 results in runs"),
    (["compare", "lost", "found"], "begin with 'lost'"),
    (["compare"], "Missing argument"),
])
def test_mistakes_are_one_line(mistake, arguments, message):
    line = mistake(*arguments)
    assert message in line and "\n" not in line


def test_a_missing_data_set_comes_with_instructions(mistake):
    message = mistake("eval", "--dataset", "omniglot")
    for part in ("--data-root", "FEWSHOT_DATA", "images_background.zip", "MD5 68d2efa1b917", "data/omniglot"):
        assert part in message


def test_damaged_files_are_named(tmp_path, mistake, features):
    damaged = tmp_path / "damaged.safetensors"
    for content in (b"no safetensors file", b""):
        damaged.write_bytes(content)
        assert "damaged.safetensors is not a readable weights file" in mistake("eval", "--weights", damaged)
        assert "damaged.safetensors is not a readable feature bank" in mistake("eval", "--features", damaged)
    data = bytearray(Path(features).read_bytes())
    data[-40] ^= 1
    damaged.write_bytes(data)
    assert "does not match its checksum" in mistake("eval", "--features", damaged)
    (tmp_path / "data" / "omniglot").mkdir(parents=True)
    for part in ("background", "evaluation"):
        (tmp_path / "data" / "omniglot" / f"images_{part}.zip").write_bytes(b"PK\3\4 cut short")
    assert "is not a readable zip file" in mistake("eval", "--dataset", "omniglot")


def test_wrong_format(mistake, run, features):
    run("eval", "--features", features, "--shots", "1", "--queries", "4", "--episodes", "10")
    assert "unknown format 'latx'; did you mean 'latex'?" in mistake("table", "--format", "latx")
    (key,) = [name for name in os.listdir("runs") if name != "cache"]
    assert "1 result given; this needs at least 2" in mistake("compare", key)


def test_a_place_that_cannot_be_written(tmp_path, mistake, features):
    (tmp_path / "file").write_text("in the way")
    small = ["--shots", "1", "--queries", "4", "--episodes", "10"]
    assert "file/runs" in mistake("eval", "--features", features, *small, "--runs", "file/runs")
    message = mistake("eval", "--features", features, *small, "--json", "file/out.json")
    assert "file" in message and "choose another place" in message
    assert "choose another place" in mistake("data", "--sheet", "file/sheet.png")


def test_results_that_no_longer_read_are_left_out_with_a_warning(tmp_path, run, features):
    run("eval", "--features", features, "--shots", "1,2", "--queries", "4", "--episodes", "10")
    first = sorted(tmp_path.glob("runs/*/run.json"))[0]
    first.write_text(first.read_text()[:-20])
    code, out, err = run("table", "--format", "csv")
    assert code == 0 and len(out.splitlines()) == 2
    assert err.startswith("warning: left out: ") and "no readable result" in err and "\n" not in err.strip()


def test_results_of_a_method_that_has_lost_a_parameter_are_in_the_table(tmp_path, run, features):
    run("eval", "--features", features, "--shots", "1,2", "--queries", "4", "--episodes", "10")
    first = sorted(tmp_path.glob("runs/*/run.json"))[0]
    first.write_text(first.read_text().replace('"temperature"', '"temp"'))
    code, out, err = run("table", "--format", "csv")
    assert code == 0 and not err and len(out.splitlines()) == 3 and '""temp"": 1.0' in out


@pytest.mark.parametrize(("raised", "code", "message"), [
    (KeyboardInterrupt(), 130, "interrupted; what was finished is kept"),
    (TrainingInterrupted(12, signal.SIGTERM), 143, "interrupted by SIGTERM at step 12"),
    (TrainingInterrupted(12, signal.SIGINT), 130, "interrupted by SIGINT at step 12"),
])
def test_interruptions(run, monkeypatch, features, raised, code, message):
    def interrupt(*_, **__):
        raise raised

    monkeypatch.setattr(sys.modules["fewshot.evaluation.evaluate"], "evaluate", interrupt)
    found, out, err = run("eval", "--features", features)
    lines = err.splitlines()
    assert found == code and lines[-1].startswith(message) and len(lines) == 2 and not out, "after what there is"


def test_a_bug_is_not_dressed_up_as_a_mistake(monkeypatch, features):
    def bug(*_, **__):
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(sys.modules["fewshot.evaluation.evaluate"], "evaluate", bug)
    with pytest.raises(ZeroDivisionError):
        main(["eval", "--features", features])


def test_the_callers_warnings_are_left_alone(run):
    before = warnings.showwarning
    run("list", "methods")
    assert warnings.showwarning is before


def test_caches_are_shown_and_cleared(tmp_path, run, monkeypatch):
    monkeypatch.setenv("FEWSHOT_CACHE", str(tmp_path / "images"))
    assert "0 files, 0.0 MB of at most 20.0 GB" in run("cache")[1]
    run("eval", "--backbone", "pixels", "--shots", "1", "--episodes", "10")
    out = run("cache")[1]
    assert f"{tmp_path / 'images'}: 1 files" in out and "runs/cache: 1 files" in out
    out = run("cache", "--clear")[1]
    assert "of decoded images" in out and not list((tmp_path / "images").iterdir()) and "runs/cache: 1 files" in out
    assert "runs/cache: 0 files" in run("cache", "--clear-features")[1] and not list((tmp_path / "runs/cache").iterdir())


def test_only_a_full_disk_wants_space(mistake, monkeypatch, features):
    for number, told, left_out in ((errno.ENOSPC, "free disk space", "permissions"),
                                   (errno.EACCES, "change the permissions", "space"),
                                   (errno.ENOENT, "look at the path", "space"), (errno.EIO, "", "space")):
        def fail(*_, number=number, **__):
            raise OSError(number, os.strerror(number).replace("space", "room"), "somewhere")

        monkeypatch.setattr(sys.modules["fewshot.evaluation.evaluate"], "evaluate", fail)
        line = mistake("eval", "--features", features)
        assert "somewhere" in line and told in line and left_out not in line


def test_a_terminated_extraction_keeps_what_it_has(tmp_path, run, monkeypatch):
    images_in(tmp_path / "own", classes=4, each=50)
    command = ["embed", "--dataset", "own/", "--backbone", "pixels", "--out", "features.safetensors"]
    forward, starts = extract._forward, []

    def counted(*given):
        starts.append(given[4])
        if len(starts) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(*given)

    monkeypatch.setattr(extract, "_forward", counted)
    before = signal.getsignal(signal.SIGTERM)
    code, _, err = run(*command)
    assert code == 143 and "what was finished is kept" in err and signal.getsignal(signal.SIGTERM) == before
    assert not list(tmp_path.rglob("*.tmp")) and not (tmp_path / "features.safetensors").exists()
    assert run(*command)[0] == 0 and starts == [0, 64, 128, 128, 192], "the batch that was cut short is made again"


def test_one_line_says_what_is_evaluated(tmp_path, run, features):
    images_in(tmp_path / "own")
    small = ["--backbone", "pixels", "--ways", "3", "--shots", "1", "--queries", "3", "--episodes", "10"]
    err = run("eval", "--dataset", "own/", *small)[2]
    assert re.search("(?:^|\r)own#[0-9a-f]{6}, all: 4 classes, 36 images, 9 each$", err, re.MULTILINE)
    (tmp_path / "own" / "class0" / "0.png").unlink()
    code, out, err = run("eval", "--dataset", "own/", *small, "--json", "-")
    assert re.search("(?:^|\r)own#[0-9a-f]{6}, all: 4 classes, 35 images, 8 to 9 each$", err, re.MULTILINE)
    assert json.loads(out)
    learned = run(*TRAIN[:2], "1", *TRAIN[3:], "--backbone", "conv4", "--backbone-option", "width=4")[2]
    tuned = run("tune", "--backbone", "pixels", "--grid", "temperature=1,2", "--episodes", "10")[2]
    for split, err in {"train": learned, "val": tuned}.items():
        assert re.search(rf"(?:^|\r)glyphs, {split}: \d+ classes, [\d,]+ images, [\d to]+ each$", err, re.MULTILINE), err
    for command in (["embed", "--backbone", "pixels", "--out", "x.safetensors"],
                    ["tune", "--backbone", "pixels", "--grid", "temperature=1,2", "--episodes", "10"]):
        assert " classes, " not in run("--quiet", *command)[2]


def test_what_cannot_be_is_found_before_images_are_embedded(tmp_path, run, monkeypatch):
    images_in(tmp_path / "own")
    with monkeypatch.context() as patch:
        patch.setattr("fewshot.features.source.embed", lambda *_, **__: pytest.fail("embedded"))
        for wrong, message in ((["--ways", "5"], "only 4 classes"), (["--shots", "9"], "has 9 images"),
                               (["--method", "simple_shot"], 'split=')):
            code, _, err = run("eval", "--dataset", "own/", "--backbone", "pixels", "--ways", "3", "--queries", "3", *wrong)
            assert code == 2 and message in err
    code, out, err = run("eval", "--dataset", "own/", "--backbone", "pixels", "--ways", "3", "--queries", "3", "--episodes",
                         "10", "--shots", "1,9")
    assert code == 2 and "3-way 1-shot" in out and "1 of 2 evaluations failed:\n  protonet, 3-way 9-shot: class" in err


def test_a_method_that_fails_does_not_hide_the_others(run, features, monkeypatch):
    given = ["eval", "--features", features, "--method", "protonet,ridge", "--shots", "1", "--queries", "4", "--episodes",
             "10"]
    for error in (FewshotError("no such luck"), ZeroDivisionError("a bug")):
        with monkeypatch.context() as patch:
            def fail(*_, error=error):
                raise error

            patch.setattr("fewshot.methods.ridge.Ridge.__call__", fail)
            if isinstance(error, FewshotError):
                code, out, err = run(*given)
                assert code == 2 and "1 of 2 evaluations failed:\n  ridge, 5-way 1-shot: no such luck" in err
                assert "protonet" in out and "ridge" not in out
            else:
                with pytest.raises(ZeroDivisionError, match="a bug"):
                    run(*given)


def test_version_and_what_every_command_takes(run, mistake, features):
    code, out, _ = run("--version")
    assert code == 0 and out == f"fewshot {__version__}\n"
    small = ["eval", "--features", features, "--shots", "1", "--queries", "4", "--episodes", "10"]
    assert "protonet 5-way 1-shot" in run(*small)[2], "there is a progress bar to hide"
    for number, place in enumerate((0, len(small))):
        arguments = [*small, "--seed", str(number + 2)]
        arguments.insert(place, "--quiet")
        code, out, err = run(*arguments)
        assert code == 0 and not err and "5-way 1-shot" in out
        code, out, err = run(*[word.replace("--quiet", "--debug") for word in arguments], "--method", "protnet")
        assert code == 2 and err.startswith("Traceback")
        assert all(near in err for near in ("did you mean 'protonet' or ", "'relation_net'?", "--load FILE.py"))
    assert "unknown method" in mistake(*small, "--method", "protnet")


def test_json_for_scripts(run, features):
    small = ["eval", "--features", features, "--shots", "1,2", "--queries", "4", "--episodes", "10"]
    code, out, err = run(*small, "--json", "-", "--method", "soft_kmeans")
    records = json.loads(out)
    assert code == 0 and [record["run"]["shots"] for record in records] == [1, 2]
    code, out, err = run("table", "--format", "json")
    rows = json.loads(out)
    assert code == 0 and [row["run"] for row in rows] == [record["key"] for record in records]
    assert rows[0]["accuracy_percent"] == pytest.approx(100 * records[0]["accuracy"])
    assert rows[0]["parameters"] == records[0]["run"]["parameters"], "values, not text that holds JSON"


def completed(line):
    """What the shell is offered at the end of `line`."""
    environment = {**os.environ, "_FEWSHOT_COMPLETE": "complete_bash", "COMP_WORDS": line,
                   "COMP_CWORD": str(len(line.split()) - 1)}
    done = subprocess.run([sys.executable, "-m", "fewshot"], env=environment, cwd=Path(__file__).parents[2],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_without_options_there_are_as_many_queries_as_glyphs_have_images_for(run):
    code, out, err = run("eval", "--backbone", "pixels", "--episodes", "20", "--shots", "5")
    assert code == 0 and "Queries per class: 7." in " ".join(out.split()), err


def test_completion_of_commands_and_methods():
    assert completed("fewshot pre") == ["predict"]
    for command in ("eval", "tune", "train", "predict"):
        assert completed(f"fewshot {command} --method pt") == ["pt_map"]
    assert completed("fewshot eval --method protonet,pad") == ["protonet,paddle"]
    assert method_names("") == list_methods()


def test_completion_is_shown_under_the_name_of_the_command(run, monkeypatch):
    # the shell is found among the ancestors of the process, which under `make` or a CI runner need not hold one
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))
    code, out, err = run("--show-completion")
    assert code == 0, err
    assert "_FEWSHOT_COMPLETE=complete_bash" in out and "fewshot_completion" in out
