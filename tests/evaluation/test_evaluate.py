"""An evaluation is reproducible, paired, leak-free, and complete on disk or absent."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import groupby

import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.result import compare
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store
from fewshot.methods.contract import Method, create_method


def toy_bank(dim=16, classes=12, images=30, spread=1.0, seed=0, **fields):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(images)
    centres = torch.randn(classes, dim, generator=generator)
    features = centres[labels] + spread * torch.randn(len(labels), dim, generator=generator)
    return FeatureBank(features.relu(), labels, name="toy", split="test", **fields)


RUN = Run(backbone="none", episodes=200)


def test_agrees_with_a_plain_loop():
    bank = toy_bank()
    result = evaluate(RUN, bank)
    sampler = EpisodeSampler(bank)
    for i in (0, 57, 199):
        episode, labels = sampler.sample(bank, start=i, count=1)
        prototypes = torch.stack([episode.support[0][episode.support_labels[0] == n].mean(0) for n in range(5)])
        predicted = torch.cdist(episode.query[0], prototypes).argmin(1)
        assert float(result.correct[i]) == pytest.approx(float((predicted == labels[0]).double().mean()))
    assert result.accuracy.n == 200 and 0.5 < result.accuracy.mean < 1


def test_chance_on_labels_that_mean_nothing():
    """A leak of support into queries, or of query labels into the method, would lift this above one fifth."""
    features = torch.randn(360, 16, generator=torch.Generator().manual_seed(5))
    bank = FeatureBank(features, torch.arange(12).repeat_interleave(30))
    for method in ("protonet", "nearest_neighbour", "soft_kmeans"):
        accuracy = evaluate(RUN, bank, method=method, episodes=2000).accuracy
        # The classes are fixed finite samples, so their means differ a little: one point above chance is allowed.
        assert abs(accuracy.mean - 0.2) < 0.012, method


def test_more_episodes_extend_the_list():
    bank = toy_bank()
    few, many = evaluate(RUN, bank), evaluate(RUN, bank, episodes=3000)
    assert torch.equal(few.correct, many.correct[:200]) and few.fingerprint != many.fingerprint


def test_features_of_another_backbone_see_the_same_episodes():
    a, b = evaluate(RUN, toy_bank(dim=16)), evaluate(RUN, toy_bank(dim=200, spread=2.0, seed=3))
    assert a.fingerprint == b.fingerprint
    comparison = compare(a, b)
    assert comparison.difference.mean == pytest.approx(a.accuracy.mean - b.accuracy.mean)


@pytest.mark.parametrize("change", [{"seed": 1}, {"shots": 2}, {"episodes": 300}, {"queries": 14}])
def test_different_episodes_are_not_compared(change):
    bank = toy_bank()
    with pytest.raises(FewshotError, match="different episodes"):
        compare(evaluate(RUN, bank), evaluate(RUN, bank, **change))


def test_other_data_are_not_compared():
    other = dataclasses.replace(toy_bank(), name="other")
    with pytest.raises(FewshotError, match="different episodes"):
        compare(evaluate(RUN, toy_bank()), evaluate(RUN, other))


def test_run_is_written_out_in_full():
    run = Run(method="protonet")
    assert run.parameters == {"temperature": 1.0}
    assert run.key == Run(method="protonet", parameters={"temperature": 1.0}).key
    assert run.key == Run(parameters={"temperature": 1}).key != Run(parameters={"temperature": 2.0}).key
    assert Run.from_dict(json.loads(json.dumps(run.to_dict()))) == run
    with pytest.raises(FewshotError, match="did you mean 'shots'"):
        Run.from_dict({"shot": 1})
    with pytest.raises(FewshotError, match="temperature"):
        Run(parameters={"temprature": 1})


def test_stored_results_are_returned(tmp_path):
    store, bank = Store(tmp_path), toy_bank()
    first = evaluate(RUN, bank, store=store)
    again = evaluate(RUN, bank, store=store)
    assert again.seconds == first.seconds and torch.equal(again.correct, first.correct)  # a second run has another time
    assert again.accuracy == first.accuracy and again.fingerprint == first.fingerprint and again.record == first.record
    assert [r.record.key for r in store] == [first.record.key]
    assert evaluate(RUN, toy_bank(seed=1), store=store).record.key != first.record.key, "other features are another run"


def test_a_second_folder_of_results_is_read_where_the_first_has_none(tmp_path):
    bank, kept, own = toy_bank(), Store(tmp_path / "kept"), Store(tmp_path / "own", kept=tmp_path / "kept")
    first = evaluate(RUN, bank, store=kept)
    assert own.load(first.record) is not None and [r.record for r in own] == [first.record]
    assert evaluate(RUN, bank, store=own).seconds == first.seconds and not own.root.exists(), "found, not made again"
    own.save(first)
    other = evaluate(dataclasses.replace(RUN, seed=9), bank, store=own)
    assert {r.record.key for r in own} == {first.record.key, other.record.key} and len(list(own)) == 2
    assert [r.record for r in kept] == [first.record], "only read"


def test_iterative_methods_store_their_convergence(tmp_path):
    evaluate(dataclasses.replace(RUN, method="soft_kmeans", parameters={}), toy_bank(), store=Store(tmp_path))
    stored = next(iter(Store(tmp_path)))
    assert stored.iterations.shape == (200,) and stored.converged.dtype == torch.bool
    assert stored.setting == "transductive"


@pytest.mark.parametrize("limits", [{"_SOLVE": 1}, {"_SOLVE": 48}, {"_SOLVE_BYTES": 1 << 17}, {},
                                    {"_SOLVE": 1, "_ANSWER_BYTES": 1}, {"_SOLVE": 7, "_ANSWER_BYTES": 1 << 14}])
def test_episodes_solved_together_keep_their_answers(monkeypatch, limits):
    """PT-MAP reduces chunks and solves several at once; accuracy, order and convergence are those of each episode."""
    monkeypatch.setattr("fewshot.evaluation.scorer._CHUNK_BYTES", 1 << 16)
    for name, value in limits.items():
        monkeypatch.setattr(f"fewshot.evaluation.batching.{name}", value)
    bank = toy_bank()
    found = evaluate(dataclasses.replace(RUN, method="pt_map", parameters={}), bank)
    episodes, labels = EpisodeSampler(bank).sample(bank, start=0, count=200)
    alone = create_method("pt_map").refine(episodes)
    assert torch.equal(found.correct, (alone.logits.argmax(-1) == labels).double().mean(1))
    assert torch.equal(found.converged, alone.converged) and found.iterations.tolist() == [20] * 200


@pytest.mark.parametrize("name", ["run.json", "result.json", "episodes.safetensors"])
def test_damaged_results_are_named(tmp_path, name):
    evaluate(RUN, toy_bank(), store=Store(tmp_path))
    (folder,) = tmp_path.iterdir()
    (folder / name).write_bytes((folder / name).read_bytes()[:-20])
    with pytest.raises(FewshotError, match="delete it and evaluate again"):
        Store(tmp_path).read(folder)
    with pytest.warns(UserWarning, match="left out: .* delete it and evaluate again"):
        assert list(Store(tmp_path)) == []


def test_other_folders_are_no_results(tmp_path):
    """A training run in the same folder has a result.json, too."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "result.json").write_text("{}")
    assert list(Store(tmp_path)) == []


def test_failed_write_keeps_the_earlier_result(tmp_path, monkeypatch):
    store, bank = Store(tmp_path), toy_bank()
    first = evaluate(RUN, bank, store=store)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fewshot.evaluation.store._write_json", full_disk)
    with pytest.raises(FewshotError, match="No space left.*free disk space"):
        store.save(first)
    assert [p.name for p in tmp_path.iterdir()] == [first.record.key]
    assert torch.equal(store.load(first.record).correct, first.correct)


class _NoLogits(Method):
    paper = "test"

    def __call__(self, episodes):
        return torch.full((*episodes.query.shape[:2], episodes.ways), float("nan"))


def test_logits_that_are_not_finite_stop_the_evaluation():
    with pytest.raises(FewshotError, match="not finite"):
        evaluate(RUN, toy_bank(), method=_NoLogits())


def test_methods_that_need_base_statistics_say_so():
    run = Run(method="simple_shot", episodes=50)
    with pytest.raises(FewshotError, match="base_bank"):
        evaluate(run, toy_bank())
    assert evaluate(run, toy_bank(), base_bank=base_of(toy_bank(seed=4))).accuracy.n == 50


def base_of(bank):
    return dataclasses.replace(bank, split="train")


def test_base_statistics_are_part_of_the_run(tmp_path):
    run, store = Run(method="simple_shot", episodes=50), Store(tmp_path)
    a, b = (evaluate(run, toy_bank(), base_bank=base_of(toy_bank(seed=s)), store=store) for s in (4, 5))
    assert a.record.key != b.record.key and len(list(store)) == 2
    plain = Run(method="protonet", episodes=50)
    assert evaluate(plain, toy_bank(), base_bank=base_of(toy_bank(seed=4))).record == evaluate(plain, toy_bank()).record


@pytest.mark.parametrize(("base", "message"), [
    (toy_bank(seed=4), "split 'test'"), (base_of(toy_bank(dim=8)), "8 features an item, bank 16"), ("none", "is a str")])
def test_base_banks_of_the_wrong_kind_are_refused(base, message):
    with pytest.raises(FewshotError, match=message):
        evaluate(Run(method="simple_shot", episodes=50), toy_bank(), base_bank=base)


def test_results_are_labelled_by_the_bank_they_come_from():
    result = evaluate(toy_bank_run := Run(episodes=50), toy_bank(provenance={"backbone": "resnet12", "weights_id": "abc"}))
    assert (result.record.dataset, result.record.backbone, result.record.weights) == ("toy", "resnet12", "abc")
    assert evaluate(toy_bank_run, toy_bank()).record.backbone == "features"


def test_a_method_can_be_named_like_any_other_setting():
    result = evaluate(bank=toy_bank(), method="nearest_neighbour", episodes=50)
    assert result.record.method == "nearest_neighbour"


@dataclass(frozen=True, eq=False)
class _Constant(Method):
    paper = "test"

    def __call__(self, episodes):
        assert not hasattr(episodes, "query_labels")
        return torch.zeros(*episodes.query.shape[:2], episodes.ways)


def test_constant_logits_give_exactly_chance_on_balanced_queries():
    assert evaluate(RUN, toy_bank(), method=_Constant()).accuracy.mean == pytest.approx(0.2)


KILLED = """
import sys, torch
from fewshot.data.banks import FeatureBank
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store
bank = FeatureBank(torch.randn(600, 256, generator=torch.Generator().manual_seed(0)), torch.arange(600) % 20)
for seed in range(1000):
    evaluate(Run(episodes=300, seed=seed), bank, store=Store(sys.argv[1]))
    print("stored", flush=True)
"""


def visible(folder):
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


@pytest.mark.slow
def test_a_killed_evaluation_leaves_nothing_that_looks_finished(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    for _ in range(3):
        assert process.stdout.readline() == "stored\n"
    time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    bank = FeatureBank(torch.randn(600, 256, generator=torch.Generator().manual_seed(0)), torch.arange(600) % 20)
    assert len(visible(tmp_path)) >= 3
    for folder in visible(tmp_path):
        stored = Store.read(folder)  # raises on anything half-written
        made = evaluate(stored.record, bank)
        assert folder.name == made.record.key and torch.equal(stored.correct, made.correct)
        assert stored.fingerprint == made.fingerprint


# Saves in a child process that kills itself before its n-th call to the file system, for every n until it comes through.
KILLED_WHILE_SAVING = """
import os, signal, sys, torch
from pathlib import Path
from fewshot.data.banks import FeatureBank
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store
torch.set_num_threads(1)
bank = FeatureBank(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 6)
result = evaluate(Run(episodes=50, queries=5), bank)

def killing(root, steps):
    def hook(event, arguments):
        nonlocal steps
        if any(str(argument).startswith(str(root)) for argument in arguments):
            if not steps:
                os.kill(os.getpid(), signal.SIGKILL)
            steps -= 1
    return hook

for before in ("nothing", "earlier"):
    steps, code = 0, None
    while code != 0:
        root = Path(sys.argv[1]) / f"{before}-{steps:03d}"
        if before == "earlier":
            Store(root).save(result)
        child = os.fork()
        if child == 0:
            sys.addaudithook(killing(root, steps))
            Store(root).save(result)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL), code
        steps += 1
"""


@pytest.mark.slow
def test_a_save_killed_at_any_step_leaves_a_whole_result_or_none(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path)], check=True, timeout=200)
    bank = FeatureBank(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 6)
    made, there = evaluate(Run(episodes=50, queries=5), bank), {"nothing": [], "earlier": []}
    for root in sorted(tmp_path.iterdir()):
        found = visible(root) if root.exists() else []
        there[root.name.partition("-")[0]].append(len(found))
        for folder in found:
            stored = Store.read(folder)
            assert folder.name == made.record.key and torch.equal(stored.correct, made.correct)
            assert stored.fingerprint == made.fingerprint
    # At least a folder, three files and a move; an earlier result is away only while the new one takes its place.
    assert there["nothing"] == sorted(there["nothing"]) and there["nothing"].count(0) >= 5 and there["nothing"][-1] == 1
    assert [count for count, _ in groupby(there["earlier"])] in ([1], [1, 0, 1])
    assert len(there["earlier"]) > len(there["nothing"])
