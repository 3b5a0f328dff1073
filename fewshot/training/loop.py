"""The loop that episodic and supervised training share; `_optimise` reads from top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fewshot.core.errors import FewshotError
from fewshot.core.seeding import derived_seed
from fewshot.core.team import Team, joined
from fewshot.data.banks import ImageBank
from fewshot.statistics import mean_interval
from fewshot.training.checkpoint import (
    TrainingInterrupted,
    isolated_generators,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    stop_on_signals,
)
from fewshot.training.config import LoopConfig
from fewshot.training.diagnose import first_non_finite
from fewshot.training.learner import Learner
from fewshot.training.logs import Log, NoLog
from fewshot.training.record import (
    CHECKPOINTS,
    TrainResult,
    discard,
    exclusive,
    identify,
    is_finished,
    note_seen,
    read_result,
    refuse_other_run,
    write_result,
)
from fewshot.training.step_buffers import StepBuffers
from fewshot.training.types import Scored, Trained
from fewshot.training.validation import Validation


class Task(Protocol):
    """What is trained on which data.

    config, train_bank, val_bank
    learner    the weights: a module with `backbone` and `device`, and `method`, what stands on the backbone
    scorer     backbone and method that are validated; they get the learner's weights of the same names
    interval   optimiser steps between two of the intervals that the configuration counts in
    items      images or episodes of a step on average, and unit, their name
    """

    @property
    def config(self) -> LoopConfig: ...
    @property
    def train_bank(self) -> ImageBank: ...
    @property
    def val_bank(self) -> ImageBank | None: ...
    @property
    def learner(self) -> Trained: ...
    @property
    def scorer(self) -> Learner: ...
    @property
    def interval(self) -> int: ...
    @property
    def items(self) -> float: ...
    @property
    def unit(self) -> str: ...

    def part(self, step: int, number: int) -> tuple[Any, Tensor, float]:
        """(inputs, labels, share of the step's items) of pass `number` of a step: a pure function of both."""

    def loss(self, step: int, number: int, inputs: Any, labels: Tensor,
             generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(mean loss, logits [..., classes]) of what `part` returned. Random numbers come from `generator` or the global
        generators, which are seeded for every pass."""


@dataclass(eq=False)
class _State:
    """All that changes during training. Random numbers are not in it: they are functions of seed, step and pass."""

    learner: nn.Module
    optimiser: torch.optim.Optimizer
    average: dict[str, Tensor] | None  # moving average of the learner's state, None when it is off
    step: int = 0
    history: list[dict] = dataclasses.field(default_factory=list)
    pending: list[list[float]] = dataclasses.field(default_factory=list)  # loss, accuracy, norm since the last row
    best: dict | None = None  # step, accuracy and half width of the best validation, and its weights

    def weights(self) -> dict[str, Tensor]:
        """What is validated and kept."""
        return self.learner.state_dict() if self.average is None else self.average

    def validated(self) -> bool:
        """Whether the last row of the history, which must be that of the current step, was validated."""
        return self.history[-1]["validation_accuracy"] is not None

    def validations_without_gain(self) -> int:
        return sum(row["validation_accuracy"] is not None and row["step"] > self.best["step"]
                   for row in self.history) if self.best else 0

    def to_dict(self) -> dict:
        return {"learner": self.learner.state_dict(), "optimiser": self.optimiser.state_dict(), "average": self.average,
                "step": self.step, "history": self.history, "pending": self.pending, "best": self.best}

    def load(self, saved: dict) -> None:
        self.learner.load_state_dict(saved["learner"])
        self.optimiser.load_state_dict(saved["optimiser"])
        if self.average is not None:
            self.average = {k: saved["average"][k].to(v.device) for k, v in self.average.items()}
        self.step, self.history, self.pending = saved["step"], saved["history"], saved["pending"]
        self.best = saved["best"]


def check_banks(train_bank: ImageBank, val_bank: ImageBank | None) -> None:
    """Raise FewshotError for banks of features, for a training bank of test classes and for validation on the very
    classes that are trained on."""
    for name, bank in (("train_bank", train_bank), ("val_bank", val_bank)):
        if bank is not None and not isinstance(bank, ImageBank):
            raise FewshotError(f"{name} is a {type(bank).__name__}; pass an ImageBank (load_dataset makes one)")
    if train_bank.split == "test":
        raise FewshotError("train_bank is the split 'test'; numbers on classes that were trained on are no few-shot "
                           "accuracy: pass the split 'train'")
    if val_bank is not None and val_bank.identity == train_bank.identity:
        raise FewshotError(f"val_bank is train_bank ({train_bank.name}, split {train_bank.split!r}); accuracy on classes "
                           "that were trained on says nothing about new ones: pass the validation split")


def run_training(task: Task, out: str | Path, progress: bool, resume: bool, **identity: str) -> TrainResult:
    """Train, or continue, or return what is finished; `identity` says what else must be equal to continue a run."""
    out, config = Path(out), task.config
    with joined(task.learner.device) as team, contextlib.ExitStack() as held:
        run = {**identify(config, task.train_bank, task.val_bank, task.learner), **identity}
        if any(other != run for other in team.gather(run)):
            raise FewshotError(f"the {team.size} processes were given different settings, data or initial weights; start "
                               "them with the same command, and make the backbone from a fixed seed")
        if config.accumulate % team.size:
            raise FewshotError(f"accumulate={config.accumulate} passes a step cannot be shared by {team.size} processes; "
                               f"set accumulate={team.size} or a multiple of it")

        def prepare() -> bool:
            held.enter_context(exclusive(out))
            if not resume:
                discard(out)
            return is_finished(out)

        if not team.from_first(prepare):
            _optimise(task, run, out, progress, team)
        return read_result(out, run, config, task.learner)


def _optimise(task: Task, run: dict, out: Path, progress: bool, team: Team) -> None:
    config, learner, passes = task.config, task.learner, task.config.accumulate
    steps = config.steps_in_all(task.interval)
    validation = Validation(config, task.val_bank, task.scorer) if config.validate_every else None
    parameters = [p for p in learner.parameters() if p.requires_grad]
    average = {name: value.clone() for name, value in learner.state_dict().items()} if config.ema_decay else None
    state = _State(learner, _optimiser(config, parameters), average)
    checkpoint = team.from_first(lambda: load_checkpoint(out / CHECKPOINTS))
    if checkpoint:
        refuse_other_run(out, checkpoint["run"], run)
        state.load(checkpoint)
    saved_at = checkpoint["step"] if checkpoint else None

    def save() -> None:
        log.save(state.history)
        save_checkpoint(out / CHECKPOINTS, state.step, {"run": run, **state.to_dict()})

    with (stop_on_signals() as stop,
          Log(out, config.title, state.step, steps, task.items, task.unit, progress) if team.is_first else NoLog() as log):
        learner.train()
        while True:
            # Validate, save, stop: in this order, so that a run killed in one of them repeats only that.
            if validation and config.validates_after(state.step, task.interval) and not state.validated():
                scored = team.from_first(lambda: validation.score(state.weights(), stop))
                if scored is not None:
                    _remember(state, scored, log)
            signal = max(team.gather(stop.number or 0))  # a signal to one process stops all of them
            patience = config.early_stopping_patience
            out_of_patience = patience > 0 and state.validations_without_gain() >= patience
            done = not signal and (out_of_patience or state.step == steps)
            if state.step != saved_at and (signal or done or state.step % config.checkpoint_every == 0):
                team.from_first(save)
                saved_at = state.step
            if signal:
                raise TrainingInterrupted(state.step, signal)
            if done:
                break

            state.optimiser.zero_grad()
            loss = accuracy = 0.0
            buffers = StepBuffers(learner, passes)
            for number in range(team.rank, passes, team.size):
                inputs, labels, share = task.part(state.step, number)
                labels = labels.to(learner.device)
                with buffers.one_pass():
                    part, logits = _loss(task, state.step, number, inputs, labels)
                    if not part.requires_grad:
                        raise FewshotError(f"the logits of {config.title} carry no gradient; train with a differentiable "
                                           "method such as protonet, and evaluate with this one")
                    (part * share).backward()
                loss += part.item() * share
                accuracy += (logits.argmax(-1) == labels).double().mean().item() * share
            buffers.finish(team)
            team.sum_gradients(parameters)
            loss, accuracy = team.sum_numbers([loss, accuracy])
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise FewshotError(_divergence(task, state, loss, norm.item(), out, team))
            if config.gradient_clip:
                torch.nn.utils.clip_grads_with_norm_(parameters, config.gradient_clip, norm)
            rate = config.learning_rate(state.step, task.interval)
            for group in state.optimiser.param_groups:
                group["lr"] = rate
            state.optimiser.step()
            if state.average is not None:
                _update_average(state.average, learner, config.ema_decay, state.step)

            state.step += 1
            state.pending.append([loss, accuracy, norm.item()])
            log.update()
            validates = config.validates_after(state.step, task.interval)
            if state.step == steps or state.step % config.log_every == 0 or validates:
                columns = zip(*state.pending, strict=True)
                loss, accuracy, norm = (sum(column) / len(state.pending) for column in columns)
                state.history.append({"step": state.step, "loss": loss, "accuracy": accuracy, "gradient_norm": norm,
                                      "lr": rate, "validation_accuracy": None, "validation_half_width": None})
                state.pending = []
                log.row(state.history[-1])

    best = state.best or {"step": state.step, "accuracy": None, "half_width": None, "weights": state.weights()}
    learner.load_state_dict(best["weights"])
    learner.eval()
    outcome = {"steps": state.step, "stopped": "early stopping" if out_of_patience else "all steps",
               "best_step": best["step"], "validation_accuracy": best["accuracy"],
               "validation_half_width": best["half_width"], "brightness": task.train_bank.brightness}
    note_seen(learner, task.train_bank, task.val_bank if config.validate_every else None)
    team.from_first(lambda: write_result(out, run, config, learner, outcome))


def _loss(task: Task, step: int, number: int, inputs: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and logits of one pass; its random numbers depend neither on what ran before nor on the process."""
    seed = derived_seed("pass", task.config.seed, step, number)
    with isolated_generators(seed):
        inputs = inputs.to(task.learner.device)
        return task.loss(step, number, inputs, labels, torch.Generator().manual_seed(seed))


def _remember(state: _State, scored: Scored, log: Log | NoLog) -> None:
    """Write a validation into the last row of the history; keep the weights if they are the best so far."""
    found = mean_interval(scored.correct)
    state.history[-1].update(validation_accuracy=found.mean, validation_half_width=found.half_width)
    if state.best is None or found.mean > state.best["accuracy"]:
        weights = {name: value.detach().clone() for name, value in state.weights().items()}
        state.best = {"step": state.step, "accuracy": found.mean, "half_width": found.half_width, "weights": weights}
    log.validation(state.step, found, scored)


def _optimiser(config: LoopConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if config.optimiser == "sgd":
        return torch.optim.SGD(parameters, config.lr, config.momentum, weight_decay=config.weight_decay,
                               nesterov=config.nesterov)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimiser]
    return kind(parameters, config.lr, weight_decay=config.weight_decay)


@torch.no_grad()
def _update_average(average: dict[str, Tensor], learner: nn.Module, decay: float, step: int) -> None:
    decay = min(decay, (1 + step) / (10 + step))
    for name, value in learner.state_dict().items():
        if value.is_floating_point():  # BatchNorm's running statistics, too: they belong to the averaged weights
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)


def _divergence(task: Task, state: _State, loss: float, norm: float, out: Path, team: Team) -> str:
    def logits_of(number: int) -> Tensor:
        inputs, labels, _ = task.part(state.step, number)
        return _loss(task, state.step, number, inputs, labels.to(task.learner.device))[1]

    own = range(team.rank, task.config.accumulate, team.size)
    found = [first_non_finite(task.learner, functools.partial(logits_of, number)) for number in own]
    named = [where for places in team.gather(found) for where in places if where]
    # All passes see a gradient that is bad, few the layer that made it so.
    named.sort(key=lambda where: where.startswith("the gradient"))
    what = f"the gradient norm is {norm} (loss {loss:.4g})" if math.isfinite(loss) else f"the loss is {loss}"
    return (f"{what} at step {state.step}; the first layer that is not finite: "
            f"{named[0] if named else 'none, so the loss itself'}. Last good checkpoint: "
            f"{latest_checkpoint(out / CHECKPOINTS)}. Lower lr (here "
            f"{task.config.learning_rate(state.step, task.interval):.3g}), set gradient_clip, or use precision='float32'")
