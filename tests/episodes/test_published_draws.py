from __future__ import annotations

import json
import zipfile

import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.datasets import load_dataset
from fewshot.episodes.published_draws import import_draws
from fewshot.episodes.saved import EpisodeList
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.run import Run


def images() -> ImageBank:
    labels, parts = torch.arange(36) % 3, torch.arange(36) // 3 % 3
    files = tuple(f"{('cat', 'dog', 'emu')[label]}/image_{row}.jpg" for row, label in enumerate(labels.tolist()))
    pixels = torch.zeros(36, 1, 8, 8, dtype=torch.uint8)
    return ImageBank(pixels, labels, ("cat", "dog", "emu"), "zoo", files=files, parts=parts)


def write(folder, shots=2, seeds=(1, 2), **changes):
    bank = images()
    for seed in seeds:
        lists = {}
        for name, part in (("train", 0), ("val", 1)):
            rows = [row for label in (2, 0, 1) for row in range(36)
                    if bank.parts[row] == part and bank.labels[row] == label][seed - 1 :: 2]
            lists[name] = {"data": [[bank.files[row], int(bank.labels[row]), "name"] for row in rows], "indices": rows}
        (folder / f"shot_{shots}-seed_{seed}.json").write_text(json.dumps({**lists, **changes}))
    return bank


@pytest.mark.parametrize("zipped", [False, True])
def test_an_episode_for_each_draw(tmp_path, zipped):
    bank, place = write(tmp_path), tmp_path
    if zipped:
        place = tmp_path / "draws.zip"
        with zipfile.ZipFile(place, "w") as archive:
            for file in sorted(tmp_path.glob("*.json")):
                archive.write(file, f"inside/{file.name}")
    found = import_draws(place, bank, 2)
    assert len(found) == 2 and found.all.support_labels.tolist() == [[0, 0, 1, 1, 2, 2]] * 2
    for part, rows in ((0, found.all.support), (1, found.all.validation), (2, found.all.query)):
        assert (bank.parts[rows] == part).all()
    assert found.all.query.sort(1).values.tolist() == [torch.nonzero(bank.parts == 2)[:, 0].tolist()] * 2
    assert not set(found.all.support[0].tolist()) & set(found.all.support[1].tolist())
    again = EpisodeList.load(found.save(tmp_path / "list.safetensors")).of(bank)
    assert again.fingerprint == found.fingerprint and torch.equal(again.all.validation, found.all.validation)


@pytest.mark.parametrize(("changes", "says"), [
    ({"train": {"data": [["cat/none.jpg", 0, "x"]]}}, "names cat/none.jpg"),
    ({"train": {"data": [["cat/image_0.jpg", 1, "x"]]}}, "label 1, the data 0"),
    ({"val": 3}, "is no list of draws")])
def test_what_does_not_fit_is_named(tmp_path, changes, says):
    bank = write(tmp_path, **changes)
    with pytest.raises(FewshotError, match=says):
        import_draws(tmp_path, bank, 2)


def test_files_that_are_not_there(tmp_path):
    bank = write(tmp_path, seeds=(1,))
    for shots in (1, 2):
        with pytest.raises(FewshotError, match=rf"shot_{shots}-seed_\*.json; an interval needs at least 2"):
            import_draws(tmp_path, bank, shots)
    with pytest.raises(FewshotError, match="neither a folder nor a zip"):
        import_draws(tmp_path / "shot_2-seed_1.json", bank, 2)
    with pytest.raises(FewshotError, match="with split all"):
        import_draws(tmp_path, load_dataset("glyphs", "test"), 2)


@pytest.mark.slow
def test_the_published_draws_of_caltech101(shared_data, tmp_path):
    """A run of the usual protocol takes its own from the file of the list."""
    bank = load_dataset("caltech101", "all", root=shared_data, protocol="zhou", image_size=16, cache=False)
    for shots, few in ((1, 1), (16, 4)):
        found = import_draws(shared_data / "caltech101" / "coop_fewshot_indices.zip", bank, shots)
        assert found.all.support.shape == (3, 100 * shots) and found.all.validation.shape == (3, 100 * few)
        assert found.all.query.shape == (3, 2465)
    features = bank.images.flatten(1).float() / 255
    made = FeatureBank(features, bank.labels, bank.class_names, bank.name, bank.split, parts=bank.parts)
    result = evaluate(Run(method="protonet"), made, episodes_file=found.save(tmp_path / "list.safetensors"))
    assert result.protocol == "all classes, 16-shot" and 0.1 < result.accuracy.mean < 0.6
