"""Errors on the command line name its options."""

from __future__ import annotations

import pytest
import typer
from PIL import Image

import fewshot
from fewshot.cli.app import app
from fewshot.cli.main import main
from fewshot.cli.messages import as_options

COMMANDS = typer.main.get_command(app)


@pytest.mark.parametrize(("arguments", "message", "expected"), [
    (["eval"], "ask for fewer, or pass small_classes='drop'", "ask for fewer, or pass --small-classes drop"),
    (["eval"], "(set FEWSHOT_DATA, or pass root=...).", "(set FEWSHOT_DATA, or pass --data-root ...)."),
    (["eval"], "pass on_error=\"skip\" to leave", "pass --data-option on_error=skip to leave"),
    (["eval"], "or choose norm='l2n'.", "or choose --set norm=l2n."),
    (["eval"], 'pass root="a/b c" and split="all"', "pass --data-root a/b c and --split all"),
    (["train"], "or resume=False to delete it", "or --no-resume to delete it"),
    (["train"], "or pass small_classes='drop'", "or pass --config small_classes=drop"),
    (["episodes", "save"], "or pass small_classes='drop'", "or pass --small-classes drop"),
    (["eval"], "evaluate with metrics=True; open_classes=2 with open_queries=0", None),
    (["eval"], "pass bank=...", None), (["plan"], "pass shots=1", None),
])
def test_remedies_are_options_of_the_command(arguments, message, expected):
    import fewshot.training  # noqa: F401 - what an error speaks of was loaded before it

    assert as_options(message, COMMANDS, arguments) == (expected or message)
    assert as_options(message, None, arguments) == message


def test_a_class_too_small_can_be_left_out_as_the_error_says(tmp_path, capsys, monkeypatch):
    for number, size in enumerate([12, 12, 12, 12, 12, 3]):
        (tmp_path / "data" / f"c{number}").mkdir(parents=True)
        for image in range(size):
            Image.new("L", (8, 8), (20 * number + image) % 256).save(tmp_path / "data" / f"c{number}" / f"{image}.png")
    asked = ["eval", "--dataset", str(tmp_path / "data"), "--backbone", "pixels", "--queries", "5", "--shots", "1",
             "--episodes", "20", "--runs", str(tmp_path / "runs")]
    with pytest.raises(SystemExit) as end:
        main(asked)
    error = capsys.readouterr().err
    assert end.value.code == 2 and "c5" in error and "pass --small-classes drop" in error
    with pytest.raises(SystemExit) as end:
        main([*asked, "--small-classes", "drop"])
    assert end.value.code == 0
    stored = next(iter(fewshot.Store(tmp_path / "runs")))
    assert stored.protocol == "5-way 1-shot, small classes left out" and stored.record.small_classes == "drop"
    assert int(stored.measures["classes"].max()) == 4
    with pytest.raises(fewshot.FewshotError, match="small classes.*did you mean 'drop'"):
        fewshot.Run(small_classes="dropp")
    assert "small_classes" not in fewshot.Run().record().to_dict()  # keys of earlier results stay
