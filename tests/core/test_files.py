"""Files are complete or absent, and equal content is equal bytes."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import safetensors
import torch
from safetensors.torch import load_file

from fewshot.backbones.create import create_backbone
from fewshot.backbones.weights import save_weights
from fewshot.core.errors import FewshotError
from fewshot.core.files import save_tensors
from fewshot.data.banks import FeatureBank
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.store import Store
from fewshot.methods.contract import create_method
from fewshot.tuning.unrolled import FitResult, save_fitted
from tests.evaluation.test_evaluate import RUN, toy_bank

TENSORS = {"half": torch.tensor([1.5, -2.0, 3.0], dtype=torch.float16), "flags": torch.tensor([True, False, True]),
           "wide": torch.arange(6, dtype=torch.float64).view(2, 3), "none": torch.zeros(0, 4), "one": torch.tensor(7),
           "turned": torch.arange(12.0).view(3, 4).t(),
           "last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)}
ABOUT = {"b": "2", "a": "1", "ü": "é\n", "c": ""}


def test_bytes_do_not_depend_on_the_order_of_what_is_given(tmp_path):
    found = set()
    for number, (names, keys) in enumerate(zip(itertools.permutations(TENSORS), itertools.permutations(ABOUT),
                                               strict=False)):
        path = tmp_path / str(number)
        save_tensors(path, {name: TENSORS[name] for name in names}, {key: ABOUT[key] for key in keys})
        found.add(path.read_bytes())
    assert number == 23 and len(found) == 1


def test_the_library_reads_what_was_written(tmp_path):
    save_tensors(tmp_path / "file", TENSORS, ABOUT)
    loaded = load_file(tmp_path / "file")
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], value) and loaded[name].dtype == value.dtype for name, value in TENSORS.items())
    with safetensors.safe_open(tmp_path / "file", framework="pt") as handle:
        assert handle.metadata() == ABOUT


def test_a_dtype_that_is_not_written_is_named(tmp_path):
    with pytest.raises(FewshotError, match="phase has dtype torch.complex64"):
        save_tensors(tmp_path / "file", {"phase": torch.zeros(2, dtype=torch.complex64)})


def _weights(path):
    save_weights(create_backbone("conv4", channels=1, image_size=28, width=4, seed=0), path, {"b": 1, "a": [2]})


def _bank(path):
    dataclasses.replace(toy_bank(), provenance={"weights": "none", "backbone": "random"}).save(path)


def _results(path):
    Store(path.parent).save(result := evaluate(RUN, toy_bank(), metrics=True))
    (path.parent / result.run.key / "episodes.safetensors").rename(path)


def _fitted(path):
    save_fitted(path, FitResult(create_method("unem_gaussian", layers=2), [1.0], 0, {"b": 1, "a": 2}))


@pytest.mark.parametrize("write", [_weights, _bank, _results, _fitted, lambda path: RUN.drawn(toy_bank()).save(path)])
def test_every_kind_of_file_is_the_same_every_time(tmp_path, write):
    """With the library's own writer two of eight differ practically always."""
    found = set()
    for number in range(8):
        write(tmp_path / str(number))
        found.add((tmp_path / str(number)).read_bytes())
    assert len(found) == 1
    with safetensors.safe_open(tmp_path / "0", framework="pt") as handle:
        assert len(handle.keys()) > 0


def test_banks_in_pieces_and_at_once_are_the_same_file(tmp_path):
    bank = toy_bank()
    fields = {"labels": bank.labels, "class_names": bank.class_names, "name": bank.name, "split": bank.split}
    whole, pieces = bank.save(tmp_path / "a"), FeatureBank.save_pieces(tmp_path / "b", bank.features.split(7),
                                                                       bank.features.shape[1], **fields)
    assert whole.read_bytes() == pieces.read_bytes()
