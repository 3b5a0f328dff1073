from __future__ import annotations

import dataclasses

import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.episodes.all_classes import AllClassesSampler
from fewshot.episodes.protocol import AllClassesProtocol
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.result import compare
from fewshot.evaluation.run import Run
from fewshot.features.transforms import parse_transforms


def bank(parts: bool = True, each: int = 12, classes: int = 7) -> FeatureBank:
    """Labels with gaps, in random order; a third of each class is of each part."""
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(each * classes) % classes
    part = torch.arange(each * classes) // classes % 3
    order = torch.randperm(len(labels), generator=draw)
    features = torch.nn.functional.one_hot(labels, 16) * 2 + torch.randn(len(labels), 16, generator=draw)
    return FeatureBank(features[order].float(), 3 * labels[order], [f"name {n}" for n in range(3 * classes)], "toy",
                       parts=part[order] if parts else None)


@pytest.mark.parametrize("parts", [True, False])
@pytest.mark.parametrize("validation", ["none", "few", "full"])
@pytest.mark.parametrize("shots", [1, 3])
def test_every_draw_keeps_the_rules(parts, validation, shots):
    data = bank(parts)
    if validation == "full" and not parts:
        with pytest.raises(FewshotError, match="does not say which images are for it"):
            AllClassesSampler(data, shots, validation)
        return
    drawn = AllClassesSampler(data, shots, validation, seed=4).indices(0, 6)
    place = {int(label): n for n, label in enumerate(data.classes)}
    few = min(shots, 4)
    assert drawn.ways == 7 and torch.equal(drawn.classes[3], data.classes)
    assert (drawn.validation is None) == (validation == "none")
    for e in range(6):
        rows = {name: drawn.columns[name][e] for name in drawn.columns if not name.endswith("labels") and name != "classes"}
        together = torch.cat(list(rows.values()))
        assert len(set(together.tolist())) == len(together)
        for name, found in rows.items():
            labels = [place[int(label)] for label in data.labels[found]]
            assert drawn.columns[f"{name}_labels"][e].tolist() == labels
            counts = torch.bincount(torch.tensor(labels), minlength=7).unique().tolist()
            if parts:
                assert (data.parts[found] == {"support": 0, "validation": 1, "query": 2}[name]).all()
            expected = {"support": shots, "query": 4 if parts else 12 - shots - few,
                        "validation": 4 if validation == "full" else few}[name]
            assert counts == [expected]
    assert not torch.equal(drawn.support[0], drawn.support[1])


def test_a_draw_is_a_pure_function_of_its_number():
    data = bank()
    all_, some = (AllClassesSampler(data, 3, seed=4).indices(*which) for which in ((0, 6), (2, 3)))
    for name, rows in some.columns.items():
        assert torch.equal(rows, all_.columns[name][2:5])
    other = AllClassesSampler(data, 3, seed=5).indices(0, 6)
    assert not torch.equal(other.support, all_.support)
    # Validation changes neither support nor queries, and more shots begin with fewer.
    without, one = AllClassesSampler(data, 3, "none", seed=4).indices(0, 6), AllClassesSampler(data, 1, seed=4).indices(0, 6)
    assert torch.equal(without.support, all_.support) and torch.equal(without.query, all_.query)
    assert torch.equal(one.support, all_.support[:, ::3])
    # The order of the queries tells nothing of their classes, as sorted ones would.
    assert (all_.query_labels.diff(dim=1) < 0).float().mean() > 0.3


def test_the_validation_images_of_an_episode():
    data = bank().with_texts(torch.eye(21, 16))
    episodes, labels = AllClassesSampler(data, 2, seed=1).sample(data, 0, 3)
    assert episodes.validation_labels.shape == (3, 14) and labels.shape == (3, 28)
    assert episodes.validation.support is episodes.support and torch.equal(episodes.validation.text, episodes.text)
    # A transform sees the validation images beside the support, never beside the queries.
    for steps in ("center_separate", "center_episode", "power(0.5),l2", "range"):
        chain = parse_transforms(steps)
        alone = chain(episodes.validation)
        assert torch.equal(chain(episodes).validation.query, alone.query), steps
    half = episodes[1].to(torch.float64)
    assert half.validation.query.dtype == torch.float64 and len(half.validation) == 1
    with pytest.raises(FewshotError, match="validation_labels"):
        dataclasses.replace(episodes, validation_labels=None)


def test_evaluation_and_pairing(tmp_path):
    data = bank()
    runs = [Run(method=method, protocol=AllClassesProtocol(shots=2, validation=validation), episodes=4)
            for method, validation in (("protonet", "none"), ("protonet", "few"), ("ridge", "few"))]
    results = [evaluate(run, data) for run in runs]
    assert results[0].accuracy.mean == results[1].accuracy.mean > 0.3
    assert compare(results[0], results[2]).difference.n == 4  # draws are the same with and without validation images
    assert "training images" in results[0].accuracy.covers
    assert Run(protocol=AllClassesProtocol()).episodes == 10 and Run().episodes == 10_000
    assert Run.from_dict(runs[0].to_dict()) == runs[0] and runs[0].key != runs[1].key
    assert str(runs[0].protocol) == "all classes, 2-shot, no validation images"
    runs[1].drawn(data).save(file := tmp_path / "draws.safetensors")
    again = evaluate(runs[1], data, episodes_file=file)
    assert torch.equal(again.correct, results[1].correct) and again.fingerprint == results[0].fingerprint


def test_what_is_impossible_is_named_before_any_work():
    with pytest.raises(FewshotError, match=r"class 0 \(name 0\) of toy/all has 4 images where 5 training images"):
        AllClassesSampler(bank(), 5)
    with pytest.raises(FewshotError, match=r"where 13 images \(8 shots, 4 for validation, 1 query\) are needed"):
        AllClassesSampler(bank(parts=False), 8)
    data = bank()
    only = data.parts == 0
    train = dataclasses.replace(data, features=data.features[only], labels=data.labels[only], parts=data.parts[only])
    with pytest.raises(FewshotError, match="load split all"):
        AllClassesSampler(train, 1, "none")
    with pytest.raises(FewshotError, match="parts has dtype"):
        dataclasses.replace(data, parts=data.parts + 1)
    with pytest.raises(FewshotError, match="validation"):
        AllClassesSampler(data, 1, "some")


def test_parts_are_kept_in_files_and_in_the_identity(tmp_path):
    data = bank()
    found = FeatureBank.load(data.save(tmp_path / "bank.safetensors"))
    assert torch.equal(found.parts, data.parts) and found.identity == data.identity
    assert data.identity != dataclasses.replace(data, parts=None).identity
