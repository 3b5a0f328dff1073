"""What every data set shares: names, splits, instructions, the table, unreadable images, the cache."""

from __future__ import annotations

import http.server
import io
import os
import threading
import warnings
import zipfile

import numpy as np
import platformdirs
import pytest
import torch
from PIL import Image

from fewshot.core.errors import FewshotError
from fewshot.datasets import DATASETS, contact_sheet, dataset_table, instructions, load_dataset
from fewshot.datasets import base as base_module
from fewshot.datasets.cache import default_folder, files_in, path_for, read, write
from fewshot.datasets.decoding import decode
from fewshot.datasets.files import Download, fetch, md5_of
from fewshot.datasets.images import free_memory, resize_pixels
from tests.datasets.synthetic import encoded, omniglot_characters, write_class_folders, write_omniglot

NEEDS_FILES = ("caltech101", "cifar_fs", "cub", "dtd", "eurosat", "fc100", "fgvc_aircraft", "food101", "imagenet",
               "mini_imagenet", "omniglot", "oxford_flowers", "oxford_pets", "stanford_cars", "sun397", "tiered_imagenet",
               "ucf101")


def test_all_data_sets_are_registered_and_described():
    assert set(DATASETS) == {*NEEDS_FILES, "glyphs", "named_glyphs", "folder", "csv", "webdataset", "parquet"}
    for name in DATASETS:
        cls = DATASETS[name]
        assert cls.name == name and cls.description and cls.licence and cls.channels in (1, 3)


@pytest.mark.parametrize("name", NEEDS_FILES)
def test_a_missing_data_set_says_what_to_download_and_where_to_put_it(name, tmp_path):
    with pytest.raises(FewshotError) as error:
        load_dataset(name, root=tmp_path)
    text = str(error.value)
    assert "https://" in text and str(tmp_path) in text and DATASETS[name].licence in text
    assert instructions(name, tmp_path) in text


@pytest.mark.parametrize(("split", "hint"), [("tset", "'test'"), ("validation", "'val'"), ("novel", "'test'"),
                                             ("base", "'train'"), ("xyz", "known: all, test, train, val")])
def test_an_unknown_split_names_the_nearest(split, hint):
    with pytest.raises(FewshotError, match=hint):
        load_dataset("glyphs", split)


def test_wrong_names_options_and_sizes_are_refused(tmp_path):
    with pytest.raises(FewshotError, match="did you mean 'omniglot'"):
        load_dataset("omniglott", root=tmp_path)
    with pytest.raises(FewshotError, match="did you mean 'rotations'"):
        load_dataset("omniglot", root=tmp_path, rotation=True)
    with pytest.raises(FewshotError, match="did you mean 'vinyals'"):
        load_dataset("omniglot", root=tmp_path, protocol="vinyal")
    with pytest.raises(FewshotError, match="did you mean 'skip'"):
        load_dataset("glyphs", root=tmp_path, on_error="skipp")
    for size in (0, 5, 28.0, True, 5000):
        with pytest.raises(FewshotError, match="image_size="):
            load_dataset("glyphs", root=tmp_path, image_size=size)


def test_the_root_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSHOT_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(FewshotError, match="elsewhere"):
        load_dataset("cub")


def test_the_table_counts_without_decoding(tmp_path, monkeypatch):
    write_omniglot(tmp_path, drawings=2)
    monkeypatch.setattr(Image, "open", lambda *a, **k: pytest.fail("the table decoded an image"))
    rows = {row["name"]: row for row in dataset_table(tmp_path)}
    assert set(rows) == set(DATASETS)
    assert rows["omniglot"]["state"] == "present" and str(tmp_path) in rows["omniglot"]["where"]
    assert rows["omniglot"]["splits"] == {"train": {"classes": 792, "images": 1584},
                                          "val": {"classes": 172, "images": 344},
                                          "test": {"classes": 659, "images": 1318}}
    assert rows["omniglot"]["images"] == "1,584 / 344 / 1,318"
    assert rows["cub"]["state"] == "missing" and rows["cub"]["classes"] == "100 / 50 / 50"
    assert rows["cub"]["splits"]["test"] == {"classes": 50, "images": None} and "fewshot data" in rows["cub"]["how"]
    assert rows["glyphs"]["state"] == "built in" and rows["folder"]["state"] == "own images"


def test_the_table_reports_damage_instead_of_failing(tmp_path):
    write_omniglot(tmp_path)
    path = tmp_path / "omniglot" / "images_evaluation.zip"
    path.write_bytes(path.read_bytes()[:5000])
    row = next(row for row in dataset_table(tmp_path) if row["name"] == "omniglot")
    assert row["state"] == "damaged" and "images_evaluation.zip" in row["how"]


def _with_bad_files(root):
    write_class_folders(root, {"cat": 8, "dog": 8})
    good = (root / "cat" / "cat_0.jpg").read_bytes()
    (root / "cat" / "cat_1.jpg").write_bytes(b"")
    (root / "cat" / "cat_2.jpg").write_bytes(b"not an image")
    (root / "dog" / "dog_3.jpg").write_bytes(encoded(size=(200, 200))[:-300])
    (root / "gone").mkdir()
    for number in range(12):
        (root / "gone" / f"{number:02d}.png").write_bytes(good[:20])
    return root


def test_unreadable_images_are_named_counted_and_refused(tmp_path):
    root = _with_bad_files(tmp_path / "own")
    with pytest.raises(FewshotError, match="15 of 28 images") as error:
        load_dataset("folder", "all", root=root)
    text = str(error.value)
    assert "cat_1.jpg" in text and "dog_3.jpg" in text and "and 5 more" in text and text.count("\n") == 11


def test_unreadable_images_are_skipped_with_a_warning_on_request(tmp_path):
    root = _with_bad_files(tmp_path / "own")
    with pytest.warns(UserWarning, match="15 of 28 images") as caught:
        bank = load_dataset("folder", "all", root=root, on_error="skip", cache=tmp_path / "cache")
    assert any("cat_2.jpg" in str(w.message) for w in caught)
    # A class that lost all its images is gone, and the remaining labels are contiguous.
    assert bank.class_names == ("cat", "dog") and bank.class_sizes().tolist() == [6, 7]
    assert "cat/cat_1.jpg" not in bank.files and len(bank.files) == len(bank)
    # The first channel holds the number of the file: images, labels and files still belong together.
    numbers = [int(name.rpartition("_")[2][:-4]) for name in bank.files]
    assert np.abs(bank.images[:, 0].float().mean((1, 2)).numpy() - numbers).max() < 3
    with pytest.raises(FewshotError, match="15 of 28"):
        load_dataset("folder", "all", root=root, cache=tmp_path / "cache")


def test_a_damaged_member_of_a_zip_is_an_unreadable_image(tmp_path):
    write_omniglot(tmp_path)
    path = tmp_path / "omniglot" / "images_evaluation.zip"
    data = bytearray(path.read_bytes())
    at = data.index(b"IDAT") + 8
    data[at:at + 4] = b"\0\0\0\0"
    path.write_bytes(bytes(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FewshotError, match="1 of 659 images of omniglot cannot be read"):
            load_dataset("omniglot", "test", root=tmp_path, cache=False)
        bank = load_dataset("omniglot", "test", root=tmp_path, on_error="skip", cache=False)
    assert len(bank) == 658 and len(bank.class_names) == 658


def test_a_truncated_zip_says_so(tmp_path):
    write_omniglot(tmp_path)
    path = tmp_path / "omniglot" / "images_background.zip"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(FewshotError, match="images_background.zip is not a readable zip.*download it again"):
        load_dataset("omniglot", "train", root=tmp_path)


def test_an_incomplete_set_names_the_missing_classes(tmp_path):
    (tmp_path / "omniglot").mkdir()
    for part, characters in omniglot_characters().items():
        with zipfile.ZipFile(tmp_path / "omniglot" / f"images_{part}.zip", "w") as archive:
            for character in characters[:-12]:
                archive.writestr(f"images_{part}/{character}/1.png", b"")
    with pytest.raises(FewshotError, match=r"lacks 12 of 659 classes.*and 2 more"):
        load_dataset("omniglot", "test", root=tmp_path)


def test_a_second_load_reads_the_cache_and_a_changed_file_does_not(tmp_path, monkeypatch):
    root = write_class_folders(tmp_path / "own", {"cat": 3, "dog": 2})
    first = load_dataset("folder", "all", root=root, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr("fewshot.datasets.images.decode_all", lambda *a: pytest.fail("decoded again"))
        again = load_dataset("folder", "all", root=root, cache=tmp_path / "cache")
    assert again.content_hash == first.content_hash and again.files == first.files
    (root / "cat" / "cat_0.jpg").write_bytes(encoded((255, 255, 255), size=(40, 40)))
    changed = load_dataset("folder", "all", root=root, cache=tmp_path / "cache")
    assert int(changed.images[0].min()) > 250 and torch.equal(changed.images[1:], first.images[1:])


def test_read_only_data_can_have_its_cache_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSHOT_CACHE", str(tmp_path / "fast"))
    bank = load_dataset("glyphs", "test", root=tmp_path / "data")
    assert len(list((tmp_path / "fast").iterdir())) == 1 and not (tmp_path / "data").exists()
    assert load_dataset("glyphs", "test", root=tmp_path / "data").content_hash == bank.content_hash


def test_the_cache_is_the_platforms_and_the_data_root_may_be_for_reading_only(tmp_path, monkeypatch):
    monkeypatch.delenv("FEWSHOT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    root = write_omniglot(tmp_path / "data")
    before = sorted(root.rglob("*"))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "cannot keep")
        warnings.filterwarnings("ignore", ".*(MD5|20 drawings)")
        bank = load_dataset("omniglot", "test", root=root)
    assert sorted(root.rglob("*")) == before and len(files_in(default_folder())) == 1
    assert default_folder().is_relative_to(platformdirs.user_cache_path("fewshot", appauthor=False)) and len(bank) == 659


def test_the_least_recently_used_files_make_room(tmp_path, monkeypatch):
    paths = [path_for(tmp_path, "toy", number) for number in range(4)]
    (tmp_path / "mine.safetensors").write_bytes(b"none of the cache's")
    monkeypatch.setenv("FEWSHOT_CACHE_GB", "25e-6")
    for at, path in enumerate(paths[:2]):
        write(path, {"images": torch.zeros(10_000, dtype=torch.uint8)})
        os.utime(path, (at, at))
    assert read(paths[0]) is not None  # now the first is the one that was used last
    write(paths[2], {"images": torch.zeros(10_000, dtype=torch.uint8)})
    assert [path.exists() for path in paths[:3]] == [True, False, True]
    write(paths[3], {"images": torch.zeros(30_000, dtype=torch.uint8)})
    assert [path.exists() for path in paths] == [False, False, False, True], "what was just made stays"
    assert (tmp_path / "mine.safetensors").exists()
    monkeypatch.setenv("FEWSHOT_CACHE_GB", "much")
    with pytest.raises(FewshotError, match="FEWSHOT_CACHE_GB='much'"):
        write(paths[0], {"images": torch.zeros(1)})


def test_images_larger_than_memory_are_refused_before_reading(tmp_path, monkeypatch):
    root = write_class_folders(tmp_path / "own", {"cat": 3, "dog": 2})
    assert free_memory() is None or free_memory() > 1 << 20
    monkeypatch.setattr("fewshot.datasets.images.free_memory", lambda: 5 * 3 * 84 * 84)
    assert len(load_dataset("folder", "all", root=root)) == 5
    monkeypatch.setattr("fewshot.datasets.images.decoded", lambda *a: pytest.fail("read"))
    with pytest.raises(FewshotError, match="5 images of folder at 85 x 85 pixels take .* choose a smaller image_size"):
        load_dataset("folder", "all", root=root, image_size=85)


def test_a_damaged_cache_file_is_made_again(tmp_path):
    root = write_class_folders(tmp_path / "own", {"cat": 3, "dog": 2})
    first = load_dataset("folder", "all", root=root, cache=tmp_path / "cache")
    path = next((tmp_path / "cache").iterdir())
    path.write_bytes(path.read_bytes()[:200])
    with pytest.warns(UserWarning, match="cannot read the cache file"):
        again = load_dataset("folder", "all", root=root, cache=tmp_path / "cache")
    assert again.content_hash == first.content_hash and path.stat().st_size > 1000


@pytest.mark.parametrize("name", ["glyphs", "folder"])
def test_an_unwritable_cache_is_a_warning(name, tmp_path):
    root = write_class_folders(tmp_path / "own", {"cat": 3, "dog": 2})
    (tmp_path / "file").write_text("a file where the cache folder should be")
    with pytest.warns(UserWarning, match="cannot keep decoded images"):
        bank = load_dataset(name, "all", root=root, cache=tmp_path / "file" / "cache")
    assert len(bank) > 0


def test_images_are_resized_antialiased_and_cropped_at_the_centre():
    pixels = np.zeros((64, 128, 3), dtype=np.uint8)
    pixels[::2] = 255
    pixels[:, :32] = (255, 0, 0)
    pixels[:, 96:] = (0, 0, 255)
    buffer = tmp_png(Image.fromarray(pixels))
    image = decode(buffer, 16, 3)
    assert image.shape == (3, 16, 16)
    # One-pixel stripes become grey; without antialiasing they stay black or white. The red and blue sides are cut off.
    assert np.abs(image[:, 1:-1, 1:-1].astype(int) - 127).max() <= 8
    assert decode(buffer, 64, 3).shape == (3, 64, 64) and decode(buffer, 100, 1).shape == (1, 100, 100)


def test_awkward_image_modes_keep_their_meaning():
    transparent = Image.new("RGBA", (20, 20), (10, 20, 30, 0))
    assert decode(tmp_png(transparent), 8, 3).min() == 255
    deep = Image.fromarray(np.full((20, 20), 32768, dtype=np.uint16))
    assert np.unique(decode(tmp_png(deep), 8, 1)).tolist() == [128]
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([0, 0, 0, 9, 90, 200])
    assert decode(tmp_png(palette), 8, 3)[:, 0, 0].tolist() == [9, 90, 200]
    assert decode(encoded((0, 0, 0, 0), mode="CMYK"), 8, 3).min() >= 254
    # Exif orientation 6: the camera was turned, the first row of the file is the right side of the picture.
    turned = Image.new("L", (20, 20))
    turned.paste(255, (0, 0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    turned.save(buffer, "JPEG", exif=exif)
    upright = decode(buffer.getvalue(), 20, 1)[0].astype(int)
    assert upright[:, :9].max() < 20 and upright[:, 11:].min() > 235


def tmp_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_resizing_a_bank_agrees_with_resizing_its_images():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=generator, dtype=torch.uint8)
    for size in (16, 32, 48):
        ours = resize_pixels(images, size)
        theirs = np.stack([decode(tmp_png(Image.fromarray(i.permute(1, 2, 0).numpy())), size, 3) for i in images])
        assert np.abs(ours.numpy().astype(int) - theirs).max() <= 1


@pytest.fixture
def server(tmp_path):
    """A web server on the loopback address that serves tmp_path/public."""
    (tmp_path / "public").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "public"))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_a_download_is_verified_and_complete_or_absent(server, tmp_path):
    (tmp_path / "public" / "a.zip").write_bytes(b"content")
    good = Download(f"{server}/a.zip", md5_of(tmp_path / "public" / "a.zip"), path="x/a.zip")
    assert fetch(good, tmp_path).read_bytes() == b"content"
    wrong = Download(f"{server}/a.zip", "0" * 32, path="x/b.zip")
    missing = Download(f"{server}/nothing.zip", "0" * 32, path="x/c.zip")
    for item in (wrong, missing):
        with pytest.raises(FewshotError, match="could not download.*by hand.*MD5"):
            fetch(item, tmp_path)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["a.zip"]


def test_omniglot_downloads_itself_when_asked(server, tmp_path, monkeypatch):
    source = write_omniglot(tmp_path / "source") / "omniglot"
    downloads = []
    for part in ("background", "evaluation"):
        name = f"images_{part}.zip"
        (tmp_path / "public" / name).write_bytes((source / name).read_bytes())
        downloads.append(Download(f"{server}/{name}", md5_of(source / name), path=f"omniglot/{name}"))
    monkeypatch.setattr(DATASETS["omniglot"], "downloads", tuple(downloads))
    with pytest.warns(UserWarning, match="20 drawings"):
        bank = load_dataset("omniglot", "val", root=tmp_path / "data", download=True)
    assert len(bank.class_names) == 172
    with pytest.raises(FewshotError, match="cannot be downloaded automatically"):
        load_dataset("cub", root=tmp_path, download=True)


def test_contact_sheets_show_every_kind_of_bank(tmp_path):
    glyphs = load_dataset("glyphs", "val", root=tmp_path)
    sheet = contact_sheet(glyphs, classes=[0, 3, glyphs.class_names[5]], per_class=4, scale=1)
    assert sheet.mode == "RGB" and sheet.size == (4 * 30 + 6, 3 * (30 + 15))
    shown = np.asarray(sheet)[15:43, :28, 0]
    assert np.array_equal(shown, glyphs.images[glyphs.labels == 0][0, 0].numpy())
    colour = load_dataset("folder", "all", root=write_class_folders(tmp_path / "own", {"cat": 2, "dog": 1}))
    assert contact_sheet(colour, columns=2, captions=False).size[0] > 100
    with pytest.raises(FewshotError, match="no class 'fish'"):
        contact_sheet(colour, classes=["fish"])


def test_importing_the_data_sets_needs_no_network_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base_module.dataset_table()
    assert list(tmp_path.iterdir()) == []
