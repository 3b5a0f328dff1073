from __future__ import annotations

import dataclasses

import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.episodes.base_to_new import BaseToNewSampler, base_half, new_half
from fewshot.episodes.protocol import BaseToNewProtocol
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store
from fewshot.methods import create_method


def bank(parts: bool = True, classes: int = 7) -> FeatureBank:
    """Labels with gaps, in random order; the texts are near the classes."""
    draw = torch.Generator().manual_seed(1)
    labels, part = torch.arange(12 * classes) % classes, torch.arange(12 * classes) // classes % 3
    order = torch.randperm(len(labels), generator=draw)
    centres = torch.randn(3 * classes, 16, generator=draw)
    features = centres[3 * labels] + torch.randn(len(labels), 16, generator=draw)
    texts = centres + torch.randn(3 * classes, 16, generator=draw)
    return FeatureBank(features[order], 3 * labels[order], [f"name {n}" for n in range(3 * classes)], "toy",
                       parts=part[order] if parts else None).with_texts(texts)


@pytest.mark.parametrize("parts", [True, False])
def test_draws(parts):
    data = bank(parts)
    drawn = BaseToNewSampler(data, 2, seed=3).indices(0, 4)
    again = BaseToNewSampler(data, 2, seed=3).indices(2, 1)
    assert all(torch.equal(rows[2:3], again.columns[name]) for name, rows in drawn.columns.items())
    base, new = base_half(drawn, 4), new_half(drawn, 4)
    assert base.ways == 4 and new.ways == 3 and drawn.classes[0].tolist() == [0, 3, 6, 9, 12, 15, 18]
    for half, classes in ((base, {0, 3, 6, 9}), (new, {12, 15, 18})):
        assert set(data.labels[half.query].unique().tolist()) == classes
        assert torch.equal(half.classes.gather(1, half.query_labels), data.labels[half.query])
        if parts:
            assert (data.parts[half.query] == 2).all()
    assert set(data.labels[drawn.support].unique().tolist()) == {0, 3, 6, 9} and new.query.shape[1] == (12 if parts else 36)
    if parts:
        assert (data.parts[drawn.support] == 0).all() and (data.parts[drawn.validation] == 1).all()


def test_accuracies_by_hand(tmp_path):
    """`zero_shot` is right on both halves as often as a loop over the images finds, each half among itself."""
    data = bank()
    run = Run(method="zero_shot", protocol=BaseToNewProtocol(shots=1), episodes=3)
    result = evaluate(run, data, store=Store(tmp_path))
    shares = []
    for classes in ((0, 3, 6, 9), (12, 15, 18)):
        right = [max(classes, key=lambda c: float(torch.cosine_similarity(x, data.texts.vectors[c], dim=0))) == int(label)
                 for x, label, part in zip(data.features, data.labels, data.parts, strict=True)
                 if int(label) in classes and part == 2]
        shares.append(sum(right) / len(right))
    base, new = shares
    assert result.measures["base_accuracy"].tolist() == pytest.approx([base] * 3)
    assert result.measures["new_accuracy"].tolist() == pytest.approx([new] * 3)
    assert result.correct.tolist() == pytest.approx([2 * base * new / (base + new)] * 3) and 0.4 < base != new
    assert str(result.record.protocol) == "base to new, 1-shot"
    assert torch.equal(evaluate(run, data, store=Store(tmp_path)).correct, result.correct)


def test_what_needs_names_says_so():
    data, run = bank(), Run(method="protonet", protocol=BaseToNewProtocol(shots=1), episodes=2)
    with pytest.raises(FewshotError, match="ProtoNet knows classes by their images alone"):
        evaluate(run, data)
    with pytest.raises(FewshotError, match="a bank of features with texts"):
        evaluate(run.changed(method="zero_shot"), dataclasses.replace(data, texts=None))
    with pytest.raises(FewshotError, match="accuracies alone"):
        evaluate(run.changed(method="zero_shot"), data, metrics=True)
    with pytest.raises(FewshotError, match="has 3 classes; two halves need 4"):
        BaseToNewSampler(bank(classes=3))
    episodes = BaseToNewSampler(data, 1).sample(data, 0, 2)[0]
    logits = create_method("zero_shot").transfer(episodes, episodes.query[:, :5], torch.ones(2, 3, 16))
    assert logits.shape == (2, 5, 3)
