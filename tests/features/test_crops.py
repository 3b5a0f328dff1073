from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fewshot.backbones import create_backbone
from fewshot.cli.eval_text import eval_command
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank, ImageBank, concatenate
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store
from fewshot.features.crops import Crops, parse_crops
from fewshot.features.extract import embed

PROTOCOL = {"ways": 3, "shots": 1, "queries": 4, "episodes": 20}


def image_bank(count=40, side=28, **keywords):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, side, side), generator=generator, dtype=torch.uint8)
    return ImageBank(images, torch.arange(count) % 4, **{"name": "noise", "split": "test", **keywords})


def conv4(seed=0):
    return create_backbone("conv4", channels=1, image_size=28, width=8, seed=seed)


@pytest.mark.parametrize(("spec", "canonical"), [
    ("mean(30)", "mean(count=30,flip=False,smallest=0.08,seed=0)"),
    ("keep( 7 , flip=True, seed=3)", "keep(count=7,flip=True,smallest=0.08,seed=3)"),
    ("mean(smallest=1,count=2)", "mean(count=2,flip=False,smallest=1.0,seed=0)")])
def test_canonical_text(spec, canonical):
    assert str(parse_crops(spec)) == canonical and parse_crops(canonical) == parse_crops(spec)
    assert Run(crops=spec).crops == canonical and Run(crops=spec).key == Run(crops=canonical).key != Run().key
    assert parse_crops("") is None and "crops" not in Run().to_dict()


@pytest.mark.parametrize(("spec", "message"), [
    ("30", "cannot read the crops '30'"), ("mean", "cannot read"), ("mean()", "do not say how many"),
    ("mean(0)", "count=0"), ("mean(3.5)", "expected an integer"), ("mean(True)", "expected an integer"),
    ("keep(7,flip=yes)", "expected True or False"), ("keep(7,flips=True)", "did you mean 'flip'"),
    ("mean(3,smallest=0)", "smallest=0"), ("mean(3,smallest=x)", "expected a number")])
def test_mistakes_are_explained(spec, message):
    with pytest.raises(FewshotError, match=message.replace("(", r"\(")):
        Run(crops=spec)


def test_a_crop_is_a_resized_box():
    """Against slicing and interpolation, away from the edges of the box, where the pixel beside it is read."""
    images, crops = image_bank(60).images, Crops("mean", 3, flip=True)
    found = crops.cut(images, 2, "noise/test", 0)
    top, left, high, wide, mirrored = crops._boxes("0/noise/test/2", 0, 60, 28, 28)
    assert found.dtype == torch.float32 and found.min() >= 0 and found.max() <= 1 and 10 < mirrored.sum() < 50
    for i in range(60):
        t, x, h, w = (int(value[i]) for value in (top, left, high, wide))
        expected = F.interpolate(images[i:i + 1, :, t:t + h, x:x + w].float() / 255, (28, 28), mode="bilinear")[0]
        expected = expected.flip(-1) if mirrored[i] else expected
        inner = (slice(None), slice(2, -2), slice(2, -2)) if min(h, w) > 14 else (slice(None), slice(9, -9), slice(9, -9))
        torch.testing.assert_close(found[i][inner], expected[inner], atol=1e-4, rtol=0)


def test_boxes_have_the_distribution_of_torchvision():
    """Areas and ratios within the bounds, and means like those of 20,000 boxes of RandomResizedCrop."""
    from torchvision.transforms import RandomResizedCrop

    top, left, high, wide, _ = Crops("mean", 1)._boxes("s", 0, 20_000, 84, 84)
    assert (top >= 0).all() and (left >= 0).all() and (top + high <= 84).all() and (left + wide <= 84).all()
    ratio = wide / high
    assert ratio.min() > 0.72 and ratio.max() < 1.38 and (high * wide).min() > 0.078 * 84 * 84
    image = torch.empty(1, 84, 84)
    state = torch.get_rng_state()
    official = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(20_000)])
    torch.set_rng_state(state)
    for mine, other in zip((top, left, high, wide), official.T, strict=True):
        assert abs(mine.mean() - other.mean()) < 5 * other.std() / 100
        assert abs(mine.std() / other.std() - 1) < 0.04


def test_features_of_crops():
    """mean is the mean over the parts of keep; rows depend on nothing but seed, name, row and number."""
    bank, backbone = image_bank(), conv4()
    kept = embed(bank, backbone, crops="keep(3)", progress=False).features.unflatten(1, (3, 8))
    mean = embed(bank, backbone, crops="mean(3)", progress=False).features
    torch.testing.assert_close(kept.mean(1), mean)
    assert (kept[:, 0] - kept[:, 1]).abs().amax(1).min() > 1e-4, "two crops of an image are the same"
    more = embed(bank, backbone, crops="keep(4)", batch_size=7, progress=False).features.unflatten(1, (4, 8))
    torch.testing.assert_close(more[:, :3], kept)
    part = ImageBank(bank.images[:9], bank.labels[:9], name="noise", split="test")
    found = embed(part, backbone, crops="keep(3)", progress=False).features.unflatten(1, (3, 8))
    torch.testing.assert_close(found, kept[:9])
    other = embed(bank, backbone, crops="keep(3,seed=1)", progress=False).features.unflatten(1, (3, 8))
    assert (other - kept).abs().amax((1, 2)).min() > 1e-4


def test_crops_weighted_by_their_likeness_to_the_whole():
    """A loop over images and crops; a single crop counts alone."""
    bank, backbone = image_bank(10), conv4()
    whole = embed(bank, backbone, progress=False).features.double().numpy()
    kept = embed(bank, backbone, crops="keep(3)", progress=False).features.unflatten(1, (3, 8)).double().numpy()
    found = embed(bank, backbone, crops="weighted(3)", batch_size=4, progress=False).features
    for image, crops, mine in zip(whole, kept, found.numpy(), strict=True):
        units = [crop / np.linalg.norm(crop) for crop in crops]
        weights = [np.exp(np.e**4 * (unit @ image / np.linalg.norm(image) - 1)) for unit in units]
        total = sum(weight * unit for weight, unit in zip(weights, units, strict=True))
        np.testing.assert_allclose(mine, total / np.linalg.norm(total), atol=1e-5)
    one, kept_one = (embed(bank, backbone, crops=f"{kind}(1)", progress=False).features for kind in ("weighted", "keep"))
    torch.testing.assert_close(one, F.normalize(kept_one, dim=-1))


def test_the_cache_tells_crops_apart(tmp_path):
    bank, backbone = image_bank(), conv4()
    made = [embed(bank, backbone, crops=crops, cache=tmp_path, progress=False)
            for crops in ("", "mean(2)", "keep(2)", "mean(2)")]
    assert len(list(tmp_path.glob("*.safetensors"))) == 3 and torch.equal(made[1].features, made[3].features)
    assert "crops" not in made[0].provenance and made[1].provenance["crops"].startswith("mean(count=2")
    assert torch.equal(made[0].features, embed(bank, backbone, progress=False).features)


def test_runs_name_their_crops(tmp_path):
    """From the data set and from its features: the same numbers, and the run says with which crops."""
    small = {"backbone_options": {"width": 8}, **PROTOCOL}
    run = Run(crops="mean(2)", **small)
    store = Store(tmp_path / "store")
    result = evaluate(run, cache=tmp_path / "cache", store=store)
    plain = evaluate(Run(**small), cache=tmp_path / "cache", store=store)
    assert result.fingerprint == plain.fingerprint and not torch.equal(result.correct, plain.correct)
    assert "crops" not in plain.record.to_dict() and len(list(store.root.glob("*/result.json"))) == 2
    assert "--crops 'mean(count=2,flip=False,smallest=0.08,seed=0)'" in eval_command(result)
    from fewshot.datasets import load_dataset

    images = load_dataset("glyphs", "test")
    features = embed(images, conv4(), crops="mean(2)", progress=False)
    given = evaluate(Run(**PROTOCOL), features)
    assert given.record.crops == run.crops and torch.equal(given.correct, result.correct)
    with pytest.raises(FewshotError, match=r"crops='mean.*are for features; maml takes images"):
        evaluate(Run(method="maml", crops="mean(2)", **PROTOCOL), cache=tmp_path / "cache")


def test_an_ensemble_of_backbones():
    bank = image_bank()
    parts = [embed(bank, conv4(seed), crops="mean(2)", progress=False) for seed in range(3)]
    joined = concatenate(parts)
    assert torch.equal(joined.features, torch.cat([part.features for part in parts], 1))
    assert joined.identity == parts[0].identity and torch.equal(joined.labels, bank.labels)
    assert joined.provenance["backbone"] == "conv4 + conv4 + conv4"
    assert joined.provenance["crops"] == parts[0].provenance["crops"]
    assert concatenate(parts[:2]).provenance["weights_id"] != concatenate(parts[1:]).provenance["weights_id"]
    result = evaluate(Run(ways=3, shots=1, queries=4, episodes=20), joined)
    assert result.record.backbone == "conv4 + conv4 + conv4" and result.record.crops.startswith("mean(count=2")
    mixed = concatenate([parts[0], embed(bank, conv4(1), progress=False)])
    assert "crops" not in mixed.provenance
    with pytest.raises(FewshotError, match="1 feature bank given"):
        concatenate(parts[:1])
    other = FeatureBank(parts[0].features, (bank.labels + 1) % 4, name="noise", split="test")
    with pytest.raises(FewshotError, match="are not the same items"):
        concatenate([parts[0], other])
