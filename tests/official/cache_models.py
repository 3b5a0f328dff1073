"""Run the official training of Tip-Adapter-F and APE-T on the reference inputs with texts and keep what they return.

    git clone https://github.com/gaopengcuhk/Tip-Adapter && git clone https://github.com/yangyangyang127/APE
    python -m tests.official.cache_models Tip-Adapter APE

The support is one batch, and its own features stand for views of its images. Both programs keep the best epoch, which they
are made to believe is the last one, and then search alpha and beta, which is left out. APE needs two settings to be equal
that its published configurations have different. In float64; the first 100 queries.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import torch

from tests.conftest import SHARED
from tests.official.runs import describe, keep
from tests.oracle import load_inputs

INPUTS = ("caltech_vlm_20c1s", "caltech_vlm_20c4s")
QUERIES = 100
TIP = {"init_alpha": 1.0, "init_beta": 5.5, "lr": 1e-3}
APE = {"init_alpha": 2.0, "init_beta": 4.0, "lr": 1e-3, "eps": 1e-3, "training_feat_num": 128, "training_free_feat_num": 128,
       "feat_num": 128, "w_training": [0.2, 0.8], "search_scale": [7, 7], "search_step": [0, 0]}
COMMON = {"train_epoch": 20, "cache_dir": "", "dataset": "", "backbone": ""}
MODEL = SimpleNamespace(dtype=torch.float64, encode_image=torch.clone)


@contextlib.contextmanager
def official_program(checkout: Path, module: str = "main", absent: tuple[str, ...] = (),
                     dtype: torch.dtype = torch.float64) -> Iterator[ModuleType]:
    """A file of a checkout, on the CPU and in `dtype`; what needs CLIP and images is left out, and what is `absent`."""
    images = ("clip", "datasets", "datasets.imagenet", "datasets.utils", "cv2", "yaml", "torchvision",
              "torchvision.transforms")
    files: dict[str, object] = {}
    same = {name: lambda x, *_: x for name in ("cuda", "half")}
    with (mock.patch.object(sys, "path", [str(checkout), *sys.path]), mock.patch.multiple(torch.Tensor, **same),
          mock.patch.multiple(torch.nn.Module, **same),
          mock.patch.object(torch, "save", lambda value, place: files.update({place: value})),
          mock.patch.object(torch, "load", files.get), contextlib.redirect_stdout(io.StringIO())):
        for name in (module, "utils", "utils.utils"):
            sys.modules.pop(name, None)
        sys.modules.update({name: mock.MagicMock() for name in (*images, *absent)})
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            yield importlib.import_module(module)
        finally:
            torch.set_default_dtype(before)


def trained_logits(checkout: Path, train: str, settings: dict, name: str) -> np.ndarray:
    """The logits [Q, N] that the function `train` of the program ends with on one input."""
    episodes, raw = load_inputs(SHARED / "oracles", name)
    support, query, text = (torch.nn.functional.normalize(x[0], dim=-1) for x in (episodes.support, episodes.query,
                                                                                  episodes.text))
    labels, found = episodes.support_labels[0], []
    with official_program(checkout) as program:
        def accuracy(output, target, topk=1):
            found.append(output.detach())
            return float(len(found))  # each epoch better than the one before

        program.cls_acc = accuracy
        program.search_hp = lambda *given, **named: (settings["init_beta"], settings["init_alpha"])
        values = torch.nn.functional.one_hot(labels).double()
        of_query = (query, torch.from_numpy(raw["test_labels"]))
        settings = {**COMMON, **settings, "shots": int(raw["shots"])}
        getattr(program, train)(settings, support.T.contiguous(), values, *of_query, *of_query, text.T.contiguous(), MODEL,
                                [(support.clone(), labels)])
    return found[2 * COMMON["train_epoch"] - 1][:QUERIES].numpy()  # two an epoch: of a batch and of the queries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tip", type=Path, help="folder of a clone of gaopengcuhk/Tip-Adapter")
    parser.add_argument("ape", type=Path, help="folder of a clone of yangyangyang127/APE")
    given = parser.parse_args()
    for official, checkout, repository, train, settings in (
            ("tip_adapter_f", given.tip, "gaopengcuhk/Tip-Adapter", "run_tip_adapter_F", TIP),
            ("ape_t", given.ape, "yangyangyang127/APE", "APE_T", APE)):
        for name in INPUTS:
            keep(official, name, logits_f64=trained_logits(checkout.resolve(), train, settings, name))
        describe(official, checkout, method=official, repository=repository, entry_point=f"main.py {train}",
                 primary_output="logits", per_input={name: {} for name in INPUTS}, hyperparameters={**COMMON, **settings},
                 expected_agreement={"float64": 1e-9})


if __name__ == "__main__":
    main()
