"""Feature extraction: provenance, cache, resuming, errors, and the differentiable path for episodes."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch

from fewshot.backbones import create_backbone
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.episodes.types import Episodes
from fewshot.features.extract import embed, embed_episodes


def image_bank(count=50, channels=1, side=28, seed=0, **keywords):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)
    return ImageBank(images, torch.arange(count) % 5, name="toy", split="test", **keywords)


def conv4(**keywords):
    return create_backbone("conv4", channels=1, image_size=28, width=8, **keywords)


def test_bfloat16_gives_other_features_that_are_named_so(tmp_path):
    bank, backbone = image_bank(), conv4()
    exact = embed(bank, backbone, progress=False, cache=tmp_path)
    short = embed(bank, backbone, progress=False, cache=tmp_path, precision="bfloat16")
    assert short.features.dtype == torch.float32 and "precision" not in exact.provenance
    assert short.provenance == exact.provenance | {"precision": "bfloat16"}
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    difference = (short.features - exact.features).norm(dim=1) / exact.features.norm(dim=1)
    assert 1e-4 < difference.max() < 0.03, "eight bits of precision in each of four layers"
    with pytest.raises(FewshotError, match="unknown precision 'bfloat61'; did you mean 'bfloat16'"):
        embed(bank, backbone, progress=False, precision="bfloat61")
    crops, exact = (embed(bank, backbone, progress=False, crops="mean(3)", precision=precision).features
                    for precision in ("bfloat16", "float32"))
    torch.testing.assert_close(crops, exact, atol=0.03, rtol=0.03)
    assert (crops - exact).abs().max() > 1e-4


class Stop(Exception):
    """Stands for a power cut."""


def count_batches(backbone, stop_after=None):
    """Sizes of the batches the backbone sees, as they come; raises before batch number `stop_after`."""
    seen = []

    def hook(_, inputs):
        if stop_after is not None and len(seen) == stop_after:
            raise Stop
        seen.append(len(inputs[0]))

    backbone.register_forward_pre_hook(hook)
    return seen


def test_features_are_those_of_the_backbone_in_order():
    bank, backbone = image_bank(), conv4().train()
    result = embed(bank, backbone, batch_size=16, progress=False)
    assert backbone.training  # put back
    with torch.no_grad():
        expected = torch.cat([backbone.eval()(backbone.transform(image[None])) for image in bank.images])
    torch.testing.assert_close(result.features, expected, rtol=1e-4, atol=1e-5)
    assert result.identity == bank.identity and torch.equal(result.labels, bank.labels)
    assert result.class_names == bank.class_names


def test_batch_size_changes_rounding_only():
    bank, backbone = image_bank(), conv4()
    whole = embed(bank, backbone, batch_size=50, progress=False)
    for batch_size in (1, 7, 64):
        other = embed(bank, backbone, batch_size=batch_size, progress=False)
        torch.testing.assert_close(other.features, whole.features, rtol=1e-4, atol=1e-5)
        assert other.provenance == whole.provenance


def test_features_can_be_trained_on():
    features = embed(image_bank(10), conv4(), progress=False).features
    weight = torch.ones(features.shape[1], requires_grad=True)
    (features * weight).sum().backward()
    torch.testing.assert_close(weight.grad, features.sum(0))


def test_provenance_is_json_and_tells_everything_apart():
    bank, backbone = image_bank(), conv4()

    def provenance(bank=bank, backbone=backbone, **keywords):
        made = embed(bank, backbone, progress=False, **keywords).provenance
        assert json.loads(json.dumps(made)) == made
        return json.dumps(made, sort_keys=True)

    first = provenance()
    assert json.loads(first)["weights_id"] == "random:0"
    trained = conv4()
    with torch.no_grad():
        next(trained.parameters()).mul_(2)
    different = [provenance(image_bank(seed=1)), provenance(backbone=conv4(seed=1)), provenance(backbone=trained),
                 provenance(backbone=conv4(batch_norm="batch")),
                 provenance(backbone=conv4(batch_norm="batch"), batch_size=10),
                 provenance(backbone=create_backbone("conv4", channels=3, image_size=28, width=8)),
                 provenance(backbone=create_backbone("pixels", channels=1))]
    assert len({first, *different}) == len(different) + 1
    assert provenance(backbone=conv4()) == first


def test_batch_norm_on_batch_statistics_sees_the_other_images():
    bank, other = image_bank(10), image_bank(10, seed=1)
    mixed = ImageBank(torch.cat([bank.images[:5], other.images[5:]]), bank.labels, name="toy", split="test")
    running = [embed(b, conv4(), progress=False).features[:5] for b in (bank, mixed)]
    batch = [embed(b, conv4(batch_norm="batch"), progress=False).features[:5] for b in (bank, mixed)]
    assert torch.equal(*running)
    assert (batch[0] - batch[1]).abs().max() > 0.01


def test_cache_returns_the_same_bank_without_the_backbone(tmp_path):
    bank = image_bank()
    first = embed(bank, conv4(), cache=tmp_path, progress=False)
    backbone = conv4()
    seen = count_batches(backbone)
    second = embed(bank, backbone, cache=tmp_path, progress=False)
    assert not seen
    assert torch.equal(first.features, second.features)
    assert first.provenance == second.provenance and first.identity == second.identity
    assert len(list(tmp_path.iterdir())) == 1
    embed(bank, conv4(seed=1), cache=tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("stop_after", [0, 3, 4, 9, 12])
def test_an_interrupted_extraction_continues_bit_for_bit(tmp_path, stop_after):
    bank = image_bank(50)  # 13 batches of 4, shards of 2 batches
    keywords = dict(batch_size=4, shard_batches=2, progress=False)
    expected = embed(bank, conv4(), **keywords)

    interrupted = conv4().train()
    count_batches(interrupted, stop_after)
    with pytest.raises(Stop):
        embed(bank, interrupted, cache=tmp_path, **keywords)
    assert interrupted.training
    assert not list(tmp_path.glob("*.safetensors"))  # the result appears only when complete
    kept = sorted(tmp_path.glob("*.partial/*"))
    assert len(kept) == -(-stop_after // 2) and all(path.suffix == ".safetensors" for path in kept)

    backbone = conv4()
    seen = count_batches(backbone)
    result = embed(bank, backbone, cache=tmp_path, **keywords)
    assert len(seen) == 13 - stop_after  # nothing is lost
    assert torch.equal(result.features, expected.features)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]  # the shards are gone


def test_pieces_are_kept_by_time(tmp_path, monkeypatch):
    """What a power cut leaves: the pieces of some seconds, here of one batch."""
    monkeypatch.setattr("fewshot.features.extract._PIECE_SECONDS", 1e-9)
    kept = []
    monkeypatch.setattr("fewshot.features.extract._keep_piece", lambda *given: kept.append(given[-1]))
    embed(image_bank(50), conv4(), batch_size=16, cache=tmp_path, progress=False)
    assert kept == [16, 32, 48, 50]


@pytest.fixture
def hears_ctrl_c():
    """A shell starts what it puts into the background deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_keeps_what_is_there(tmp_path, hears_ctrl_c):
    bank, backbone = image_bank(50), conv4()
    seen = count_batches(backbone)
    backbone.register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGINT) if len(seen) == 4 else None)
    with pytest.raises(KeyboardInterrupt):
        embed(bank, backbone, batch_size=8, cache=tmp_path, progress=False)
    assert not list(tmp_path.rglob("*.tmp"))
    resumed = conv4()
    seen = count_batches(resumed)
    found = embed(bank, resumed, batch_size=8, cache=tmp_path, progress=False)
    assert seen == [8, 8, 8, 2] and torch.equal(found.features, embed(bank, conv4(), batch_size=8, progress=False).features)


def interrupted_cache(folder, bank, **keywords):
    backbone = conv4()
    count_batches(backbone, stop_after=8)
    with pytest.raises(Stop):
        embed(bank, backbone, cache=folder, shard_batches=2, progress=False, **keywords)
    return sorted(folder.glob("*.partial/*"))


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_corrupt_shard_is_extracted_again(tmp_path, damage):
    bank = image_bank(50)
    shards = interrupted_cache(tmp_path, bank, batch_size=4)
    data = bytearray(shards[1].read_bytes())
    data[-3] ^= 1
    shards[1].write_bytes({"flip": bytes(data), "truncate": bytes(data[:100]), "empty": b""}[damage])
    backbone = conv4()
    seen = count_batches(backbone)
    with pytest.warns(UserWarning, match="extracting it again"):
        result = embed(bank, backbone, batch_size=4, shard_batches=2, cache=tmp_path, progress=False)
    assert len(seen) == 13 - 6
    assert torch.equal(result.features, embed(bank, conv4(), batch_size=4, progress=False).features)


def test_shards_of_another_batch_size_are_not_mixed_in(tmp_path):
    bank = image_bank(50)
    interrupted_cache(tmp_path, bank, batch_size=4)
    backbone = conv4()
    seen = count_batches(backbone)
    # Shards of the same images: 2 batches of 4 before, 1 batch of 8 now.
    embed(bank, backbone, batch_size=8, shard_batches=1, cache=tmp_path, progress=False)
    assert seen == [8] * 6 + [2]


def test_a_corrupt_result_is_extracted_again(tmp_path):
    bank = image_bank()
    first = embed(bank, conv4(), cache=tmp_path, progress=False)
    path, = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.warns(UserWarning, match="extracting it again"):
        second = embed(bank, conv4(), cache=tmp_path, progress=False)
    assert torch.equal(first.features, second.features)
    assert FeatureBank.load(path).content_hash == first.content_hash


def test_another_run_may_finish_first(tmp_path):
    bank, backbone = image_bank(50), conv4()
    keywords = dict(batch_size=4, shard_batches=2, cache=tmp_path, progress=False)
    seen = count_batches(backbone)

    def finish_elsewhere(_, inputs):
        if len(seen) == 7:
            embed(bank, conv4(), **keywords)  # removes the shards both runs share

    backbone.register_forward_pre_hook(finish_elsewhere)
    result = embed(bank, backbone, **keywords)
    assert len(seen) == 13
    assert torch.equal(result.features, embed(bank, conv4(), **keywords).features)
    assert len(list(tmp_path.iterdir())) == 1


def test_nan_features_name_the_image():
    bank = image_bank(20, files=tuple(f"img_{i:02d}.png" for i in range(20)))
    backbone = conv4()
    reference = embed(bank, backbone, progress=False)

    def spoil(_, inputs, output):
        hit = (inputs[0] == backbone.transform(bank.images[13:14])).flatten(1).all(1)
        return output.masked_fill(hit[:, None], float("nan"))

    handle = backbone.register_forward_hook(spoil)
    with pytest.raises(FewshotError, match=r"image 13 \(img_13.png\)"):
        embed(bank, backbone, batch_size=8, progress=False)
    handle.remove()
    assert torch.equal(embed(bank, backbone, progress=False).features, reference.features)


def test_wrong_arguments():
    with pytest.raises(FewshotError, match="batch_size=0"):
        embed(image_bank(), conv4(), batch_size=0)
    with pytest.raises(FewshotError, match="no images"):
        embed(image_bank(0), conv4())
    with pytest.raises(FewshotError, match="FeatureBank given; embed takes an ImageBank"):
        embed(FeatureBank(torch.zeros(2, 3), [0, 1]), conv4())


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="cannot keep features in"):
        found = embed(image_bank(), conv4(), cache=tmp_path / "file", progress=False)
    assert torch.equal(found.features, embed(image_bank(), conv4(), progress=False).features)


def test_progress_bar_can_be_silenced(capsys):
    embed(image_bank(5), conv4(), progress=False)
    assert capsys.readouterr().err == ""
    embed(image_bank(5), conv4())
    assert "5/5" in capsys.readouterr().err


def image_episodes(episodes=3, unlabelled=True, dtype=torch.uint8):
    generator = torch.Generator().manual_seed(0)

    def draw(count):
        images = torch.randint(0, 256, (episodes, count, 1, 28, 28), dtype=torch.uint8, generator=generator)
        return images if dtype == torch.uint8 else images.to(dtype) / 255

    return Episodes(support=draw(4), support_labels=torch.tensor([[0, 1, 1, 0]] * episodes), query=draw(6), ways=2,
                    unlabelled=draw(5) if unlabelled else None, text=torch.ones(episodes, 2, 3))


@pytest.mark.parametrize("unlabelled", [True, False])
def test_embed_episodes_keeps_every_image_in_its_place(unlabelled):
    episodes, backbone = image_episodes(unlabelled=unlabelled), conv4()
    seen = count_batches(backbone)
    with torch.no_grad():
        result = embed_episodes(episodes, backbone)
        assert seen == [3 * (4 + 6 + 5 * unlabelled)]  # one forward pass
        for name in ("support", "query", "unlabelled"):
            images, features = getattr(episodes, name), getattr(result, name)
            if images is None:
                assert features is None
                continue
            for e, i in ((0, 0), (1, 3), (2, 2)):
                torch.testing.assert_close(features[e, i], backbone(backbone.transform(images[e, i:i + 1]))[0],
                                           rtol=1e-4, atol=1e-5)
    assert result.ways == 2 and torch.equal(result.support_labels, episodes.support_labels)
    assert torch.equal(result.text, episodes.text)


def test_embed_episodes_trains_the_backbone_and_reaches_float_images():
    episodes, backbone = image_episodes(dtype=torch.float32), conv4().train()
    episodes.support.requires_grad_()
    result = embed_episodes(episodes, backbone)
    (result.query.square().sum() + result.support.square().sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in backbone.parameters())
    assert episodes.support.grad.abs().max() > 0


def test_embed_episodes_is_inductive_in_eval_mode_and_joint_in_train_mode():
    episodes = image_episodes()
    changed = Episodes.trusted(**{**vars(episodes), "query": episodes.query.flip(0)})
    backbone = conv4()
    with torch.no_grad():
        expected = embed_episodes(episodes, backbone).support
        torch.testing.assert_close(embed_episodes(changed, backbone).support, expected)
        backbone.train()
        one, other = image_episodes(1), image_episodes(2)[1:]
        mixed = Episodes.trusted(**{**vars(one), "query": other.query})
        assert (embed_episodes(mixed, backbone).support - embed_episodes(one, backbone).support).abs().max() > 0.01


def test_embed_episodes_refuses_features():
    episodes = Episodes(support=torch.rand(1, 2, 8), support_labels=torch.tensor([[0, 1]]), query=torch.rand(1, 3, 8),
                        ways=2)
    with pytest.raises(FewshotError, match="takes images"):
        embed_episodes(episodes, conv4())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_backbone_of_another_precision_is_given_images_of_its_own(dtype):
    images = ImageBank(torch.randint(256, (6, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
                       [0, 0, 1, 1, 2, 2])
    backbone = create_backbone("conv4", channels=1, image_size=28, width=8, seed=0)
    wanted = embed(images, backbone).features
    found = embed(images, backbone.to(dtype)).features
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0, atol=(0.05 if dtype == torch.bfloat16 else 1e-5) * float(wanted.max()))
