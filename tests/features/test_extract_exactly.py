"""What an extraction records, keeps on disk, shows and says, to the letter."""

from __future__ import annotations

import hashlib
import json
import warnings

import pytest
import torch

from fewshot.backbones import create_backbone
from fewshot.core.errors import FewshotError
from fewshot.core.provenance import versions
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.features.crops import parse_crops
from fewshot.features.extract import describe, embed
from tests.features.test_extract import Stop, conv4, count_batches, image_bank


@pytest.mark.parametrize("batch_norm", ["running", "batch"])
def test_provenance_holds_what_the_features_depend_on(batch_norm):
    bank, backbone = image_bank(10), conv4(batch_norm=batch_norm)
    expected = {"dataset": "toy", "split": "test", "images_sha256": bank.content_hash, **backbone.describe(),
                "torch": torch.__version__, "timm": versions()["timm"]}
    if batch_norm == "batch":
        expected["batch_size"] = 6
    assert describe(bank, backbone, 6) == expected == embed(bank, backbone, batch_size=6, progress=False).provenance
    cropped = embed(bank, backbone, batch_size=6, progress=False, crops="keep(2)", precision="bfloat16").provenance
    assert cropped == expected | {"crops": "keep(count=2,flip=False,smallest=0.08,seed=0)", "precision": "bfloat16"}


@pytest.mark.parametrize("cached", [False, True])
def test_a_bank_of_features_is_that_of_its_images(tmp_path, cached):
    bank = image_bank(23, class_names=("ant", "bee", "cat", "dog", "eel"))
    backbone, cache = conv4(), tmp_path if cached else None
    found = embed(bank, backbone, batch_size=8, shard_batches=1, progress=False, cache=cache)
    assert (found.name, found.split, found.class_names) == ("toy", "test", bank.class_names)
    assert torch.equal(found.labels, bank.labels) and found.features.dtype == torch.float32
    with torch.no_grad():
        expected = [backbone(backbone.transform(bank.images[low : low + 8])) for low in (0, 8, 16)]
    assert torch.equal(found.features, torch.cat(expected)), "batches of 8, 8 and 7"


@pytest.mark.parametrize("cached", [False, True])
def test_crops_are_those_of_the_images_one_after_the_other(tmp_path, cached):
    """Side by side or their mean, each crop with the row number of its image in the bank."""
    bank, backbone, cache = image_bank(11), conv4(), tmp_path if cached else None
    cut = parse_crops("keep(3)")
    with torch.no_grad():
        single = [torch.cat([backbone(backbone.transform(cut.cut(bank.images[low : low + 4], number, "toy/test", low)))
                             for low in (0, 4, 8)]) for number in range(3)]
    side_by_side = embed(bank, backbone, batch_size=4, crops="keep(3)", progress=False, cache=cache)
    assert side_by_side.features.shape == (11, 24) and torch.equal(side_by_side.features, torch.cat(single, 1))
    mean = embed(bank, backbone, batch_size=4, crops="mean(3)", progress=False, cache=cache)
    torch.testing.assert_close(mean.features, torch.stack(single).mean(0))


def test_batches_of_64_images_where_nothing_is_said():
    backbone = conv4()
    seen = count_batches(backbone)
    embed(image_bank(130), backbone, progress=False)
    assert seen == [64, 64, 2]


# -- on disk --------------------------------------------------------------------------------------------------------


def key_of(bank, backbone):
    return hashlib.sha256(json.dumps(describe(bank, backbone, 4), sort_keys=True).encode()).hexdigest()[:16]


def test_names_of_cache_files(tmp_path):
    """Caches of years go by these names."""
    bank, backbone = image_bank(50), conv4()
    count_batches(backbone, stop_after=9)
    options = {"batch_size": 4, "shard_batches": 2, "cache": tmp_path, "progress": False}
    with pytest.raises(Stop):
        embed(bank, backbone, **options)
    folder = tmp_path / f"{key_of(bank, backbone)}.partial"
    starts = (0, 8, 16, 24, 32)  # the last one is of the interrupted piece
    assert sorted(folder.iterdir()) == [folder / f"{start:09d}.safetensors" for start in starts]
    third = FeatureBank.load(folder / "000000016.safetensors")
    assert third.provenance == describe(bank, backbone, 4) | {"batch_size": 4, "start": 16}
    assert torch.equal(third.labels, bank.labels[16:24]) and (third.name, third.split) == ("toy", "test")
    assert third.class_names == bank.class_names
    embed(bank, conv4(), **options)
    assert list(tmp_path.iterdir()) == [tmp_path / f"{key_of(bank, backbone)}.safetensors"]


def test_a_finished_bank_takes_what_is_left_of_its_making_away(tmp_path):
    bank, backbone = image_bank(10), conv4()
    embed(bank, backbone, cache=tmp_path, progress=False)
    left = tmp_path / f"{key_of(bank, backbone)}.partial"
    left.mkdir()
    (left / "0000.safetensors").write_bytes(b"left by a run that was killed")
    embed(bank, backbone, cache=tmp_path, progress=False)
    assert not left.exists() and len(list(tmp_path.iterdir())) == 1


def test_a_bank_of_another_provenance_under_the_same_name_is_not_taken(tmp_path):
    bank, backbone = image_bank(10), conv4()
    path = tmp_path / f"{key_of(bank, backbone)}.safetensors"
    FeatureBank(torch.zeros(10, 8), bank.labels, bank.class_names, "toy", "test", {"backbone": "other"}).save(path)
    assert embed(bank, backbone, cache=tmp_path, progress=False).features.abs().max() > 0


@pytest.mark.parametrize("shards", [False, True])
def test_a_full_disk_costs_a_warning(tmp_path, monkeypatch, shards):
    """One for each shard, or one for the whole, whose shards stay for the next time; it points at the line that asked."""
    bank, save = image_bank(20), FeatureBank.save_pieces

    def filled(path, *rest, **fields):
        if (path.parent != tmp_path) == shards:
            raise OSError(28, "No space left on device")
        return save(path, *rest, **fields)

    expected = embed(bank, conv4(), batch_size=4, progress=False).features
    monkeypatch.setattr(FeatureBank, "save_pieces", staticmethod(filled))
    with pytest.warns(UserWarning, match="cannot keep features in .*No space left.*extracted again next time") as warned:
        found = embed(bank, conv4(), batch_size=4, shard_batches=1, cache=tmp_path, progress=False)
    assert torch.equal(found.features, expected)
    assert len(warned) == (5 if shards else 1) and (shards or warned[0].filename == __file__)
    kept = sorted(tmp_path.glob("*.partial/*.safetensors"))
    assert len(kept) == (0 if shards else 5)
    for number, path in enumerate(kept):
        assert torch.equal(FeatureBank.load(path).features, expected[4 * number : 4 * number + 4])


def test_a_warning_of_a_damaged_bank_points_at_the_line_that_asked(tmp_path):
    embed(image_bank(3), conv4(), cache=tmp_path, progress=False)
    path, = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="extracting it again") as warned:
        embed(image_bank(3), conv4(), cache=tmp_path, progress=False)
    assert [one.filename for one in warned] == [__file__]


def test_nothing_is_said_where_all_is_well(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            embed(image_bank(10), conv4(), batch_size=4, shard_batches=1, cache=tmp_path, progress=False)


# -- what is shown and said -----------------------------------------------------------------------------------------


def test_the_bar_counts_images_also_those_kept(tmp_path, capsys):
    bank, backbone = image_bank(50), conv4()
    count_batches(backbone, stop_after=8)
    options = {"batch_size": 4, "shard_batches": 2, "cache": tmp_path}
    with pytest.raises(Stop):
        embed(bank, backbone, progress=False, **options)
    backbone = conv4()
    assert embed(bank, backbone, **options).name == "toy" and not backbone.training
    shown = capsys.readouterr().err.split("\r")[-1]
    assert shown.startswith("conv4 test: 100%") and "50/50" in shown and "image" in shown


def test_features_that_are_not_finite_name_the_image_and_the_weights():
    backbone = create_backbone("pixels", channels=1)
    backbone.register_forward_hook(lambda _, inputs, output: output / inputs[0].amax((1, 2, 3))[:, None])  # black: 0/0
    images = image_bank(12).images.clone()
    images[9] = 0
    for files, named in ((None, r"image 9; look"), (tuple(f"{n}.png" for n in range(12)), r"image 9 \(9.png\); look")):
        bank = ImageBank(images, torch.arange(12) % 3, name="toy", split="test", files=files)
        with pytest.raises(FewshotError, match=rf"pixels \(weights none\) gives NaN or infinite features for {named}"):
            embed(bank, backbone, batch_size=5, progress=False)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"shard_batches": 0}, {"batch_size": -1, "shard_batches": 2}])
def test_sizes_are_at_least_one(wrong):
    with pytest.raises(FewshotError, match="it must be at least 1"):
        embed(image_bank(3), conv4(), **wrong)
    assert len(embed(image_bank(3), conv4(), batch_size=1, shard_batches=1, progress=False)) == 3


def test_the_backbone_moves_to_the_device_that_is_named():
    bank, backbone, moved = image_bank(3), conv4(), []
    backbone.to = moved.append
    embed(bank, backbone, progress=False)
    assert moved == []
    embed(bank, backbone, device="cpu", progress=False)
    assert moved == ["cpu"]
