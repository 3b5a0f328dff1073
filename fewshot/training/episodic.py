"""Episodic training: one loop that reads from top to bottom."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fewshot.banks import ImageBank
from fewshot.episodes import Episodes
from fewshot.errors import FewshotError
from fewshot.methods.base import Method
from fewshot.sampler import EpisodeSampler
from fewshot.statistics import mean_interval
from fewshot.training.checkpoint import (
    TrainingInterrupted,
    isolated_generators,
    latest_checkpoint,
    load_checkpoint,
    rng_states,
    save_checkpoint,
    set_rng_states,
    stop_on_signals,
)
from fewshot.training.config import TrainConfig
from fewshot.training.diagnose import first_non_finite
from fewshot.training.learner import Learner, make_learner
from fewshot.training.logs import Log
from fewshot.training.record import (
    CHECKPOINTS,
    TrainResult,
    discard,
    exclusive,
    identify,
    is_finished,
    read_result,
    refuse_other_run,
    write_result,
)
from fewshot.training.validation import Validation


@dataclass(eq=False)
class _State:
    """All that changes during training, apart from the generators of random numbers."""

    learner: Learner
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
                "step": self.step, "history": self.history, "pending": self.pending, "best": self.best,
                "rng": rng_states()}

    def load(self, saved: dict) -> None:
        self.learner.load_state_dict(saved["learner"])
        self.optimiser.load_state_dict(saved["optimiser"])
        if self.average is not None:
            self.average = {k: saved["average"][k].to(v.device) for k, v in self.average.items()}
        self.step, self.history, self.pending = saved["step"], saved["history"], saved["pending"]
        self.best = saved["best"]
        set_rng_states(saved["rng"])


def train(config: TrainConfig, train_bank: ImageBank, val_bank: ImageBank | None, backbone: nn.Module, *,
          method: Method | None = None, out: str | Path, progress: bool = True, resume: bool = True) -> TrainResult:
    """Minimise the mean of config.loss over episodes of `train_bank`; keep the weights best on `val_bank`.

    config     settings, see TrainConfig
    backbone   the initial weights; it is copied, not changed. Its device is used
    method     an instance to use instead of config.method with config.parameters, for methods whose constructor needs
               more than plain values. The weights of an nn.Module are trained, too
    out        folder: checkpoints/, tensorboard/, history.csv and .json, result.json and, last, weights.safetensors (of
               the backbone, and of the method where it has its own), whose presence marks a finished run
    resume     continue what is in `out`, or return at once if it is finished; False deletes it and starts again

    Step t uses the episodes t E .. (t+1) E - 1 of the sampler, so a resumed run sees the same data. On the CPU, with
    the same number of threads, an interrupted and resumed run ends in bit-identical weights; on CUDA, as far as the
    kernels are deterministic. The global generators of random numbers are left as they were.

    Raises FewshotError for wrong settings, for a folder that holds another run, and for a loss or gradient that is not
    finite; TrainingInterrupted after SIGINT or SIGTERM, once the state is saved.
    """
    for name, bank in (("train_bank", train_bank), ("val_bank", val_bank)):
        if bank is not None and not isinstance(bank, ImageBank):
            raise FewshotError(f"{name} is a {type(bank).__name__}; pass an ImageBank (load_dataset makes one)")
    if train_bank.split == "test":
        raise FewshotError("train_bank is the split 'test'; numbers on classes that were trained on are no few-shot "
                           "accuracy: pass the split 'train'")
    out = Path(out)
    learner = make_learner(config, backbone, method)
    run = identify(config, train_bank, val_bank, learner)
    with exclusive(out):
        if not resume:
            discard(out)
        if not is_finished(out):
            _train(config, train_bank, val_bank, learner, run, out, progress)
        return read_result(out, run, config, learner)


def _train(config: TrainConfig, train_bank: ImageBank, val_bank: ImageBank | None, learner: Learner, run: dict,
           out: Path, progress: bool) -> None:
    sampler = EpisodeSampler(train_bank, config.ways, config.shots, config.queries, config.seed,
                             small_classes=config.small_classes)
    validation = Validation(config, val_bank, learner) if config.validate_every else None
    parameters = [p for p in learner.parameters() if p.requires_grad]
    average = {name: value.clone() for name, value in learner.state_dict().items()} if config.ema_decay else None
    state = _State(learner, _optimiser(config, parameters), average)
    checkpoint = load_checkpoint(out / CHECKPOINTS)
    if checkpoint:
        refuse_other_run(out, checkpoint["run"], run)
    saved_at = checkpoint["step"] if checkpoint else None

    with (isolated_generators(config.seed), stop_on_signals() as stop,
          Log(out, config, saved_at or 0, progress) as log):
        if checkpoint:
            state.load(checkpoint)
        learner.train()
        while True:
            # Validate, save, stop: in this order, so that a run killed in one of them repeats only that.
            if validation and config.validates_after(state.step) and not state.validated():
                scored = validation.score(state.weights(), stop)
                if scored is not None:
                    _remember(state, *scored, log)
            patience = config.early_stopping_patience
            out_of_patience = patience > 0 and state.validations_without_gain() >= patience
            done = not stop and (out_of_patience or state.step == config.steps)
            if state.step != saved_at and (stop or done or state.step % config.checkpoint_every == 0):
                log.save(state.history)
                save_checkpoint(out / CHECKPOINTS, state.step, {"run": run, **state.to_dict()})
                saved_at = state.step
            if stop:
                raise TrainingInterrupted(state.step, stop.number)
            if done:
                break

            E, passes = config.episodes_per_step, config.accumulate
            episodes, labels = sampler.sample(train_bank, start=state.step * E, count=E)
            episodes, labels = episodes.to(learner.device), labels.to(learner.device)
            state.optimiser.zero_grad()
            loss = accuracy = 0.0
            for some in torch.arange(E).chunk(passes):
                part, logits = learner.loss(episodes[some], labels[some], state.step * E + some)  # [], [E / passes, Q, N]
                part = part / passes
                if not part.requires_grad:
                    raise FewshotError(f"the logits of {config.method} carry no gradient; train with a differentiable "
                                       "method such as protonet, and evaluate with this one")
                part.backward()
                loss += part.item()
                accuracy += (logits.argmax(-1) == labels[some]).float().mean().item() / passes
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise FewshotError(_divergence(config, state, loss, norm.item(), episodes, out))
            if config.gradient_clip:
                torch.nn.utils.clip_grads_with_norm_(parameters, config.gradient_clip, norm)
            rate = config.learning_rate(state.step)
            for group in state.optimiser.param_groups:
                group["lr"] = rate
            state.optimiser.step()
            if state.average is not None:
                _update_average(state.average, learner, config.ema_decay, state.step)

            state.step += 1
            state.pending.append([loss, accuracy, norm.item()])
            log.bar.update()
            last = state.step == config.steps
            if last or state.step % config.log_every == 0 or config.validates_after(state.step):
                columns = zip(*state.pending, strict=True)
                loss, accuracy, norm = (sum(column) / len(state.pending) for column in columns)
                state.history.append({"step": state.step, "loss": loss, "accuracy": accuracy, "gradient_norm": norm,
                                      "lr": rate, "validation_accuracy": None, "validation_half_width": None})
                state.pending = []
                log.row(state.history[-1])

    best = state.best or {"step": state.step, "accuracy": None, "half_width": None, "weights": state.weights()}
    learner.load_state_dict(best["weights"])
    learner.eval()
    stopped = "early stopping" if out_of_patience else "all steps"
    write_result(out, run, learner, {"steps": state.step, "stopped": stopped, "best_step": best["step"],
                                     "validation_accuracy": best["accuracy"],
                                     "validation_half_width": best["half_width"]})


def _remember(state: _State, correct: Tensor, picture: Tensor, log: Log) -> None:
    """Write a validation into the last row of the history; keep the weights if they are the best so far."""
    found = mean_interval(correct)
    state.history[-1].update(validation_accuracy=found.mean, validation_half_width=found.half_width)
    if state.best is None or found.mean > state.best["accuracy"]:
        weights = {name: value.detach().clone() for name, value in state.weights().items()}
        state.best = {"step": state.step, "accuracy": found.mean, "half_width": found.half_width, "weights": weights}
    log.validation(state.step, found, picture)


def _optimiser(config: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    common = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimiser == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum, nesterov=config.nesterov, **common)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimiser](parameters, **common)


@torch.no_grad()
def _update_average(average: dict[str, Tensor], learner: Learner, decay: float, step: int) -> None:
    decay = min(decay, (1 + step) / (10 + step))
    for name, value in learner.state_dict().items():
        if value.is_floating_point():  # BatchNorm's running statistics, too: they belong to the averaged weights
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)


def _divergence(config: TrainConfig, state: _State, loss: float, norm: float, episodes: Episodes, out: Path) -> str:
    what = f"the gradient norm is {norm} (loss {loss:.4g})" if math.isfinite(loss) else f"the loss is {loss}"
    return (f"{what} at step {state.step}; the first layer that is not finite: "
            f"{first_non_finite(state.learner, episodes)}. Last good checkpoint: "
            f"{latest_checkpoint(out / CHECKPOINTS)}. Lower lr (here {config.learning_rate(state.step):.3g}), set "
            "gradient_clip, or use precision='float32'")
