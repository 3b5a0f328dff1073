"""Whatever is given for an option: an answer, or one line that says what is wrong. docs/reliability.md has the counts."""

from __future__ import annotations

import json
import struct
import warnings

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from fewshot.cli.app import app
from fewshot.cli.main import main
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.evaluation.run import Run
from fewshot.methods import METHODS, create_method
from fewshot.methods.contract import method_parameters

pytestmark = pytest.mark.slow

VALUES = ("", " ", "nan", "inf", "-1", "0", "1.5", "1e400", "9" * 21, "x", ",", "1,,2", "[", "{}", "=", "a=", "=b", "é😀",
          "../nothing", "no/such/file", "empty", "-", "a" * 300)
# Commands as they are right, in a folder with `toy.safetensors`, `runs` of it, and `photos`; one option is then added.
BANK = ("--features", "toy.safetensors", "--shots", "1", "--queries", "2", "--episodes", "10", "--runs", "runs")
VALIDATION = ("--features", "val.safetensors", *BANK[2:])
LABEL = ("--support", "photos", "--queries", "photos/a/0.png", "--backbone", "pixels")
COMMANDS = {
    "list": (), "data": (), "eval": BANK, "table": (), "plan": ("KEYS", "--difference", "1"), "compare": ("KEYS",),
    "report": (), "cache": (), "tune": (*VALIDATION, "--grid", "temperature=1,2"),
    "decide": (*VALIDATION[:6], "--runs", "runs", "--out", "decisions.json"),
    "fit": (*VALIDATION, "--method", "unem_gaussian", "--epochs", "1", "--out", "fitted.safetensors"),
    "join": ("toy.safetensors", "toy.safetensors", "--out", "joined.safetensors"),
    "embed": ("--dataset", "photos", "--backbone", "pixels", "--out", "out.safetensors"),
    "train": ("--dataset", "photos", "--data-option", "splits=splits.csv", "--steps", "1", "--ways", "2", "--queries", "1",
              "--config", "validation_ways=2", "--config", "validation_queries=1", "--no-resume"),
    "predict": LABEL, "export": (*LABEL[:2], "--method", "pt_map"),
    "convert": ("toy.safetensors", "--out", "weights.safetensors"),
    "sweep": ("experiment.py",), "episodes save": (*BANK[:-2], "--out", "episodes.safetensors"),
    "episodes show": ("episodes.safetensors",), "episodes import": ("list.csv", *BANK[:2], "--out", "i.safetensors"),
    "episodes draws": ("empty", "--dataset", "photos", "--out", "d.safetensors"),
    "classifier create": ("made.safetensors", "--support", "photos", "--backbone", "pixels"),
    **{f"classifier {name}": ("kept.safetensors",)
       for name in ("add", "remove", "correct", "predict", "decisions", "show")}}

UNBOUNDED = ("--steps", "--epochs", "--samples", "--generations")  # 10^21 of these is right, and takes for ever
# These want more or else, and say so whatever is given: a weights file, an experiment, an inductive method, images, draws.
INCOMPLETE = ("convert", "sweep", "export", "episodes draws",
              *(f"classifier {name}" for name in ("add", "remove", "correct", "predict", "decisions")))


def commands(group=None, before=""):
    """Name -> command, of all that there are."""
    for name, command in (typer.main.get_command(app) if group is None else group).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        else:
            yield before + name, command


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSHOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FEWSHOT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(8).repeat_interleave(12)
    bank = FeatureBank(torch.randn(8, 6, generator=generator)[labels] + torch.randn(96, 6, generator=generator), labels,
                       name="toy", split="test")
    bank.save("toy.safetensors")
    FeatureBank(bank.features, labels, name="toy", split="val").save("val.safetensors")
    (tmp_path / "splits.csv").write_text("class,split\na,train\nb,train\nc,val\nd,val\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "experiment.py").write_text("x = 1\n")
    (tmp_path / "list.csv").write_text("episode,role,item\n0,support,0\n0,query,1\n0,support,12\n0,query,13\n"
                                       "1,support,0\n1,query,1\n1,support,12\n1,query,13\n")
    pixels = np.random.default_rng(0)
    for name in "abcd":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(pixels.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(
                tmp_path / "photos" / name / f"{number}.png")
    return tmp_path


def call(capsys, arguments) -> int:
    """The exit code; a traceback, or an error that is not one line, fails."""
    with pytest.raises(SystemExit) as stop, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main(list(arguments))
    err = capsys.readouterr().err
    assert "Traceback" not in err, arguments
    if stop.value.code:
        assert stop.value.code == 2, (arguments, stop.value.code, err)
        assert any(line.startswith("error: ") for line in err.replace("\r", "\n").splitlines()), (arguments, err)
    return stop.value.code


def test_every_command_is_listed_here():
    assert {name for name, _ in commands()} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_values_that_mean_nothing(name, folder, capsys):
    call(capsys, ["eval", *BANK, "--method", "protonet,ridge"])
    call(capsys, ["episodes", "save", *COMMANDS["episodes save"]])
    call(capsys, ["classifier", "create", "kept.safetensors", *COMMANDS["classifier create"][1:]])
    command, keys = dict(commands())[name], [path.name for path in (folder / "runs").iterdir()]
    right = [*name.split(), *(word for given in COMMANDS[name] for word in (keys if given == "KEYS" else [given]))]
    if name not in INCOMPLETE:
        assert call(capsys, right) == 0
    refused = 0
    for parameter in command.params:
        if parameter.param_type_name == "option" and not parameter.is_flag:
            for value in VALUES:
                if not (parameter.opts[0] in UNBOUNDED and value == "9" * 21):
                    (folder / "made.safetensors").unlink(missing_ok=True)  # a classifier is not made where one is
                    refused += call(capsys, [*right, parameter.opts[0], value]) == 2
    print(f"{name}: {refused} values refused")
    options = [p for p in command.params if p.param_type_name == "option" and not p.is_flag]
    assert refused >= len(options)


def damaged(path):
    """Files that are none of ours."""
    good = path.read_bytes()
    yield "empty", b""
    yield "noise", np.random.default_rng(0).bytes(500)
    yield "half", good[: len(good) // 2]
    yield "a byte less", good[:-1]
    yield "a long header", struct.pack("<Q", 2**62) + good[8:]
    yield "text", b"hello\n"
    yield "numbers", b"1,2,3\n4,5\n"
    yield "JSON", json.dumps({"support": 3}).encode()
    yield "not UTF-8", b"\xff\xfe\x00episode,role,item\n"
    yield "pickle", b"\x80\x04N."  # None


FILES = {  # what reads a file: the command with `?` for it
    "features": ("eval", "--features", "?"), "base features": ("eval", *BANK, "--base-features", "?"),
    "episodes": ("eval", *BANK[:2], "--episode-file", "?"), "learned": ("eval", *BANK, "--learned", "?", "--method",
                                                                        "unem_gaussian"),
    "weights": ("eval", "--backbone", "conv4", "--weights", "?"), "join": ("join", "?", "--out", "o"),
    "show": ("episodes", "show", "?"), "import": ("episodes", "import", "?", *BANK[:2], "--out", "i.safetensors"),
    "convert": ("convert", "?", "--out", "w.safetensors"), "predict": ("predict", *LABEL[:3], "?", *LABEL[4:]),
    "predict with weights": ("predict", *LABEL[:4], "--weights", "?"), "load": ("--load", "?", "list"),
    "classifier": ("classifier", "show", "?"), "kept decisions": ("classifier", "decisions", "kept.safetensors", "?"),
     "decisions": ("predict", *LABEL, "--decisions", "?"),
    "corrections": ("classifier", "correct", "kept.safetensors", "?"),
    "templates": ("embed", *COMMANDS["embed"], "--templates", "?"),
    "descriptions": ("embed", *COMMANDS["embed"], "--descriptions", "?"),
    "npz": ("eval", "--features", "?.npz"), "parquet": ("eval", "--features", "?.parquet"),
    "dataset csv": ("eval", "--dataset", "./?.csv"), "dataset tar": ("eval", "--dataset", "./?.tar")}


@pytest.mark.parametrize("what", FILES)
def test_files_that_are_none_of_ours(what, folder, capsys):
    call(capsys, ["classifier", "create", "kept.safetensors", *COMMANDS["classifier create"][1:]])
    before = (folder / "kept.safetensors").read_bytes()
    for number, (kind, data) in enumerate(damaged(folder / "toy.safetensors")):
        name = f"file{number}"
        arguments = [part.replace("?", name) for part in FILES[what]]
        path = next(part for part in arguments if name in part)
        (folder / path).write_bytes(data)
        if what != "load" or kind not in ("empty", "numbers"):  # which are programs
            assert call(capsys, arguments) == 2, kind
    assert call(capsys, [part.replace("?", "empty") for part in FILES[what]]) == 2
    assert (folder / "kept.safetensors").read_bytes() == before


WRONG = ("x", "", None, float("nan"), float("inf"), -1.5, [], {}, object(), 1j, b"1")


def test_run_settings_in_python():
    refused = 0
    for name in ("ways", "shots", "queries", "episodes", "seed", "split", "dataset", "backbone", "method", "parameters",
                 "transforms", "alpha", "k_eff", "query_distribution", "open_classes", "open_queries", "crops", "weights"):
        for value in WRONG:
            try:
                hash(Run(**{name: value}))
            except FewshotError as error:
                refused += 1
                assert str(error)
    print(f"{refused} values of run settings refused")
    assert refused > 120


@pytest.mark.parametrize("name", list(METHODS))
def test_hyper_parameters_in_python(name):
    refused = 0
    for parameter in method_parameters(name):
        for value in WRONG:
            try:
                create_method(name, **{parameter: value})
            except FewshotError as error:
                refused += 1
                assert parameter in str(error) or repr(value) in str(error), (parameter, value, str(error))
    print(f"{name}: {refused} hyper-parameters refused")
