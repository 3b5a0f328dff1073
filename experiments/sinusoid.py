"""Sinusoid regression with MAML, its first-order form, Meta-SGD and implicit MAML (Finn et al. 2017, arXiv:1703.03400,
figure 3).

    python experiments/sinusoid.py                    # a quarter of an hour on one core, no data; interrupted, it goes on
    python experiments/sinusoid.py --steps 2000 --out runs/quick --results runs/quick
    python experiments/sinusoid.py --only maml implicit --steps 2000   # these rows of the table, the others as they are

A task is y = A sin(x - phase), amplitude A in [0.1, 5], phase in [0, pi], x in [-5, 5], all uniform: K points to adapt to,
and as many others in training, 100 in the test. Two hidden layers of 40 ReLU units, one inner step of 0.01 in training, 25
tasks a step, Adam 1e-3: the settings of the paper and of cbfinn/maml. Deviations: 8,000 training steps instead of 70,000
(`--steps`), and 1,000 test tasks instead of 600.

Implicit MAML (Rajeswaran et al. 2019, arXiv:1909.04630) takes 16 steps towards the minimum of the loss plus strength/2
times the squared distance to the initial weights, in training and in the test. A training step costs several of MAML's: its
row is of 2,000 steps, beside MAML after as many.

The paper prints curves and no numbers, and none were read off them: mean squared error over 0 to 10 gradient steps, of MAML,
of a network that was pre-trained on all tasks and is fine-tuned with the best step size, and of an oracle that is told
amplitude and phase. What they show: MAML is far ahead after one step, goes on to gain although it was trained for one, and
pre-training hardly helps.
Numbers elsewhere: 10 points and one step (63days/Meta-SGD) MAML 0.6702, Meta-SGD 0.3145; 5 points, steps not stated
(Zigolox/Meta-Learning-OptML-Project) MAML 0.72, Meta-SGD 0.46, first order 0.81.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import math
from pathlib import Path

import matplotlib
import pandas as pd
import torch
from torch import Tensor, nn

import fewshot
from fewshot.core import provenance
from fewshot.core.files import write_atomically
from fewshot.core.seeding import derived_seed, isolated_rng
from fewshot.statistics import mean_interval

ROOT = Path(__file__).resolve().parent.parent
STEPS, TASKS_PER_STEP, TEST_TASKS, INNER_STEPS = 8000, 25, 1000, 10
STEP_SIZES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02)  # to fine-tune the pre-trained network with; chosen on other tasks
TRAINING, VALIDATION, TEST = range(3)  # seeds of the tasks
SHOTS, METHODS = (5, 10, 20), ("maml", "first order", "meta-sgd", "implicit")
PROXIMAL = functools.partial(fewshot.adapt_implicitly, steps=16, learning_rate=0.01, strength=1.0, conjugate_steps=5)


def loss(model, batch):
    x, y = batch
    return nn.functional.mse_loss(model(x), y)


def sinusoid(i: int, shots: int, queries: int, seed: int = TRAINING, oracle: bool = False) -> tuple:
    """Task i: ((x [K, 1], y [K, 1]), (x [Q, 1], y [Q, 1])); for the oracle x [., 3] with amplitude and phase."""
    generator = torch.Generator().manual_seed(derived_seed("sinusoid", seed, i))
    amplitude, phase = (torch.rand(2, generator=generator) * torch.tensor([4.9, math.pi]) + torch.tensor([0.1, 0])).tolist()
    x = torch.rand(shots + queries, 1, generator=generator) * 10 - 5
    y = amplitude * torch.sin(x - phase)
    if oracle:
        x = torch.cat([x, x.new_tensor([amplitude, phase]).expand(len(x), 2)], dim=1)
    return (x[:shots], y[:shots]), (x[shots:], y[shots:])


def network(inputs: int = 1) -> nn.Module:
    with isolated_rng(0):
        return nn.Sequential(nn.Linear(inputs, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))


def stacked(tasks: list[tuple]) -> tuple:
    """((x, y), (x, y)), each [E, ., .], of tasks."""
    return tuple(tuple(torch.stack(parts) for parts in zip(*side, strict=True)) for side in zip(*tasks, strict=True))


def curve(model: nn.Module, tasks: tuple, rate: float | dict, steps: int = INNER_STEPS) -> Tensor:
    """Mean squared error [steps + 1, E] of the queries after 0, 1, .. inner steps."""
    support, query = tasks
    with torch.no_grad():
        adapted = fewshot.adapt(model, loss, support, steps=0, batched=True)
        errors = [adapted.each(loss, query)]
        for _ in range(steps):
            adapted = fewshot.adapt(adapted, loss, support, learning_rate=rate)
            errors.append(adapted.each(loss, query))
    return torch.stack(errors)


def proximal_curve(model: nn.Module, tasks: tuple) -> Tensor:
    """As `curve`, over the steps of `PROXIMAL`."""
    support, query = tasks
    with torch.no_grad():
        return torch.stack([PROXIMAL(model, loss, support, steps=steps, batched=True).each(loss, query)
                            for steps in range(PROXIMAL.keywords["steps"] + 1)])


def trained(name: str, shots: int, steps: int, out: Path) -> tuple[nn.Module, float | dict]:
    """The network of a method after meta-training, and the step size it is tested with."""
    oracle = name == "oracle"
    model, rate = network(3 if oracle else 1), 0.01
    learned = {key: nn.Parameter(torch.full_like(value, rate)) for key, value in model.named_parameters()}
    inner = {"maml": functools.partial(fewshot.adapt, learning_rate=rate),
             "first order": functools.partial(fewshot.adapt, learning_rate=rate, first_order=True),
             "meta-sgd": functools.partial(fewshot.adapt, learning_rate=learned),
             "implicit": PROXIMAL,
             }.get(name, functools.partial(fewshot.adapt, steps=0))
    parameters = [*model.parameters(), *(learned.values() if name == "meta-sgd" else ())]
    points = shots if name in METHODS else 10  # one network for all numbers of shots, which it does not know
    tasks = functools.partial(sinusoid, shots=points, queries=points, oracle=oracle)
    fewshot.meta_train(model, tasks, loss, torch.optim.Adam(parameters, 1e-3), steps=steps, tasks_per_step=TASKS_PER_STEP,
                       inner=inner, vectorise=True, every=1000, out=out / f"{name.replace(' ', '_')}_{points}")
    if name == "pre-trained":
        tasks = stacked([sinusoid(i, shots, 100, VALIDATION) for i in range(TEST_TASKS)])
        rate = min(STEP_SIZES, key=lambda size: float(curve(model, tasks, size)[-1].mean().nan_to_num(math.inf)))
    return model, learned if name == "meta-sgd" else rate


def measured(steps: int, out: Path, only: list[str] | None = None) -> tuple[pd.DataFrame, dict]:
    """(a row for each method, number of shots and of inner steps; the networks of MAML by shots). only: these methods."""
    rows, models = [], {}
    compared = [(name, shots) for shots in SHOTS for name in ("maml", "pre-trained", "oracle")]
    for name, shots in compared + [(name, 10) for name in METHODS[1:]]:
        if only and name not in only:
            continue
        model, rate = trained(name, shots, steps, out)
        if name == "maml":
            models[shots] = model
        tasks = stacked([sinusoid(i, shots, 100, TEST, name == "oracle") for i in range(TEST_TASKS)])
        # More than the one step they were learned for may diverge with learned rates; the oracle takes none.
        last = {"oracle": 0, "meta-sgd": 1}.get(name, INNER_STEPS)
        found = proximal_curve(model, tasks) if name == "implicit" else curve(model, tasks, rate, last)
        for inner, errors in enumerate(found):
            mean = mean_interval(errors.numpy())
            rows.append({"method": name, "shots": shots, "inner_steps": inner, "mse": mean.mean,
                         "half_width": mean.half_width, "tasks": mean.n, "training_steps": steps,
                         "step_size": rate if isinstance(rate, float) else "learned", "commit": provenance.commit()})
    return pd.DataFrame(rows), models


def table(found: pd.DataFrame) -> str:
    """Markdown: a row for each method, number of training steps and of shots, a column for some numbers of inner steps."""
    lines = ["| method | training steps | points K | before | 1 step | 5 steps | 10 steps | 16 steps |",
             "|---|---:|---:|---:|---:|---:|---:|---:|"]
    for (training, shots, method), part in found.groupby(["training_steps", "shots", "method"], sort=False):
        at = part.set_index("inner_steps")
        cells = [f"{at.mse[i]:.3f} ± {at.half_width[i]:.3f}" if i in at.index else "" for i in (0, 1, 5, 10, 16)]
        lines.append(f"| {method} | {training:,} | {shots} | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(found: pd.DataFrame, models: dict[int, nn.Module]) -> bytes:
    """The three panels of the paper's figure, and one task before and after adaptation."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(14, 3.4), layout="constrained")
    for axis, shots in zip(axes, SHOTS, strict=False):
        for name, colour in (("maml", "tab:green"), ("pre-trained", "tab:blue"), ("oracle", "tab:red")):
            part = found[(found.method == name) & (found.shots == shots)]
            if name == "oracle":
                axis.axhline(part.mse.item(), color=colour, linestyle=":", label=name)
            else:
                axis.errorbar(part.inner_steps, part.mse, part.half_width, color=colour, marker=".", label=name)
        axis.set(title=f"K = {shots}", xlabel="gradient steps", yscale="log", ylim=(1e-3, 10))
    axes[0].set_ylabel("mean squared error")
    axes[0].legend()
    (x, y), (inputs, wanted) = sinusoid(4, 10, 400, TEST)
    order = inputs[:, 0].argsort()
    axes[3].plot(inputs[order], wanted[order], color="black", label="truth")
    with torch.no_grad():
        for steps, colour, style in ((0, "tab:gray", ":"), (1, "tab:olive", "--"), (10, "tab:green", "-")):
            model = fewshot.adapt(models[10], loss, (x, y), steps=steps)
            axes[3].plot(inputs[order], model(inputs[order]), color=colour, linestyle=style, label=f"after {steps}")
    axes[3].plot(x, y, "o", color="black", markersize=4)
    axes[3].set(title="a task, K = 10", xlabel="x")
    axes[3].legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=80)
    plt.close(figure)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of each network")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "sinusoid", help="folder of the checkpoints")
    parser.add_argument("--results", type=Path, help="folder of table and picture; by default those of the repository")
    parser.add_argument("--only", nargs="+", help="methods to compute anew; the others stay as they are in the table")
    options = parser.parse_args()
    found, models = measured(options.steps, options.out, options.only)
    results = options.results or ROOT / "experiments" / "results"
    pictures = options.results or ROOT / "docs" / "images"
    if options.only:
        before = pd.read_csv(results / "sinusoid.csv")
        replaced = before.method.isin(options.only) & (before.training_steps == options.steps)
        found = pd.concat([before[~replaced], found])
    print(table(found))
    note = (f"Mean squared error of the queries, mean over n = {TEST_TASKS} tasks with its 95 % interval; "
            f"commit {', '.join(found.commit.unique())}, {json.dumps(provenance.versions())}")
    write_atomically(results / "sinusoid.md", f"{table(found)}\n\n{note}\n".encode())
    write_atomically(results / "sinusoid.csv", found.to_csv(index=False, float_format="%.6g").encode())
    if not options.only:
        write_atomically(pictures / "sinusoid.png", picture(found, models))


if __name__ == "__main__":
    main()
