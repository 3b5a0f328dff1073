"""What every registered method on images promises. A new method is covered by being registered."""

from __future__ import annotations

import copy

import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.methods import METHODS, create_method
from fewshot.methods.bases.gradient_learner import GradientMethod
from tests.methods.image_episodes import Identity, image_episodes, loss_and_gradients, network, replaced

NAMES = [name for name in METHODS if METHODS[name].inputs == "images"]
META_LEARNED = [name for name in NAMES if issubclass(METHODS[name], GradientMethod)]
MODES = [(name, mode) for name in NAMES for mode in METHODS[name].batch_norm_modes]
# The whole support in every step of Reptile: mini-batches go by position, so that the order of the support matters.
# SGD, because Adam makes a full step of gradients that are rounding errors (a bias before BatchNorm).
QUICK = {"reptile": {"inner_batch": None, "eval_batch": None, "inner_optimiser": "sgd"},
         # Augmentation and mini-batches go by position, too.
         "pmf": {"probability": 0.0}, "finetune": {"batch_size": None}}
SETTINGS = {"inner_lr": 0.1, "inner_steps": 2, "eval_steps": 3}
FINE_TUNING = {"steps": 3, "lr": 0.1, "optimiser": "sgd"}  # SGD for the same reason
every_method = pytest.mark.parametrize("name", NAMES)
every_meta_learned = pytest.mark.parametrize("name", META_LEARNED)
every_mode = pytest.mark.parametrize(("name", "mode"), MODES)
every_mode_meta_learned = pytest.mark.parametrize(("name", "mode"), [m for m in MODES if m[0] in META_LEARNED])


def learner(name: str, mode: str = "batch", dtype=torch.float64, ways: int = 3, **settings):
    family = SETTINGS if name in META_LEARNED else FINE_TUNING
    settings = {**family, **QUICK.get(name, {}), "batch_norm": mode, **settings}
    return create_method(name, **settings).with_backbone(network(dtype=dtype), ways).eval()


def with_steps(name: str, count: int) -> dict:
    return {"eval_steps" if name in META_LEARNED else "steps": count}


@every_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_dtype(name, mode, dtype):
    episodes, labels = image_episodes(dtype=dtype)
    made = learner(name, mode, dtype)
    for model in (made, copy.deepcopy(made).train()):
        logits = model(episodes)
        assert logits.shape == (3, 7, 3) and logits.dtype == dtype and logits.isfinite().all()
    if name in META_LEARNED:
        loss, logits = made.train().loss(episodes, labels)
        assert loss.shape == () and logits.shape == (3, 7, 3)


@every_mode
def test_answering_changes_nothing(name, mode):
    """Neither the episodes nor, in evaluation, the weights, the statistics and the state of any layer."""
    episodes, _ = image_episodes()
    made = learner(name, mode)
    before = [x.clone() for x in (episodes.support, episodes.query, episodes.support_labels)]
    state, flags = copy.deepcopy(made.state_dict()), [m.training for m in made.modules()]
    made(episodes)
    assert all(torch.equal(a, b) for a, b in zip(before, (episodes.support, episodes.query, episodes.support_labels),
                                                 strict=True))
    assert all(torch.equal(value, state[key]) for key, value in made.state_dict().items())
    assert flags == [m.training for m in made.modules()]
    assert all(layer.track_running_stats for layer in made.modules() if isinstance(layer, torch.nn.BatchNorm2d))


@every_mode
def test_batch_invariance(name, mode):
    """An episode's answer does not depend on its batch mates."""
    episodes, _ = image_episodes()
    for settings in ({"vectorise": False}, {"vectorise": True}) if name in META_LEARNED else ({},):
        made = learner(name, mode, **settings)
        alone = torch.cat([made(episodes[i]) for i in range(3)])
        torch.testing.assert_close(made(episodes), alone, atol=1e-10, rtol=0)


@every_mode
def test_setting_is_what_it_says(name, mode):
    """In evaluation an inductive learner's answer to a query does not depend on the others; a transductive one's does,
    otherwise the declared setting, which tables print, would be wrong."""
    episodes, _ = image_episodes()
    made = learner(name, mode)
    changed = episodes.query.clone()
    changed[:, 1:] = 1 - changed[:, 1:].flip(1) ** 2
    before, after = made(episodes)[:, 0], made(replaced(episodes, query=changed))[:, 0]
    difference = (before - after).abs().max()
    assert made.setting == made.settings.setting
    assert difference < 1e-12 if made.setting == "inductive" else difference > 1e-4


@every_method
def test_without_batch_norm_it_is_inductive(name):
    if name == "film":
        pytest.skip("needs a normalisation layer")
    made = create_method(name, batch_norm="batch", **with_steps(name, 3)).with_backbone(network(batch_norm=False), 3).eval()
    episodes, _ = image_episodes()
    changed = episodes.query.clone()
    changed[:, 1:] = 0
    assert made.setting == "inductive"
    torch.testing.assert_close(made(replaced(episodes, query=changed))[:, 0], made(episodes)[:, 0], atol=1e-12, rtol=0)


@every_mode
def test_relabelling(name, mode):
    """Outputs of a learned head are not interchangeable: names of classes may be exchanged together with its rows."""
    episodes, _ = image_episodes()
    made, renamed = learner(name, mode), torch.tensor([2, 0, 1])
    before = made(episodes)
    if getattr(made, "head", None) is not None:
        with torch.no_grad():
            for value in made.head.parameters():
                value[renamed] = value.clone()
    after = made(replaced(episodes, support_labels=renamed[episodes.support_labels]))
    torch.testing.assert_close(after[..., renamed], before, atol=1e-10, rtol=0)


@every_mode
def test_order_of_queries_and_support(name, mode):
    episodes, _ = image_episodes()
    made, first, second = learner(name, mode), torch.tensor([3, 6, 0, 1, 5, 2, 4]), torch.tensor([4, 1, 0, 5, 2, 3])
    other = replaced(episodes, query=episodes.query[:, first], support=episodes.support[:, second],
                     support_labels=episodes.support_labels[:, second])
    torch.testing.assert_close(made(other), made(episodes)[:, first], atol=1e-10, rtol=0)


@every_method
def test_unequal_shots_and_one_query(name):
    episodes, _ = image_episodes(shots=3, queries=1)
    kept = torch.tensor([0, 1, 2, 4, 5, 8])  # 1, 2 and 3 shots
    episodes = replaced(episodes, support=episodes.support[:, kept], support_labels=episodes.support_labels[:, kept])
    assert learner(name)(episodes).shape == (3, 1, 3)


@every_method
def test_deterministic(name):
    episodes, _ = image_episodes(dtype=torch.float32)
    state = torch.get_rng_state()
    first, again = (create_method(name, **with_steps(name, 3)).with_backbone(network(dtype=torch.float32), 3).eval()
                    for _ in range(2))
    assert torch.equal(first(episodes), again(episodes)) and torch.equal(first(episodes), again(episodes))
    assert torch.equal(state, torch.get_rng_state())


@every_mode
def test_gradients_off(name, mode):
    """The inner loop finds its gradients where the caller keeps none, also for weights that are frozen."""
    episodes, _ = image_episodes()
    made = learner(name, mode)
    expected = made(episodes).detach()
    with torch.no_grad():
        assert torch.equal(made(episodes), expected)
    with torch.inference_mode():
        inside = replaced(episodes, support=episodes.support.clone(), query=episodes.query.clone(),
                          support_labels=episodes.support_labels.clone())
        assert inside.support.is_inference() and torch.equal(made(inside), expected)
    assert torch.equal(made.requires_grad_(False)(episodes), expected)
    assert not torch.equal(learner(name, mode, **with_steps(name, 0))(episodes), expected), "nothing was adapted"


@every_mode_meta_learned
@pytest.mark.parametrize("first_order", [False, True])
def test_ways_of_computing_agree(name, mode, first_order):
    """One by one, all at once, in chunks, with checkpoints: the same loss, gradients, answers and statistics."""
    episodes, labels = image_episodes()
    found = []
    for options in ({"vectorise": False}, {"vectorise": True}, {"vectorise": True, "chunk": 2, "checkpoint": True},
                    {"vectorise": False, "checkpoint": True}):
        made = learner(name, mode, first_order=first_order, **options).train()
        found.append((*loss_and_gradients(made, episodes, labels), dict(made.named_buffers()), made.eval()(episodes)))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-11, rtol=1e-9)


@every_meta_learned
@pytest.mark.parametrize("mode", ["batch", "running"])
def test_running_statistics(name, mode):
    """Training records them where they are used, as the mean over episodes of what each makes of them."""
    episodes, labels = image_episodes(episodes=2)
    made = learner(name, mode)
    separate = []
    for i in range(2):
        alone = copy.deepcopy(made).train()
        alone.loss(episodes[i], labels[i : i + 1])
        separate.append(alone.backbone.layers[1].running_mean)
    norm = made.backbone.layers[1]
    before = norm.running_mean.clone()
    made.train().loss(episodes, labels)
    assert torch.equal(norm.running_mean, before) == (mode == "batch")
    torch.testing.assert_close(norm.running_mean, torch.stack(separate).mean(0), atol=1e-12, rtol=0)


@every_meta_learned
def test_every_step_is_seen(name):
    """More steps in evaluation than in training, and the answer after each of them."""
    episodes, _ = image_episodes()
    made = learner(name)
    every = made.trajectory(episodes)
    assert made.steps == 3 and every.shape == (4, 3, 7, 3)
    assert torch.equal(every[-1], made(episodes))
    longer = learner(name, inner_steps=3, eval_steps=None).train()
    assert longer.steps == 3
    torch.testing.assert_close(longer.trajectory(episodes), every)  # batch statistics: the same in both modes


@every_meta_learned
def test_no_steps_or_no_rate_leave_the_start(name):
    episodes, _ = image_episodes()
    start = learner(name).trajectory(episodes, {0})[0]
    torch.testing.assert_close(learner(name, inner_lr=0.0)(episodes), start, atol=1e-14, rtol=0)
    torch.testing.assert_close(learner(name, eval_steps=0)(episodes), start, atol=0, rtol=0)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name == "imaml" else ())
                                  for name in META_LEARNED])
def test_four_episodes_are_fitted(name):
    """Training on the same four episodes drives their loss to near zero."""
    episodes, labels = image_episodes(episodes=4, queries=6, spread=0.5, dtype=torch.float32)
    if name == "reptile":  # learns the support alone
        episodes, labels = replaced(episodes, query=episodes.support), episodes.support_labels
        made = learner(name, dtype=torch.float32, inner_optimiser="adam", inner_lr=0.05, inner_steps=4).train()
        optimiser, steps = torch.optim.SGD(made.parameters(), lr=1.0), 40
    elif name == "imaml":  # its gradient is that of a minimum, which 2 steps do not reach
        made = learner(name, dtype=torch.float32, inner_steps=15, strength=0.3, vectorise=True).train()
        optimiser, steps = torch.optim.Adam(made.parameters(), lr=0.1), 30
    else:
        made = learner(name, dtype=torch.float32, inner_lr=0.05 if name == "anil" else 0.1).train()
        optimiser, steps = torch.optim.Adam(made.parameters(), lr=0.1), 60
    # The rate falls: at a constant one the loss may jump in the last step, and rounding decides when.
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 1.0 if name == "reptile" else 0.0, steps)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss, logits = made.loss(episodes, labels)
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 < 0.2 < losses[0]
    assert torch.equal(logits.argmax(-1), labels)


@every_method
def test_mistakes_are_named(name):
    with pytest.raises(FewshotError, match="with_backbone"):
        create_method(name)(image_episodes()[0])
    with pytest.raises(FewshotError, match="batch_norm='layer'"):
        create_method(name, batch_norm="layer")
    wrong = {"steps": -1, "lr": -1.0} if name not in META_LEARNED else {
        "inner_lr": -1.0, "inner_steps": -1, "eval_steps": -1, "chunk": 0, "vectorise": "yes"}
    for key, value in wrong.items():
        with pytest.raises(FewshotError, match=f"{key}="):
            create_method(name, **{key: value})


@every_meta_learned
def test_backbones_that_do_not_fit(name):
    with pytest.raises(FewshotError, match="feature_dim="):
        create_method(name).with_backbone(torch.nn.Flatten(), 3)
    with pytest.raises(FewshotError, match=r"feature vector.*nn.Flatten"):
        create_method(name).with_backbone(torch.nn.Conv2d(1, 1, 1), 3, feature_dim=1)(
            image_episodes(dtype=torch.float32)[0])
    made = create_method(name).with_backbone(Identity(), 4)
    if made.ways is not None:
        with pytest.raises(FewshotError, match="ways=3 for a head of 4"):
            made(image_episodes()[0])


@every_method
def test_describes_itself(name):
    method = create_method(name)
    assert method.paper and type(method).__doc__ and method.setting == METHODS[name].setting
    assert not method.needs_base and isinstance(method.assumes, tuple)
