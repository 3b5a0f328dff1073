"""Recipes of papers: every loss against a plain float64 computation, resuming, two processes, what they learn."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fewshot.backbones import create_backbone, read_weights
from fewshot.backbones.weights import read_method
from fewshot.core.errors import FewshotError
from fewshot.data.banks import ImageBank
from fewshot.datasets import load_dataset
from fewshot.experiments.running import TrainingPlan
from fewshot.training import OBJECTIVES, SupervisedConfig, recipe_config, train_generations, train_supervised
from fewshot.training.checkpoint import load_checkpoint
from fewshot.training.mixing import PLACES, beta, mixed_features, rotated
from fewshot.training.objectives import make_objective
from fewshot.training.recipes.baseline_pp import DistanceHead
from fewshot.training.recipes.beclr import DyCE
from fewshot.training.recipes.easy import quarters_turned
from tests.training.children import Children, assert_same, ends, outcome
from tests.training.runs import bank, run_recipe, small_conv4

PLANS = ["baseline_pp", "beclr", "easy", "hct", "nsae", "rfs", "s2m2", "simclr", "simpleshot"]
CLASSES = 5
SMALL_MEMORY = {"projection_dim": 8, "clusters": 4, "cluster_size": 20, "neighbours": 2, "memory_start": 0.4}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Weights file of a network trained for one epoch."""
    return run_recipe(tmp_path_factory.mktemp("teacher"), recipe="rfs", epochs=1, seed=5).weights


def settings_of(recipe, teacher, **settings):
    parameters = {"rfs": {"teacher": str(teacher)}, "beclr": SMALL_MEMORY, "s2m2": {"rotation_share": 0.5}}
    return {"recipe": recipe, "recipe_parameters": parameters.get(recipe, {}), **settings}


def test_these_are_all_recipes():
    assert set(OBJECTIVES) >= {"cross_entropy", *PLANS}
    own = {name for name in OBJECTIVES if OBJECTIVES[name].__module__.startswith("fewshot.training.recipes")}
    assert own == set(PLANS)


# -- the losses --------------------------------------------------------------------------------------------------------


def prepared(recipe, images=8, **parameters):
    """(backbone, objective, images, labels) in float64 and evaluation mode, so that an image's features are its own."""
    backbone = small_conv4().double()
    objective = make_objective(recipe_config(recipe, label_smoothing=0.1, recipe_parameters=parameters), CLASSES, backbone)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(images * objective.views, 1, 16, 16, generator=generator, dtype=torch.float64)
    return backbone, objective.double().eval(), x, torch.randint(CLASSES, (images,), generator=generator)


def loss_of(backbone, objective, images, labels):
    return objective.loss(backbone, images, labels, torch.Generator().manual_seed(3))


def cross_entropy(logits, labels, smoothing=0.1):
    """By the definition, image by image, with NumPy."""
    total = 0.0
    for row, label in zip(logits.detach().numpy(), labels.tolist(), strict=True):
        log_p = row - row.max() - np.log(np.exp(row - row.max()).sum())
        target = np.full(len(row), smoothing / len(row))
        target[label] += 1 - smoothing
        total -= target @ log_p
    return total / len(labels)


def turned(image, quarters):
    """By NumPy, one image [C, H, W]."""
    return torch.from_numpy(np.rot90(image.numpy(), quarters, (1, 2)).copy())


def mixing_draws(count):
    """(order, lambda, depth) that a loss draws first from the generator of `loss_of`."""
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(count, generator=generator)
    share = beta(2.0, generator)
    return order, share, int(torch.randint(PLACES, (1,), generator=generator)), generator


def through(backbone, images, order, share, place):
    """Features of a conv4, stage by stage, mixed after stage `place`."""
    for stage in range(PLACES + 1):
        if stage == place:
            images = torch.stack([share * a + (1 - share) * images[j] for a, j in zip(images, order, strict=True)])
        if stage < PLACES:
            images = backbone.blocks[stage](images)
    return images.flatten(1)


def mixup(backbone, head, images, labels):
    order, share, place, _ = mixing_draws(len(labels))
    logits = head(through(backbone, images, order, share, place))
    return share * cross_entropy(logits, labels) + (1 - share) * cross_entropy(logits, labels[order]), logits


def test_simpleshot():
    backbone, objective, images, labels = prepared("simpleshot")
    loss, logits = loss_of(backbone, objective, images, labels)
    torch.testing.assert_close(logits, backbone(images) @ objective.head.weight.T + objective.head.bias)
    assert loss.item() == pytest.approx(cross_entropy(logits, labels), rel=1e-12)


def test_rfs(teacher):
    backbone, objective, images, labels = prepared("rfs")
    assert loss_of(backbone, objective, images, labels)[0].item() == pytest.approx(
        cross_entropy(objective.head(backbone(images)), labels), rel=1e-12)
    config = recipe_config("rfs", recipe_parameters={"teacher": str(teacher), "alpha": 0.3, "beta": 0.7, "temperature": 3.0})
    objective = make_objective(config, 12, backbone).double()
    network, head = (module.double() for module in objective._teacher)
    loss, logits = loss_of(backbone, objective, images, labels)
    divergence = 0.0
    for ours, theirs in zip(logits, head(network(images)), strict=True):
        p, q = (torch.softmax(theirs / 3, 0), torch.softmax(ours / 3, 0))
        divergence += (p * (p / q).log()).sum().item() / len(images)
    assert divergence > 1e-3
    assert loss.item() == pytest.approx(0.3 * cross_entropy(logits, labels, 0) + 0.7 * 9 * divergence, rel=1e-10)
    state = read_weights(teacher)[0]
    torch.testing.assert_close(network.state_dict()["blocks.0.0.weight"], state["blocks.0.0.weight"].double())


def test_easy():
    backbone, objective, images, labels = prepared("easy", images=10)
    loss, logits = loss_of(backbone, objective, images, labels)
    turns = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 3, 3])
    features = backbone(torch.stack([turned(x, int(k)) for x, k in zip(images, turns, strict=True)]))
    expected = mixup(backbone, objective.head, images, labels)[0] + 0.5 * cross_entropy(objective.head(features), labels) \
        + 0.5 * cross_entropy(objective.rotation_head(features), turns, 0)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(logits, objective.head(features))


def test_s2m2_in_both_phases():
    backbone, objective, images, labels = prepared("s2m2", rotation_share=0.5)

    def rotations(images, labels):
        total = 0.0
        for k in range(4):
            features = backbone(torch.stack([turned(x, k) for x in images]))
            total += 0.5 * cross_entropy(objective.head(features), labels) / 4
            total += 0.5 * cross_entropy(objective.rotation_head(features), torch.full((len(images),), k), 0) / 4
        return total

    objective.at(0.49)
    loss, logits = loss_of(backbone, objective, images, labels)
    assert loss.item() == pytest.approx(rotations(images, labels), rel=1e-12)
    torch.testing.assert_close(logits, objective.head(backbone(images)))
    objective.at(0.5)
    loss, logits = loss_of(backbone, objective, images, labels)
    expected, mixed = mixup(backbone, objective.head, images, labels)
    chosen = torch.randperm(8, generator=mixing_draws(8)[3])[:2]
    assert loss.item() == pytest.approx(expected + rotations(images[chosen], labels[chosen]), rel=1e-12)
    torch.testing.assert_close(logits, mixed)


@pytest.mark.parametrize(("classes", "parameters", "scale"), [(5, {}, 2), (201, {}, 10), (5, {"scale": 7.0}, 7)])
def test_baseline_pp(classes, parameters, scale):
    head = DistanceHead(6, classes, **parameters)
    z = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    # At first the learned norms are those of the weights: the logits are scale z'w / |z|.
    torch.testing.assert_close(head(z), scale * (z / z.norm(dim=1, keepdim=True)) @ head.weight.T)
    with torch.no_grad():
        head.weight *= 3  # the direction counts, the norm is learned apart
        head.norms *= 2
    torch.testing.assert_close(head(z), scale * 2 * (z / z.norm(dim=1, keepdim=True)) @ head.weight.T / 3)
    assert DistanceHead(6, classes, class_norms=False, scale=20.0)(z).abs().max() <= 20
    backbone, objective, images, labels = prepared("baseline_pp")
    loss, logits = loss_of(backbone, objective, images, labels)
    torch.testing.assert_close(logits, objective.head(backbone(images)))
    assert loss.item() == pytest.approx(cross_entropy(logits, labels), rel=1e-12)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 84)])
def test_nsae(channels, size):
    backbone = create_backbone("conv4", channels=channels, image_size=size, width=3).double()
    config = recipe_config("nsae", label_smoothing=0.1, recipe_parameters={"reconstruction": 2.0, "classification": 3.0})
    objective = make_objective(config, CLASSES, backbone).double().eval()
    pixels = torch.rand(3, channels, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 4, 2])
    images = backbone.transform(pixels)
    loss, logits = loss_of(backbone, objective, images, labels)
    rebuilt = objective.decoder(backbone(images))
    assert rebuilt.shape == pixels.shape and rebuilt.min() > 0 and rebuilt.max() < 1
    error = sum(((a - b) ** 2).mean().item() for a, b in zip(rebuilt, pixels, strict=True)) / 3
    noisy = objective.head(backbone(backbone.transform(rebuilt)))
    expected = cross_entropy(logits, labels) + 2 * error + 3 * cross_entropy(noisy, labels)
    assert loss.item() == pytest.approx(expected, rel=1e-5)  # mean and std of the transform are float32 numbers


def test_hct():
    backbone, objective, images, labels = prepared("hct", consistency=0.7)
    objective.head.scale.data.fill_(4.0)
    loss, logits = loss_of(backbone, objective, images, labels)
    weak, strong = objective.head(backbone(images[:8])), objective.head(backbone(images[8:]))
    divergence = sum((p * (p / q).log()).sum().item() for p, q in zip(weak.softmax(1), strong.softmax(1), strict=True)) / 8
    expected = mixup(backbone, objective.head, images[:8], labels)[0] + 0.7 * divergence
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(logits, weak)


def test_simclr():
    backbone, objective, images, labels = prepared("simclr", images=4, temperature=0.3)
    loss, logits = loss_of(backbone, objective, images, labels)
    z = objective.projection(backbone(images)).detach().numpy()
    cosine = [[z[i] @ z[j] / np.linalg.norm(z[i]) / np.linalg.norm(z[j]) for j in range(8)] for i in range(8)]
    total = 0.0
    for i in range(8):
        j = (i + 4) % 8
        total -= np.log(np.exp(cosine[i][j] / 0.3) / sum(np.exp(cosine[i][k] / 0.3) for k in range(8) if k != i)) / 8
    assert loss.item() == pytest.approx(total, rel=1e-10)
    torch.testing.assert_close(logits, torch.tensor(np.array(cosine)[:4, 4:] / 0.3))


def test_beclr():
    backbone, objective, images, labels = prepared("beclr", images=4, **SMALL_MEMORY)
    student = small_conv4(seed=3).double()
    memory = objective.memory
    generator = torch.Generator().manual_seed(0)
    for _ in range(15):
        z = torch.randn(8, 8, generator=generator, dtype=torch.float64)
        memory.add(z / z.norm(dim=1, keepdim=True), generator)
    objective.at(0.5)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    loss, logits = loss_of(student, objective, images, labels)

    # The teacher first moves towards the student, by 1 - m with m between 0.995 and 1, half way along the cosine.
    share = 0.005 * (1 + np.cos(np.pi / 2)) / 2
    expected = before["teacher.0.blocks.0.0.weight"] * (1 - share) + student.blocks[0][0].weight * share
    torch.testing.assert_close(objective.teacher[0].blocks[0][0].weight, expected)

    def unit(x):
        return (x / x.norm(dim=1, keepdim=True)).detach()

    z_student = objective.projector(student(images))
    p, z_teacher = unit(objective.predictor(z_student)), unit(objective.teacher[1](objective.teacher[0](images)))
    bank, clusters = before["memory.embeddings"], before["memory.clusters"]
    aligned = 0.0
    for i in range(8):
        j = (i + 4) % 8
        nearest = int((unit(before["memory.prototypes"]) @ z_teacher[j]).argmax())
        members = (clusters == nearest).nonzero().flatten()
        members = members if len(members) >= 2 else torch.arange(80)
        chosen = members[(bank[members] @ z_teacher[j]).argsort(descending=True)[:2]]
        aligned += sum(float(p[i] @ z) for z in [z_teacher[j], *bank[chosen]]) / 3 / 8
    z = unit(z_student)
    pairs = [np.exp(float(z[i] @ z[j]) / 2) for i in range(8) for j in range(8) if i % 4 != j % 4]
    assert loss.item() == pytest.approx(0.1 * np.log(np.mean(pairs)) - aligned, rel=1e-9)
    torch.testing.assert_close(logits.detach(), p[:4] @ z_teacher[4:].T)
    # The batch is in the memory now, in the place of the oldest, and prototypes are the means of their members.
    assert int(memory.added) == 128
    places = (120 + torch.arange(8)) % 80
    torch.testing.assert_close(memory.embeddings[places], z_teacher)
    for c in range(4):
        torch.testing.assert_close(memory.prototypes[c], memory.embeddings[memory.clusters == c].mean(0))


def test_the_memory_finds_clusters_and_keeps_the_newest():
    """Four directions: k-means finds them once the memory is full, the transport fills them evenly."""
    memory = DyCE(4, 4, 10, reg=0.05)
    generator = torch.Generator().manual_seed(0)

    def batch(size=8):
        directions = torch.arange(size) % 4
        noise = 0.1 * torch.randn(size, 4, generator=generator)
        return torch.nn.functional.normalize(torch.eye(4)[directions] + noise, dim=1), directions

    seen = []
    for step in range(12):
        z, directions = batch()
        assert memory.nearest(z, 2).shape == (8, 2 if step >= 5 else 0, 4)
        if memory.full:
            similarity = torch.einsum("bd,bkd->bk", z, memory.nearest(z, 2))
            assert similarity.min() > 0.8, "neighbours lie in the same direction"
            clusters = memory._assigned(z)
            assert len({(int(c), int(d)) for c, d in zip(clusters, directions, strict=True)}) == 4
            assert clusters.bincount(minlength=4).tolist() == [2, 2, 2, 2]
        memory.add(z, generator)
        seen.append(z)
    newest = torch.cat(seen)[-40:]
    assert {tuple(row) for row in memory.embeddings.tolist()} == {tuple(row) for row in newest.tolist()}
    with pytest.raises(FewshotError, match="memory of 40 embeddings cannot take 48 views"):
        memory.add(batch(48)[0], generator)


@pytest.mark.parametrize(("name", "options"), [("conv4", {"width": 4}), ("resnet12", {}), ("resnet18", {}),
                                               pytest.param("wrn28_10", {}, marks=pytest.mark.slow)])
def test_maps_are_mixed_at_every_depth(name, options):
    """Mixed with itself a map stays what it is, mixed with another it does not, and the features of a share of 0 are those
    of the other image: the same at every depth, as nothing after it looks at the batch."""
    backbone = create_backbone(name, channels=1, image_size=16, **options)
    images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([1, 2, 0])
    with torch.no_grad():
        plain, found = backbone(images), []
        for place in range(PLACES):
            same = mixed_features(backbone, images, torch.arange(3), 0.3, place)
            torch.testing.assert_close(same, plain, rtol=1e-4, atol=1e-5)
            other = mixed_features(backbone, images, order, 0.0, place)
            torch.testing.assert_close(other, plain[order], rtol=1e-4, atol=1e-5)
            found.append(mixed_features(backbone, images, order, 0.5, place))
        assert all(not torch.allclose(a, b) for i, a in enumerate(found) for b in found[:i]), "depths must differ"
        torch.testing.assert_close(backbone(images), plain, msg="a hook was left behind")


def test_beta_draws():
    generator = torch.Generator().manual_seed(0)
    draws = np.array([beta(2.0, generator) for _ in range(4000)])
    assert draws.min() > 0 and draws.max() < 1
    assert draws.mean() == pytest.approx(0.5, abs=0.015) and draws.var() == pytest.approx(1 / 20, rel=0.1)


def test_images_that_are_not_square_cannot_be_turned():
    with pytest.raises(FewshotError, match="4 x 5 pixels cannot be turned"):
        rotated(torch.zeros(1, 1, 4, 5), 1)
    assert quarters_turned(torch.zeros(3, 1, 4, 4))[1].tolist() == [3, 3, 3]


# -- the loop ----------------------------------------------------------------------------------------------------------


def quick(*names):
    """All recipes, those not named as slow tests."""
    return [pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in PLANS]


@pytest.mark.parametrize("recipe", quick("rfs"))
def test_resuming_is_bit_exact(tmp_path, teacher, recipe, monkeypatch):
    settings = settings_of(recipe, teacher, ema_decay=0.9, validate_every=1)
    run_recipe(tmp_path / "whole", **settings)
    plain, calls = ImageBank.take, []

    def breaks(self, indices):
        calls.append(1)
        if self.split == "train" and len(calls) > 13:
            raise ZeroDivisionError
        return plain(self, indices)

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(ImageBank, "take", breaks)
        run_recipe(tmp_path / "broken", **settings)
    torch.rand(3)
    assert 0 < load_checkpoint(tmp_path / "broken" / "checkpoints")["step"] < 24
    run_recipe(tmp_path / "broken", **settings)
    assert_same(outcome(tmp_path / "broken"), outcome(tmp_path / "whole"))


@pytest.fixture(scope="module")
def children(tmp_path_factory):
    children = Children(tmp_path_factory.mktemp("meetings"))
    yield children
    children.end()


@pytest.mark.parametrize("recipe", [case for case in quick() if case.values[0] != "beclr"])
def test_two_processes_equal_one(tmp_path, teacher, children, recipe):
    settings = settings_of(recipe, teacher, accumulate=2, epochs=2, validate_every=1)
    run_recipe(tmp_path / "one", **settings)
    assert ends(children.start(tmp_path / "two", 0.0, size=2, kind="recipe", **settings)) == ["finished", "finished"]
    assert_same(outcome(tmp_path / "two"), outcome(tmp_path / "one"))


def few_glyphs() -> ImageBank:
    """Four classes of eight images."""
    glyphs = load_dataset("glyphs", "train")
    few = torch.cat([(glyphs.labels == label).nonzero().flatten()[:8] for label in range(4)])
    return ImageBank(glyphs.images[few], glyphs.labels[few], name="few glyphs", split="train")


@pytest.mark.parametrize("recipe", [case for case in quick("simpleshot")
                                    if case.values[0] not in ("simclr", "beclr")])
def test_a_few_classes_are_fitted(tmp_path, recipe):
    """The classes are learned to the last image, whatever is learned beside."""
    config = recipe_config(recipe, epochs=60 if recipe == "s2m2" else 30, batch_size=8, optimiser="adam", lr=0.01,
                           weight_decay=0.0, nesterov=False, schedule="cosine", cycles=1, validate_every=0,
                           augmentation="crop(1)")
    # Wide enough that no class dies: features that are all zero give a cosine head no gradient.
    backbone = create_backbone("conv4", channels=1, image_size=28, width=16)
    images = few_glyphs()
    result = train_supervised(config, images, None, backbone, out=tmp_path, progress=False)
    with torch.no_grad():
        logits = result.method.head(result.backbone(result.backbone.transform(images.images)))
    assert torch.equal(logits.argmax(1), images.labels), recipe


@pytest.mark.parametrize(("recipe", "parameters", "epochs", "share"), [
    ("simclr", {"temperature": 0.2}, 60, 0.5),
    pytest.param("beclr", {**SMALL_MEMORY, "neighbours": 0, "projection_dim": 32, "momentum": 0.9, "negatives": 1.0,
                           "temperature": 0.5}, 250, 10 / 32, marks=pytest.mark.slow)])
def test_without_labels_the_partner_is_found(tmp_path, recipe, parameters, epochs, share):
    """Without beclr's neighbours, which make it find other images of the class. It learns more slowly than simclr: its
    teacher follows, and its negatives only keep the embeddings apart on average; ten times chance is asked of it."""
    config = recipe_config(recipe, epochs=epochs, batch_size=32, optimiser="adam", lr=0.01, recipe_parameters=parameters,
                           augmentation="affine(5,0.05,0.05)")
    backbone = create_backbone("conv4", channels=1, image_size=28, width=8)
    result = train_supervised(config, few_glyphs(), None, backbone, out=tmp_path, progress=False)
    first, last = result.history[0]["accuracy"], result.history[-1]["accuracy"]
    assert last > share and first < 0.8 * share, "chance is 1/32"


@pytest.mark.parametrize("recipe", ["simclr", "beclr"])
def test_self_supervision_never_sees_a_label(tmp_path, recipe):
    """Other labels, the same weights to the last bit; and what the objective is given are numbers of images."""
    images = bank("train")
    shuffled = images.labels[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    found = []
    for name, labels in (("true", images.labels), ("shuffled", shuffled)):
        config = recipe_config(recipe, epochs=2, batch_size=18, recipe_parameters=SMALL_MEMORY if recipe == "beclr" else {})
        relabelled = ImageBank(images.images, labels, name=name, split="train")
        result = train_supervised(config, relabelled, None, small_conv4(), out=tmp_path / name, progress=False)
        found.append({**result.backbone.state_dict(), **result.method.state_dict()})
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert not torch.equal(found[0]["blocks.0.0.weight"], small_conv4().blocks[0][0].weight)


def test_a_layer_that_overflows_is_named_with_the_last_checkpoint(tmp_path):
    with pytest.raises(FewshotError) as caught:
        run_recipe(tmp_path, recipe="easy", optimiser="sgd", lr=1e20, momentum=0.0, nesterov=False, checkpoint_every=1)
    message = str(caught.value)
    assert "at step " in message and "blocks." in message, message
    step = int(message.split("at step ")[1].split(";")[0])
    assert f"step-{step:09d}." in message and load_checkpoint(tmp_path / "checkpoints")["step"] == step > 0


# -- generations -------------------------------------------------------------------------------------------------------


def test_generations(tmp_path):
    small = {"epochs": 1, "batch_size": 18, "augmentation": "", "validate_every": 0}

    def train(out, generations=2):
        return train_generations(recipe_config("rfs", **small), bank("train"), bank("val"), small_conv4(), out=out,
                                 generations=generations, progress=False)

    result = train(tmp_path / "out")
    first = tmp_path / "out" / "generation_1" / "weights.safetensors"
    assert result.weights == tmp_path / "out" / "weights.safetensors" and first.is_file()
    simple = train_supervised(recipe_config("rfs", **small), bank("train"), None, small_conv4(), out=tmp_path / "simple",
                              progress=False)
    torch.testing.assert_close(read_weights(first)[0], simple.backbone.state_dict(), rtol=0, atol=0)
    assert not torch.equal(result.backbone.blocks[0][0].weight, simple.backbone.blocks[0][0].weight)
    stored = json.loads((tmp_path / "out" / "result.json").read_text())["run"]
    assert "teacher=" in stored["method"] and "recipe_parameters" not in stored["config"]
    # The place of the teacher does not matter, its weights do.
    (tmp_path / "out").rename(tmp_path / "moved")
    assert train(tmp_path / "moved").history == result.history
    other = run_recipe(tmp_path / "other", recipe="rfs", epochs=1, seed=9).weights
    config = recipe_config("rfs", **small, recipe_parameters={"teacher": str(other)})
    with pytest.raises(FewshotError, match="holds a run with other settings .*teacher="):
        train_supervised(config, bank("train"), None, small_conv4(), out=tmp_path / "moved", progress=False)
    with pytest.raises(FewshotError, match="recipe easy has no teacher"):
        train_generations(recipe_config("easy"), bank(), None, small_conv4(), out=tmp_path / "a", generations=2)
    with pytest.raises(FewshotError, match="generations=0"):
        train(tmp_path / "b", 0)


def test_the_teacher_stays_out_of_what_is_written(tmp_path, teacher):
    run_recipe(tmp_path, **settings_of("rfs", teacher, epochs=1))
    names = set(load_checkpoint(tmp_path / "checkpoints")["learner"])
    assert not any("teacher" in name for name in names) and "method.head.weight" in names


def test_teachers_that_do_not_fit_are_refused(tmp_path, teacher):
    def attempt(path=teacher, classes=12, backbone=None, **settings):
        config = recipe_config("rfs", recipe_parameters={"teacher": str(path)}, **settings)
        make_objective(config, classes, small_conv4() if backbone is None else backbone)

    with pytest.raises(FewshotError, match="is not a linear one of 9 classes"):
        attempt(classes=9)
    with pytest.raises(FewshotError, match="not a cosine one"):
        attempt(head="cosine")
    with pytest.raises(FewshotError, match="create the backbone like the teacher's"):
        attempt(backbone=create_backbone("conv4", channels=1, image_size=28, width=6))
    with pytest.raises(FewshotError, match="lost.safetensors"):
        attempt(tmp_path / "lost.safetensors")


@pytest.mark.slow
def test_a_recipe_of_an_experiment_keeps_the_backbone_alone(tmp_path):
    small = {"epochs": 1, "validation_ways": 5, "validation_episodes": 10, "batch_size": 512, "validate_every": 0}
    recipe = TrainingPlan(recipe_config("rfs", **small), "glyphs", backbone_options={"width": 4}, generations=2)
    result = recipe.train(tmp_path / "run")
    assert (tmp_path / "run" / "generation_1" / "weights.safetensors").is_file()
    recipe.keep(result, tmp_path / "kept.safetensors")
    state, described, provenance = read_weights(tmp_path / "kept.safetensors")
    torch.testing.assert_close(state, result.backbone.state_dict(), rtol=0, atol=0)
    assert read_method(tmp_path / "kept.safetensors") is None and described["options"]["width"] == 4
    assert provenance["run"]["config"]["recipe"] == "rfs" and "teacher=" in provenance["run"]["method"]


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", PLANS)
def test_settings_of_the_paper_hold_unless_others_are_given(recipe):
    config = recipe_config(recipe)
    assert config.recipe == recipe
    for name, value in OBJECTIVES[recipe].defaults.items():
        assert getattr(config, name) == value
    assert recipe_config(recipe, epochs=7, augmentation="").epochs == 7
    assert SupervisedConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_mistakes(tmp_path):
    with pytest.raises(FewshotError, match="unknown parameter of recipe rfs 'temperatur'; did you mean 'temperature'"):
        run_recipe(tmp_path, recipe="rfs", recipe_parameters={"temperatur": 1})
    with pytest.raises(FewshotError, match="alpha='x'; expected a finite number"):
        run_recipe(tmp_path, recipe="easy", recipe_parameters={"alpha": "x"})
    with pytest.raises(FewshotError, match="recipe beclr takes accumulate=1"):
        run_recipe(tmp_path, recipe="beclr", accumulate=2)
    with pytest.raises(FewshotError, match="recipe simclr compares 2 views"):
        run_recipe(tmp_path, recipe="simclr", augmentation="")
    with pytest.raises(FewshotError, match="describes 3 views, and this recipe takes 2"):
        run_recipe(tmp_path, recipe="simclr", augmentation="flip|flip|flip")
    with pytest.raises(FewshotError, match="the stages of pixels are not known"):
        run_recipe(tmp_path, recipe="s2m2", backbone=create_backbone("pixels", channels=1))
    with pytest.raises(FewshotError, match="create the backbone with an image_size"):
        make_objective(recipe_config("nsae"), 3, create_backbone("resnet12", channels=1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recipe", PLANS)
def test_every_weight_of_the_objective_is_trained(tmp_path, recipe):
    settings = settings_of(recipe, "", epochs=2, validate_every=0)
    result = run_recipe(tmp_path, **settings)
    start = dict(make_objective(result.config, 12, small_conv4()).named_parameters())
    assert start and not [name for name, value in result.method.named_parameters() if torch.equal(value, start[name])]
