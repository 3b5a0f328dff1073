"""Meta-training of any module: what a step is, buffers, interruption and resuming, refusals."""

from __future__ import annotations

import copy
import functools
import os
import signal

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fewshot
from fewshot.core.errors import FewshotError
from fewshot.training import TrainingInterrupted


def mse(model, batch):
    x, y = batch
    return F.mse_loss(model(x), y)


def line(i):
    """Task i: ((x [3, 1], y [3, 1]), (x [4, 1], y [4, 1])) on a line of its own."""
    generator = torch.Generator().manual_seed(i)
    slope = torch.randn((), generator=generator)
    support, query = torch.randn(3, 1, generator=generator), torch.randn(4, 1, generator=generator)
    return (support, slope * support), (query, slope * query)


def network(drop=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(drop), nn.Linear(8, 1))


def run(module, steps, optimiser=None, **settings):
    optimiser = optimiser or torch.optim.Adam(module.parameters(), 0.01)
    return fewshot.meta_train(module, settings.pop("tasks", line), settings.pop("loss", mse), optimiser, steps=steps,
                              progress=False, **settings)


def same(module, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("vectorise", [False, True])
def test_a_step_is_one_on_the_mean_query_loss_after_adaptation(vectorise):
    module, reference = network().double(), network().double()
    tasks = lambda i: tuple(tuple(part.double() for part in side) for side in line(i))  # noqa: E731
    inner = functools.partial(fewshot.adapt, steps=2, learning_rate=0.1)
    history = run(module, 2, torch.optim.SGD(module.parameters(), 0.5), tasks=tasks, tasks_per_step=3, every=1, inner=inner,
                  vectorise=vectorise)
    for row in history:
        first = (row["step"] - 1) * 3
        models = [inner(reference, mse, tasks(i)[0]) for i in range(first, first + 3)]
        value = sum(mse(model, tasks(first + i)[1]) for i, model in enumerate(models)) / 3
        found = torch.autograd.grad(value, list(reference.parameters()))
        assert row["loss"] == pytest.approx(value.item(), abs=1e-12)
        assert row["gradient_norm"] == pytest.approx(torch.cat([part.flatten() for part in found]).norm().item(), abs=1e-12)
        with torch.no_grad():
            for parameter, gradient in zip(reference.parameters(), found, strict=True):
                parameter -= 0.5 * gradient
            for name, buffer in reference.named_buffers():  # the mean over the tasks; all count as many calls
                every = torch.stack([model.buffers[name] for model in models])
                buffer.copy_(every.mean(0) if buffer.is_floating_point() else every[0])
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, reference.state_dict()[name], atol=1e-12, rtol=0)


def test_the_loss_of_other_tasks_falls_and_learned_rates_train_along():
    module = network().eval()
    rates = {name: nn.Parameter(torch.full_like(value, 0.1)) for name, value in module.named_parameters()}
    inner = functools.partial(fewshot.adapt, learning_rate=rates)

    def after_adaptation():
        return sum(mse(inner(module, mse, line(i)[0]), line(i)[1]).item() for i in range(1000, 1030))

    before = after_adaptation()
    history = run(module, 60, torch.optim.Adam([*module.parameters(), *rates.values()], 0.03), inner=inner, every=25,
                  vectorise=True, tasks_per_step=8)
    assert [row["step"] for row in history] == [25, 50, 60]
    assert after_adaptation() < 0.75 * before
    assert all((rate != 0.1).any() for rate in rates.values())


def stopping_after(calls):
    """Tasks that ask the process to stop at call number `calls`."""
    seen = []

    def tasks(i):
        seen.append(i)
        if len(seen) == calls:
            os.kill(os.getpid(), signal.SIGTERM)
        return line(i)

    return tasks


@pytest.mark.parametrize("vectorise", [False, True])
def test_an_interrupted_run_ends_in_the_same_bits(tmp_path, vectorise):
    """With dropout, BatchNorm, Adam and learned rates; between two checkpoints, in another process as it were."""
    def begin():
        module = network(drop=0.3)
        rate = nn.Parameter(torch.tensor(0.1))
        inner = functools.partial(fewshot.adapt, learning_rate=rate)
        return module, {"optimiser": torch.optim.Adam([*module.parameters(), rate], 0.01), "inner": inner,
                        "vectorise": vectorise, "every": 4}, rate

    whole, settings, expected_rate = begin()
    torch.manual_seed(1)
    expected = run(whole, 10, **settings)
    module, settings, _ = begin()
    torch.manual_seed(2)  # the global generator plays no part
    with pytest.raises(TrainingInterrupted, match="at step 6"):
        run(module, 10, **settings, out=tmp_path, tasks=stopping_after(1 + 5 * 4 + 2))  # task 0 identifies the run
    module, settings, rate = begin()
    assert run(module, 10, **settings, out=tmp_path) == expected
    assert same(module, whole) and torch.equal(rate, expected_rate) and rate != 0.1
    finished, settings, _ = begin()
    assert run(finished, 10, **settings, out=tmp_path, tasks=stopping_after(2)) == expected and same(finished, whole)


def test_more_steps_go_on_from_the_end(tmp_path):
    whole, module, more = network(), network(), network()
    expected = run(whole, 8, every=2)
    assert run(module, 4, every=2, out=tmp_path) == expected[:2]
    assert run(more, 8, every=2, out=tmp_path) == expected and same(more, whole)
    with pytest.raises(FewshotError, match="holds 8 steps, more than steps=4"):
        run(network(), 4, every=2, out=tmp_path)


@pytest.mark.parametrize(("change", "named"), [
    ({"seed": 1}, "seed"), ({"tasks_per_step": 5}, "tasks_per_step"), ({"tasks": lambda i: line(i + 1)}, "first_task"),
    ({"inner": functools.partial(fewshot.adapt, learning_rate=0.02)}, "inner"),
])
def test_a_folder_of_another_run_is_refused(tmp_path, change, named):
    run(network(), 1, out=tmp_path)
    module = network()
    with pytest.raises(FewshotError, match=rf"holds a run with other settings \({named}: "):
        run(module, 1, out=tmp_path, **change)
    assert same(module, network())


def test_what_cannot_be_trained_is_refused_before_the_weights_change():
    module, other = network(), network()
    uneven = lambda i: tuple((x[: 2 + i], y[: 2 + i]) for x, y in line(i))  # noqa: E731
    cases = {"steps=0; expected an integer": {"steps": 0},
             "cannot be stacked": {"tasks": uneven, "vectorise": True},
             "no parameter of the optimiser has a gradient": {"optimiser": torch.optim.SGD(other.parameters(), 0.1)},
             "the loss is nan .* at step 0": {"loss": lambda model, batch: mse(model, batch) * float("nan")},
             "the query loss carries no gradient": {"loss": lambda model, batch: mse(model, batch).detach(),
                                                    "inner": functools.partial(fewshot.adapt, steps=0)}}
    for message, settings in cases.items():
        with pytest.raises(FewshotError, match=message):
            run(module, settings.pop("steps", 1), **settings)
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), network().parameters(), strict=True)), message
    assert run(copy.deepcopy(module), 1, tasks=uneven)[0]["step"] == 1
