"""Learn the hyper-parameters of an unrolled method on validation episodes, and keep them in a file."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fewshot.core.checked import check_choice
from fewshot.core.errors import FewshotError
from fewshot.core.files import read_safetensors, replacing, save_tensors
from fewshot.core.provenance import commit, versions
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method, create_method, method_parameters

DEFAULT_LEARNING = {"epochs": 100, "lr": 0.1, "halve_every": None, "batch": None}


def _mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits.flatten(0, 1), labels.flatten())


def _double_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    return _mean_cross_entropy(logits.softmax(-1), labels)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": _mean_cross_entropy,
    # The released UNEM training passes probabilities to a loss that takes logits.
    "official_double_softmax": _double_softmax,
}


@dataclass(frozen=True, eq=False)
class FitResult:
    """What `fit_method` found.

    method       a fitted copy; it holds the values after `best_epoch`
    history      mean training loss before the first epoch and after each one
    best_epoch   of the lowest *training* loss (0: no epoch improved on the start), so compare fits on other episodes
    provenance   on what and how it was fitted
    """

    method: nn.Module
    history: list[float]
    best_epoch: int
    provenance: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Registry name of the method; raises FewshotError if it has none."""
        cls: type = type(self.method)
        names = [name for name in METHODS if METHODS[name] is cls]
        if not names:
            raise FewshotError(f"{cls.__name__} is not a registered method; register it to save or run it")
        return names[0]

    @property
    def parameters(self) -> dict:
        """`Run.parameters` of the fitted method: hyper-parameters and learned values as plain numbers, so that the run's
        key covers them."""
        return {key: getattr(self.method, key) for key in method_parameters(self.name)}


def fit_method(method: Method | nn.Module, episodes: Episodes, query_labels: Tensor, *, epochs: int | None = None,
               lr: float | None = None, halve_every: int | None = None, batch: int | None = None,
               loss: str = "cross_entropy", seed: int = 0, provenance: Mapping | None = None,
               progress: Callable[[int, float], None] | None = None) -> FitResult:
    """Minimise the loss of `method(episodes)` over the method's parameters with Adam; `method` itself is not changed.

    episodes      E validation episodes; `query_labels` [E, Q] their answers
    epochs, lr, halve_every, batch   None takes `method.learning`: passes over the episodes, step size, epochs between
                  halvings of the step size, episodes per step (None in the learning: all in one step)
    loss          "cross_entropy" of the logits, or "official_double_softmax", the cross-entropy of the probabilities
    seed          of the order of the episodes; has no effect where one batch holds them all
    provenance    plain values to keep with the result; "split": "test" is refused
    progress      called as progress(epoch, mean loss)

    Raises FewshotError for a method without parameters, a wrong shape of the labels, or a loss that is not finite.
    """
    if not isinstance(method, nn.Module) or not list(method.parameters()):
        raise FewshotError(f"{type(method).__name__} has nothing to learn; fit an unrolled method, for example "
                           "'unem_gaussian'")
    if query_labels.shape != episodes.query.shape[:2]:
        raise FewshotError(f"query_labels has shape {tuple(query_labels.shape)}; expected [E, Q] = "
                           f"{tuple(episodes.query.shape[:2])}")
    check_choice(LOSSES, loss=loss)
    provenance = dict(provenance or {})
    if provenance.get("split") == "test":
        raise FewshotError("split='test' is for final numbers only; fit on validation episodes")
    given = {"epochs": epochs, "lr": lr, "halve_every": halve_every, "batch": batch}
    learning = {**DEFAULT_LEARNING, **getattr(method, "learning", {}), **{k: v for k, v in given.items() if v is not None}}
    for name, value in learning.items():
        if value is not None and not 0 < value < math.inf:
            raise FewshotError(f"{name}={value}; it must be positive")
    size = min(learning["batch"] or len(episodes), len(episodes))
    method = copy.deepcopy(method).to(episodes.query.device).requires_grad_()
    optimizer = torch.optim.Adam(method.parameters(), lr=learning["lr"])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, learning["halve_every"] or learning["epochs"] + 1, gamma=0.5)
    generator = torch.Generator().manual_seed(seed)

    def loss_of(which: Tensor) -> Tensor:
        value = LOSSES[loss](method(episodes[which]), query_labels[which])
        if not torch.isfinite(value):
            raise FewshotError(f"the loss became {float(value)}; lower lr={learning['lr']} or check the features")
        return value

    @torch.no_grad()
    def mean_loss() -> float:
        # Over all episodes at fixed values: a running mean over the steps of an epoch would mix several.
        parts = torch.arange(len(episodes)).split(size)
        return sum(float(loss_of(part)) * len(part) for part in parts) / len(episodes)

    history, best_epoch, best = [mean_loss()], 0, copy.deepcopy(method.state_dict())
    for epoch in range(1, learning["epochs"] + 1):
        # Whole when it is one batch: the order would only change the rounding.
        order = torch.randperm(len(episodes), generator=generator) if size < len(episodes) else torch.arange(size)
        for part in order.split(size):
            optimizer.zero_grad()
            loss_of(part).backward()
            optimizer.step()
        scheduler.step()
        history.append(mean_loss())
        if history[-1] < history[best_epoch]:
            best_epoch, best = epoch, copy.deepcopy(method.state_dict())
        if progress is not None:
            progress(epoch, history[-1])
    method.load_state_dict(best)
    return FitResult(method.requires_grad_(False), history, best_epoch, {
        **provenance, **learning, "optimizer": "adam", "loss": loss, "seed": seed, "chosen_by": "lowest training loss",
        **_describe(episodes), "versions": versions(), "commit": commit()})


def _describe(episodes: Episodes) -> dict:
    shots = torch.stack([torch.bincount(labels, minlength=episodes.ways) for labels in episodes.support_labels])
    low, high = int(shots.min()), int(shots.max())
    return {"episodes": len(episodes), "ways": episodes.ways, "shots": low if low == high else [low, high],
            "queries": episodes.query.shape[1]}


def save_fitted(path: str | Path, result: FitResult) -> Path:
    """Write values, hyper-parameters, history and provenance to a safetensors file, atomically."""
    # Learned values are tensors of the file; `None` in the constructor leaves room for them.
    params = {key: value for key, value in result.parameters.items() if key != "learned"}
    meta = {"method": result.name, "params": json.dumps(params, sort_keys=True), "history": json.dumps(result.history),
            "best_epoch": str(result.best_epoch), "provenance": json.dumps(result.provenance, sort_keys=True)}
    with replacing(path) as temporary:
        save_tensors(temporary, result.method.state_dict(), meta)
    return Path(path)


def load_fitted(path: str | Path) -> FitResult:
    """Read a file written by `save_fitted`; raises FewshotError if it is missing or not such a file."""
    state, meta = read_safetensors(path, "fitted method", "readable", "make one with fit_method and save_fitted",
                                   "fit again")
    if not {"method", "params", "history", "best_epoch", "provenance"} <= set(meta):
        raise FewshotError(f"{path} was not written by save_fitted")
    method = create_method(meta["method"], **json.loads(meta["params"]))
    if not isinstance(method, nn.Module):
        raise FewshotError(f"{path} holds values of {meta['method']}, which learns none; fit again")
    method.load_state_dict(state)
    return FitResult(method, json.loads(meta["history"]), int(meta["best_epoch"]), json.loads(meta["provenance"]))
