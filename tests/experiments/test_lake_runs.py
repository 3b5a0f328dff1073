"""The list of Lake's runs, read from images in the published layout: here of drawings that are chosen for it."""

from __future__ import annotations

import runpy
import zipfile
from pathlib import Path

import pytest

from fewshot.core.errors import FewshotError
from fewshot.datasets import load_dataset
from fewshot.episodes.imported import import_episodes

FILE = Path(__file__).resolve().parents[2] / "experiments" / "lake_runs.py"
RUNS = range(1, 21)


def character(run, number):
    """The characters of a run, which class_labels.txt has in another order."""
    return f"character{(number + run) % 20 + 1:02d}"


@pytest.fixture
def published(tmp_path, shared_data):
    """20 runs of two drawers of Atlantean, as all_runs.zip."""
    with zipfile.ZipFile(shared_data / "omniglot" / "images_evaluation.zip") as drawings, \
            zipfile.ZipFile(tmp_path / "all_runs.zip", "w") as runs:
        atlantean = {name.split("/")[-2]: name for name in sorted(drawings.namelist()) if "/Atlantean/" in name}
        for run in RUNS:
            for number in range(1, 21):
                last = atlantean[character(run, number)]  # ..._20.png
                for name, drawer in ((f"training/class{number:02d}", 5), (f"test/item{21 - number:02d}", 8)):
                    runs.writestr(f"run{run:02d}/{name}.png", drawings.read(last.replace("_20.png", f"_{drawer:02d}.png")))
            pairs = (f"run{run:02d}/test/item{21 - number:02d}.png run{run:02d}/training/class{number:02d}.png\n"
                     for number in range(20, 0, -1))
            runs.writestr(f"run{run:02d}/class_labels.txt", "".join(pairs))
    return tmp_path / "all_runs.zip"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*packed by somebody else")
def test_the_runs_are_found_by_their_pixels(published, shared_data, tmp_path):
    as_text = runpy.run_path(str(FILE))["as_text"]
    folder = tmp_path / "unpacked"
    with zipfile.ZipFile(published) as archive:
        archive.extractall(folder)
    text = as_text(published, shared_data)
    assert as_text(folder, shared_data) == text
    (tmp_path / "list.csv").write_bytes(text)
    images = load_dataset("omniglot", "test", root=shared_data)
    found = import_episodes(tmp_path / "list.csv", images)
    assert (len(found), found.protocol["ways"], found.protocol["shots"], found.protocol["queries"]) == (20, 20, 1, 1)
    for role, drawer in (("support", "_05.png"), ("query", "_08.png")):
        assert all(images.files[row].endswith(drawer) for row in getattr(found.all, role).flatten())
    run = 3
    assert [images.class_names[label] for label in found.all.classes[run - 1]] == [
        f"Atlantean/{character(run, number)}" for number in range(20, 0, -1)]
    (folder / "run07" / "test" / "item01.png").write_bytes((folder / "run07" / "test" / "item02.png").read_bytes())
    with pytest.raises(FewshotError, match="run07/test/item01.png.*pairs drawings of two characters"):
        as_text(folder, shared_data)
