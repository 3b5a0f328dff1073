"""Features that other programs wrote: .npz and parquet."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewshot.cli.app import app
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank

FEATURES = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
LABELS = np.arange(30) % 5


class Planted:
    """Unpickling it is seen."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_npz_is_a_bank_wherever_it_lies(tmp_path):
    bank = FeatureBank.load(saved(tmp_path / "a.npz", features=FEATURES, labels=LABELS))
    assert torch.equal(bank.features, torch.from_numpy(FEATURES)) and bank.labels.tolist() == LABELS.tolist()
    other = FeatureBank.load(saved(tmp_path / "b.npz", Embeddings=FEATURES.astype(">f8") * 2, Y=LABELS))
    assert other.identity == bank.identity and other.features.dtype == torch.float64  # two backbones can be paired
    named = FeatureBank.load(saved(tmp_path / "c.npz", features=FEATURES, labels=np.array(list("abcde"))[LABELS],
                                   name="mine", split="test"))
    assert (named.name, named.split, named.class_names) == ("mine", "test", tuple("abcde"))
    assert FeatureBank.load(named.save(tmp_path / "c.safetensors")).content_hash == named.content_hash


def test_npz_is_never_unpickled(tmp_path):
    for arrays in ({"features": FEATURES, "labels": np.array([Planted()] * 30)},
                   {"features": FEATURES, "labels": LABELS, "name": np.array(Planted(), dtype=object)}):
        with pytest.raises(FewshotError, match="not a readable .npz file of plain arrays .*pickle"):
            FeatureBank.load(saved(tmp_path / "a.npz", **arrays))


@pytest.mark.parametrize(("arrays", "message"), [
    ({"features": FEATURES}, "no column that may be the labels; call it labels, among features"),
    ({"x": FEATURES, "embeddings": FEATURES, "y": LABELS}, r"several columns that may be the features \(x, embeddings\)"),
    ({"features": FEATURES, "labels": LABELS[:5]}, r"labels has shape \(5,\)"),
    ({"features": LABELS, "labels": LABELS}, "expected floating point"),
    ({"features": np.full_like(FEATURES, np.inf), "labels": LABELS}, "30 feature rows hold NaN or infinity"),
    ({"features": FEATURES, "labels": LABELS, "class_names": np.array(["a"])}, "1 class names for labels up to 4"),
])
def test_mistakes_in_npz_are_named(tmp_path, arrays, message):
    with pytest.raises(FewshotError, match=message):
        FeatureBank.load(saved(tmp_path / "a.npz", **arrays))


def test_damaged_files_are_refused(tmp_path):
    whole = saved(tmp_path / "a.npz", features=FEATURES, labels=LABELS).read_bytes()
    for name, data, message in (("cut.npz", whole[:200], "not a readable .npz"),
                                ("text.npz", b"hello", "not a readable .npz"),
                                ("cut.parquet", b"PAR1", "not a readable parquet")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FewshotError, match=message):
            FeatureBank.load(tmp_path / name)
    with pytest.raises(FewshotError, match="no features at .*none.npz"):
        FeatureBank.load(tmp_path / "none.npz")


def test_parquet_has_lists_or_columns_of_numbers(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = [f"class_{label}" for label in LABELS]

    def load(columns):
        parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
        return FeatureBank.load(tmp_path / "x.parquet")

    lists = load({"id": list(range(30)), "embedding": list(FEATURES), "label": names})
    columns = load({**{f"f{place}": FEATURES[:, place] for place in range(4)}, "label": names})
    fixed = load({"features": pa.FixedSizeListArray.from_arrays(FEATURES.ravel(), 4), "label": names})
    for bank in (lists, columns, fixed):
        assert torch.equal(bank.features, torch.from_numpy(FEATURES)) and bank.labels.tolist() == LABELS.tolist()
        assert bank.content_hash == lists.content_hash and bank.class_names[4] == "class_4"
    for found, message in (({"features": [[1.0], [1.0, 2.0]], "label": [0, 1]}, r"lists of \[1, 2\] numbers"),
                           ({"features": [[1.0], None], "label": [0, 1]}, "'features' .* has 1 rows without a value"),
                           ({"f0": [1.0, None], "label": [0, 1]}, "'f0' .* has 1 rows without"),
                           ({"features": [[1.0], [2.0]], "label": [0, None]}, "column 'label' .* has 1 rows without"),
                           ({"features": ["a", "b"], "label": [0, 1]}, "lists of \\[0\\] numbers"),
                           ({"features": [[1.0]], "kind": [0]}, "no column that may be the labels")):
        with pytest.raises(FewshotError, match=message):
            load(found)


def test_features_are_evaluated_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "mine.npz", features=FEATURES + LABELS[:, None] * 50, labels=LABELS, name="mine")
    app(["--quiet", "eval", "--features", "mine.npz", "--episodes", "10", "--shots", "1", "--queries", "3"],
        standalone_mode=False)
    assert "100.00" in capsys.readouterr().out
