"""What TensorBoard shows of a training run."""

from __future__ import annotations

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def check_tensorboard(out, result, unit: str) -> None:
    """TensorBoard has the history of `result`, the interval of the validation, a speed in `unit` and a picture of every
    validation (after 8, 16 and 24 steps)."""
    events = EventAccumulator(str(out / "tensorboard"), {"scalars": 0, "images": 0}).Reload()
    for name, column in (("train/loss", "loss"), ("train/accuracy", "accuracy"), ("lr", "lr"),
                         ("validation/accuracy", "validation_accuracy")):
        expected = {row["step"]: row[column] for row in result.history if row[column] is not None}
        assert {event.step: event.value for event in events.Scalars(name)} == pytest.approx(expected, rel=1e-6)
    low, mean, high = (events.Scalars(f"validation/accuracy{end}")[-1].value for end in ("_low", "", "_high"))
    assert low < mean < high
    assert all(event.value > 0 for event in events.Scalars(f"{unit}_per_second"))
    assert [event.step for event in events.Images("validation/episode")] == [8, 16, 24]
