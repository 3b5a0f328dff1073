from __future__ import annotations

import itertools

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.episodes.protocol import AllClassesProtocol, BaseToNewProtocol
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.run import Run
from fewshot.methods import METHODS, create_method

GRID = {"beta": (1.0, 5.5), "alpha": (0.0, 0.5, 3.0, 20.0)}


def episodes():
    """Four episodes of weak texts, and other queries of the same classes to validate on."""
    whole, labels = random_episodes(episodes=4, shots=2, queries=40, spread=1.5, with_labels=True, with_text=True)
    whole = whole.replace(text=whole.text + 0.4 * torch.randn(whole.text.shape, generator=torch.Generator().manual_seed(1)))
    validation = whole.replace(query=whole.query[:, :25])
    return whole.replace(query=whole.query[:, 25:], validation=validation, validation_labels=labels[:, :25])


def test_each_episode_has_the_first_of_the_best_settings_on_its_validation_images():
    e, method = episodes(), create_method("searched", method="tip_adapter", grid=GRID, parameters={"text_scale": 0.1})
    logits, chosen = method(e), []
    for i in range(len(e)):
        right = []
        for beta, alpha in itertools.product(*GRID.values()):
            made = create_method("tip_adapter", alpha=alpha, beta=beta, text_scale=0.1)
            found = made(e[i].validation).argmax(-1)
            right.append((int((found == e.validation_labels[i]).sum()), alpha, beta))
        _, alpha, beta = max(right, key=lambda row: row[0])
        chosen.append((alpha, beta))
        expected = create_method("tip_adapter", alpha=alpha, beta=beta, text_scale=0.1)(e[i])
        assert torch.equal(logits[i], expected[0])
    assert len(set(chosen)) > 1  # episodes choose for themselves


def test_queries_take_no_part_in_the_choice():
    e, method = episodes(), create_method("searched", method="tip_adapter", grid=GRID)
    other = e.replace(query=e.query.flip(1) * 3 + 1)
    assert [method.chosen(e[i]) for i in range(4)] == [method.chosen(other[i]) for i in range(4)]
    assert method.setting == "inductive" and method.needs_text and not create_method("searched", method="protonet",
                                                                                   grid={"temperature": [1]}).needs_text


def test_on_draws_of_all_classes_and_base_to_new():
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 12, generator=draw)
    labels = torch.arange(8).repeat_interleave(15)
    bank = FeatureBank(centres[labels] + torch.randn(120, 12, generator=draw), labels, name="toy")
    bank = bank.with_texts(centres + 2 * torch.randn(8, 12, generator=draw))
    run = Run(method="searched", parameters={"method": "tip_adapter", "grid": {"alpha": [0.0, 1.0, 100.0]}},
              protocol=AllClassesProtocol(shots=3), episodes=5)
    found = {alpha: evaluate(run.changed(method="tip_adapter", parameters={"alpha": alpha}), bank).correct
             for alpha in (0.0, 1.0, 100.0)}
    searched = evaluate(run, bank)
    for e, value in enumerate(searched.correct.tolist()):
        assert value in [float(each[e]) for each in found.values()]
    with pytest.raises(FewshotError, match="searched chooses hyper-parameters on validation images"):
        evaluate(run.changed(protocol=AllClassesProtocol(shots=3, validation="none")), bank)
    halves = evaluate(run.changed(protocol=BaseToNewProtocol(shots=3)), bank)
    assert halves.measures["base_accuracy"].mean() > 0.3
    assert Run.from_dict(run.to_dict()) == run


def test_a_method_that_needs_base_classes_is_fitted_to_them():
    base = FeatureBank(torch.randn(40, 16, generator=torch.Generator().manual_seed(2)) + 1, torch.arange(40) % 4)
    e, parameters = episodes(), {"norm": "cl2n"}
    method = create_method("searched", method="simple_shot", parameters=parameters, grid={"scale": [2.0]})
    assert method.needs_base
    expected = create_method("simple_shot", scale=2.0, **parameters).fit(base)(e)
    torch.testing.assert_close(method.fit(base)(e), expected, atol=1e-12, rtol=0)


def test_the_grids_of_the_papers():
    for name in METHODS:
        for parameter, values in METHODS[name].searched_grid.items():
            for value in values:
                create_method(name, **{parameter: value})
    assert len(create_method("searched", method="tip_x").values["beta"]) == 200


@pytest.mark.parametrize(("wrong", "says"), [
    ({"method": "protonet"}, "protonet has no published grid"), ({"grid": {"alpha": 3}}, "a list of values"),
    ({"grid": {"alpha": [-1.0]}}, "alpha"), ({"grid": {"alfa": [1.0]}}, "did you mean 'alpha'"),
    ({"method": "searched"}, "name the method"), ({"method": "tip"}, "unknown method")])
def test_wrong_values(wrong, says):
    with pytest.raises(FewshotError, match=says):
        create_method("searched", **wrong)
