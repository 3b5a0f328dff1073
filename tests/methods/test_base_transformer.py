from __future__ import annotations

import dataclasses

import pytest
import torch

from fewshot.backbones import create_backbone
from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.datasets import load_dataset
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.run import Run
from fewshot.features.extract import embed
from fewshot.methods.base_transformer import BaseTransformer
from fewshot.methods.protonet import ProtoNet
from fewshot.training import TrainConfig, train


def base_bank(dim=8, classes=6):
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(60, dim, generator=generator, dtype=torch.float64)
    return FeatureBank(features, torch.arange(60) % classes)


def made(dim=8, trained=True, **settings):
    """With `trained`, an output layer that is not zero."""
    method = BaseTransformer(**settings).fit(base_bank(dim))
    module = method.with_backbone(torch.nn.Linear(1, 1, dtype=torch.float64), 5, feature_dim=dim)
    if trained:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            module.out.weight.copy_(torch.randn(module.out.weight.shape, generator=generator))
            module.out.bias.copy_(torch.randn(module.out.bias.shape, generator=generator))
    return module.requires_grad_(False)


def test_untrained_it_is_protonet():
    """On pooled features, where they are maps."""
    episodes = random_episodes(shots=3, dim=8)
    torch.testing.assert_close(made(trained=False, temperature=2.0)(episodes), ProtoNet(2.0)(episodes))
    pooled = episodes.with_features(lambda x: x.unflatten(-1, (2, 4)).mean(-1))
    torch.testing.assert_close(made(trained=False, channels=2)(episodes), ProtoNet()(pooled))


@pytest.mark.parametrize("settings", [{}, {"heads": 2, "neighbours": 3}, {"channels": 4, "heads": 2, "neighbours": 2}])
def test_against_a_loop(settings):
    """One support item, one head, one descriptor at a time."""
    module, episodes = made(**settings), random_episodes(shots=2, dim=8, queries=4)
    channels, heads = settings.get("channels", 8), settings.get("heads", 1)
    bank, size = base_bank(), channels // heads
    base = torch.stack([bank.features[bank.labels == n].mean(0) for n in range(6)])
    base = base.unflatten(1, (channels, -1)).transpose(1, 2)  # [B, P, C]
    found = module(episodes)
    for e in range(3):
        completed = []
        for item in episodes.support[e]:
            tokens = item.unflatten(0, (channels, -1)).T  # [P, C]
            nearest = (base.mean(1) - tokens.mean(0)).square().sum(1).argsort()[:settings.get("neighbours", 5)]
            others = torch.cat([base[b] for b in nearest])  # [k P, C]
            rows = []
            for token in tokens:
                parts = []
                for h in range(heads):
                    part = slice(h * size, (h + 1) * size)
                    asked = module.of_support.weight[part] @ token
                    scores = torch.stack([asked @ (module.of_base.weight[part] @ other) / size**0.5 for other in others])
                    parts.append(scores.softmax(0) @ (others @ module.value.weight[part].T))
                rows.append(token + module.out.weight @ torch.cat(parts) + module.out.bias)
            completed.append(torch.stack(rows).mean(0))
        completed = torch.stack(completed)
        for q, query in enumerate(episodes.query[e]):
            z = query.unflatten(0, (channels, -1)).mean(1)
            for n in range(5):
                expected = -(z - completed[episodes.support_labels[e] == n].mean(0)).square().sum()
                torch.testing.assert_close(found[e, q, n], expected, atol=1e-11, rtol=0)


def test_training_leaves_out_the_classes_of_the_episode():
    """An episode of base classes would find its own prototypes."""
    bank = base_bank()
    module = made(neighbours=6, dropout=0.0)
    means = torch.stack([bank.features[bank.labels == n].mean(0) for n in range(6)])
    episodes = random_episodes(episodes=1, shots=1, dim=8)
    episodes = dataclasses.replace(episodes, support=means[None, :5] + 0.01)
    assert module._nearest(episodes, episodes.support, module.base).sort(-1).values.tolist() == [[list(range(6))] * 5]
    module.train()
    module.settings = dataclasses.replace(module.settings, neighbours=1)
    assert module._nearest(episodes, episodes.support, module.base).flatten().tolist() == [5] * 5


def test_trained_and_found_in_its_weights_file(tmp_path):
    """The file brings the prototypes along: evaluation needs no base bank."""
    base = load_dataset("glyphs", "train")
    backbone = create_backbone("conv4", channels=1, image_size=28, width=8)
    method = BaseTransformer(neighbours=3).fit(embed(base, backbone, progress=False)).with_backbone(backbone, 3)
    config = TrainConfig(method="base_transformer", parameters={"neighbours": 3}, ways=3, queries=3, steps=4,
                         validate_every=0)
    result = train(config, base, None, backbone, method=method, out=tmp_path, progress=False)
    assert result.method.out.weight.abs().max() > 0
    torch.testing.assert_close(result.method.base, method.base)
    run = Run(method="base_transformer", weights=str(result.weights), ways=3, queries=4, episodes=20)
    found = evaluate(run)
    assert found.notes == () and found.record.parameters["base_classes"] == len(base.class_names)
    test = embed(load_dataset("glyphs", "test"), result.backbone, progress=False)
    given = evaluate(Run(ways=3, queries=4, episodes=20), test, method=result.method.eval())
    assert torch.equal(given.correct, found.correct)


def test_wrong_values():
    for settings, message in (({"neighbours": 0}, "neighbours=0"), ({"heads": 0}, "heads=0"),
                              ({"dropout": 1.0}, "dropout=1"), ({"temperature": 0.0}, "temperature=0"),
                              ({"channels": 0}, "channels=0")):
        with pytest.raises(FewshotError, match=message):
            BaseTransformer(**settings)
    with pytest.raises(FewshotError, match="no network yet"):
        BaseTransformer()(random_episodes())
    with pytest.raises(FewshotError, match="channels=8 with heads=3"):
        made(heads=3)
    with pytest.raises(FewshotError, match="base classes of 8 features for a backbone of 16"):
        BaseTransformer().fit(base_bank()).with_backbone(torch.nn.Linear(1, 1), 5, feature_dim=16)
    with pytest.raises(FewshotError, match=r"call .fit\(base_bank\) before"):
        BaseTransformer().with_backbone(torch.nn.Linear(1, 1), 5, feature_dim=16)(random_episodes(dtype=torch.float32))
