"""Sets, "unknown", calibrated probabilities: by definition, against MAPIE, that they cover, and as evaluations measure."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from fewshot import Decisions, choose_decisions
from fewshot.cli.main import main
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.episodes.types import Episodes
from fewshot.evaluation.calibration import Answered, decisions_from, fit_temperature
from fewshot.evaluation.decisions import class_scores, difficulty, left_out, score_of, support_sets
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.measures import decision_measures
from fewshot.evaluation.one_episode import decide, nearest_examples
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store
from fewshot.features.transforms import parse_transforms
from fewshot.methods.contract import create_method
from fewshot.reporting.metric_tables import metrics_table
from tests.evaluation.test_evaluate import RUN, toy_bank
from tests.evaluation.test_measures import drawn
from tests.memory import growth

FIVE = RUN.changed(shots=5)


@pytest.fixture(scope="module")
def halves():
    """(validation, test) banks of 100 classes each, of one kind."""
    whole = toy_bank(classes=200, spread=1.6)
    first = whole.labels < 100
    return tuple(FeatureBank(whole.features[rows], whole.labels[rows], name="toy", split=split)
                 for rows, split in ((first, "val"), (~first, "test")))


def test_scores_are_log_odds_without_cancellation():
    logits, labels = drawn()
    p = torch.softmax(logits / 1.7, -1)
    assert torch.allclose(class_scores(logits, 1.7), torch.log((1 - p) / p))
    sure = class_scores(torch.tensor([[100.0, 0.0, 0.0]]))  # 1 - p is 0 in float64
    assert torch.allclose(sure, torch.tensor([[math.log(2) - 100, 100, 100]], dtype=torch.float64))
    assert torch.equal(score_of(logits, labels), class_scores(logits).gather(-1, labels[..., None])[..., 0])


def test_scores_take_the_memory_of_the_logits():
    """No table of pairs of classes: that of 50 queries and 1,000 classes would be 381 MiB."""
    before = "import torch; from fewshot.evaluation.decisions import class_scores; logits = torch.randn(1, 50, 1000); " \
             "class_scores(logits[:, :2])"
    assert growth(before, "class_scores(logits)") < 50


def test_sets_without_a_slope_are_those_of_mapie():
    """Its "lac" scores, 1 - p of the true class, on probabilities with the same temperature."""
    mapie = pytest.importorskip("mapie.classification", reason="needs mapie, of the extra dev")
    from sklearn.base import BaseEstimator, ClassifierMixin

    (logits, labels), (asked, _) = drawn(30, 20, 4), drawn(10, 20, 4, seed=1)
    found = decisions_from(Answered(logits, labels), 0.8)

    class Calibrated(ClassifierMixin, BaseEstimator):
        classes_, n_features_in_ = np.arange(4), 4

        def __sklearn_is_fitted__(self):
            return True

        def fit(self, X, y):
            return self

        def predict_proba(self, X):
            return torch.softmax(torch.tensor(X) / found.temperature, -1).numpy()

        def predict(self, X):
            return self.predict_proba(X).argmax(1)

    reference = mapie.SplitConformalClassifier(Calibrated(), confidence_level=0.8, conformity_score="lac", prefit=True)
    reference.conformalize(logits.flatten(0, 1).numpy(), labels.flatten().numpy())
    wanted = reference.predict_set(asked.flatten(0, 1).numpy())[1][:, :, 0]
    sets = found.sets(asked).flatten(0, 1).numpy()
    assert found.slope == 0 and np.array_equal(sets, wanted) and 0 < sets.mean() < 1


def test_values_are_chosen_as_they_say():
    logits, labels = drawn(40, 25)
    found = decisions_from(Answered(logits, labels), 0.8, 0.9, {"method": "made"})
    assert found.temperature == fit_temperature(logits, labels)
    scores = score_of(logits, labels, found.temperature).flatten().sort().values
    assert found.threshold == float(scores[math.ceil(1001 * 0.8) - 1]) and found.chosen_on == {"method": "made"}
    kept = logits.amax(-1).flatten()
    assert float((kept >= found.unknown_below).double().mean()) >= 0.9 and float((kept > found.unknown_below).sum()) < 902
    assert torch.equal(found.unknown(logits), logits.amax(-1) < found.unknown_below)
    assert torch.allclose(found.probabilities(logits), torch.softmax(logits / found.temperature, -1))


def test_the_threshold_follows_the_difficulty_of_the_support():
    """Episodes whose scores are the difficulty of their support and noise: the slope is about 1, coverage is even."""
    generator = torch.Generator().manual_seed(0)
    hard = 2 * torch.randn(400, generator=generator, dtype=torch.float64)

    def with_scores(items):
        """Two-class logits whose true class 0 has the score `hard` and noise."""
        scores = hard[:, None] + 0.5 * torch.randn(400, items, generator=generator, dtype=torch.float64)
        return torch.stack([-scores, torch.zeros_like(scores)], -1), torch.zeros(400, items, dtype=torch.int64)

    (logits, labels), support = with_scores(40), with_scores(10)
    following, fixed = decisions_from(Answered(logits, labels, support)), decisions_from(Answered(logits, labels))
    assert 0.9 < following.slope < 1.1 and fixed.slope == 0
    asked, of_support = with_scores(40)[0], score_of(*support, following.temperature).mean(1)
    spread = {}
    for name, decisions, known in (("following", following, of_support), ("fixed", fixed, None)):
        found = decision_measures(decisions, asked, labels, known)
        assert abs(float(found["coverage"].mean()) - 0.9) < 0.015
        spread[name] = float(found["coverage"].std())
    assert spread["following"] < 0.08 < 0.2 < spread["fixed"]
    with pytest.raises(FewshotError, match="no difficulty"):
        following.sets(asked)


def test_left_out_against_a_plain_loop():
    """Two classes of three examples and one of a single one, which is never left out."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([[1, 0, 2, 1, 0, 1, 0]]).expand(4, -1)
    episodes = Episodes(torch.randn(4, 7, 6, generator=generator), labels, torch.randn(4, 3, 6, generator=generator), 3)
    method = create_method("protonet")
    found = list(left_out(method, episodes, queries=True))
    for (logits, answers), gone in zip(found, ([0, 1], [3, 4], [5, 6]), strict=True):
        rest = [row for row in range(7) if row not in gone]
        asked = torch.cat([episodes.support[:, gone], episodes.query], 1)
        wanted = method(Episodes(episodes.support[:, rest], labels[:, rest], asked, 3))
        assert torch.allclose(logits, wanted, atol=1e-5) and torch.equal(answers, labels[:, gone])
    scores = torch.cat([score_of(logits[:, :2], answers, 2.0) for logits, answers in found], 1)
    assert torch.allclose(difficulty(method, episodes, 2.0), scores.mean(1))
    alone = Episodes(episodes.support[:, :3], labels[:, :3], episodes.query, 3)
    assert support_sets(method, alone) is None
    with pytest.raises(FewshotError, match="one example only"):
        difficulty(method, alone, 1.0)


def test_sets_from_the_support_against_the_definition():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(4)[None].expand(2, -1)
    support = torch.randn(2, 12, 5, generator=generator) + torch.nn.functional.one_hot(labels, 5)
    episodes, method = Episodes(support, labels, torch.randn(2, 8, 5, generator=generator), 3), create_method("protonet")
    sets = support_sets(method, episodes, 0.8)
    for e in range(2):
        beaten = torch.zeros(8, 3)
        for fold in range(4):
            gone = list(range(3 * fold, 3 * fold + 3))
            rest = [row for row in range(12) if row not in gone]
            one = (support[e : e + 1, rest], labels[e : e + 1, rest])
            mine = class_scores(method(Episodes(*one, support[e : e + 1, gone], 3)))[0]
            theirs = class_scores(method(Episodes(*one, episodes.query[e : e + 1], 3)))[0]
            for row in range(3):
                beaten += mine[row, row] < theirs
        assert torch.equal(sets[e], beaten < 0.8 * 13)
    assert 0 < sets.double().mean() < 1
    assert support_sets(method, episodes, 0.95).all()  # 12 examples cannot show 19 of 20


@pytest.mark.parametrize("shots", [1, 5])
def test_they_cover_on_classes_that_chose_nothing(halves, shots):
    found = evaluate(RUN, halves[1], shots=shots, calibrate=halves[0], coverage=0.9, episodes=500)
    summary = found.summary()
    assert abs(summary["coverage"] - 0.9) < 0.03 and summary["set_size"] < 4  # of 5
    assert summary["coverage_target"] == 0.9 and abs(summary["known_kept"] - 0.95) < 0.03 and "open_found" not in summary
    wider = evaluate(RUN, halves[1], shots=shots, calibrate=halves[0], coverage=0.99, episodes=500).measures
    assert wider["set_size"].mean() > found.measures["set_size"].mean() and wider["coverage"].mean() > 0.97


def test_measures_are_those_of_the_decisions_episode_by_episode(halves):
    """Also with open queries, which no threshold has seen, and in other pieces."""
    run = FIVE.changed(episodes=60, open_classes=2, open_queries=4)
    result = evaluate(run, halves[1], calibrate=halves[0], coverage=0.8)
    chosen = choose_decisions(run, halves[0], coverage=0.8)
    closed = choose_decisions(FIVE, halves[0], coverage=0.8)
    assert dataclasses.replace(closed, chosen_on=chosen.chosen_on) == chosen  # open queries choose nothing
    method = create_method("protonet")
    for i in (0, 41):
        episode, labels = run.sampler(halves[1]).sample(halves[1], i, 1)
        logits = method(episode)
        found = decision_measures(chosen, logits, labels, difficulty(method, episode, chosen.temperature))
        for name, values in found.items():
            assert float(values) == pytest.approx(float(result.measures[name][i])), name
        known = labels >= 0
        sets = class_scores(logits, chosen.temperature) <= chosen.threshold + chosen.slope * float(
            difficulty(method, episode, chosen.temperature))
        held = [bool(sets[0, q, labels[0, q]]) for q in range(labels.shape[1]) if known[0, q]]
        assert float(found["coverage"]) == pytest.approx(np.mean(held))
        assert float(found["set_size"]) == pytest.approx(float(sets[known].sum(-1).double().mean()))
        far = logits.amax(-1) < chosen.unknown_below
        assert float(found["open_found"]) == pytest.approx(float(far[~known].double().mean()))
        assert float(found["known_kept"]) == pytest.approx(1 - float(far[known].double().mean()))
    assert chosen.slope > 0 and result.measures["open_found"].mean() > 1 - result.measures["known_kept"].mean()
    table = metrics_table([result]).to_markdown()
    assert all(heading in table for heading in ("target", "coverage", "set size", "not unknown", "others found"))


def test_classes_that_are_evaluated_choose_nothing_and_rates_are_checked(halves):
    with pytest.raises(FewshotError, match="holds split 'test'"):
        choose_decisions(RUN, halves[1])
    with pytest.raises(FewshotError, match="holds split 'test'"):
        evaluate(RUN, halves[1], calibrate=halves[1], coverage=0.9)
    with pytest.raises(FewshotError, match=r"coverage=0\.9 without calibrate"):
        evaluate(RUN, halves[1], coverage=0.9)
    for wrong in (0, 1, "much"):
        with pytest.raises(FewshotError, match=f"coverage={wrong!r}"):
            choose_decisions(RUN, halves[0], coverage=wrong)
        with pytest.raises(FewshotError, match=f"coverage={wrong!r}"):
            evaluate(RUN, halves[1], calibrate=halves[0], coverage=wrong)


def test_a_stored_result_of_another_target_is_made_again(halves, tmp_path):
    store, run = Store(tmp_path), RUN.changed(episodes=50)
    first = evaluate(run, halves[1], store=store, calibrate=halves[0])
    second = evaluate(run, halves[1], store=store, calibrate=halves[0], coverage=0.9)
    again = evaluate(run, halves[1], store=store, calibrate=halves[0], coverage=0.9)
    third = evaluate(run, halves[1], store=store, calibrate=halves[0], coverage=0.95)
    assert "coverage" not in first.measures and torch.equal(second.measures["coverage"], again.measures["coverage"])
    assert again.seconds == second.seconds and float(third.measures["coverage_target"]) == 0.95


def test_decisions_survive_json_and_refuse_what_they_are_not(halves, tmp_path):
    found = choose_decisions(FIVE, halves[0])
    path = found.save(tmp_path / "decisions.json")
    assert Decisions.load(path) == found == Decisions.from_dict(json.loads(json.dumps(found.to_dict())))
    assert hash(found) == hash(Decisions.load(path)) and found.chosen_on["shots"] == 5
    path.write_text(json.dumps({**found.to_dict(), "more": 1}))
    with pytest.raises(FewshotError, match="no decisions in .*choose them anew"):
        Decisions.load(path)
    path.write_text("{")
    with pytest.raises(FewshotError, match="no decisions in .*fewshot decide"):
        Decisions.load(path)
    with pytest.raises(FewshotError, match="no decisions in"):
        Decisions.load(tmp_path / "absent.json")
    for name, wrong in (("temperature", 0.0), ("coverage", 1.0), ("slope", -1.0), ("threshold", math.inf)):
        with pytest.raises(FewshotError, match=f"{name}="):
            dataclasses.replace(found, **{name: wrong})
    parameters = found.chosen_on["parameters"]
    found.check("protonet", parameters, "")
    with pytest.raises(FewshotError, match="chosen with method=protonet, here it is ridge"):
        found.check("ridge", {}, "")
    with pytest.raises(FewshotError, match="chosen with transforms=, here it is l2"):
        found.check("protonet", parameters, "l2")
    with pytest.raises(FewshotError, match="chosen with parameters="):
        found.check("protonet", {"temperature": 3.0}, "")
    labels = torch.arange(5).repeat_interleave(5)
    assert found.doubt(labels, 5) == ""
    assert "5-way 5-shot episodes, and here are 5 classes with 4 to 5 examples" in found.doubt(labels[1:], 5)


def test_decisions_on_one_episode(halves):
    bank, method, chain = halves[1], create_method("protonet"), parse_transforms("l2").fit(None)
    episode, _ = FIVE.sampler(bank).sample(bank, 3, 1)
    one = (episode.support[0], episode.support_labels[0], episode.query[0], 5)
    chosen = choose_decisions(FIVE, halves[0], transforms="l2")
    found, prepared = decide(*one, method, chain, chosen), chain(episode)
    logits = method(prepared)
    assert torch.equal(found.sets, chosen.sets(logits, difficulty(method, prepared, chosen.temperature))[0])
    assert torch.equal(found.unknown, chosen.unknown(logits)[0]) and not found.probabilities.is_inference()
    alone = decide(*one, method, chain, 0.8)
    assert torch.equal(alone.sets, support_sets(method, prepared, 0.8)[0]) and alone.unknown is alone.probabilities is None
    assert decide(*one, create_method("pt_map"), chain, 0.8) is None
    near = nearest_examples(*one, method, chain, 2)
    distances = torch.cdist(prepared.query[0].double(), prepared.support[0].double())
    assert torch.equal(near, distances.argsort(dim=1)[:, :2])


def test_the_command_line(halves, tmp_path, capsys):
    calibration, features = tmp_path / "val.safetensors", tmp_path / "test.safetensors"
    for bank, path in zip(halves, (calibration, features), strict=True):
        bank.save(path)
    with pytest.raises(SystemExit) as stop:
        main(["eval", "--features", str(features), "--calibration-features", str(calibration), "--coverage", "0.9",
              "--shots", "5", "--episodes", "60", "--runs", str(tmp_path)])
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert "coverage" in shown and "Set size" in shown
    with pytest.raises(SystemExit) as stop:
        main(["decide", "--features", str(calibration), "--shots", "5", "--coverage", "0.8", "--out",
              str(tmp_path / "d.json")])
    assert not stop.value.code
    found = Decisions.load(tmp_path / "d.json")
    assert found.coverage == 0.8 and found.chosen_on["transforms"] == "l2" and found.slope > 0
    assert found.chosen_on["parameters"]["temperature"] == 0.1 and "wrote" in capsys.readouterr().out
    assert dataclasses.replace(found, chosen_on={}) == dataclasses.replace(choose_decisions(
        Run(shots=5, transforms="l2", parameters={"temperature": 0.1}), halves[0], coverage=0.8), chosen_on={})
