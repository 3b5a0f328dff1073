"""Run the official training of Proto-CLIP on the reference inputs and keep what it returns beside this file.

    git clone https://github.com/IRVLUTD/Proto-CLIP && python -m tests.official.proto_clip Proto-CLIP

Needs info-nce-pytorch. In float64 and without the adapter of queries. Every pass is one step on all classes and items: the
program draws some and leaves one class out, so two limits in its text are changed and its draws are replaced.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import torch

from fewshot.episodes.types import Episodes
from tests.conftest import SHARED
from tests.official.runs import checkout_argument, describe, keep
from tests.oracle import load_inputs

INPUTS = ("caltech_vlm_20c1s", "caltech_vlm_20c4s")
SETTINGS = {"alpha": 0.5, "beta": 12.0, "lr": 1e-3, "train_epoch": 30, "losses": ["L1", "L2", "L3"], "adapter": "fc",
            "train_vis_mem_only": False, "only_test": False, "backbone": "", "dataset": "", "logs_dir_path": "logs",
            "augment_epoch": 1}


class NoAdapter(torch.nn.Identity):
    """The features as they are; takes what the official adapter takes."""


def probabilities(program: ModuleType, episodes: Episodes, folder: str) -> np.ndarray:
    """The official probabilities [Q, N]."""
    support, text, query = (torch.nn.functional.normalize(x[0], dim=-1) for x in (episodes.support, episodes.text,
                                                                                 episodes.query))
    labels, (ways, shots) = episodes.support_labels[0], (len(text), len(support) // len(text))
    made, real = [], torch.nn.Embedding

    def embedding(num_embeddings: int, embedding_dim: int) -> torch.nn.Embedding:
        made.append(real(num_embeddings, embedding_dim))
        return made[-1]

    def whole(low: int, high: int) -> int:
        return 0 if low == 1 else ways  # the number of items that are not queries; of classes

    saved: dict[str, object] = {}
    with (mock.patch.object(torch.Tensor, "cuda", lambda x: x), mock.patch.object(torch.nn.Module, "cuda", lambda x: x),
          mock.patch.object(torch.Tensor, "float", torch.Tensor.double), mock.patch.object(torch.nn, "Embedding", embedding),
          mock.patch.object(np.random, "permutation", np.arange), mock.patch.object(np.random, "randint", whole),
          mock.patch.object(torch, "save", lambda value, path: saved.update({path: value})),
          mock.patch.object(torch, "load", saved.get), mock.patch.object(program, "Adapter_FC", NoAdapter),
          mock.patch.object(program, "SummaryWriter", mock.MagicMock()),
          mock.patch.object(program, "plot_zero_shot_alpha_beta", lambda *_: [0] * 5),
          mock.patch.object(program, "plot_tsne", lambda *_: None), contextlib.redirect_stdout(io.StringIO())):
        # The best pass and the values of alpha and beta on these labels are not looked at.
        program.run_proto_clip({**SETTINGS, "shots": shots, "cache_dir": folder}, support.T,
                               torch.nn.functional.one_hot(labels), query, labels[:1], query, labels[:1], text.T,
                               SimpleNamespace(dtype=torch.float64), [])
        images = torch.nn.functional.normalize(made[0].weight, dim=-1).view(ways, shots, -1).mean(1)
        images, texts = (torch.nn.functional.normalize(x, dim=-1) for x in (images, made[1].weight))
        return program.P(query, images, texts, SETTINGS["alpha"], SETTINGS["beta"]).detach().numpy()


def main() -> None:
    checkout = checkout_argument(__doc__.splitlines()[0]).resolve()
    sys.path.insert(0, str(checkout))  # its files import one another
    outside = ("clip", "datasets", "datasets.utils", "datasets.imagenet", "torch.utils.tensorboard")
    sys.modules |= {name: mock.MagicMock(__name__=name) for name in outside}
    program = import_module("main")
    source = Path(program.__file__).read_text()
    for limit in ("while start < N-1:", "min(start + num_class, N-1)"):
        assert limit in source
        source = source.replace(limit, limit.replace("N-1", "N"))
    exec(compile(source, program.__file__, "exec"), vars(program))
    for name in INPUTS:
        episodes = load_inputs(SHARED / "oracles", name)[0]
        with tempfile.TemporaryDirectory() as folder:  # what it writes is not needed
            keep("proto_clip_f", name, probs_f64=probabilities(program, episodes, folder))
    describe("proto_clip_f", checkout, method="proto_clip", repository="IRVLUTD/Proto-CLIP",
             entry_point="main.py run_proto_clip", primary_output="probs", per_input={name: {} for name in INPUTS},
             hyperparameters=SETTINGS, expected_agreement={"float64": 1e-9})


if __name__ == "__main__":
    main()
