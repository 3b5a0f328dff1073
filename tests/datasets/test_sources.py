"""Images from CSV files, tars, parquet files, torchvision and the Hugging Face hub: tiny copies, made here, offline."""

from __future__ import annotations

import io
import json
import re
import tarfile
import warnings
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image

from fewshot.cli.app import app
from fewshot.core.errors import FewshotError
from fewshot.datasets import DATASETS, kind_of, load_dataset
from fewshot.datasets.own import natural, split_of
from fewshot.evaluation.run import Run
from fewshot.features.source import FeatureSource
from fewshot.features.subject import Subject
from tests.datasets.synthetic import encoded, write_class_folders

CLASSES = ("ant", "bee", "cat", "dog")


def colour(label: int, number: int) -> tuple[int, int, int]:
    return 60 * label, 20 * number, 128


def png(label: int, number: int) -> bytes:
    return encoded(colour(label, number), kind="PNG")


def assert_images(bank, expected: list[tuple[int, int]]) -> None:
    """The pixels of `bank` are those of these (label, number), in this order."""
    wanted = torch.tensor([colour(label, number) for label, number in expected], dtype=torch.uint8)
    assert torch.equal(bank.images, wanted[:, :, None, None].expand_as(bank.images))


def load(name, split="all", **options):
    return load_dataset(name, split, image_size=8, **options)


# -- how classes are divided -------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    """A CSV of 12 images of 4 classes, which are ordered as in no other way, without a split."""
    folder = tmp_path / "table"
    folder.mkdir()
    lines = ["path,label"]
    for number in range(3):
        for label in (2, 0, 3, 1):
            (folder / f"{label}_{number}.png").write_bytes(png(label, number))
            lines.append(f"{label}_{number}.png,{CLASSES[label]}")
    (folder / "images.csv").write_text("\n".join(lines) + "\n")
    return folder / "images.csv"


def test_a_seed_divides_the_classes_and_every_class_once(table):
    found = {}
    for seed in range(20):
        parts = [set(load("csv", split, root=table, splits="2/1/1", split_seed=seed).class_names)
                 for split in ("train", "val", "test")]
        assert [len(part) for part in parts] == [2, 1, 1] and set().union(*parts) == set(CLASSES)
        found[seed] = parts
    assert found[0] == [set(load("csv", split, root=table, splits="2/1/1").class_names)
                        for split in ("train", "val", "test")]
    assert {name for parts in found.values() for name in parts[2]} == set(CLASSES)  # every class is once the test class
    with pytest.warns(UserWarning, match="does not name 2 class entries"):
        assert len(load("csv", "test", root=table, splits="1/0/1")) == 3
    with pytest.raises(FewshotError, match="splits='3/1/1' are 5 classes, and .* has 4"):
        load("csv", "test", root=table, splits="3/1/1")
    with pytest.raises(FewshotError, match="puts nothing into split 'val'; it has test, train"):
        load("csv", "val", root=table, splits="2/0/2")
    with pytest.raises(FewshotError, match="split_seed=0.5"):
        load("csv", "test", root=table, splits="2/1/1", split_seed=0.5)


def test_a_folder_is_divided_by_numbers_of_classes_as_well(tmp_path, table):
    write_class_folders(tmp_path / "folders", dict.fromkeys(CLASSES, 2))
    names = [load("folder", "train", root=tmp_path / "folders", splits="2/1/1").class_names,
             load("csv", "train", root=table, splits="2/1/1").class_names]
    assert names[0] == names[1]  # the draw depends on the names alone


def test_without_a_split_the_remedy_is_said(table, tmp_path):
    with pytest.raises(FewshotError, match=r'none of its own; pass splits="64/16/20".*or use split="all"'):
        load("csv", "test", root=table)
    with pytest.raises(FewshotError, match="splits='own', and it has none"):
        load("csv", "test", root=table, splits="own")
    lists = tmp_path / "splits.csv"
    lists.write_text("class,split\nant,train\nbee,train\ncat,test\ndog,test\n")
    assert_images(load("csv", "test", root=table, splits=lists), [(label, n) for n in range(3) for label in (2, 3)])


def test_splits_that_share_classes_are_only_taken_when_asked_for(table):
    rows = table.read_text().splitlines()[1:]
    table.write_text("path,label,split\n" + "\n".join(f"{row},{'test' if '_2' in row else 'train'}" for row in rows))
    with pytest.raises(FewshotError, match=r"share 4 of 4 classes \('cat' is in test and train\).*splits=\"own\" takes"):
        load("csv", "test", root=table)
    assert len(load("csv", "test", root=table, splits="own")) == 4


def test_names_of_files_say_the_split():
    expected = {"data/train-00000-of-00002.parquet": "train", "val/0.tar": "val", "imagenet-test-000.tar": "test",
                "validation.parquet": "val", "train_station.tar": None, "data/x.parquet": None, "latest.tar": None}
    assert {path: split_of(path) for path in expected} == expected
    assert sorted(["class 10", "class 2", "b", "10"], key=natural) == ["10", "b", "class 2", "class 10"]


# -- CSV ---------------------------------------------------------------------------------------------------------------


def test_a_csv_has_its_images_in_order(table):
    bank = load("csv", root=table)
    assert bank.class_names == CLASSES and bank.name == "csv" and bank.files[:2] == ("2_0.png", "0_0.png")
    assert_images(bank, [(label, number) for number in range(3) for label in (2, 0, 3, 1)])
    assert bank.labels.tolist() == [2, 0, 3, 1] * 3
    moved = table.parent.rename(table.parent.with_name("elsewhere")) / "images.csv"
    assert load("csv", root=moved).content_hash == bank.content_hash  # no path is part of it


def test_columns_and_folder_of_a_csv_may_be_named(table, tmp_path):
    (tmp_path / "lists").mkdir()
    listed = tmp_path / "lists" / "some.tsv"
    listed.write_text("n\twhere\tkind\thome\n0\t./1_0.png\t7\ttrain\n1\tx/../2_0.png\t12\ttest\n2\t3_0.png\t12\t\n")
    options = {"root": listed, "image_column": "where", "label_column": "kind", "split_column": "home",
               "images": table.parent}
    bank = load("csv", **options)
    assert bank.class_names == ("class 7", "class 12") and bank.labels.tolist() == [0, 1, 1]
    with pytest.warns(UserWarning, match="does not name 1 filename entries"):
        assert_images(load("csv", "test", **options), [(2, 0)])


@pytest.mark.parametrize(("text", "options", "message"), [
    ("path,label\n../secret.png,ant\n", {}, r"line 2 of .* path '../secret.png', which is empty or leads out of"),
    ("path,label\na/../../secret.png,ant\n", {}, "leads out of"),
    ("path,label\n/etc/passwd,ant\n", {}, "leads out of"),
    ("path,label\n,ant\n", {}, "is empty or leads out"),
    ("path,label\n0_0.png,\n", {}, "line 2 of .* the label ''; expected a number or a name"),
    ("path,label\n0_0.png,-1\n", {}, "has the label -1; expected 0 or more"),
    ("path,label\n0_0.png,ant\n./0_0.png,bee\n", {}, "line 3 .* names '0_0.png' again, after line 2"),
    ("path,label,split\n0_0.png,ant,tset\n", {}, "line 2 .*did you mean 'test'"),
    ("path,kind\n0_0.png,ant\n", {}, r"no column that may be the label; pass label_column=NAME, among path, kind"),
    ("path,file,label\n0_0.png,x,ant\n", {}, r"several columns that may be the path of the image \(path, file\)"),
    ("path,label\n0_0.png,ant\n", {"label_column": "lable"}, "unknown column of .*did you mean 'label'"),
    ("path,label\n0_0.png,ant\n", {"images": "nowhere"}, "images='nowhere' is not a folder"),
    ("path,label\n", {}, "lists no images"),
    ("path,label\n5_5.png,ant\n", {}, r"1 of 1 images of csv cannot be read(.|\n)*5_5.png"),
    ("path,label\nimages.csv,ant\n", {}, r"1 of 1 images of csv cannot be read(.|\n)*cannot identify"),
])
def test_mistakes_in_a_csv_are_named(table, text, options, message):
    table.write_text(text)
    with pytest.raises(FewshotError, match=message):
        load("csv", root=table, **options)


def test_numbers_may_have_names(table, tmp_path):
    table.write_text("path,label\n0_0.png,1\n1_0.png,0\n")
    names = tmp_path / "names.txt"
    names.write_text("bee\nant\n")
    assert load("csv", root=table, class_names=names).class_names == ("ant", "bee")
    assert load("csv", root=table, class_names=names).labels.tolist() == [0, 1]
    for text, message in (("bee\n", "label 1; expected 0 to 0"), ("bee\nbee\n", "'bee' 2 times"),
                          ("bee\n\nant\n", "'' 1 times")):
        names.write_text(text)
        with pytest.raises(FewshotError, match=message):
            load("csv", root=table, class_names=names)
    with pytest.raises(FewshotError, match="cannot read the class names"):
        load("csv", root=table, class_names=tmp_path / "none.txt")


def test_what_is_not_there_is_named(tmp_path):
    for name, what in (("csv", "a CSV file"), ("webdataset", "a tar file, or"), ("parquet", "a parquet file, or")):
        with pytest.raises(FewshotError, match=f"nowhere is not {what}"):
            load(name, root=tmp_path / "nowhere")
        with pytest.raises(FewshotError, match=f'"{name}" needs root=..., {what}'):
            load(name)


# -- WebDataset --------------------------------------------------------------------------------------------------------


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return path


def shard(labels: tuple[int, ...], numbers: tuple[int, ...] = (0, 1)) -> dict[str, bytes]:
    """All images, then all labels: a reader that streams would find half samples. Those of label 3 lie in a folder with a
    dot in its name: the key ends at the first dot of the last part."""
    files = {f"{'a.b/' if label == 3 else ''}{label}_{number}.png": png(label, number)
             for number in numbers for label in labels}
    return files | {name.replace(".png", ".cls"): name.split("/")[-1][0].encode() for name in files}


def test_tars_are_read_in_place(tmp_path):
    write_tar(tmp_path / "w" / "train-10.tar", shard((3,), (1,)))
    write_tar(tmp_path / "w" / "train-2.tar", shard((0, 3), (0,)))
    write_tar(tmp_path / "w" / "test-0.tar", shard((1, 2)))
    bank = load("webdataset", root=tmp_path / "w")
    assert bank.class_names == ("class 0", "class 1", "class 2", "class 3")
    assert_images(bank, [(1, 0), (2, 0), (1, 1), (2, 1), (0, 0), (3, 0), (3, 1)])  # train-2 before train-10
    assert bank.files[5] == "train-2.tar:a.b/3_0.png"
    assert load("webdataset", "test", root=tmp_path / "w").class_names == ("class 1", "class 2")
    assert len(load("webdataset", root=tmp_path / "w" / "test-0.tar")) == 4
    first = load("webdataset", root=tmp_path / "w", cache=tmp_path / "cache")
    assert torch.equal(load("webdataset", root=tmp_path / "w", cache=tmp_path / "cache").images, first.images)


def test_json_beside_an_image_has_the_label(tmp_path):
    files = {}
    for label, name in enumerate(CLASSES):
        values = json.dumps({"label": name, "number": label})
        files |= {f"{label}.jpg": encoded(kind="JPEG"), f"{label}.json": values.encode()}
    path = write_tar(tmp_path / "x.tar", files)
    assert load("webdataset", root=path).class_names == CLASSES
    assert load("webdataset", root=path, label_key="number").class_names[3] == "class 3"
    with pytest.raises(FewshotError, match="unknown column of .*0.json 'nubmer'; did you mean 'number'"):
        load("webdataset", root=path, label_key="nubmer")


@pytest.mark.parametrize(("files", "message"), [
    ({"0.png": b"x"}, "holds 0.png as one sample; expected one image beside"),
    ({"0.cls": b"1"}, "holds 0.cls as one sample"),
    ({"0.png": b"x", "0.jpg": b"x", "0.cls": b"1"}, "holds 0.png, 0.jpg, 0.cls as one sample"),
    ({"0.png": b"x", "0.cls": b""}, "0.cls has the label ''"),
    ({"0.png": b"x", "0.cls": b"\xff"}, "0.cls holds no label"),
    ({"0.png": b"x", "0.json": b"{"}, "0.json holds no label"),
    ({"0.png": b"x", "0.json": b"[1]"}, "it is not an object"),
    ({"0.png": b"x", "0.json": b'{"kind": 1}'}, "no column that may be the label; pass label_key=NAME, among kind"),
    ({"0.png": b"x", "0.json": b'{"label": null}'}, "has the label None"),
    ({"0.png": b"x", "0.json": b'{"label": true}'}, "has the label True"),
    ({"../0.png": b"x", "../0.cls": b"1"}, "holds '../0.png', which is .* leads out of the archive"),
    ({"/0.png": b"x", "/0.cls": b"1"}, "leads out of the archive"),
    ({}, "holds no samples"),
    ({"0.png": b"x", "0.cls": b"1"}, r"1 of 1 images of webdataset cannot be read(.|\n)*x.tar:0.png"),
])
def test_mistakes_in_a_tar_are_named(tmp_path, files, message):
    with pytest.raises(FewshotError, match=message):
        load("webdataset", root=write_tar(tmp_path / "x.tar", files))


def test_links_copies_and_damage_in_a_tar_are_refused(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(FewshotError, match="holds '0.png', which is a link"):
        load("webdataset", root=path)
    with tarfile.open(path, "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("0.png"))
    with pytest.raises(FewshotError, match="holds '0.png' twice"):
        load("webdataset", root=path)
    whole = write_tar(path, {"0.png": bytes(2000)}).read_bytes()
    for name, data in (("cut.tar", whole[:1000]), ("packed.tar", b"\x1f\x8b\x08" + bytes(600)), ("text.tar", b"x" * 2000)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FewshotError, match="is not a readable tar file"):
            load("webdataset", root=tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FewshotError, match="holds no .tar files"):
        load("webdataset", root=tmp_path / "empty")


# -- parquet and the hub -----------------------------------------------------------------------------------------------


def write_parquet(path: Path, labels: list, numbers: list[int], names: list[str] | None = None, *, shown: list | None = None,
                  plain: bool = False, group: int = 3, column: str = "label") -> Path:
    """As the library `datasets` writes images: {bytes, path} and a number whose names are in the metadata. The picture is
    that of `shown`, else of the label."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    data = [png(label, number) for label, number in zip(shown or labels, numbers, strict=True)]
    images = data if plain else [{"bytes": each, "path": "x.png"} for each in data]
    table = pa.table({"image": images, column: labels})
    if names is not None:
        features = {"image": {"_type": "Image"}, column: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=group)
    return path


def write_mini(folder: Path) -> Path:
    """The layout of the published mini-ImageNet: a file or more for every split, whose classes are its own."""
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", [0, 1, 0, 1], [0, 0, 1, 1], list(CLASSES))
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", [1, 0, 1, 0], [2, 2, 3, 3], list(CLASSES))
    write_parquet(folder / "data" / "validation-00000-of-00001.parquet", [2, 2], [0, 1], list(CLASSES))
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", [3, 3, 3, 3], [0, 1, 2, 3], list(CLASSES))
    return folder


def test_published_parquet_files_have_their_few_shot_splits(tmp_path):
    where = write_mini(tmp_path / "mini")
    banks = {split: load("parquet", split, root=where) for split in ("train", "val", "test", "all")}
    assert {split: bank.class_names for split, bank in banks.items()} == {
        "train": ("ant", "bee"), "val": ("cat",), "test": ("dog",), "all": CLASSES}
    assert_images(banks["train"], [(0, 0), (1, 0), (0, 1), (1, 1), (1, 2), (0, 2), (1, 3), (0, 3)])
    assert banks["test"].files[3] == "data/test-00000-of-00001.parquet:3"
    (where / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(FewshotError, match=r"1 of the 2 files data/train-\*-of-00002; fetch the others"):
        load("parquet", "test", root=where)


def test_every_file_has_names_of_its_own_order(tmp_path):
    """A reader that joins them under the names of the first gives wrong labels."""
    write_parquet(tmp_path / "p" / "a.parquet", [0, 1], [0, 0], ["ant", "bee"], plain=True)
    write_parquet(tmp_path / "p" / "b.parquet", [0, 1], [1, 1], ["bee", "ant"], shown=[1, 0])
    bank = load("parquet", root=tmp_path / "p")
    assert [bank.class_names[label] for label in bank.labels.tolist()] == ["ant", "bee", "bee", "ant"]
    assert_images(bank, [(0, 0), (1, 0), (1, 1), (0, 1)])
    write_parquet(tmp_path / "text.parquet", ["n10", "n2"], [0, 1], shown=[0, 1])
    assert load("parquet", root=tmp_path / "text.parquet").class_names == ("n2", "n10")


def test_rows_out_of_order_are_found(tmp_path):
    """Classes that lie in all row groups, in any order of asking."""
    path = write_parquet(tmp_path / "x.parquet", [0, 1, 2] * 7, list(range(7)) * 3, group=4)
    tree = load_listing(path).files[0][0]
    for row in (20, 0, 11, 3, 4, 19):
        assert tree.read(f"x.parquet:{row}") == png(row % 3, row % 7), row


def load_listing(path: Path):
    return DATASETS["parquet"]().listing(path, "all")


def test_mistakes_in_parquet_files_are_named(tmp_path):
    def refused(message, path=tmp_path / "x.parquet", **options):
        with pytest.raises(FewshotError, match=message):
            load("parquet", root=path, **options)

    path = write_parquet(tmp_path / "x.parquet", [0, -1], [0, 0], ["ant"], shown=[0, 0])
    refused("x.parquet, row 1 has the label -1; expected 0 to 0. Leave out")
    write_parquet(path, [0, 1], [0, 0], ["ant"])
    refused("row 1 has the label 1; expected 0 to 0")
    write_parquet(path, [0, None], [0, 0], shown=[0, 0])
    refused("row 1 has the label None")
    write_parquet(path, [0.5, 1.0], [0, 0], shown=[0, 1])
    refused("row 0 has the label 0.5; expected a number or a name")
    write_parquet(path, [0, 1], [0, 0], column="fine")
    refused("no column that may be the label; pass label_column=NAME, among image, fine")
    assert len(load("parquet", root=path, label_column="fine")) == 2
    refused("did you mean 'image'", image_column="imag", label_column="fine")
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"image": [b"x", None], "label": [0, 1]}), path)
    refused(r"2 of 2 images of parquet cannot be read(.|\n)*row 0(.|\n)*row 1 \(no image bytes but NoneType")
    path.write_bytes(path.read_bytes()[:-5])
    refused("x.parquet is not a readable parquet file")
    refused("holds no .parquet files", tmp_path / "none" if (tmp_path / "none").mkdir() is None else None)
    for name in ("one", "two"):
        write_parquet(tmp_path / "several" / name / "train.parquet", [0], [0])
    refused("several sets of parquet files: 'one', 'two'; pass config=NAME", tmp_path / "several")
    assert len(load("parquet", root=tmp_path / "several", config="two")) == 1
    refused("did you mean 'two'", tmp_path / "several", config="tow")


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_name_of_the_hub_is_its_files_below_the_data_root(tmp_path, no_hub):
    write_mini(tmp_path / "data" / "me" / "mini")
    bank = load("hf:me/mini", "test", root=tmp_path / "data")
    assert bank.name == "hf:me/mini" and bank.class_names == ("dog",)
    assert_images(bank, [(3, number) for number in range(4)])
    with pytest.raises(FewshotError, match=r'hf:me/other is not under(.|\n)*load_dataset\("hf:me/other", download=True\)'):
        load("hf:me/other", root=tmp_path / "data")
    for name in ("hf:../mini", "hf:", "hf:a/b/c", "hf:/etc"):
        assert name not in DATASETS
        with pytest.raises(FewshotError, match="no name of the Hugging Face hub"):
            load(name)


def test_what_the_hub_has_fetched_is_found(tmp_path, no_hub):
    """As huggingface_hub lays it out; `datasets` fetches there, too."""
    stored = no_hub / "datasets--me--mini"
    write_mini(stored / "snapshots" / "0123abc")
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("0123abc")
    assert load("hf:me/mini", "val", root=tmp_path).class_names == ("cat",)


def test_fetching_is_complete_or_absent(tmp_path, no_hub, monkeypatch):
    asked = []

    def fetch(name, repo_type, local_dir=None, local_files_only=False):
        asked.append((name, repo_type))
        if local_files_only:
            raise OSError("not there")
        write_parquet(Path(local_dir) / "data" / "test-00000-of-00001.parquet", [0], [0])
        if len(asked) == 1:
            raise OSError("the line is dead")
        return local_dir

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(FewshotError, match="could not fetch hf:me/x to .*the line is dead.*try again"):
        load("hf:me/x", "test", root=tmp_path, download=True)
    assert not (tmp_path / "me" / "x").exists()
    assert len(load("hf:me/x", "test", root=tmp_path, download=True)) == 1
    assert asked == [("me/x", "dataset")] * 2 and [p.name for p in (tmp_path / "me").iterdir()] == ["x"]


def test_other_layouts_are_read_by_the_library_datasets(tmp_path, no_hub, monkeypatch):
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    features = library.Features({"img": library.Image(), "label": library.ClassLabel(names=list(CLASSES))})
    rows = {split: library.Dataset.from_dict({"img": [{"bytes": png(label, n), "path": None} for n in range(3)],
                                              "label": [label] * 3}, features=features)
            for split, label in (("train", 2), ("test", 1))}
    library.DatasetDict(rows).save_to_disk(tmp_path / "saved")
    bank = load("hf:saved", "test", root=tmp_path)
    assert bank.class_names == ("bee",) and bank.name == "hf:saved"
    assert_images(bank, [(1, 0), (1, 1), (1, 2)])
    assert load("hf:saved", root=tmp_path).class_names == ("bee", "cat")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "state.json").write_text("{")
    with pytest.raises(FewshotError, match="the library datasets cannot read hf:odd"):
        load("hf:odd", root=tmp_path)


def test_a_folder_of_images_is_read_by_the_library_datasets(tmp_path, no_hub, monkeypatch):
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    for label, name in enumerate(CLASSES):
        for number in range(3):
            path = tmp_path / "me" / "folders" / ("test" if label == 3 else "train") / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(label, number))
    bank = load("hf:me/folders", "test", root=tmp_path)
    assert bank.class_names == ("dog",)
    assert_images(bank, [(3, 0), (3, 1), (3, 2)])


def test_missing_libraries_are_named(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "x.parquet", [0], [0])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FewshotError, match=r"reading .*x.parquet: the package pyarrow is missing; pip install 'fewshot"):
        load("parquet", root=path)


# -- torchvision -------------------------------------------------------------------------------------------------------


def write_mnist(root: Path) -> None:
    """Four images for training and two for test, in the format of MNIST: IDX files."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, labels in (("train", [3, 1, 3, 1]), ("t10k", [1, 7])):
        pixels = np.repeat(np.arange(len(labels), dtype=np.uint8)[:, None] * 10 + 5, 28 * 28, axis=1)
        header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (len(labels), 28, 28))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + len(labels).to_bytes(4, "big") + bytes(labels))


def test_a_set_of_torchvision_is_a_data_set(tmp_path):
    write_mnist(tmp_path)
    bank = load("torchvision:MNIST", root=tmp_path, channels=1)
    assert bank.name == "torchvision:MNIST" and bank.class_names == ("1 - one", "3 - three", "7 - seven")
    assert bank.images[:, 0, 0, 0].tolist() == [5, 15, 25, 35, 5, 15] and bank.labels.tolist() == [1, 0, 1, 0, 0, 2]
    assert bank.files[4] == "test/0"
    with pytest.raises(FewshotError, match=r"share 1 of 3 classes \('1 - one' is in test and train\)"):
        load("torchvision:MNIST", "test", root=tmp_path)
    assert len(load("torchvision:MNIST", "test", root=tmp_path, splits="own")) == 2
    assert sum(len(load("torchvision:MNIST", part, root=tmp_path, splits="1/1/1")) for part in ("train", "val", "test")) == 6
    with pytest.raises(FewshotError, match=r'cannot be opened below .*Dataset not found(.|\n)*download=True'):
        load("torchvision:MNIST", root=tmp_path / "nowhere")
    with pytest.raises(FewshotError, match="did you mean 'CIFAR10'"):
        Run(dataset="torchvision:CIFAR01")
    with pytest.raises(FewshotError, match="unknown argument of torchvision:MNIST 'train'"):
        load("torchvision:MNIST", root=tmp_path, arguments={"train": True})
    with pytest.raises(FewshotError, match="unknown family of data sets 'torchvison'; did you mean 'torchvision'"):
        load("torchvison:MNIST")


def test_sets_without_a_list_of_labels_are_asked_image_by_image():
    arguments = {"size": 30, "image_size": (3, 12, 12), "num_classes": 3}
    bank = load("torchvision:FakeData", arguments=arguments)
    assert len(bank) == 30 and bank.class_names == ("class 0", "class 1", "class 2")
    assert bank.content_hash == load("torchvision:FakeData", arguments=arguments).content_hash
    with pytest.raises(FewshotError, match="unknown argument of torchvision:FakeData 'sizes'; did you mean 'size'"):
        load("torchvision:FakeData", arguments={"sizes": 3})


def test_parts_are_found_by_the_names_that_a_set_gives_them(tmp_path):
    """Of SVHN, whose `split` is train, test or extra; EMNIST's is none of these and has to be named."""
    io_ = pytest.importorskip("scipy.io")
    for part, labels in (("train", [1, 2]), ("test", [10, 3])):
        io_.savemat(tmp_path / f"{part}_32x32.mat", {"X": np.full((32, 32, 3, 2), 9, dtype=np.uint8),
                                                     "y": np.array(labels)[:, None]})
    from torchvision.datasets import SVHN
    from torchvision.datasets.utils import calculate_md5

    published = dict(SVHN.split_list)
    try:
        for part in ("train", "test"):
            name = f"{part}_32x32.mat"
            SVHN.split_list[part] = [*published[part][:2], calculate_md5(tmp_path / name)]
        assert load("torchvision:SVHN", "test", root=tmp_path).class_names == ("class 0", "class 3")
    finally:
        SVHN.split_list.update(published)
    with pytest.raises(FewshotError, match=r"EMNIST has no parts train, val or test .*balanced.*pass arguments="):
        load("torchvision:EMNIST", root=tmp_path)
    with pytest.raises(FewshotError, match="cannot be opened below"):
        load("torchvision:EMNIST", root=tmp_path, arguments={"split": "balanced"})


def test_an_image_whose_label_is_not_the_listed_one_is_refused(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    write_mnist(tmp_path)
    monkeypatch.setattr(MNIST, "__getitem__", lambda self, row: (Image.new("L", (28, 28)), 0))
    with pytest.raises(FewshotError, match=r"6 of 6 images .* cannot be read(.|\n)*label 0 where the list of labels has 3"):
        load("torchvision:MNIST", root=tmp_path)


# -- wherever a data set is named --------------------------------------------------------------------------------------


def test_a_path_shows_its_kind(tmp_path):
    write_tar(tmp_path / "w" / "0.tar", {})
    (tmp_path / "p" / "data").mkdir(parents=True)
    (tmp_path / "p" / "data" / "train.parquet").write_bytes(b"")
    write_class_folders(tmp_path / "f", {"ant": 1})
    assert [kind_of(tmp_path / name) for name in ("w", "w/0.tar", "p", "f", "x.csv", "x.TSV", "nowhere")] == [
        "webdataset", "webdataset", "parquet", "folder", "csv", "csv", "folder"]


def test_names_work_on_the_command_line_and_in_runs(tmp_path, table, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--backbone", "pixels", "--episodes", "10", "--shots", "1", "--queries", "2", "--ways", "2"]

    def printed(*words):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            app(["--quiet", "eval", *words, *options], standalone_mode=False)
        return " ".join(capsys.readouterr().out.split())

    assert re.search("Data: images#[0-9a-f]{6}, split all", printed("--dataset", str(table), "--split", "all"))
    drawn = printed("--dataset", str(table), "--data-option", "splits=1/1/2")
    assert re.search("Data: images#[0-9a-f]{6}, split test", drawn)
    fake = "arguments={'size': 40, 'image_size': (3, 10, 10), 'num_classes': 4}"
    assert "torchvision:FakeData, split all" in printed("--dataset", "torchvision:FakeData", "--split", "all",
                                                        "--data-option", fake)
    run = Run(dataset="hf:me/x", split="test", data_options={"splits": "1/1/1"})
    assert Run.from_dict(run.to_dict()) == run and run.protocol.queries == 15
    write_mini(tmp_path / "d" / "me" / "mini")
    bank = FeatureSource(tmp_path / "d", tmp_path / "cache").features(Subject(dataset="hf:me/mini", backbone="pixels"))
    assert bank.name == "hf:me/mini" and len(bank) == 4


def test_a_name_with_a_colon_or_slash_is_kept_in_a_plain_file(tmp_path, no_hub):
    write_mini(tmp_path / "me" / "mini")
    load("hf:me/mini", "test", root=tmp_path, cache=tmp_path / "cache")
    assert [path.name.rsplit("-", 1)[0] for path in (tmp_path / "cache").iterdir()] == ["hf_me_mini-test"]
