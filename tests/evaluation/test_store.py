"""Folders of results: what is in them, which of them are read, and what is said of the others."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import sys
import warnings

import pytest
import safetensors
import torch

from fewshot.core import provenance
from fewshot.core.errors import FewshotError
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.progress import Part
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store, experiment_store, kept_folder
from tests.evaluation.test_evaluate import toy_bank

RUN = Run(backbone="none", episodes=20)


def result(**changes):
    return evaluate(dataclasses.replace(RUN, **changes), toy_bank())


def test_a_result_is_a_folder_of_three_files(tmp_path):
    made = result()
    store = Store(tmp_path / "deep" / "runs")
    place = store.save(made)
    assert place == store.folder(made.record) == tmp_path / "deep" / "runs" / made.record.key
    assert sorted(path.name for path in place.iterdir()) == ["episodes.safetensors", "result.json", "run.json"]
    assert list(place.parent.iterdir()) == [place], "nothing beside it"
    assert (place / "run.json").read_text() == json.dumps(made.record.to_dict(), indent=1), "to be read by people, too"
    assert json.loads((place / "result.json").read_text()) == json.loads(json.dumps(made.summary()))
    with safetensors.safe_open(place / "episodes.safetensors", framework="pt") as handle:
        assert set(handle.keys()) == made.arrays().keys()
        assert all(torch.equal(handle.get_tensor(name), x) for name, x in made.arrays().items())
    read = store.read(str(place))
    assert read.summary() == made.summary() and read.record == made.record
    assert Store().root.name == "runs"


def test_a_later_result_takes_the_place_of_an_earlier_one(tmp_path):
    first, store = result(), Store(tmp_path)
    store.save(first)
    place = store.save(dataclasses.replace(first, seconds=first.seconds + 1))
    assert store.load(first.record).seconds == first.seconds + 1 and list(tmp_path.iterdir()) == [place]


def test_a_kill_at_any_step_leaves_the_old_or_the_new_result(tmp_path):
    """A forked process ends itself before its first, second, ... operation on a file, without any clean-up."""
    if not hasattr(os, "fork"):
        pytest.skip("needs processes that fork")
    first = result()
    second = dataclasses.replace(first, seconds=first.seconds + 1)
    events, found, step, killed = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}, [], 0, True
    while killed:
        store = Store(tmp_path / str(step))
        store.save(first)
        child = os.fork()
        if child == 0:
            left = iter(range(step))
            sys.addaudithook(lambda event, _, left=left: event in events and next(left, None) is None and os._exit(9))
            try:
                store.save(second)
            finally:
                os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        loaded = Store(store.root).load(first.record)
        found.append(None if loaded is None else loaded.seconds - first.seconds)
        assert [one.seconds for one in Store(store.root)] == [loaded.seconds]
        assert not list(store.root.glob(".*-old")), "what was taken out is put back or deleted"
        step += 1
    assert found == sorted(found) and found[0] == 0 and found[-1] == 1, found
    assert found.count(0) > 5 and found.count(1) > 3


@pytest.mark.parametrize("at", [1, 2])
def test_a_failure_to_put_a_result_in_its_place_keeps_the_earlier_one(tmp_path, monkeypatch, at):
    first, store, calls, replace = result(), Store(tmp_path), [], os.replace
    place = store.save(first)

    def failing(source, target):
        if (target == place) or (source == place):
            calls.append(source)
            if len(calls) > at:  # the first finds the place taken, the second empties it, the third would fill it
                raise OSError(errno.EIO, "broken disk")
        return replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(FewshotError, match="broken disk"):
        store.save(dataclasses.replace(first, seconds=first.seconds + 1))
    assert store.load(first.record).seconds == first.seconds and list(tmp_path.iterdir()) == [place]


def test_parts_lie_beside_the_result_with_the_software_that_made_them(tmp_path):
    made, store = result(), Store(tmp_path)
    parts = store.parts(made.record, scores=True)
    assert parts.folder == tmp_path / f".{made.record.key}.parts"
    parts.add(Part(0, 20, {}, {}), made.arrays())
    parts.flush(made.arrays())
    assert [len(one) for one in store.parts(made.record, scores=True).read(20, lambda _: True)] == [20]
    (path,) = parts.folder.iterdir()
    with safetensors.safe_open(path, framework="pt") as handle:
        assert json.loads(handle.metadata()["made_by"]) == {
            **provenance.versions(), "commit": provenance.commit(), "scores": True}


def test_folders_that_cannot_be_written_are_named_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FewshotError, match=r"cannot make the folder .*file/runs \(.*choose another one"):
        Store(tmp_path / "file" / "runs").prepare()
    monkeypatch.setattr(os, "access", lambda path, mode: not (path == tmp_path and mode == os.W_OK))
    with pytest.raises(FewshotError, match="is not writable; choose another one"):
        Store(tmp_path).prepare()
    Store(tmp_path / "other").prepare()
    assert (tmp_path / "other").is_dir()
    Store(tmp_path / "other").prepare()


@pytest.mark.parametrize(("error", "remedy"), [(OSError(28, "No space left on device"), "free disk space"),
                                               (safetensors.SafetensorError("disk"), "choose another folder")])
def test_a_result_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch, error, remedy):
    def full(*_):
        raise error

    monkeypatch.setattr("fewshot.evaluation.store.save_tensors", full)
    with pytest.raises(FewshotError, match=f"could not write the result to {tmp_path}/.*nothing was kept") as raised:
        Store(tmp_path).save(result())
    assert remedy in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_what_a_store_holds(tmp_path):
    store = Store(tmp_path)
    made = {(found := result(seed=seed)).record.key: found for seed in (3, 1, 2)}
    for found in made.values():
        store.save(found)
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "result.json").write_text("{}")
    shutil.copytree(store.folder(found.record), tmp_path / ".half")
    shutil.copytree(store.folder(found.record), tmp_path / "unfinished")
    (tmp_path / "unfinished" / "result.json").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [one.record.key for one in store] == sorted(made)
        assert all(torch.equal(one.correct, made[one.record.key].correct) for one in store)
    broken = sorted(made)[0]
    (tmp_path / broken / "run.json").write_text("{")
    with pytest.warns(UserWarning, match=f"left out: {tmp_path / broken} holds no readable result") as warned:
        assert [one.record.key for one in store] == sorted(made)[1:], "those after it are read"
    assert len(warned) == 1 and warned[0].filename == __file__
    assert store.load(result(seed=9).record) is None


def test_of_two_folders_the_first_is_asked_first(tmp_path):
    first, second = result(), result(seed=1)
    kept, store = Store(tmp_path / "kept"), Store(tmp_path / "runs", kept=tmp_path / "kept")
    kept.save(dataclasses.replace(first, seconds=50.0))
    kept.save(second)
    assert store.load(first.record).seconds == 50
    store.save(dataclasses.replace(first, seconds=60.0))
    assert store.load(first.record).seconds == 60 and store.load(second.record) is not None
    assert [(one.record.seed, one.seconds) for one in store] == [(0, 60), (1, second.seconds)]
    assert store.load(result(seed=2).record) is None


@pytest.mark.parametrize(("name", "text", "kind"), [
    ("run.json", None, "FileNotFoundError"), ("result.json", None, "FileNotFoundError"),
    ("result.json", "{", "JSONDecodeError"), ("result.json", "{}", "KeyError"), ("result.json", "[]", "TypeError"),
    ("episodes.safetensors", "", "SafetensorError")])
def test_a_folder_that_holds_no_result_says_why(tmp_path, name, text, kind):
    place = Store(tmp_path).save(result())
    if text is None:
        (place / name).unlink()
    else:
        (place / name).write_text(text)
    with pytest.raises(FewshotError, match=rf"{place} holds no readable result \({kind}: .*delete it and evaluate again"):
        Store.read(place)


def test_results_of_an_experiment_lie_beside_its_file(tmp_path):
    assert kept_folder(tmp_path / "table.py") == tmp_path / "kept"
    made = result()
    Store(tmp_path / "kept").save(made)
    store = experiment_store(tmp_path / "table.py", tmp_path / "runs")
    assert store.root == tmp_path / "runs" and store.load(made.record).fingerprint == made.fingerprint


@pytest.mark.parametrize("code", [errno.ENOTEMPTY, errno.EEXIST, errno.EACCES])
def test_a_place_that_is_always_taken_ends_somewhere(tmp_path, monkeypatch, code):
    """Other processes that put their result there are given way to, but not for ever; other errors end it at once."""
    made, tries, replace = result(), [], os.replace

    def taken(source, target):
        if str(target).endswith(made.record.key):
            tries.append(source)
            raise OSError(code, "taken")
        return replace(source, target)

    monkeypatch.setattr(os, "replace", taken)
    with pytest.raises(FewshotError, match="taken" if code == errno.EACCES else "other processes keep writing this result"):
        Store(tmp_path).save(made)
    assert len(tries) == (1 if code == errno.EACCES else 100) and list(tmp_path.iterdir()) == []
