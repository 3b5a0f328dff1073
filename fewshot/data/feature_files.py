"""Features that other programs wrote: NumPy's .npz and parquet. Nothing in them is executed."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fewshot.core.columns import picked
from fewshot.core.errors import FewshotError
from fewshot.core.optional import needed

SUFFIXES = (".npz", ".parquet")
_FEATURES = ("features", "feature", "embeddings", "embedding", "x")
_LABELS = ("labels", "label", "targets", "target", "y")


def read_features(path: Path) -> dict[str, Any]:
    """The arguments of a `FeatureBank` in a file of one of SUFFIXES.

    .npz      arrays features [M, D] and labels [M] (numbers or texts); class_names [C], class_text [C, D], name and split
              where it has them
    .parquet  a column of features, lists of one length, or else all floating-point columns in their order, and one of labels

    Neither the path nor the name of the file is part of the bank: features of the same items by other backbones can be
    paired.
    Raises FewshotError for a file that is missing, damaged, or has no such array.
    """
    if not path.is_file():
        raise FewshotError(f"no features at {path}")
    found = _npz(path) if path.suffix.lower() == ".npz" else _parquet(path)
    found["features"] = np.ascontiguousarray(found["features"], found["features"].dtype.newbyteorder("="))
    return found


def _npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            known = list(file.files)
            features = file[picked("features", None, known, _FEATURES, str(path), "call it features")]
            labels = file[picked("labels", None, known, _LABELS, str(path), "call it labels")]
            found: dict[str, Any] = {"features": features, "labels": labels}
            found |= {name: str(file[name]) for name in ("name", "split") if name in known}
            if "class_text" in known:
                found["texts"] = file["class_text"]
            if "class_names" in known:
                found["class_names"] = tuple(map(str, file["class_names"].tolist()))
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise FewshotError(f"{path} is not a readable .npz file of plain arrays ({error}); write it with np.savez(FILE, "
                           "features=..., labels=...), numbers and texts alone") from None
    return found


def _parquet(path: Path) -> dict[str, Any]:
    parquet = needed("pyarrow.parquet", f"reading {path}")
    types = needed("pyarrow", f"reading {path}").types
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are these
        raise FewshotError(f"{path} is not a readable parquet file ({error}); copy it again") from None
    known, where = table.column_names, str(path)
    label = picked("labels", None, known, _LABELS, where, "call it labels")
    _refuse_gaps(path, table, [label])
    labels = np.asarray(table.column(label).to_pylist())
    floats = [name for name in known if types.is_floating(table.schema.field(name).type)]
    if floats and not any(name.lower() in _FEATURES and name not in floats for name in known):
        _refuse_gaps(path, table, floats)
        return {"features": np.column_stack([table.column(name).to_numpy() for name in floats]), "labels": labels}
    name = picked("features", None, known, _FEATURES, where, "call it features")
    _refuse_gaps(path, table, [name])
    rows = table.column(name).to_pylist()
    lengths = sorted({len(row) if isinstance(row, list) else 0 for row in rows})
    if len(lengths) != 1 or not lengths[0]:
        raise FewshotError(f"column {name!r} of {path} holds lists of {lengths} numbers; expected lists of one length")
    kind = table.schema.field(name).type.value_type
    return {"features": np.asarray(rows, kind.to_pandas_dtype()), "labels": labels}


def _refuse_gaps(path: Path, table: Any, names: list[str]) -> None:
    gaps = [name for name in names if table.column(name).null_count]
    if gaps:
        raise FewshotError(f"column {gaps[0]!r} of {path} has {table.column(gaps[0]).null_count} rows without a value; "
                           "leave those items out")
