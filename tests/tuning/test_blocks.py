"""Which blocks are adapted is chosen on validation classes, all candidates on the same episodes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from typer.testing import CliRunner

from fewshot.core.errors import FewshotError
from fewshot.data.banks import ImageBank
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.run import Run
from fewshot.features.source import FeatureSource
from fewshot.methods import METHODS
from fewshot.methods.film import Film
from fewshot.tuning.blocks import tune_placement
from fewshot.tuning.search import tune


class Source(FeatureSource):
    """Patterns of 16 x 16 pixels under noise, and a small random conv4."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(6).repeat_interleave(12)
        patterns = torch.rand(6, 1, 16, 16, generator=generator)
        images = 0.8 * patterns[labels] + 0.2 * torch.rand(len(labels), 1, 16, 16, generator=generator)
        self.bank = ImageBank((255 * images).to(torch.uint8), labels, name="patterns", split="val")

    def images(self, subject):
        return self.bank


def run_of(**parameters) -> Run:
    return Run(split="val", backbone_options={"width": 8}, method="film",
               parameters=parameters, ways=4, queries=3, episodes=12)


def test_a_block_that_does_harm_is_left_out(monkeypatch):
    """Adapting block 1 takes all information from its output; the others hardly change."""
    class Harmful(Film):
        def adapted(self, values, frozen):
            weights = super().adapted(values, frozen)
            return {name: 0 * value if name.startswith("blocks.1.") else value for name, value in weights.items()}

    monkeypatch.setitem(METHODS._items, "harmful", Harmful)
    run = dataclasses.replace(run_of(), method="harmful", parameters={"lr": 1e-9, "steps": 1})
    found = tune_placement(run, source=Source())
    assert len(found) == 2 and found[0].chosen == found[1].chosen == {"blocks": "none"}
    assert found[-1].best.parameters["blocks"] == "none" and found[-1].best.split == "val"
    assert len({result.fingerprint for each in found for result in each.candidates}) == 1
    tried = [{r.record.parameters["blocks"]: r.accuracy.mean for r in each.candidates} for each in found]
    assert list(tried[0]) == ["0,1,2,3", "none", "1,2,3", "0,2,3", "0,1,3", "0,1,2"]
    assert list(tried[1]) == ["none", "0", "1", "2", "3"]
    assert all((accuracy < 0.3) == ("1" in blocks) for each in tried for blocks, accuracy in each.items())


def test_without_a_difference_it_stays_where_it_starts():
    found = tune_placement(run_of(lr=0.0, blocks="1"), source=Source())
    assert len(found) == 1 and found[0].chosen == {"blocks": "1"}
    layers = dataclasses.replace(run_of(), method="finetune", parameters={"steps": 0, "layers": "last_block"})
    found = tune_placement(layers, source=Source(), rounds=1)
    assert found[0].chosen == {"layers": "3"}
    assert [r.record.parameters["layers"] for r in found[0].candidates] == ["3", "head", "0,1,2,3", "0,3", "1,3", "2,3"]


def test_learning_rates_are_tuned_on_images():
    """Also the rate 0, which is no fine-tuning."""
    run = dataclasses.replace(run_of(), method="pmf", parameters={"steps": 1})
    found = tune(run, {"lr": [0, 1e4]}, source=Source())
    assert [r.record.parameters["lr"] for r in found.candidates] == [1e-4, 0.0, 1e4]
    assert found.chosen["lr"] in (0.0, 1e-4)


def test_it_is_evaluated_by_the_one_way_for_all():
    """The stored parameters make the same method again, and frozen features give the same answers as a bank of them."""
    result = evaluate(run_of(lr=0.0), source=Source())
    assert result.setting == "inductive" and result.correct.mean() > 0.3
    again = evaluate(result.record, source=Source())
    assert torch.equal(again.correct, result.correct) and again.record.key == result.record.key


@pytest.mark.parametrize(("run", "message"), [
    (dataclasses.replace(run_of(), split="test"), "chosen on validation classes"),
    (dataclasses.replace(run_of(), method="url", parameters={}), "url does not adapt blocks")])
def test_mistakes_are_named(run, message):
    with pytest.raises(FewshotError, match=message):
        tune_placement(run, source=Source())
    with pytest.raises(FewshotError, match="rounds=0"):
        tune_placement(run_of(), source=Source(), rounds=0)


def test_the_command_refuses_two_searches_at_once():
    from fewshot.cli.app import app

    answer = CliRunner().invoke(app, ["tune", "--method", "film", "--placement", "--grid", "lr=1"])
    assert isinstance(answer.exception, FewshotError) and "leave out --grid" in str(answer.exception)
