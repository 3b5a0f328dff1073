"""What a training run shows and leaves behind: progress bar, TensorBoard, history files, one picture."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from fewshot.core.bars import tqdm
from fewshot.core.files import write_atomically
from fewshot.statistics import Interval
from fewshot.training.types import Scored

COLUMNS = ("step", "loss", "accuracy", "gradient_norm", "lr", "validation_accuracy", "validation_half_width")


class Log:
    """Context manager around the training loop.

    step        where the run starts, above 0 when it resumes, of `steps`
    title       what is trained, in one word;  items: of a step, and unit, their name
    """

    def __init__(self, out: Path, title: str, step: int, steps: int, items: float, unit: str, progress: bool):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and evaluation imports this package, too

        self.out, self.items, self.unit = out, items, unit
        out.mkdir(parents=True, exist_ok=True)
        folder = out / "tensorboard"
        if step:
            _wait_for_a_later_second(folder)
        # What a killed run wrote after its last checkpoint is computed again: the purge hides it.
        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        self.bar = tqdm(total=steps, initial=step, desc=title, disable=not progress, unit="step")
        self._since = (step, time.perf_counter())

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *unused: object) -> None:
        self.bar.close()
        self.writer.close()

    def update(self) -> None:
        """One more step is done."""
        self.bar.update()

    def row(self, row: dict) -> None:
        """Scalars of one row of the history."""
        step, now = row["step"], time.perf_counter()
        speed = (step - self._since[0]) * self.items / (now - self._since[1])
        self._since = (step, now)
        for name in ("loss", "accuracy", "gradient_norm"):
            self.writer.add_scalar(f"train/{name}", row[name], step)
        self.writer.add_scalar("lr", row["lr"], step)
        self.writer.add_scalar(f"{self.unit}_per_second", speed, step)
        self.bar.set_postfix(loss=f"{row['loss']:.3f}", accuracy=f"{row['accuracy']:.3f}", refresh=False)

    def validation(self, step: int, accuracy: Interval, scored: Scored) -> None:
        """Validation accuracy, the ends of its interval, a picture of one episode, and for gradient-based learners the
        accuracy after each number of inner steps."""
        self.writer.add_scalar("validation/accuracy", accuracy.mean, step)
        self.writer.add_scalar("validation/accuracy_low", accuracy.low, step)
        self.writer.add_scalar("validation/accuracy_high", accuracy.high, step)
        self.writer.add_image("validation/episode", scored.picture, step)
        for steps, value in scored.inner_loop.items():
            self.writer.add_scalar(f"inner_loop/accuracy_after_{steps:02d}_steps", value, step)
        if not self.bar.disable:
            self.bar.write(f"step {step}: validation accuracy {accuracy.percent()} %", file=sys.stderr)
        self._since = (step, time.perf_counter())  # the time of validating is not training speed

    def save(self, history: list[dict]) -> None:
        """Bring the files up to date; called before each checkpoint, so that they are never behind it."""
        self.writer.flush()
        write_history(self.out, history)


class NoLog:
    """What stands in for `Log` in the processes that do not log."""

    def __enter__(self) -> NoLog:
        return self

    def __exit__(self, *unused: object) -> None:
        pass

    def update(self) -> None:
        pass

    def row(self, row: dict) -> None:
        pass

    def validation(self, step: int, accuracy: Interval, scored: Scored) -> None:
        pass

    def save(self, history: list[dict]) -> None:
        pass


def write_history(out: Path, history: list[dict]) -> None:
    """history.csv and history.json: the rows behind the training curve."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_atomically(out / "history.csv", table.getvalue().encode())
    write_atomically(out / "history.json", json.dumps(history).encode())


def episode_picture(support: Tensor, support_labels: Tensor, query: Tensor, query_labels: Tensor, predicted: Tensor,
                    ways: int, most: int = 15) -> Tensor:
    """One episode as a picture [3, H, W] uint8: a row per class with its support images, then up to `most` of the
    queries predicted to be of this class, framed green where right and red where wrong.

    support [S, C, H, W] and query [Q, C, H, W] uint8; support_labels [S]; query_labels and predicted [Q].
    """
    grey, green, red = (160, 160, 160), (0, 170, 0), (220, 0, 0)
    shots = min(most, int(torch.bincount(support_labels, minlength=ways).max()))
    columns = min(most, max(1, int(torch.bincount(predicted, minlength=ways).max())))
    rows = []
    for label in range(ways):
        cells = [_framed(image, grey) for image in support[support_labels == label][:shots]]
        blank = torch.full_like(cells[0], 255)
        cells += [blank] * (shots + 1 - len(cells))  # one blank column between support and queries
        hits = (predicted == label).nonzero()[:columns, 0].tolist()
        cells += [_framed(query[i], green if query_labels[i] == label else red) for i in hits]
        rows.append(torch.cat(cells + [blank] * (shots + 1 + columns - len(cells)), dim=2))
    return torch.cat(rows, dim=1)


def _framed(image: Tensor, colour: tuple[int, int, int], width: int = 2) -> Tensor:
    image = image.expand(3, -1, -1)
    height, length = image.shape[1:]
    framed = torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).repeat(1, height + 2 * width, length + 2 * width)
    framed[:, width:-width, width:-width] = image
    return framed


def _wait_for_a_later_second(folder: Path) -> None:
    """TensorBoard reads event files in the order of their names, which begin with the second they were made in: a run
    resumed within the same second could be read before the part that it continues."""
    newest = max((int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")), default=0)
    while int(time.time()) <= newest:
        time.sleep(0.05)
