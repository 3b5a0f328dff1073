"""CIFAR-FS and FC100: few-shot splits of CIFAR-100."""

from __future__ import annotations

import io
import pickle
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewshot.core.errors import FewshotError
from fewshot.data.banks import ImageBank
from fewshot.datasets.base import DATASETS, SPLITS, Dataset, Request, classes_of, read_splits
from fewshot.datasets.files import Download
from fewshot.datasets.images import need_classes, resize_pixels

_FILES = ("meta", "train", "test")
_ARCHIVE, _FOLDER = "cifar-100-python.tar.gz", "cifar-100-python"
_RECONSTRUCT = np.empty(0).__reduce__()[0]


class _Cifar100(Dataset):
    """All 600 images per class: the training batch, then the test batch. Nothing is cached: reading takes seconds."""

    licence = "not stated by the authors; cite Krizhevsky 2009"
    homepage = "https://www.cs.toronto.edu/~kriz/cifar.html"
    image_size = 32
    downloads = (Download(f"https://www.cs.toronto.edu/~kriz/{_ARCHIVE}", "eb9058c3a382ffc7106e4002c42a8d85",
                          path=_ARCHIVE),)
    layout = (_ARCHIVE, f"{_FOLDER}/ with the files train, test and meta")

    def find(self, root: Path) -> Path | None:
        folders = (root, root / self.name, root / "cifar100", root / "cifar-100")
        return next((f / name for f in folders for name in (_FOLDER, _ARCHIVE) if (f / name).exists()), None)

    def fine_classes(self, meta: dict, coarse_of: np.ndarray) -> dict[str, list[str]]:
        """split -> fine class names."""
        return {split: read_splits(self.name)[split] for split in SPLITS}

    def counts(self, root: Path) -> dict[str, tuple[int, int]]:
        self.require(root)
        return {split: (count, 600 * count) for split, count in self.classes.items()}

    def load(self, request: Request) -> ImageBank:
        where = self.require(request.root)
        meta, train, test = _read(where)
        fine = np.concatenate([train["fine_labels"], test["fine_labels"]])
        coarse = np.concatenate([train["coarse_labels"], test["coarse_labels"]])
        pixels = np.concatenate([train["data"], test["data"]])
        if pixels.dtype != np.uint8 or pixels.shape != (len(fine), 3072):
            raise FewshotError(f"{where} holds {pixels.dtype} data of shape {pixels.shape}; expected uint8 [M, 3072]")
        names = list(meta["fine_label_names"])
        coarse_of = np.zeros(len(names), dtype=int)
        coarse_of[fine] = coarse
        wanted = classes_of(self.fine_classes(meta, coarse_of), request.split)
        need_classes(self, wanted, names, where)
        # Stable: within a class the order of the archive is kept.
        rows = np.concatenate([np.flatnonzero(fine == names.index(name)) for name in wanted])
        label_of = {names.index(name): label for label, name in enumerate(wanted)}
        files = [*train["filenames"], *test["filenames"]]
        images = torch.from_numpy(pixels[rows].reshape(-1, 3, 32, 32))
        return ImageBank(resize_pixels(images, request.image_size), torch.tensor([label_of[n] for n in fine[rows].tolist()]),
                         tuple(wanted), self.name, request.split, tuple(files[row] for row in rows))


@DATASETS.register("cifar_fs")
@dataclass(frozen=True)
class CifarFS(_Cifar100):
    """64 / 16 / 20 classes of CIFAR-100 (Bertinetto et al. 2019)."""

    name = "cifar_fs"
    description = "CIFAR-100 with its 100 classes split at random, 600 images each"
    in_imagenet = "contains"
    collection = "CIFAR-100"
    classes = {"train": 64, "val": 16, "test": 20}


@DATASETS.register("fc100")
@dataclass(frozen=True)
class FC100(_Cifar100):
    """12 / 4 / 4 super-classes of CIFAR-100, which are 60 / 20 / 20 classes (Oreshkin et al. 2018)."""

    name = "fc100"
    description = "CIFAR-100 split by super-class, 600 images per class"
    in_imagenet = "contains"
    collection = "CIFAR-100"
    classes = {"train": 60, "val": 20, "test": 20}

    def fine_classes(self, meta: dict, coarse_of: np.ndarray) -> dict[str, list[str]]:
        lists, names = read_splits("fc100"), list(meta["coarse_label_names"])
        return {split: [fine for coarse in lists[split] for fine, home in zip(meta["fine_label_names"], coarse_of,
                                                                              strict=True) if names[home] == coarse]
                for split in SPLITS}


class _SafeUnpickler(pickle.Unpickler):
    """Only what the published batches contain: arrays, strings, lists. A pickle can otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module.startswith("numpy"):
            return _RECONSTRUCT
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode(encoding)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def _read(where: Path) -> tuple[dict, dict, dict]:
    """meta, train and test batch."""
    try:
        if where.is_dir():
            raw = {name: (where / name).read_bytes() for name in _FILES}
        else:
            with tarfile.open(where) as archive:
                raw = {Path(member.name).name: file.read() for member in archive
                       if member.isfile() and Path(member.name).name in _FILES
                       and (file := archive.extractfile(member)) is not None}
        # latin1: the batches were written by Python 2.
        return tuple(_SafeUnpickler(io.BytesIO(raw[name]), encoding="latin1").load() for name in _FILES)
    except (OSError, EOFError, KeyError, tarfile.TarError, pickle.UnpicklingError, ValueError, ImportError,
            AttributeError, IndexError) as error:
        raise FewshotError(f"{where} is not a readable copy of {_ARCHIVE} ({error}); it is damaged or incomplete, "
                           "so delete it and download it again") from None
