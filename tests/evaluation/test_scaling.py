"""However an evaluation is interrupted, resumed or shared, its numbers are those of one uninterrupted process."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from fewshot.cli.main import main
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.evaluation.evaluate import evaluate, evaluate_resolved
from fewshot.evaluation.resolve import resolve
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store
from fewshot.methods.protonet import ProtoNet
from tests.evaluation.test_evaluate import toy_bank

RUN = Run(episodes=300)
METHODS = ("protonet", "logistic_regression", "soft_kmeans", "pt_map",
           *(pytest.param(name, marks=pytest.mark.slow) for name in ("paddle", "tim_adm", "laplacian_shot", "bd_cspn")))


@pytest.fixture
def small(monkeypatch):
    """Small blocks, units and chunks, and a part after each unit: what happens to millions of episodes, in hundreds."""
    for name, value in {"episodes.saved._BLOCK": 64, "evaluation.scorer._UNIT": 12,
                        "evaluation.scorer._CHUNK_BYTES": 5 * 80 * 16 * 4, "evaluation.progress.EVERY": 0.0}.items():
        monkeypatch.setattr(f"fewshot.{name}", value)


def assert_same(a, b):
    """All that was found, to the last bit; times differ."""
    assert a.record == b.record and a.fingerprint == b.fingerprint
    a, b = a.arrays(), b.arrays()
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


def parts_of(folder):
    return sorted(folder.glob(".*.parts/*"))


@dataclass(frozen=True, eq=False)
class _Stopping(ProtoNet):
    """Stands for a power cut: raises at one call and counts the calls before."""

    calls: ClassVar[list[int]] = []
    limit: ClassVar[int | None] = None

    def __call__(self, episodes):
        if len(self.calls) == self.limit:
            raise KeyboardInterrupt
        self.calls.append(len(episodes))
        return super().__call__(episodes)


@pytest.fixture
def stopping(monkeypatch):
    """evaluate(..., store) with protonet that stops before call `limit`: (result or None, calls)."""
    def run(bank, store, limit=None, **options):
        monkeypatch.setattr(_Stopping, "calls", [])
        monkeypatch.setattr(_Stopping, "limit", limit)
        resolved = replace(resolve(RUN, bank), method=_Stopping())
        try:
            return evaluate_resolved(resolved, store=store, **options), _Stopping.calls
        except KeyboardInterrupt:
            return None, _Stopping.calls

    return run


# -- interrupted ----------------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, small, stopping):
    bank = toy_bank()
    whole = evaluate(RUN, bank, metrics=True)
    calls = []
    for limit in (9, 20, None):
        result, made = stopping(bank, Store(tmp_path), limit, metrics=True)
        calls += made
        assert (result is None) == bool(parts_of(tmp_path))
    assert_same(result, whole)
    assert_same(Store(tmp_path).load(result.record), whole)
    # Of each stop at most the chunks of one unit are repeated.
    assert RUN.episodes <= sum(calls) <= RUN.episodes + 2 * 10
    assert [path.name for path in tmp_path.iterdir()] == [whole.record.key], "parts are removed when the result is there"


def test_an_interrupted_run_keeps_what_it_has_at_once(tmp_path, small, stopping, monkeypatch):
    """Not only what was written at the last of the times at which parts are written."""
    monkeypatch.setattr("fewshot.evaluation.progress.EVERY", 1e9)
    bank = toy_bank()
    _, before = stopping(bank, Store(tmp_path), 9)
    (part,) = parts_of(tmp_path)
    start, stop = map(int, part.stem.split("-"))
    assert start == 0 < stop <= sum(before) < stop + 12, "all whole units"
    result, after = stopping(bank, Store(tmp_path))
    assert sum(after) == RUN.episodes - stop
    assert_same(result, evaluate(RUN, bank))


def test_short_runs_keep_no_parts(tmp_path, stopping):
    stopping(toy_bank(), Store(tmp_path), 1)
    assert not parts_of(tmp_path)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "other name", "half"])
def test_damaged_parts_are_evaluated_again(tmp_path, small, stopping, damage):
    bank = toy_bank()
    stopping(bank, Store(tmp_path), 20)
    paths = parts_of(tmp_path)
    path, data = paths[3], bytearray(paths[3].read_bytes())
    if damage == "other name":  # the rows of other episodes
        path.rename(path.with_name("0000000128-0000000138.safetensors"))
    elif damage == "half":  # what a killed process leaves while it writes
        path.rename(path.with_name(f"{path.name}.77.tmp"))
    else:
        data[-3] ^= 1
        path.write_bytes({"flip": bytes(data), "truncate": bytes(data[:100]), "empty": b""}[damage])
    warned = pytest.warns(UserWarning, match="1 file of finished episodes .* damaged") if damage in (
        "flip", "truncate", "empty") else contextlib.nullcontext()
    with warned:
        result, calls = stopping(bank, Store(tmp_path))
    assert_same(result, evaluate(RUN, bank))
    assert RUN.episodes - 100 < sum(calls) < RUN.episodes - 70
    assert not parts_of(tmp_path)


def test_parts_of_other_measures_and_software_are_left_out(tmp_path, small, stopping, monkeypatch):
    bank = toy_bank()
    stopping(bank, Store(tmp_path), 20)
    with pytest.warns(UserWarning, match="other software or measures .scores False, here True"):
        result, calls = stopping(bank, Store(tmp_path), metrics=True)
    assert sum(calls) == RUN.episodes
    assert_same(result, evaluate(RUN, bank, metrics=True))

    stopping(bank, Store(tmp_path / "b"), 20)
    monkeypatch.setattr("fewshot.core.provenance.commit", lambda: "another")
    with pytest.warns(UserWarning, match="here another"):
        assert sum(stopping(bank, Store(tmp_path / "b"))[1]) == RUN.episodes


def test_parts_of_other_runs_are_never_seen(tmp_path, small, stopping):
    stopping(toy_bank(), Store(tmp_path), 20)
    other = toy_bank(seed=1)
    result, calls = stopping(other, Store(tmp_path))
    assert sum(calls) == RUN.episodes
    assert_same(result, evaluate(RUN, other))
    assert len(parts_of(tmp_path)) > 5, "those of the first run are still there"


def test_a_full_disk_is_named_and_finished_parts_stay(tmp_path, small, stopping, monkeypatch):
    bank, written = toy_bank(), []
    with monkeypatch.context() as patched:
        from fewshot.core.files import save_tensors

        def filling(path, *rest):
            if len(written) == 4:
                raise OSError(28, "No space left on device")
            written.append(path)
            save_tensors(path, *rest)

        patched.setattr("fewshot.evaluation.progress.save_tensors", filling)
        with pytest.raises(FewshotError, match="No space left on device.*free disk space"):
            stopping(bank, Store(tmp_path))
    assert len(parts_of(tmp_path)) == 4
    result, calls = stopping(bank, Store(tmp_path))
    assert sum(calls) == RUN.episodes - 40
    assert_same(result, evaluate(RUN, bank))


def test_the_fingerprint_is_the_digest_of_all_episodes_in_order(tmp_path):
    """As it was before runs could be shared: stored results keep theirs."""
    bank = toy_bank()
    digest = hashlib.sha256(bank.identity.encode())
    for start, count in ((0, 2048), (2048, 52)):
        drawn = RUN.sampler(bank).indices(start, count)
        for rows in (drawn.support, drawn.query, drawn.query_labels):
            digest.update(rows.contiguous().numpy().tobytes())
    for i in (1, 0):
        shared = evaluate(RUN, bank, episodes=2100, store=Store(tmp_path), shard=(i, 2))
    assert shared.fingerprint == evaluate(RUN, bank, episodes=2100).fingerprint == digest.hexdigest()


# -- shared ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shards", [3, pytest.param(7, marks=pytest.mark.slow)])
def test_shards_equal_one_process(tmp_path, small, method, shards):
    own = {"norm": "l2n"} if method in ("laplacian_shot", "bd_cspn") else {}
    bank, run = toy_bank(), replace(RUN, method=method, parameters=own, query_distribution="dirichlet")
    whole = evaluate(run, bank, metrics=True)
    order = random.Random(shards).sample(range(shards), shards)
    found = [evaluate(run, bank, metrics=True, store=Store(tmp_path), shard=(i, shards)) for i in order]
    assert found[:-1] == [None] * (shards - 1)
    assert_same(found[-1], whole)
    assert not parts_of(tmp_path)
    assert evaluate(run, bank, metrics=True, store=Store(tmp_path), shard=(0, 2)).seconds == found[-1].seconds, "stored"


def test_shards_of_different_numbers_and_a_plain_run_fill_the_gaps(tmp_path, small, stopping):
    bank, store = toy_bank(), Store(tmp_path)
    stopping(bank, store, 7)
    assert evaluate(RUN, bank, store=store, shard=(1, 4)) is None
    assert evaluate(RUN, bank, store=store, shard=(2, 3)) is None
    result, calls = stopping(bank, store)
    assert sum(calls) < 120
    assert_same(result, evaluate(RUN, bank))


def test_every_episode_belongs_to_one_shard(small):
    from fewshot.evaluation.scorer import Scorer

    bank = toy_bank()
    for episodes in (2, 63, 64, 65, 300):
        scorer = Scorer(bank, RUN.sampler(bank), ProtoNet(), lambda x: x, episodes)
        for shards in (1, 2, 5, 400):
            cuts = [scorer.cuts((i, shards)) for i in range(shards)]
            assert cuts[0][0] == 0 and cuts[-1][1] == episodes
            assert all(a[1] == b[0] and scorer.is_border(b[0]) for a, b in zip(cuts, cuts[1:], strict=False))


@pytest.mark.parametrize(("options", "message"), [
    ({"shard": (2, 2)}, "shard=2/2; shards of n are numbered 0 to n-1"), ({"workers": 0}, "workers=0")])
def test_impossible_shards_are_named(tmp_path, options, message):
    with pytest.raises(FewshotError, match=message):
        evaluate(RUN, toy_bank(), store=Store(tmp_path), **options)
    with pytest.raises(FewshotError, match="shards meet in a store"):
        evaluate(RUN, toy_bank(), shard=(0, 2))


@pytest.mark.parametrize("method", ["protonet", *(pytest.param(name, marks=pytest.mark.slow) for name in (
    "pt_map", "soft_kmeans", "paddle"))])
def test_workers_equal_one_process(method):
    bank, run = toy_bank(), replace(RUN, method=method, parameters={}, episodes=2500, transforms="l2")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers
    try:
        assert_same(evaluate(run, bank, workers=2, metrics=True), evaluate(run, bank, metrics=True))
    finally:
        torch.set_num_threads(threads)


# -- threads ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def threads():
    """torch.set_num_threads, undone afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("open_classes", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_threads_change_nothing(small, threads, method, open_classes):
    bank = toy_bank()
    parameters = {"norm": "l2n"} if method in ("laplacian_shot", "bd_cspn") else {}
    run = replace(RUN, method=method, parameters=parameters, transforms="l2", open_classes=open_classes,
                  open_queries=open_classes)
    results = []
    for number in (1, 2, 3):
        threads(number)
        results.append(evaluate(run, bank, metrics=True))
        assert torch.get_num_threads() == number
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


class _Slow(ProtoNet):
    """Stops at its seventh call. `calls` are of all `threads`."""

    calls: ClassVar[list[int]] = []
    threads: ClassVar[set[str]] = set()
    error: ClassVar[BaseException] = KeyboardInterrupt()

    def __call__(self, episodes):
        self.calls.append(len(episodes))
        self.threads.add(threading.current_thread().name)
        if len(self.calls) == 7:
            raise self.error
        time.sleep(0.01)
        return super().__call__(episodes)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), FewshotError("no"), ZeroDivisionError()])
def test_a_stop_in_one_thread_stops_all_and_loses_little(tmp_path, small, threads, monkeypatch, error):
    monkeypatch.setattr(_Slow, "calls", [])
    monkeypatch.setattr(_Slow, "threads", set())
    monkeypatch.setattr(_Slow, "error", error)
    threads(2)
    bank, store = toy_bank(), Store(tmp_path)
    resolved = replace(resolve(RUN, bank), method=_Slow())
    with pytest.raises(type(error)):
        evaluate_resolved(resolved, store=store)
    assert torch.get_num_threads() == 2 and not [t for t in threading.enumerate() if t.name.startswith("fewshot")]
    assert len(_Slow.calls) <= 7 + 5 * 3, "five units are under way at that moment, of three chunks each"
    assert parts_of(tmp_path)
    assert _Slow.threads == {"fewshot_0", "fewshot_1"}
    assert_same(evaluate_resolved(resolved, store=store), evaluate(RUN, bank))
    assert sum(_Slow.calls) < RUN.episodes + 7 * 12, "what had been finished was not made again"


class _Failing(ProtoNet):
    """Only in the processes that help."""

    def __call__(self, episodes):
        return super().__call__(episodes) * (1.0 if multiprocessing.parent_process() is None else float("nan"))


@pytest.mark.slow
def test_errors_of_workers_arrive():
    with pytest.raises(FewshotError, match="_Failing returned logits that are not finite"):
        evaluate(replace(RUN, episodes=9000), toy_bank(), method=_Failing(), workers=2)


def test_methods_that_cannot_be_sent_are_named():
    class Local(ProtoNet):
        pass

    with pytest.raises(FewshotError, match="Local cannot be sent to other processes.*define it in a module"):
        evaluate(replace(RUN, episodes=5000), toy_bank(), method=Local(), workers=2)


def test_two_results_at_the_same_moment(tmp_path, monkeypatch):
    """Two hosts store the same run: neither fails, and what is there is whole."""
    result, replaced = evaluate(RUN, toy_bank()), os.replace

    def late(source, target):
        if str(target).endswith(result.record.key):
            monkeypatch.setattr("os.replace", replaced)
            Store(tmp_path).save(result)  # the other host is quicker
        return replaced(source, target)

    monkeypatch.setattr("os.replace", late)
    Store(tmp_path).save(result)
    assert_same(Store(tmp_path).load(result.record), result)
    assert [path.name for path in tmp_path.iterdir()] == [result.record.key]


# -- the command line -----------------------------------------------------------------------------------------------


def _main(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    return stop.value.code


def test_shards_from_the_command_line(tmp_path, capsys, small):
    features = toy_bank().save(tmp_path / "bank.safetensors")
    command = ["eval", "--features", features, "--runs", tmp_path / "runs", "--shots", "1", "--episodes", "300"]
    assert _main(*command, "--shard", "1/2") == 0
    assert "shard 1 of 2 is finished; others are missing" in capsys.readouterr().out
    assert _main(*command, "--shard", "0/2") == 0
    assert "protonet" in capsys.readouterr().out
    (stored,) = Store(tmp_path / "runs")
    assert_same(stored, evaluate(stored.record, toy_bank()))
    assert _main(*command, "--shard", "2/2") == 2
    assert "--shard='2/2'; expected I/N with I from 0 to N-1" in capsys.readouterr().err


# -- processes that are killed, race, and share ---------------------------------------------------------------------

CHILD = """
import sys, torch
torch.set_num_threads(1)
import fewshot.evaluation.progress
fewshot.evaluation.progress.EVERY = 0.1
from fewshot.cli.main import main
print("ready", file=sys.stderr, flush=True)
main(sys.argv[1:])
"""


def _child(*arguments, **options):
    return subprocess.Popen([sys.executable, "-c", CHILD, *map(str, arguments)], stdout=subprocess.DEVNULL, text=True,
                            stderr=subprocess.PIPE, **options)


@pytest.fixture
def command(tmp_path):
    """(arguments of an evaluation of some seconds in one process, its result without interruption)."""
    bank = toy_bank(dim=64)
    arguments = ["--quiet", "eval", "--features", bank.save(tmp_path / "bank.safetensors"), "--runs", tmp_path / "runs",
                 "--shots", "1", "--episodes", "80000", "--method", "soft_kmeans", "--metrics"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield arguments, evaluate(Run(method="soft_kmeans", episodes=80_000), bank, metrics=True)
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_random_kills(tmp_path, command, workers):
    """SIGKILL, SIGTERM and Ctrl-C at random times, until it is done."""
    arguments, whole = command
    chosen, kills = random.Random(workers), 0
    while True:
        before = len(parts_of(tmp_path / "runs"))
        child = _child(*arguments, "--workers", workers)
        while child.poll() is None and len(parts_of(tmp_path / "runs")) == before:  # a slow machine takes long to begin
            time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(chosen.uniform(0, 0.8) if kills < 4 else 200)
        if child.poll() is not None:
            break
        child.send_signal([signal.SIGKILL, signal.SIGTERM, signal.SIGINT][kills % 3])
        child.wait(60)
        kills += 1
    assert child.returncode == 0, child.stderr.read()
    assert kills >= 2
    (stored,) = Store(tmp_path / "runs")
    assert_same(stored, whole)
    assert not parts_of(tmp_path / "runs")


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(tmp_path, command):
    child = _child(*command[0], "--workers", 2, start_new_session=True)
    assert child.stderr.readline() == "ready\n"
    while child.poll() is None and not parts_of(tmp_path / "runs"):
        time.sleep(0.1)
    child.kill()
    child.wait()
    deadline = time.time() + 20
    while (left := subprocess.run(["pgrep", "-s", str(child.pid)], capture_output=True, text=True).stdout.split()):
        assert time.time() < deadline, left
        time.sleep(0.2)


@pytest.mark.slow
def test_two_hosts_race_for_one_run(tmp_path, command):
    arguments, whole = command
    children = [_child(*arguments), _child(*arguments), _child(*arguments, "--shard", "1/2")]
    for child in children:
        _, errors = child.communicate(timeout=250)
        assert child.returncode == 0, errors
    (stored,) = Store(tmp_path / "runs")
    assert_same(stored, whole)
    assert not parts_of(tmp_path / "runs") and len(list((tmp_path / "runs").iterdir())) == 1


@pytest.mark.slow
def test_torchrun_equals_one_process(tmp_path, command):
    arguments, whole = command
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m",
                           "fewshot", *map(str, arguments)], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Macro accuracy: mean over") == 1, "one process prints"
    (stored,) = Store(tmp_path / "runs")
    assert_same(stored, whole)
    assert not parts_of(tmp_path / "runs")


# -- many classes ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", ["protonet", "simple_shot", "logistic_regression", "soft_kmeans", "pt_map"])
def test_a_thousand_ways(method):
    bank = toy_bank(dim=32, classes=1010, images=3, spread=0.3)
    own = {"norm": "l2n"} if method == "simple_shot" else {}
    result = evaluate(Run(method=method, parameters=own, ways=1000, shots=1, queries=2, episodes=2), bank)
    assert 0.3 < result.accuracy.mean <= 1
    assert result.measures["class_total"].eq(2).all()


def test_chunks_and_blocks_leave_room_for_many_classes():
    from fewshot.episodes.saved import block_size
    from fewshot.evaluation.scorer import Scorer

    bank = FeatureBank(torch.rand(16_000, 4), torch.arange(16_000) % 1000)
    few, many = Run(queries=10), Run(ways=1000, queries=10)
    assert block_size(few.sampler(bank)) == 2048, "fingerprints of stored results are over blocks of 2048"
    assert block_size(many.sampler(bank)) * 8 * 21_000 < 100 << 20
    scorer = Scorer(bank, many.sampler(bank), ProtoNet(), lambda x: x, 100)
    assert scorer.chunk == 1, "the logits of an episode are 40 MB"
