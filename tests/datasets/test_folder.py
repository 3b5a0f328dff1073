"""Own images: a folder of class folders, with or without a CSV of splits."""

from __future__ import annotations

import warnings

import pytest

from fewshot.datasets import load_dataset
from fewshot.errors import FewshotError
from tests.datasets.synthetic import encoded, write_class_folders

CLASSES = {"cat": 4, "dog": 3, "emu": 2, "fox": 5}


@pytest.fixture
def own(tmp_path):
    return write_class_folders(tmp_path / "own", CLASSES)


def load(root, split="all", **options):
    return load_dataset("folder", split, root=root, image_size=16, **options)


def csv(tmp_path, text):
    path = tmp_path / "splits.csv"
    path.write_text(text)
    return path


def test_without_a_csv_the_split_is_all(own):
    bank = load(own)
    assert bank.class_names == tuple(CLASSES) and bank.class_sizes().tolist() == list(CLASSES.values())
    assert bank.images.shape == (14, 3, 16, 16) and bank.files[0] == "cat/cat_0.jpg" and bank.split == "all"
    assert load(own, channels=1).images.shape[1] == 1
    with pytest.raises(FewshotError, match='use split="all"'):
        load(own, "test")


def test_nothing_is_written_into_the_folder(own):
    before = sorted(own.rglob("*"))
    load(own)
    assert sorted(own.rglob("*")) == before


def test_files_that_are_not_images_do_not_count(own):
    (own / "notes.txt").write_text("x")
    (own / "cover.jpg").write_bytes(encoded())
    (own / "cat" / "Thumbs.db").write_bytes(b"x")
    (own / "cat" / "._cat_0.jpg").write_bytes(b"x")
    (own / ".hidden").mkdir()
    (own / ".hidden" / "a.jpg").write_bytes(b"x")
    (own / "cat" / "deeper").mkdir()
    (own / "cat" / "deeper" / "UPPER.JPG").write_bytes(encoded())
    assert load(own).class_sizes().tolist() == [5, 3, 2, 5]
    (own / "bare").mkdir()
    with pytest.warns(UserWarning, match="1 folders of .* hold no images .*: bare"):
        assert load(own).class_names == tuple(CLASSES)


def test_a_csv_of_classes(own, tmp_path):
    path = csv(tmp_path, "class,split\ncat,train\nfox,test\ndog,val\nemu,test\n")
    assert load(own, "train", splits=path).class_names == ("cat",)
    assert load(own, "test", splits=str(path)).class_sizes().tolist() == [2, 5]
    assert len(load(own, "all", splits=path)) == 14


def test_a_csv_of_files_may_divide_a_class(own, tmp_path):
    path = csv(tmp_path, "filename,split\ncat/cat_0.jpg,train\ncat\\cat_1.jpg,test\ndog/dog_0.jpg,test\n")
    with pytest.warns(UserWarning, match="does not name 11 filename"):
        bank = load(own, "test", splits=path)
    assert bank.files == ("cat/cat_1.jpg", "dog/dog_0.jpg") and bank.class_names == ("cat", "dog")


@pytest.mark.parametrize(("text", "message"), [
    ("class,split\ncatt,train\n", "names 1 of class .* did you mean 'cat'"),
    ("class,split\ncat,trian\n", "line 2 .*did you mean 'train'"),
    ("class,split\ncat,train\ncat,test\n", "line 3 .*'cat' is in 'train' and in 'test'"),
    ("name,part\ncat,train\n", r"columns \['name', 'part'\]; expected"),
    ("", "expected class,split or filename,split"),
    ("class,split\ncat,train\ndog,train\nemu,train\nfox,train\n", "puts nothing into split 'test'; it has train"),
])
def test_mistakes_in_the_csv_are_named(own, tmp_path, text, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FewshotError, match=message):
            load(own, "test", splits=csv(tmp_path, text))


def test_mistakes_about_the_folder_are_named(own, tmp_path):
    with pytest.raises(FewshotError, match="needs root="):
        load_dataset("folder", "all")
    with pytest.raises(FewshotError, match="is not a folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FewshotError, match="no class folders with images"):
        load(tmp_path / "empty")
    with pytest.raises(FewshotError, match="cannot read the split file"):
        load(own, "test", splits=tmp_path / "none.csv")
    with pytest.raises(FewshotError, match="channels=2"):
        load(own, channels=2)
    for split in ("train", "test"):
        write_class_folders(tmp_path / "parts" / split, {"cat": 1})
    with pytest.raises(FewshotError, match="look like splits, not classes; pass root=.*test"):
        load(tmp_path / "parts")
