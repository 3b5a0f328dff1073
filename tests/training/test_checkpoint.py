"""Checkpoints survive damage, random-number states come back, and signals become requests."""

from __future__ import annotations

import os
import random
import signal
import threading

import numpy as np
import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.training.checkpoint import (
    isolated_generators,
    load_checkpoint,
    rng_states,
    save_checkpoint,
    set_rng_states,
    stop_on_signals,
)


def draws():
    return random.random(), float(np.random.rand()), float(np.random.randn()), float(torch.rand(()))  # noqa: NPY002


def test_generators_continue_from_their_states():
    with isolated_generators(3):
        np.random.randn()  # noqa: NPY002 (leaves a cached second normal number, which must be restored, too)
        states = rng_states()
        expected = draws()
    with isolated_generators(4):
        set_rng_states(states)
        assert draws() == expected


def test_isolation_is_reproducible_and_leaves_no_trace():
    before = rng_states()
    with isolated_generators(5):
        first = draws()
    with pytest.raises(KeyError), isolated_generators(5):
        assert draws() == first
        raise KeyError
    after = rng_states()
    assert before["python"] == after["python"]
    assert torch.equal(before["torch"], after["torch"])
    assert torch.equal(before["numpy"][1], after["numpy"][1])
    assert before["numpy"][2:] == after["numpy"][2:]


def test_the_last_two_are_kept(tmp_path):
    for step in (1, 2, 30):
        save_checkpoint(tmp_path, step, {"step": step})
    assert len(list(tmp_path.iterdir())) == 2
    assert load_checkpoint(tmp_path) == {"step": 30}


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def damage_by_one_bit_in_a_tensor(path):
    # In the middle of the tensor's bytes, where PyTorch itself notices nothing.
    flip(path, path.read_bytes().index(b"\x07" * 1000) + 500)
    torch.load(path, weights_only=True)


def damage_by_truncation(path):
    os.truncate(path, path.stat().st_size // 2)


def damage_by_emptying(path):
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [damage_by_one_bit_in_a_tensor, damage_by_truncation, damage_by_emptying])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    for step in (1, 2):
        newest = save_checkpoint(tmp_path, step, {"step": step, "x": torch.full((4000,), 7, dtype=torch.uint8)})
    damage(newest)
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged"):
        assert load_checkpoint(tmp_path)["step"] == 1


def test_if_all_are_damaged_nothing_is_started_over_silently(tmp_path):
    for step in (1, 2):
        damage_by_truncation(save_checkpoint(tmp_path, step, {"step": step}))
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(FewshotError, match="none of the 2 checkpoints"):
        load_checkpoint(tmp_path)


def test_a_half_written_file_is_not_a_checkpoint(tmp_path):
    (tmp_path / "step-000000009.0123456789abcdef.pt.77.tmp").write_bytes(b"half")
    assert load_checkpoint(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_objects_other_than_plain_values_are_not_loaded(tmp_path):
    """A checkpoint is data: a pickled object in it is refused, as it could run code."""
    save_checkpoint(tmp_path, 1, {"x": pytest.approx(1.0)})
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(FewshotError):
        load_checkpoint(tmp_path)


def test_signals_become_a_request_and_handlers_come_back():
    seen, interrupt = [], signal.getsignal(signal.SIGINT)  # ignored in a process that a shell started in the background
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with stop_on_signals() as stop:
            assert not stop and signal.getsignal(signal.SIGINT) is not interrupt
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop and stop.number == signal.SIGTERM
            assert not seen
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signal.getsignal(signal.SIGINT) is interrupt


def test_a_second_ctrl_c_does_not_wait():
    with pytest.raises(KeyboardInterrupt), stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
        os.kill(os.getpid(), signal.SIGINT)


def test_training_in_a_thread_works_without_handlers():
    results = []

    def work():
        with stop_on_signals() as stop:
            results.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [False]
