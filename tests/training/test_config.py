"""TrainConfig: wrong settings are refused with a reason, schedules have the values they promise."""

from __future__ import annotations

import math

import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.training import SupervisedConfig, TrainConfig


@pytest.mark.parametrize(("changes", "message"), [
    ({"ways": 1}, "ways=1; expected an integer of at least 2"),
    ({"steps": 10.0}, "steps=10.0; expected an integer"),
    ({"shots": True}, "shots=True"),
    ({"seed": -1}, "seed=-1"),
    ({"lr": 0}, "lr=0"),
    ({"lr": float("nan")}, "lr=nan"),
    ({"lr": float("inf")}, "lr=inf"),
    ({"lr": "0.1"}, "lr='0.1'"),
    ({"ema_decay": 1.0}, "ema_decay=1.0"),
    ({"gradient_clip": -1}, "gradient_clip=-1"),
    ({"optimiser": "adma"}, "did you mean 'adam'"),
    ({"schedule": "cosin"}, "did you mean 'cosine'"),
    ({"precision": "float16"}, "bfloat16"),
    ({"episodes_per_step": 4, "accumulate": 3}, "accumulate=3 does not divide"),
    ({"nesterov": True, "momentum": 0.0}, "positive momentum"),
    ({"warmup_steps": 10, "steps": 10}, "warmup_steps=10"),
    ({"lr": 1e-3, "lr_min": 1e-2}, "lr_min=0.01 exceeds"),
    ({"early_stopping_patience": 2, "validate_every": 0}, "set validate_every"),
    ({"parameters": [1]}, "parameters="),
])
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(FewshotError) as caught:
        TrainConfig(**changes)
    assert message in str(caught.value)


def test_unknown_setting_suggests_the_nearest():
    with pytest.raises(FewshotError, match="unknown training setting 'lerning_rate'"):
        TrainConfig.from_dict({"lerning_rate": 1})
    with pytest.raises(FewshotError, match="did you mean 'validate_every'"):
        TrainConfig.from_dict({"validate_evry": 1})


def test_dictionary_round_trip_and_fingerprint():
    config = TrainConfig(lr=0.02, parameters={"temperature": 2.0}, steps=7)
    again = TrainConfig.from_dict(config.to_dict())
    assert again == config
    assert again.fingerprint == config.fingerprint != TrainConfig(lr=0.02, steps=7).fingerprint


def test_constant_schedule():
    config = TrainConfig(schedule="constant", lr=0.3, steps=10)
    assert {config.learning_rate(step) for step in range(10)} == {0.3}


def test_step_schedule_equals_torch():
    config = TrainConfig(schedule="step", lr=0.4, step_size=3, gamma=0.5, steps=12)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimiser, 3, 0.5)
    for step in range(12):
        assert config.learning_rate(step) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-12)
        optimiser.step()
        scheduler.step()


def test_cosine_schedule_equals_torch():
    config = TrainConfig(schedule="cosine", lr=0.4, lr_min=0.01, steps=20)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 20, eta_min=0.01)
    for step in range(20):
        assert config.learning_rate(step) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9)
        optimiser.step()
        scheduler.step()


def test_warm_up_rises_linearly_to_the_schedule():
    config = TrainConfig(schedule="cosine", lr=0.4, warmup_steps=4, steps=24)
    assert [config.learning_rate(step) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert config.learning_rate(4) == pytest.approx(0.4)
    assert config.learning_rate(14) == pytest.approx(0.2)  # half of the 20 steps after the warm-up
    assert config.learning_rate(23) == pytest.approx(0.2 * (1 + math.cos(math.pi * 19 / 20)))


def test_milestones_equal_torch():
    config = TrainConfig(schedule="step", lr=0.4, milestones=[3, 8], gamma=0.1, steps=12)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimiser, [3, 8], 0.1)
    for step in range(12):
        assert config.learning_rate(step) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-12)
        optimiser.step()
        scheduler.step()
    assert config.learning_rate(29, interval=10) == 0.4 and config.learning_rate(30, interval=10) == pytest.approx(0.04)
    for wrong in ([3, 3], [0], 5, [2.0], "ab"):
        with pytest.raises(FewshotError, match="expected ascending positive integers"):
            TrainConfig(milestones=wrong)


def test_restarts_that_decay():
    config = TrainConfig(schedule="cosine", lr=0.4, cycles=4, cycle_gamma=0.5, steps=40)
    assert [config.learning_rate(step) for step in (0, 10, 20, 30)] == pytest.approx([0.4, 0.2, 0.1, 0.05])
    assert config.learning_rate(15) == pytest.approx(0.1)


def test_stored_runs_keep_their_identity():
    """What came later is not written at its default."""
    stored = TrainConfig().to_dict()
    assert not {"milestones", "cycle_gamma", "cycles"} & stored.keys()
    assert not {"recipe_parameters", "augmentation"} & SupervisedConfig().to_dict().keys()
    assert SupervisedConfig(recipe_parameters={"teacher": "a", "alpha": 1}).identity()["recipe_parameters"] == {"alpha": 1}
    with pytest.raises(FewshotError, match="write crop"):
        SupervisedConfig(augmentation="flip", flip=True)
