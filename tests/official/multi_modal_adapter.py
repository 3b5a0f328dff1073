"""Run the official Multi-Modal Adapter on the reference inputs with texts and keep what it returns.

    git clone https://github.com/dqmis/clip-mma
    python -m tests.official.multi_modal_adapter clip-mma

The adapter begins with the weights of the registered method and is trained with the whole support in each of 30 steps, by a
loop written here: that of the program reads images. In float64; the first 100 queries.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fewshot.methods.contract import create_method
from tests.official.runs import checkout_argument, describe, keep
from tests.official.trained_heads import INPUTS, STEPS, Task, descend, on_the_cpu


def official_logits(checkout: Path, name: str) -> Tensor:
    """[Q, N] of one input."""
    task = Task(name)
    dim = task.text.shape[1]
    method = create_method("multi_modal_adapter", variant="official")
    start = {part: layer[0] for part, layer in method._start(task.support[None]).items()}
    with (on_the_cpu(checkout, "clip", packages=("fomo", "fomo.models", "fomo.models.clip")),
          mock.patch.object(torch, "float32", torch.float64)):
        for package in ("fomo.models", "fomo.models.clip"):
            sys.modules[package].__path__ = [str(checkout / package.replace(".", "/"))]
        program = import_module("fomo.models.clip.clip_transformer_adapter_text")
        program.ClipBase.__init__ = lambda model, *_, **__: nn.Module.__init__(model)
        program.ClipBase.encode_images = lambda _, images: nn.functional.normalize(images, dim=-1)
        program.CLIPTransformerAdapterText._clip = mock.MagicMock(logit_scale=torch.tensor(100.0).log())
        model = program.CLIPTransformerAdapterText()
        model._precomputed_prompt_features = task.text
        model.adapter = program.MaskedMultiheadAttentionDownsampled(dim, dim // 4)  # it makes one for 512 features
        attention = model.adapter.mha
        linear = {"in": model.adapter.downsampler[0], "down": model.adapter.downsampler[1], "join": attention.out_proj,
                  "narrow": model.adapter.upsampler[0], "up": model.adapter.upsampler[2]}
        with torch.no_grad():
            for part, layer in linear.items():
                layer.weight.copy_(start[part][:-1].T)
                layer.bias.copy_(start[part][-1])
            attention.in_proj_weight.copy_(torch.cat([start[part][:-1].T for part in ("query", "key", "value")]))
        optimiser = torch.optim.AdamW(model.adapter.parameters(), lr=method.learning_rate, eps=method.epsilon,
                                      weight_decay=method.weight_decay)
        descend(optimiser, lambda: cross_entropy(model(task.support), task.labels))
        return model(task.query)


def main() -> None:
    checkout = checkout_argument(__doc__.splitlines()[0]).resolve()
    torch.set_default_dtype(torch.float64)
    for name in INPUTS:
        keep("multi_modal_adapter", name, logits_f64=official_logits(checkout, name).detach().numpy())
    describe("multi_modal_adapter", checkout, method="multi_modal_adapter", repository="dqmis/clip-mma",
             entry_point="fomo/models/clip/clip_transformer_adapter_text.py CLIPTransformerAdapterText",
             primary_output="logits", per_input={name: {} for name in INPUTS},
             hyperparameters={"steps": STEPS, "ratio": 0.2}, expected_agreement={"float64": 1e-9})


if __name__ == "__main__":
    main()
