"""The training loop: it learns, stops, averages, accumulates, and says what went wrong."""

from __future__ import annotations

import csv
import hashlib
import json
import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from fewshot.backbones import create_backbone, read_weights
from fewshot.core.errors import FewshotError
from fewshot.data.banks import ImageBank
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.methods.contract import METHODS, Method, create_method
from fewshot.methods.protonet import ProtoNet
from fewshot.training import Learner, train
from fewshot.training.checkpoint import load_checkpoint, rng_states
from tests.training.boards import check_tensorboard
from tests.training.runs import bank, config, fails_at, run, tiny


def state_of(result):
    return {**result.backbone.state_dict()}


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Scaled(nn.Module, Method):
    """ProtoNet with a learned scale: a method that brings a weight of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, episodes):
        return self.scale * ProtoNet()(episodes)


class Failing(Method):
    """ProtoNet until call number `at`, then whatever `how` makes of the logits."""

    def __init__(self, at: int, how):
        self.at, self.how, self.calls = at, how, 0

    def __call__(self, episodes):
        self.calls += 1
        logits = ProtoNet()(episodes)
        return self.how(logits) if self.calls > self.at else logits


# -- learning ----------------------------------------------------------------------------------------------------------


def test_it_learns_new_classes(tmp_path):
    backbone = tiny(dropout=0.0)
    changes = {"validation_episodes": 200, "log_every": 20, "ema_decay": 0.0, "lr": 0.05, "episodes_per_step": 4}
    start = run(tmp_path / "start", backbone=backbone, **{**changes, "steps": 1, "lr": 1e-12, "validate_every": 1})
    result = run(tmp_path / "run", backbone=backbone, steps=80, validate_every=40, **changes)
    assert result.history[-1]["loss"] < 0.9 * result.history[0]["loss"]
    assert result.validation.low > start.validation.high > 1 / 4
    assert result.stopped == "all steps" and result.steps == 80


@pytest.mark.parametrize("settings", [{"optimiser": "adam", "lr": 0.005, "steps": 60},
                                      {"optimiser": "sgd", "nesterov": True, "lr": 0.02, "steps": 90}],
                         ids=lambda settings: settings["optimiser"])
def test_four_fixed_episodes_are_fitted_to_near_zero(tmp_path, monkeypatch, settings):
    """With a rate that falls to zero, whatever the seed."""
    plain = EpisodeSampler.sample
    monkeypatch.setattr(EpisodeSampler, "sample", lambda self, bank, start, count: plain(self, bank, 0, count))
    backbone = create_backbone("conv4", channels=1, image_size=16, width=16)
    result = run(tmp_path, backbone=backbone, episodes_per_step=4, validate_every=0, ema_decay=0.0, schedule="cosine",
                 **settings)
    assert result.history[-1]["loss"] < 0.02 < 0.5 < result.history[0]["loss"]
    assert result.history[-1]["accuracy"] == 1.0


def test_adamw_shrinks_the_weights_beside_the_step_of_adam(tmp_path):
    backbone = tiny(dropout=0.0)
    changes = {"backbone": backbone, "steps": 1, "validate_every": 0, "ema_decay": 0.0, "lr": 0.1, "schedule": "constant"}
    adam, plain, decayed, inside = (
        state_of(run(tmp_path / f"{name}{decay}", optimiser=name, weight_decay=decay, **changes))["conv.weight"]
        for name, decay in (("adam", 0.0), ("adamw", 0.0), ("adamw", 0.5), ("adam", 0.5)))
    torch.testing.assert_close(plain, adam)
    torch.testing.assert_close(decayed, plain - 0.1 * 0.5 * backbone.conv.weight.detach())
    assert (inside - decayed).abs().max() > 1e-3


def test_the_weights_of_a_method_are_trained_and_stored(tmp_path):
    method = Scaled()
    result = run(tmp_path, method=method)
    assert method.scale.item() == 1.0  # the caller's is left alone
    assert result.method.scale.item() != 1.0
    assert run(tmp_path, method=Scaled()).method.scale.item() == result.method.scale.item()


@pytest.mark.slow
def test_random_weights_of_a_method_come_from_the_seed(tmp_path, monkeypatch):
    """The method is made anew when a run is resumed, at whatever state the process's generators are."""

    class Random(Scaled):
        def __init__(self):
            super().__init__()
            nn.init.uniform_(self.scale, 1, 2)

    monkeypatch.setitem(METHODS._items, "random_scale", Random)
    with fails_at(9), pytest.raises(ZeroDivisionError):
        run(tmp_path / "a", method_name="random_scale")
    torch.rand(3)
    resumed, whole = (run(tmp_path / name, method_name="random_scale") for name in "ab")
    assert resumed.method.scale.item() == whole.method.scale.item() > 0.5


@pytest.mark.parametrize(("name", "parameters"), [("relation_net", {"channels": 12}),
                                                  pytest.param("matching_net", {"full_context": True, "steps": 2},
                                                               marks=pytest.mark.slow)])
def test_methods_with_weights_train_and_resume(tmp_path, name, parameters):
    changes = {"method_name": name, "parameters": parameters, "steps": 8, "validate_every": 4}
    with fails_at(6), pytest.raises(ZeroDivisionError):
        run(tmp_path / "a", **changes)
    resumed, whole = (run(tmp_path / folder, **changes) for folder in "ab")
    assert equal(resumed.method.state_dict(), whole.method.state_dict())
    assert equal(run(tmp_path / "b", **changes).method.state_dict(), whole.method.state_dict())
    fresh = create_method(name, **parameters).with_backbone(whole.backbone, 4)
    assert not equal(fresh.state_dict(), whole.method.state_dict()) and not whole.method.training


def test_bfloat16_learns_about_the_same(tmp_path):
    changes = {"steps": 20, "ema_decay": 0.0, "log_every": 20, "validate_every": 0}
    backbone = tiny(dropout=0.0)
    full, half = (run(tmp_path / p, backbone=backbone, precision=p, **changes) for p in ("float32", "bfloat16"))
    assert half.history[0]["loss"] == pytest.approx(full.history[0]["loss"], rel=0.05)
    assert half.history[0]["loss"] != full.history[0]["loss"]
    assert {value.dtype for value in half.backbone.parameters()} == {torch.float32}


def test_a_registered_backbone_trains(tmp_path):
    backbone = create_backbone("conv4", channels=1, image_size=16, width=4)
    result = run(tmp_path, backbone=backbone, steps=4, validate_every=2)
    reloaded = create_backbone("conv4", channels=1, image_size=16, width=4, weights=tmp_path / "weights.safetensors")
    assert equal(state_of(result), reloaded.state_dict())


# -- each setting does what it says ------------------------------------------------------------------------------------


def test_step_t_uses_episodes_from_t_e(tmp_path, monkeypatch):
    asked, plain = [], EpisodeSampler.sample

    def sample(self, bank, start, count):
        asked.append((start, count))
        return plain(self, bank, start, count)

    monkeypatch.setattr(EpisodeSampler, "sample", sample)
    run(tmp_path, steps=4, validate_every=0, episodes_per_step=3)
    assert asked == [(0, 3), (3, 3), (6, 3), (9, 3)]


def test_accumulation_is_the_larger_batch(tmp_path):
    changes = {"episodes_per_step": 4, "steps": 5, "validate_every": 0, "ema_decay": 0.0, "optimiser": "sgd", "lr": 1.0}
    backbone = tiny(dropout=0.0, batch_norm=False)  # BatchNorm would see other batches
    whole, parts = (run(tmp_path / str(n), backbone=backbone, accumulate=n, **changes) for n in (1, 4))
    for name, value in state_of(whole).items():
        torch.testing.assert_close(state_of(parts)[name], value, rtol=1e-5, atol=1e-6)
        assert (value - backbone.state_dict()[name]).abs().max() > 1e-3
    assert parts.history[-1]["loss"] == pytest.approx(whole.history[-1]["loss"], rel=1e-5)
    assert parts.history[-1]["accuracy"] == pytest.approx(whole.history[-1]["accuracy"], rel=1e-6)


def test_the_gradient_is_clipped(tmp_path):
    """Plain SGD moves by lr times the gradient: clipped to norm c, the whole step has length lr c."""
    backbone = tiny(dropout=0.0)
    changes = {"steps": 1, "validate_every": 0, "optimiser": "sgd", "momentum": 0.0, "ema_decay": 0.0, "lr": 0.5,
               "schedule": "constant"}

    def moved(result):
        new = dict(result.backbone.named_parameters())
        return math.sqrt(sum((new[n] - p).double().square().sum().item() for n, p in backbone.named_parameters()))

    free = run(tmp_path / "free", backbone=backbone, **changes)
    norm = free.history[0]["gradient_norm"]
    assert moved(free) == pytest.approx(0.5 * norm, rel=1e-4)
    clipped = run(tmp_path / "clipped", backbone=backbone, gradient_clip=norm / 10, **changes)
    assert moved(clipped) == pytest.approx(0.5 * norm / 10, rel=1e-4)
    assert clipped.history[0]["gradient_norm"] == norm  # the norm before clipping is what is shown
    loose = run(tmp_path / "loose", backbone=backbone, gradient_clip=norm * 10, **changes)
    assert moved(loose) == pytest.approx(0.5 * norm, rel=1e-4)


def test_the_learning_rate_follows_the_schedule(tmp_path):
    result = run(tmp_path, steps=10, log_every=1, schedule="cosine", warmup_steps=3, validate_every=0)
    assert [row["lr"] for row in result.history] == [result.config.learning_rate(step) for step in range(10)]


def test_the_moving_average_is_what_is_kept(tmp_path):
    """Against the weights after every step, averaged here."""
    backbone, changes = tiny(dropout=0.0), {"validate_every": 0, "schedule": "constant", "lr": 0.1}
    expected = {name: value.double() for name, value in backbone.state_dict().items()}
    for step in range(4):
        after = state_of(run(tmp_path / f"{step}", backbone=backbone, ema_decay=0.0, steps=step + 1, **changes))
        decay = min(0.25, (1 + step) / (10 + step))
        expected = {name: decay * value + (1 - decay) * after[name].double() for name, value in expected.items()}
    averaged = state_of(run(tmp_path / "averaged", backbone=backbone, ema_decay=0.25, steps=4, **changes))
    for name in ("conv.weight", "norm.weight", "norm.running_mean"):
        torch.testing.assert_close(averaged[name].double(), expected[name], rtol=1e-5, atol=1e-6)
        assert (averaged[name] - after[name]).abs().max() > 1e-3
    assert averaged["norm.num_batches_tracked"] == 4


def test_early_stopping(tmp_path, monkeypatch):
    """With a learning rate too small to change anything, no validation after the first is a new best."""
    changes = {"lr": 1e-20, "validate_every": 2, "steps": 50, "backbone": tiny(dropout=0.0, batch_norm=False)}
    result = run(tmp_path / "stops", early_stopping_patience=3, **changes)
    assert (result.steps, result.best_step, result.stopped) == (8, 2, "early stopping")
    assert run(tmp_path / "stops", early_stopping_patience=3, **changes).stopped == "early stopping"
    assert run(tmp_path / "goes on", early_stopping_patience=0, **changes).steps == 50


def test_the_end_is_validated_whatever_the_interval(tmp_path):
    result = run(tmp_path, steps=11, validate_every=8)
    assert [row["step"] for row in result.history if row["validation_accuracy"] is not None] == [8, 11]
    assert run(tmp_path / "short", steps=3, validate_every=500).best_step == 3


def test_the_best_weights_are_kept_and_score_what_is_reported(tmp_path):
    result = run(tmp_path, steps=40, validate_every=4, lr=0.05)
    scores = {row["step"]: row["validation_accuracy"] for row in result.history if row["step"] % 4 == 0}
    assert len(scores) == 10
    assert result.best_step == max(scores, key=scores.get)
    assert result.validation.mean == max(scores.values())
    settings, images = result.config, bank("val")
    sampler = EpisodeSampler(images, settings.validation_ways, settings.validation_shots, settings.validation_queries,
                             settings.validation_seed)
    episodes, labels = sampler.sample(images, start=0, count=settings.validation_episodes)
    with torch.no_grad():
        predicted = Learner(result.backbone, result.method).eval()(episodes).argmax(-1)
    assert float((predicted == labels).double().mean(1).mean()) == pytest.approx(result.validation.mean, abs=1e-12)


def test_both_ways_of_validating_agree(tmp_path):
    """Few episodes embed their own images, many embed the bank once; the first episodes are the same in both."""
    from fewshot.training.checkpoint import StopRequest
    from fewshot.training.validation import Validation

    learner, images = Learner(tiny(), ProtoNet()), bank("val", images=50)
    few = Validation(config(validation_episodes=10), images, learner).score(learner.state_dict(), StopRequest()).correct
    many = Validation(config(validation_episodes=80), images, learner).score(learner.state_dict(), StopRequest()).correct
    assert 10 * 16 < len(images) < 80 * 16
    assert torch.equal(few, many[:10]) and len(few) == 10 and len(many) == 80
    assert 0 < few.mean() < 1


# -- what is left behind -----------------------------------------------------------------------------------------------


def test_files_of_a_finished_run(tmp_path):
    result = run(tmp_path)
    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [3, 6, 8, 9, 12, 15, 16, 18, 21, 24]
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in result.history]
    assert [row["step"] for row in result.history if row["validation_accuracy"] is not None] == [8, 16, 24]
    state, _, record = read_weights(tmp_path / "weights.safetensors")
    assert equal(state, state_of(result))
    assert record["run"]["config"] == json.loads(json.dumps(result.config.to_dict()))
    assert record["run"]["train_bank"] == {"name": "patterns", "split": "train", "content_hash": bank().content_hash}
    assert record["steps"] == 24 and record["validation_accuracy"] == result.validation.mean and record["versions"]
    assert not list(tmp_path.rglob("*.tmp"))


def test_tensorboard_scalars_and_picture(tmp_path):
    result = run(tmp_path)
    check_tensorboard(tmp_path, result, "episodes")


def test_tensorboard_shows_the_curve_over_inner_steps(tmp_path):
    """Of a gradient-based learner: the last point is the accuracy of the episodes that are validated."""
    result = train(config(method="maml", parameters={"inner_lr": 0.05, "inner_steps": 2, "eval_steps": 30}, steps=4,
                          validate_every=2, validation_episodes=4, ema_decay=0.0), bank(), bank("val"), tiny(), out=tmp_path,
                   progress=False)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    names = [name for name in events.Tags()["scalars"] if name.startswith("inner_loop/")]
    assert names == [f"inner_loop/accuracy_after_{steps:02d}_steps" for steps in range(0, 31, 3)]
    for name in names:
        assert [event.step for event in events.Scalars(name)] == [2, 4]
    last = {event.step: event.value for event in events.Scalars(names[-1])}
    expected = {row["step"]: row["validation_accuracy"] for row in result.history if row["validation_accuracy"] is not None}
    assert last == pytest.approx(expected, rel=1e-6)


def test_a_counter_of_the_method_counts_the_episodes_of_all_passes(tmp_path):
    """MAML++ weights the losses of its steps by the number of episodes seen."""
    changes = {"method": "maml", "parameters": {"inner_lr": 0.05, "inner_steps": 2, "multi_step_episodes": 20}, "steps": 3,
               "episodes_per_step": 4, "validate_every": 0, "ema_decay": 0.0}
    for passes in (1, 2):
        found = train(config(accumulate=passes, **changes), bank(), None, tiny(), out=tmp_path / str(passes), progress=False)
        assert found.method.episodes_seen == 12


def test_the_picture_puts_queries_in_the_row_of_their_predicted_class():
    from fewshot.training.logs import episode_picture

    support = torch.tensor([10, 20], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    query = torch.tensor([11, 21], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    picture = episode_picture(support, torch.tensor([0, 1]), query, torch.tensor([0, 1]), torch.tensor([0, 0]), 2)
    cell = 8  # 4 pixels and a frame of 2 on either side
    assert picture.shape == (3, 2 * cell, 4 * cell)  # a support image, a gap, two queries
    centre = picture[0, 4::cell, 4::cell].tolist()
    assert centre == [[10, 255, 11, 21], [20, 255, 255, 255]]
    assert picture[:, 0, 2 * cell].tolist() == [0, 170, 0] and picture[:, 0, 3 * cell].tolist() == [220, 0, 0]


def test_a_finished_run_returns_at_once(tmp_path, monkeypatch):
    first = run(tmp_path)
    files = {path: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).digest())
             for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(EpisodeSampler, "sample", None)
    again = run(tmp_path)
    assert equal(state_of(first), state_of(again)) and again.history == first.history
    assert again.validation == first.validation and str(again) == str(first)
    assert not again.backbone.training
    assert files == {path: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).digest())
                     for path in tmp_path.rglob("*") if path.is_file()}


def test_no_trace_in_the_process(tmp_path):
    backbone = tiny()
    weights = {name: value.clone() for name, value in backbone.state_dict().items()}
    before, threads, images = rng_states(), torch.get_num_threads(), bank().images.clone()
    run(tmp_path, backbone=backbone)
    after = rng_states()
    assert torch.equal(before["torch"], after["torch"]) and before["python"] == after["python"]
    assert torch.equal(before["numpy"][1], after["numpy"][1]) and before["numpy"][2:] == after["numpy"][2:]
    assert equal(weights, backbone.state_dict()) and all(p.grad is None for p in backbone.parameters())
    assert torch.equal(images, bank().images) and torch.get_num_threads() == threads


def test_the_callers_generators_do_not_matter(tmp_path):
    first = run(tmp_path / "a")
    torch.rand(17)
    assert equal(state_of(first), state_of(run(tmp_path / "b")))
    assert not equal(state_of(first), state_of(run(tmp_path / "c", seed=1)))


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_are_refused_by_name(tmp_path, finished):
    if finished:
        run(tmp_path)
    else:
        with fails_at(9), pytest.raises(ZeroDivisionError):
            run(tmp_path)
    with pytest.raises(FewshotError, match="lr: 0.01 there, 0.5 here; steps: 24 there, 99 here"):
        run(tmp_path, lr=0.5, steps=99)
    with pytest.raises(FewshotError, match="initial_weights"):
        run(tmp_path, backbone=tiny(seed=1))
    with pytest.raises(FewshotError, match="train_bank.content_hash"):
        train(config(), bank(seed=5), bank("val"), tiny(), out=tmp_path, progress=False)
    assert run(tmp_path).steps == 24


def test_resume_false_starts_again_and_leaves_other_files_alone(tmp_path):
    run(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    again = run(tmp_path, resume=False, lr=0.02, steps=5)
    assert again.steps == 5 and again.config.lr == 0.02
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert [row["step"] for row in json.loads((tmp_path / "history.json").read_text())] == [3, 5]


def test_a_loss_that_is_nan_names_step_and_checkpoint(tmp_path):
    with pytest.raises(FewshotError) as caught:
        run(tmp_path, method=Failing(7, lambda logits: logits * float("nan")), validate_every=0)
    message = str(caught.value)
    assert "the loss is nan at step 7" in message and "the logits of the method" in message
    assert "step-000000005." in message and "Lower lr" in message
    assert load_checkpoint(tmp_path / "checkpoints")["step"] == 5


def test_infinite_weights_are_named(tmp_path):
    backbone = tiny()
    with torch.no_grad():
        backbone.norm.bias[3] = float("inf")
    with pytest.raises(FewshotError, match=r"at step 0; .*the weights of backbone\.norm\.bias"):
        run(tmp_path, backbone=backbone)


def test_an_overflowing_layer_is_named(tmp_path):
    backbone = tiny()
    with torch.no_grad():
        backbone.conv.weight.fill_(3e38)
    with pytest.raises(FewshotError, match=r"the output of backbone\.conv \(Conv2d\)"):
        run(tmp_path, backbone=backbone)


def test_an_infinite_gradient_is_caught_before_it_reaches_the_weights(tmp_path):
    def steep(logits):  # adds nothing, with an infinite slope
        return logits + (logits - logits.detach()).abs().sqrt()

    with pytest.raises(FewshotError, match=r"the gradient norm is (nan|inf) .*the gradient of backbone\.conv\.weight"):
        run(tmp_path, method=Failing(0, steep))


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    def second(logits):
        with pytest.raises(FewshotError, match="another process is training in"):
            run(tmp_path)
        return logits

    assert run(tmp_path, method=Failing(0, second), steps=1, validate_every=0).steps == 1


def test_classes_with_too_few_images_are_refused_or_dropped(tmp_path):
    with pytest.raises(FewshotError, match="class 0 .*has 12 images.*small_classes='drop'"):
        run(tmp_path, queries=12)
    uneven = bank()
    some = ImageBank(uneven.images[8:], uneven.labels[8:], name="uneven", split="train")  # class 0 has 4 images left
    changes = config(queries=5, steps=2, validate_every=0, small_classes="drop")
    assert train(changes, some, None, tiny(), out=tmp_path, progress=False).steps == 2


def test_test_classes_are_refused(tmp_path):
    with pytest.raises(FewshotError, match="split 'test'"):
        train(config(), bank(), bank("test"), tiny(), out=tmp_path, progress=False)
    with pytest.raises(FewshotError, match="train_bank is the split 'test'"):
        train(config(), bank("test"), bank(), tiny(), out=tmp_path, progress=False)
    with pytest.raises(FewshotError, match="no validation bank"):
        train(config(), bank(), None, tiny(), out=tmp_path, progress=False)


def test_frozen_networks_and_methods_without_gradient_are_refused(tmp_path):
    with pytest.raises(FewshotError, match="nothing to train"):
        run(tmp_path / "frozen", backbone=tiny().requires_grad_(False))
    with pytest.raises(FewshotError, match="carry no gradient"):
        run(tmp_path / "detached", method=Failing(0, torch.detach))


def test_a_method_of_another_name_is_refused(tmp_path):
    with pytest.raises(FewshotError, match="'protonet', but the method passed is a Scaled"):
        train(config(), bank(), bank("val"), tiny(), method=Scaled(), out=tmp_path, progress=False)


@pytest.mark.parametrize("name", ["maml", "reptile"])
def test_a_learner_that_holds_its_backbone_trains_and_is_found_again(tmp_path, name):
    """On a channels-last Conv-4, whose weights are not contiguous in memory and must be stored all the same."""
    generator = torch.Generator().manual_seed(0)
    train_bank, val_bank = (ImageBank(torch.randint(0, 256, (48, 1, 16, 16), generator=generator, dtype=torch.uint8),
                                      torch.arange(48) % 6, name="noise", split=split) for split in ("train", "val"))
    settings = config(method=name, ways=3, steps=2, validate_every=2, validation_ways=3, validation_episodes=4,
                      parameters={"inner_steps": 1, "eval_steps": 2})
    backbone = create_backbone("conv4", channels=1, image_size=16, width=8)
    assert not all(weight.is_contiguous() for weight in backbone.parameters())
    first, again = (train(settings, train_bank, val_bank, backbone, out=tmp_path, progress=False) for _ in range(2))
    assert first.steps == again.steps == 2
    assert all(torch.equal(value, again.method.state_dict()[name]) for name, value in first.method.state_dict().items())
