"""Two processes train as one does, to the last bit; they stop, fail and resume together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from torch import nn

from fewshot.backbones import read_weights
from fewshot.cli.main import main
from fewshot.core.errors import FewshotError
from fewshot.core.team import Team, own_device
from fewshot.training.checkpoint import load_checkpoint
from fewshot.training.step_buffers import StepBuffers
from tests.training.children import Children, assert_same, ends, kill_until_finished, outcome
from tests.training.runs import KINDS, NanInTheSecondProcess, run, tiny

# Two passes a step, one for each process. Addition of two numbers commutes: not even rounding differs.
FULL = {"accumulate": 2, "ema_decay": 0.9, "warmup_steps": 3, "gradient_clip": 0.3}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """kind -> what the run of a single process leaves behind."""
    found = {}
    for kind in KINDS:
        out = tmp_path_factory.mktemp(kind)
        KINDS[kind](out, **FULL)
        found[kind] = outcome(out)
    return found


@pytest.fixture(scope="module")
def children(tmp_path_factory):
    children = Children(tmp_path_factory.mktemp("meetings"))
    yield children
    children.end()


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_equal_one(tmp_path, alone, children, kind):
    """Loss curve, weights, running statistics, optimiser and average, with dropout and BatchNorm."""
    assert ends(children.start(tmp_path, 0.0, size=2, kind=kind, **FULL)) == ["finished", "finished"]
    assert_same(outcome(tmp_path), alone[kind])
    best = 2 * alone[kind]["best_step"]  # a pass is a batch of BatchNorm, whoever computes it
    assert alone[kind]["weights"]["norm.num_batches_tracked"] == best
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_four_passes_in_two_processes_agree_up_to_rounding(tmp_path, children):
    """Sums of four numbers in another order: plain SGD, so that Adam's division does not enlarge the last bits."""
    settings = {"accumulate": 4, "episodes_per_step": 4, "steps": 10, "optimiser": "sgd", "lr": 0.5, "ema_decay": 0.0,
                "validate_every": 0}
    run(tmp_path / "one", **settings)
    ends(children.start(tmp_path / "two", 0.0, size=2, **settings))
    one, two = (read_weights(tmp_path / name / "weights.safetensors")[0] for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6)
    assert (one["conv.weight"] - tiny().conv.weight).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_sigkill_of_either_process(tmp_path, alone, children, kind):
    assert kill_until_finished(children, tmp_path, 4, seed=0, size=2, kind=kind, **FULL)
    assert_same(outcome(tmp_path), alone[kind])
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_signal_to_either_process_stops_both_and_saves(tmp_path, alone, children, rank):
    """The run of two is then finished by one process: their number is not part of the run."""
    started = children.start(tmp_path, 0.03, size=2, **FULL)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "checkpoints").glob("*.pt")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(started[rank][0].pid, signal.SIGTERM)
    first, second = ends(started)
    assert first == second and first.startswith("interrupted by SIGTERM at step")
    assert f"at step {load_checkpoint(tmp_path / 'checkpoints')['step']}," in first
    run(tmp_path, **FULL)
    assert_same(outcome(tmp_path), alone["episodic"])


def test_mistakes_are_reported_by_all_processes(tmp_path, children):
    def messages(out, **settings):
        first, second = ends(children.start(tmp_path / out, 0.0, size=2, **settings))
        assert first == second
        return first

    assert "accumulate=1 passes a step cannot be shared by 2 processes; set accumulate=2" in messages("odd")
    assert "the 2 processes were given different settings" in messages("seeds", **FULL, of_rank=({"seed": 0}, {"seed": 1}))
    run(tmp_path / "other", **FULL, lr=0.5)
    assert "lr: 0.5 there, 0.01 here" in messages("other", **FULL)
    message = messages("nan", **FULL, method=NanInTheSecondProcess())
    assert "the loss is nan at step 0" in message and "the logits of the method" in message


def test_buffers_do_not_depend_on_the_order_of_the_passes():
    def after(order):
        network = nn.BatchNorm1d(3).train()
        buffers = StepBuffers(network, len(order))
        for part in order:
            with buffers.one_pass():
                network(images[part])
        buffers.finish(Team())
        return network.state_dict()

    images = torch.randn(3, 8, 3, generator=torch.Generator().manual_seed(0))
    found = after([0, 1, 2])
    torch.testing.assert_close(found, after([2, 0, 1]))
    torch.testing.assert_close(found["running_mean"], 0.1 * images.mean((0, 1)))
    torch.testing.assert_close(found["running_var"], 0.9 + 0.1 * images.var(1).mean(0))
    assert found["num_batches_tracked"] == 3


def test_devices_by_name():
    assert own_device("cpu") == torch.device("cpu") == own_device("auto") or torch.cuda.is_available()
    with pytest.raises(FewshotError, match="device 'gpu' cannot be used here .*choose auto or cpu"):
        own_device("gpu")


def folder_of_images(root) -> list[str]:
    """Options of the command line for 8 training and 4 validation classes of noisy stripes."""
    generator = torch.Generator().manual_seed(0)
    rows = ["class,split"]
    for number in range(12):
        stripes = torch.randint(0, 2, (1, 16), generator=generator) * 150
        (root / "images" / f"class{number}").mkdir(parents=True)
        for image in range(8):
            pixels = (stripes + torch.randint(0, 100, (16, 16), generator=generator)).to(torch.uint8)
            Image.fromarray(pixels.numpy()).save(root / "images" / f"class{number}" / f"{image}.png")
        rows.append(f"class{number},{'train' if number < 8 else 'val'}")
    (root / "splits.csv").write_text("\n".join(rows))
    return ["--dataset", str(root / "images"), "--data-option", f"splits={root / 'splits.csv'}"]


@pytest.mark.slow
@pytest.mark.timeout(1200)  # six starts of Python with torch: half a minute, but many on a machine that others use
@pytest.mark.parametrize("kind", [
    ["--ways", "3", "--queries", "2", "--steps", "60", "--config", "episodes_per_step=2", "--config", "validate_every=30"],
    ["--recipe", "cross_entropy", "--epochs", "15", "--config", "batch_size=16", "--config", "validate_every=10"],
], ids=KINDS)
def test_torchrun(tmp_path, request, kind):
    """From the command line, interrupted and resumed, against one process."""
    command = ["-m", "fewshot", "train", *folder_of_images(tmp_path), *kind, "--config", "accumulate=2", "--config",
               "checkpoint_every=5", "--config", "validation_episodes=20", "--config", "validation_ways=3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    def start(out, *launcher):
        process = subprocess.Popen([sys.executable, *launcher, *command, "--out", str(tmp_path / out)], env=environment,
                                   text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        request.addfinalizer(process.terminate)  # torchrun ends its own
        return process

    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    process = start("two", *torchrun)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "two" / "checkpoints").glob("*.pt")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert err.count("interrupted by SIGTERM at step") == 1, err
    step = load_checkpoint(tmp_path / "two" / "checkpoints")["step"]
    assert f"at step {step}," in err and not (tmp_path / "two" / "weights.safetensors").exists()
    out, err = start("two", *torchrun).communicate(timeout=300)
    assert out.count("60 steps (all steps)") == 1, err
    with pytest.raises(SystemExit) as ended:
        main([*command[2:], "--out", str(tmp_path / "one")])
    assert ended.value.code == 0
    assert_same(outcome(tmp_path / "two"), outcome(tmp_path / "one"))
