"""Sets that people bring along, on tiny copies in the layouts in which they are distributed."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.datasets import dataset_table, load_dataset
from fewshot.datasets.base import read_splits
from tests.datasets.synthetic import encoded, write_class_folders

SPLITS = ("train", "val", "test")
MINI = read_splits("mini_imagenet")
TIERED = {split: [wnid for group in read_splits("tiered_imagenet")[split].values() for wnid in group]
          for split in SPLITS}


def write_csv(folder, split, rows):
    (folder / f"{split}.csv").write_text("filename,label\n" + "".join(f"{file},{label}\n" for file, label in rows))


def test_the_lists_are_disjoint_and_complete():
    for lists, sizes in ((MINI, (64, 16, 20)), (TIERED, (351, 97, 160)), (read_splits("cifar_fs"), (64, 16, 20)),
                         (read_splits("fc100"), (12, 4, 4))):
        assert tuple(len(lists[split]) for split in SPLITS) == sizes
        assert len({name for split in SPLITS for name in lists[split]}) == sum(sizes)
    groups = [set(read_splits("tiered_imagenet")[split]) for split in SPLITS]
    assert [len(group) for group in groups] == [20, 6, 8] and len(set.union(*groups)) == 34


@pytest.mark.parametrize("layout", ["split folders", "class folders", "images/class", "csv + images", "csv + zip",
                                    "images by name"])
def test_mini_imagenet_in_its_usual_layouts(layout, tmp_path):
    folder = tmp_path / "mini_imagenet"
    folder.mkdir()
    flat = {split: [(f"{wnid}{number:08d}.jpg", wnid) for wnid in MINI[split] for number in (5, 7)] for split in SPLITS}
    if layout == "split folders":
        for split in SPLITS:
            write_class_folders(folder / split, dict.fromkeys(MINI[split], 2))
    elif layout in ("class folders", "images/class"):
        inner = folder / "images" if layout == "images/class" else folder
        write_class_folders(inner, {wnid: 2 for split in SPLITS for wnid in MINI[split]})
    else:
        files = [file for split in SPLITS for file, _ in flat[split]]
        if layout == "csv + zip":
            with zipfile.ZipFile(folder / "images.zip", "w") as archive:
                for file in files:
                    archive.writestr(f"images/{file}", encoded())
        else:
            (folder / "images").mkdir()
            for file in [*files, "n0153282900009999.jpg"] if layout == "csv + images" else files:
                (folder / "images" / file).write_bytes(encoded())
        if layout != "images by name":
            for split in SPLITS:
                write_csv(folder, split, flat[split])
    for split in SPLITS:
        bank = load_dataset("mini_imagenet", split, root=tmp_path, image_size=8)
        assert bank.class_names == tuple(MINI[split])
        # With CSV files an image that none of them names does not belong to the set.
        assert bank.class_sizes().tolist() == [2] * len(MINI[split])
        assert all(wnid in file for wnid, file in zip(np.repeat(MINI[split], 2), bank.files, strict=True))
    assert load_dataset("mini_imagenet", root=tmp_path).images.shape[1:] == (3, 84, 84)


def test_an_incomplete_mini_imagenet_is_refused(tmp_path):
    write_class_folders(tmp_path / "mini_imagenet" / "test", dict.fromkeys(MINI["test"][:5], 1))
    with pytest.raises(FewshotError, match="lacks 15 of 20 classes of mini_imagenet: .* and 5 more"):
        load_dataset("mini_imagenet", "test", root=tmp_path)
    row = next(row for row in dataset_table(tmp_path) if row["name"] == "mini_imagenet")
    assert row["state"] == "damaged" and "lacks 64 of 64" in row["how"]


def test_a_csv_with_other_columns_is_refused(tmp_path):
    write_class_folders(tmp_path / "mini_imagenet", dict.fromkeys(MINI["test"], 1))
    (tmp_path / "mini_imagenet" / "test.csv").write_text("file,class\n")
    with pytest.raises(FewshotError, match="expected filename, label"):
        load_dataset("mini_imagenet", "test", root=tmp_path)


def test_tiered_imagenet(tmp_path):
    for split in SPLITS:
        write_class_folders(tmp_path / "tiered_imagenet" / split, dict.fromkeys(TIERED[split], 1), encoded())
    for split in SPLITS:
        bank = load_dataset("tiered_imagenet", split, root=tmp_path, image_size=8)
        assert bank.class_names == tuple(TIERED[split])
    row = next(row for row in dataset_table(tmp_path) if row["name"] == "tiered_imagenet")
    assert row["state"] == "present" and row["images"] == "351 / 97 / 160"


@pytest.mark.parametrize(("protocol", "sizes"), [("100_50_50", (100, 50, 50)), ("140_30_30", (140, 30, 30))])
def test_cub(protocol, sizes, tmp_path):
    names = read_splits("cub")["classes"]
    write_class_folders(tmp_path / "cub" / "CUB_200_2011" / "images", dict.fromkeys(names, 1), encoded())
    banks = [load_dataset("cub", split, root=tmp_path, image_size=8, protocol=protocol) for split in SPLITS]
    assert tuple(len(bank.class_names) for bank in banks) == sizes
    assert sorted(name for bank in banks for name in bank.class_names) == names
    if protocol == "100_50_50":
        # Chen et al.: species 1, 3, 5, ... train, 2, 6, ... validate, 4, 8, ... test.
        assert [name[:3] for name in banks[1].class_names[:3]] == ["002", "006", "010"]
        assert [name[:3] for name in banks[2].class_names[:3]] == ["004", "008", "012"]
    else:
        assert banks[2].class_names[0] == "008.Rhinoceros_Auklet"


FINE = [name for split in SPLITS for name in read_splits("cifar_fs")[split]]
COARSE = sorted(name for split in SPLITS for name in read_splits("fc100")[split])


def write_cifar(root, archive: bool, classes=100):
    """CIFAR-100 in the pickled layout with three images a class; the label of an image is in its red channel."""
    names = sorted(FINE)
    files = {"meta": {"fine_label_names": names, "coarse_label_names": COARSE}}
    for part, copies in (("train", 2), ("test", 1)):
        fine = np.tile(np.arange(classes), copies)
        data = np.zeros((len(fine), 3072), dtype=np.uint8)
        data[:, :1024] = fine[:, None]
        data[:, 1024:1056] = 255
        files[part] = {"data": data, "fine_labels": fine.tolist(), "coarse_labels": (fine // 5).tolist(),
                       "filenames": [f"{part}_{i}.png" for i in range(len(fine))], "batch_label": part}
    root.mkdir(exist_ok=True)
    if archive:
        with tarfile.open(root / "cifar-100-python.tar.gz", "w:gz") as handle:
            for name, content in files.items():
                raw = pickle.dumps(content, protocol=2)
                info = tarfile.TarInfo(f"cifar-100-python/{name}")
                info.size = len(raw)
                handle.addfile(info, io.BytesIO(raw))
    else:
        (root / "cifar-100-python").mkdir()
        for name, content in files.items():
            (root / "cifar-100-python" / name).write_bytes(pickle.dumps(content, protocol=2))
    return root


@pytest.mark.parametrize("archive", [True, False])
def test_cifar_fs(archive, tmp_path):
    root = write_cifar(tmp_path / "data", archive)
    for split in SPLITS:
        bank = load_dataset("cifar_fs", split, root=root)
        assert bank.class_names == tuple(read_splits("cifar_fs")[split]) and set(bank.class_sizes().tolist()) == {3}
        assert bank.images.shape[1:] == (3, 32, 32)
        names = np.array(sorted(FINE))[bank.images[:, 0, 0, 0].long().numpy()]
        assert names.tolist() == [bank.class_names[label] for label in bank.labels.tolist()]
        # Channel, row, column: the marked row of the green channel is the first one.
        assert int(bank.images[0, 1, 0].min()) == 255 and int(bank.images[0, 1, 1:].max()) == 0
        assert bank.files[2].startswith("test_")
    small = load_dataset("cifar_fs", "test", root=root, image_size=16)
    assert small.images.shape[1:] == (3, 16, 16) and torch.equal(small.labels, bank.labels)


def test_fc100_keeps_super_classes_together(tmp_path):
    root = write_cifar(tmp_path / "data", archive=False)
    banks = {split: load_dataset("fc100", split, root=root) for split in SPLITS}
    assert {split: len(bank.class_names) for split, bank in banks.items()} == {"train": 60, "val": 20, "test": 20}
    for split, bank in banks.items():
        homes = {COARSE[sorted(FINE).index(name) // 5] for name in bank.class_names}
        assert homes == set(read_splits("fc100")[split])


def test_damaged_and_dangerous_cifar_files_are_refused(tmp_path):
    root = write_cifar(tmp_path / "data", archive=True)
    path = root / "cifar-100-python.tar.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(FewshotError, match="damaged or incomplete"):
        load_dataset("cifar_fs", root=root)
    path.unlink()
    root = write_cifar(tmp_path / "data", archive=False)

    class Attack:
        def __reduce__(self):
            return open, (str(tmp_path / "written"), "w")

    (root / "cifar-100-python" / "meta").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(FewshotError, match="it refers to .*open"):
        load_dataset("cifar_fs", root=root)
    assert not (tmp_path / "written").exists()
    (root / "cifar-100-python" / "test").unlink()
    with pytest.raises(FewshotError, match="not a readable copy"):
        load_dataset("fc100", root=root)


@pytest.mark.parametrize("size", [(50, 30), (30, 50)])
def test_photographs_keep_their_proportions(size, tmp_path):
    write_class_folders(tmp_path / "own", {"a": 1}, encoded((90, 90, 90), size))
    assert load_dataset("folder", "all", root=tmp_path / "own", image_size=20).images.shape == (1, 3, 20, 20)
