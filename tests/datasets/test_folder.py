"""Own images: a folder of class folders, with or without a CSV of splits."""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from fewshot.cli.app import app
from fewshot.core.errors import FewshotError
from fewshot.datasets import load_dataset
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


def test_folders_that_look_like_splits_are_refused(tmp_path):
    root = tmp_path / "own"
    for part in ("iconic", "Train", "Val", "Test"):
        write_class_folders(root / part, {f"{part}_a": 2, f"{part}_b": 2})
    with pytest.raises(FewshotError, match="own holds Test, Train, Val, .* splits, not classes; pass root=.*/Test.*level=2"):
        load(root)
    assert load(root / "Test").class_names == ("Test_a", "Test_b")
    assert load(root, level=1).class_names == ("Test", "Train", "Val", "iconic")
    assert load(root, level=2).class_names[:3] == ("Test/Test_a", "Test/Test_b", "Train/Train_a")
    assert load(write_class_folders(tmp_path / "vehicles", {"bus": 1, "train": 1})).class_names == ("bus", "train")
    assert load(write_class_folders(tmp_path / "chosen", {"train": 1, "test": 1}), level=1).class_sizes().tolist() == [1, 1]


def test_folders_that_look_like_groups_of_classes_are_refused(tmp_path):
    root = tmp_path / "own"
    for group, classes in {"birds": {"owl": 2, "tit": 3}, "cats": {"lion": 1}}.items():
        write_class_folders(root / group, classes)
    with pytest.raises(FewshotError, match=r"2 folders of .* hold 3 folders of images .*\(birds: owl, tit.*level=2"):
        load(root)
    assert load(root, level=1).class_sizes().tolist() == [5, 1]
    path = csv(tmp_path, "class,split\nbirds/owl,test\nbirds/tit,train\ncats/lion,test\n")
    assert load(root, "test", level=2, splits=path).class_names == ("birds/owl", "cats/lion")
    for name in ("cat", "dog"):  # the same names in every class: parts of it
        write_class_folders(tmp_path / "parts" / name, {"monday": 2, "tuesday": 1})
    assert load(tmp_path / "parts").class_sizes().tolist() == [3, 3]
    with pytest.raises(FewshotError, match="level=3"):
        load(root, level=3)


def test_dark_ink_on_light_paper_can_be_inverted(own, tmp_path):
    plain = load(own)
    for _ in range(2):  # also from the cache, where both are kept apart
        inverted = load(own, invert=True, cache=tmp_path / "cache")
        assert torch.equal(inverted.images, 255 - plain.images)
        assert torch.equal(load(own, cache=tmp_path / "cache").images, plain.images)
    with pytest.raises(FewshotError, match="invert='yes'; give True or False"):
        load(own, invert="yes")


def test_more_suffixes_and_images_that_cannot_be_read(own):
    (own / "cat" / "a.jfif").write_bytes(encoded())
    (own / "cat" / "b.AVIF").write_bytes(encoded(kind="AVIF"))
    (own / "dog" / "c.jp2").write_bytes(encoded(kind="JPEG2000"))
    for name in ("d.heic", "e.HEIC", "f.cr2"):
        (own / "dog" / name).write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"passed over.*: 1 \.cr2, 2 \.heic; convert them"):
        assert load(own).class_sizes().tolist() == [6, 4, 2, 5]


def test_links_in_a_circle_are_followed_once(own):
    (own / "cat" / "up").symlink_to(own)
    (own / "dog" / "itself").symlink_to("itself")
    (own / "kitten").symlink_to(own / "cat")
    with pytest.warns(UserWarning, match="is a link to a folder that it lies in"):
        bank = load(own)
    assert dict(zip(bank.class_names, bank.class_sizes().tolist(), strict=True)) == {**CLASSES, "kitten": 4}


def test_names_are_the_same_in_every_unicode_form(tmp_path):
    composed, apart = "caf\u00e9", "cafe\u0301"
    banks = [load(write_class_folders(tmp_path / str(n), {name: 2, "cat": 3})) for n, name in enumerate((composed, apart))]
    assert banks[0].class_names == banks[1].class_names == (composed, "cat")
    assert banks[0].content_hash == banks[1].content_hash
    for n, name in enumerate((apart, composed)):  # as the folder has it not
        for text in (f"class,split\n{name},test\ncat,train\n", f"filename,split\n{name}/{name}_0.jpg,test\n"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert load(tmp_path / str(n), "test", splits=csv(tmp_path, text)).class_names == (composed,)
    with pytest.raises(FewshotError, match="two folders .* accents"):
        load(write_class_folders(tmp_path / "0", {apart: 1}))


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


def picture(side: int = 40) -> Image.Image:
    """Grey, with a bright left upper quarter: turned or mirrored it is another picture, and colour changes nothing."""
    pixels = np.full((side, side), 60, dtype=np.uint8)
    pixels[: side // 2, : side // 2] = 200
    return Image.fromarray(pixels)


def kinds_of_files() -> dict[str, bytes]:
    """The same picture, as files of every kind."""
    grey, buffers = picture(), {}

    def keep(name: str, image: Image.Image, kind: str = "PNG", **options) -> None:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        buffers[name] = buffer.getvalue()

    deep = np.asarray(grey, dtype=np.uint16)
    transparent = grey.convert("RGBA")
    indexed = grey.convert("RGB").quantize(4)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned clockwise by a quarter
    keep("grey.png", grey)
    keep("grey.jpg", grey, "JPEG", quality=95)
    keep("colour.png", grey.convert("RGB"))
    keep("colour.webp", grey.convert("RGB"), "WEBP", lossless=True)
    keep("alpha.png", transparent)
    keep("grey_alpha.png", grey.convert("LA"))
    keep("palette.png", indexed)
    keep("palette.gif", indexed, "GIF")
    keep("sixteen.png", Image.fromarray(deep * 257))
    keep("sixteen.tif", Image.fromarray(deep * 257), "TIFF")
    keep("floating.tif", Image.fromarray(np.asarray(grey, dtype=np.float32) / 255), "TIFF")
    keep("cmyk.jpg", grey.convert("RGB").convert("CMYK"), "JPEG", quality=95)
    keep("turned.jpg", grey.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=turned)
    keep("turned.png", grey.transpose(Image.Transpose.ROTATE_90), "PNG", exif=turned)
    return buffers


@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_file_shows_the_same_picture(tmp_path, channels):
    files = kinds_of_files()
    (tmp_path / "own" / "cat").mkdir(parents=True)
    for name, data in files.items():
        (tmp_path / "own" / "cat" / name).write_bytes(data)
    bank = load_dataset("folder", "all", root=tmp_path / "own", image_size=40, channels=channels)
    assert len(bank) == len(files) and bank.images.shape[1] == channels
    expected = np.asarray(picture(), dtype=int)
    for file, image in zip(bank.files, bank.images.numpy(), strict=True):
        # Compression may ring at the edges of the quarter, nowhere else.
        inner = [slice(2, 18), slice(22, 38)]
        for rows in inner:
            for columns in inner:
                assert np.abs(image[:, rows, columns] - expected[rows, columns]).max() <= 3, file


def test_transparent_parts_are_white(tmp_path):
    (tmp_path / "cat").mkdir()
    hidden = Image.new("RGBA", (20, 20), (10, 20, 30, 0))
    hidden.save(tmp_path / "cat" / "alpha.png")
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([0, 0, 0, 9, 90, 200])
    palette.save(tmp_path / "cat" / "palette.png", transparency=1)
    assert load(tmp_path).images.min() == 255


def test_pixels_that_are_no_numbers_are_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    Image.fromarray(np.full((20, 20), np.nan, dtype=np.float32)).save(tmp_path / "cat" / "nan.tif")
    with pytest.raises(FewshotError, match=r"1 of 1 images of folder cannot be read(.|\n)*nan\.tif \(NaN or infinite"):
        load(tmp_path)


def test_mixed_files_are_evaluated_from_the_command_line(tmp_path, capsys, monkeypatch):
    """A folder whose classes hold files of every kind, on a greyscale and on a colour network's terms."""
    for shade, name in enumerate(("ant", "bee", "cat", "dog", "emu")):
        (tmp_path / "own" / name).mkdir(parents=True)
        for file, data in kinds_of_files().items():
            (tmp_path / "own" / name / file).write_bytes(data)
        for number in range(3):
            Image.new("RGB", (30, 20 + number), (40 * shade,) * 3).save(tmp_path / "own" / name / f"plain_{number}.png")
    monkeypatch.chdir(tmp_path)
    for extra in ([], ["--data-option", "channels=1"]):
        app(["--quiet", "eval", "--dataset", "own/", "--backbone", "pixels", "--episodes", "10", "--shots", "1", *extra],
            standalone_mode=False)
        assert re.search("own#[0-9a-f]{6}, split all", " ".join(capsys.readouterr().out.split()))


def test_it_is_called_by_its_folder_and_what_it_holds(own, tmp_path):
    bank = load(own)
    assert bank.name == "folder" and bank.title == own.name and str(tmp_path) not in bank.shown_name
    assert bank.shown_name == f"{own.name}#{bank.content_hash[:6]}"
    moved = own.rename(tmp_path / "moved")
    assert load(moved).title == "moved" and load(moved).content_hash == bank.content_hash
    (tmp_path / "flowers").mkdir()
    assert load(moved.rename(tmp_path / "flowers" / "test")).title == "flowers-test", "a split names no data set"
