"""Texts in the data path: in a bank, its file and its hash, in episodes, and through everything that changes those."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank, concatenate
from fewshot.data.class_texts import ClassTexts
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.episodes.types import Episodes
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.run import Run
from fewshot.features.transforms import TRANSFORMS, parse_transforms
from fewshot.methods.protonet import ProtoNet

NAMES = tuple(f"name {n}" for n in range(6))


def texts(seed: int = 0, classes: int = 6, dim: int = 8, **changes) -> ClassTexts:
    """Class c has c + 1 prompts."""
    draw = torch.Generator().manual_seed(seed)
    prompts = tuple(tuple(f"photo {i} of {c}" for i in range(c + 1)) for c in range(classes))
    fields = {"vectors": torch.randn(classes, dim, generator=draw), "prompts": prompts,
              "prompt_vectors": torch.randn(sum(map(len, prompts)), dim, generator=draw), "templates": ("photo {}",),
              "model": "random", "logit_scale": 31.5, "logit_bias": -4.0, "projection": torch.ones(dim + 1, dim)}
    return ClassTexts(**{**fields, **changes})


def bank(dtype=torch.float32, **changes) -> FeatureBank:
    features = torch.randn(60, 8, generator=torch.Generator().manual_seed(3)).to(dtype)
    return FeatureBank(features, torch.arange(60) % 6, NAMES, name="toy", texts=changes.pop("texts", texts()), **changes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("text_dtype", [torch.float64, torch.float32, torch.float16])
def test_a_file_keeps_all_of_it(tmp_path, dtype, text_dtype):
    given = texts()
    given = dataclasses.replace(given, vectors=given.vectors.to(text_dtype))
    made = bank(dtype, texts=given)
    for mmap in (False, True):
        found = FeatureBank.load(made.save(tmp_path / "bank.safetensors"), mmap=mmap)
        assert found.content_hash == made.content_hash and torch.equal(found.features, made.features)
        assert found.texts.content_hash == given.content_hash
        for field in dataclasses.fields(ClassTexts):
            one, other = getattr(found.texts, field.name), getattr(given, field.name)
            assert torch.equal(one, other) and one.dtype == other.dtype if isinstance(one, torch.Tensor) else one == other


def test_hash_says_every_change_and_the_identity_none():
    plain, made = bank(texts=None), bank()
    assert plain.identity == made.identity  # results with and without texts can be paired
    changed = [texts(seed=1), *(dataclasses.replace(texts(), **change) for change in (
        {"templates": ("a {}",)}, {"model": "other"}, {"logit_scale": 100.0}, {"logit_bias": 0.0},
        {"prompt_vectors": None, "prompts": ()}, {"projection": None}))]
    hashes = {plain.content_hash, made.content_hash, *(bank(texts=each).content_hash for each in changed)}
    assert len(hashes) == 2 + len(changed)


def test_files_without_texts_are_what_they_were(tmp_path):
    found = FeatureBank.load(bank(texts=None).save(tmp_path / "bank.safetensors"))
    assert found.texts is None
    np.savez(tmp_path / "bank.npz", features=found.features, labels=found.labels, class_text=texts().vectors)
    assert torch.equal(FeatureBank.load(tmp_path / "bank.npz").texts.vectors, texts().vectors)


def test_the_sampler_hands_out_the_texts_of_the_classes_in_their_order():
    made = bank()
    indices = EpisodeSampler(made, ways=3, shots=1, queries=2, seed=1).indices(0, 20)
    episodes = indices.gather(made)
    assert len(set(map(tuple, indices.classes.tolist()))) > 10
    prompts = made.texts.prompt_vectors.split([1, 2, 3, 4, 5, 6])
    for e, classes in enumerate(indices.classes.tolist()):
        for n, label in enumerate(classes):
            assert torch.equal(episodes.text[e, n], made.texts.vectors[label])
            assert torch.equal(episodes.prompts[e, n, : label + 1], prompts[label])
            assert not episodes.prompts[e, n, label + 1 :].any()
    assert (episodes.logit_scale, episodes.logit_bias) == (31.5, -4.0)
    assert torch.equal(episodes.projection[7], made.texts.projection)
    wide = bank(torch.float64)
    assert indices.gather(wide).text.dtype == torch.float64


def test_an_evaluation_hands_sentences_to_what_reads_them():
    """Many sentences a class would cost the others several times their own work."""
    made, seen = bank(), []

    class Watching(ProtoNet):
        def __call__(self, episodes):
            seen.append((type(self).reads_prompts, episodes.prompts is not None, episodes.text is not None))
            return super().__call__(episodes)

    class Reading(Watching):
        reads_prompts = True

    run = Run(ways=3, queries=2, episodes=4)
    for method, transforms in ((Watching(), ""), (Reading(), ""), (Watching(), "text_shots(of=prompts)")):
        evaluate(run, made, method=method, transforms=transforms)
    assert seen == [(False, False, True), (True, True, True), (False, True, True)]


def test_every_change_of_episodes_keeps_them():
    made = bank()
    episodes = EpisodeSampler(made, ways=3, shots=2, queries=2, seed=1).sample(made, 0, 4)[0]
    kept = ("text", "prompts", "logit_scale", "logit_bias")
    fitted = [parse_transforms(name).fit(made) for name in TRANSFORMS if name != "span"]
    changed = {str(chain): chain(episodes.with_features(torch.abs)) for chain in fitted}
    changed |= {"working": episodes.working(), "joined": Episodes.joined([episodes[:1], episodes[1:]]),
                "device": episodes.to("cpu"), "replaced": episodes.replace(ways=3)}
    assert len(changed) > 10
    for name, other in changed.items():
        for field in kept:
            one = getattr(other, field)
            assert torch.equal(one, getattr(episodes, field)) if isinstance(one, torch.Tensor) else \
                one == getattr(episodes, field), (name, field)
    assert torch.equal(episodes[2].text, episodes.text[2:3])
    assert torch.equal(episodes[2].projection[0], made.texts.projection)
    assert episodes.to(torch.float64).text.dtype == torch.float64


def test_the_span_keeps_the_products_with_texts():
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(2, 5, 90, generator=draw, dtype=torch.float64)
    e = Episodes(points[:, :2], torch.tensor([[0, 1]] * 2), points[:, 2:], 2,
                 text=torch.randn(2, 2, 90, generator=draw).double(),
                 prompts=torch.randn(2, 2, 3, 90, generator=draw).double())
    small = parse_transforms("span")(e)
    assert small.query.shape[-1] < 90
    torch.testing.assert_close(small.query @ small.text.mT, e.query @ e.text.mT, atol=1e-9, rtol=0)
    torch.testing.assert_close(small.prompts.flatten(1, 2) @ small.support.mT, e.prompts.flatten(1, 2) @ e.support.mT,
                               atol=1e-9, rtol=0)
    with pytest.raises(FewshotError, match="no span in common"):
        parse_transforms("span")(e.replace(text=torch.ones(2, 2, 3)))


def test_an_ensemble_has_texts_side_by_side_or_those_of_its_first_member():
    one, other = bank(), bank(texts=texts(seed=5))
    assert torch.equal(concatenate([one, other]).texts.vectors, torch.cat([one.texts.vectors, other.texts.vectors], 1))
    assert concatenate([one, bank(texts=None)]).texts is one.texts
    assert concatenate([bank(texts=None)] * 2).texts is None
    with pytest.raises(FewshotError, match="texts first"):
        concatenate([bank(texts=None), one])


@pytest.mark.parametrize(("wrong", "says"), [
    ({"vectors": torch.ones(5, 8)}, "5 texts"),
    ({"vectors": torch.full((6, 8), float("nan"))}, "row 0"),
    ({"vectors": torch.ones(6, 8, dtype=torch.int64)}, "floating point"),
    ({"prompt_vectors": torch.ones(3, 8)}, "3 vectors of prompts"),
    ({"projection": torch.ones(4, 7)}, "projection has shape"),
    ({"logit_scale": 0.0}, "logit_scale"), ({"logit_bias": float("inf")}, "logit_bias")])
def test_wrong_texts(wrong, says):
    with pytest.raises(FewshotError, match=says):
        texts(**wrong)


def test_every_class_needs_a_text():
    with pytest.raises(FewshotError, match="texts of 5 classes for 6 class names"):
        bank(texts=texts(classes=5))
    with pytest.raises(FewshotError, match="texts of 7 classes"):
        bank(texts=None).with_texts(torch.ones(7, 8))
