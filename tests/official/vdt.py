"""Run the official VDT (CLIP-A-self) on the reference inputs with texts and keep what it returns beside this file.

    git clone https://github.com/mayug/VDT-Adapter && python -m tests.official.vdt VDT-Adapter

The official network between given features and three sentences of each class (`tests.oracle.sentences_near`), from the
initial weights of the registered method (seed 0, variant "official"), without dropout; 30 steps of PyTorch's AdamW on the
whole support with a cosine schedule, in float64. Some seconds on one core.
"""

from __future__ import annotations

import sys
from unittest import mock

import numpy as np
import torch
from torch import nn

from fewshot.episodes.types import Episodes
from fewshot.methods.contract import create_method
from tests.conftest import SHARED
from tests.official.runs import checkout_argument, describe, keep
from tests.oracle import load_inputs, sentences_near

INPUTS = ("caltech_vlm_20c1s", "caltech_vlm_20c4s")
ABSENT = ("dassl", "dassl.engine", "dassl.metrics", "dassl.utils", "dassl.optim", "clip", "clip.simple_tokenizer",
          "trainers.clip_custom")
SENTENCES, STEPS, RATIO, RATE, EPSILON = 3, 30, 0.2, 1e-3, 1e-4


def network(program, e: Episodes) -> nn.Module:
    """The official model with CLIP's towers left out, in float64."""
    with mock.patch.object(nn.Module, "cuda", lambda module: module):
        adapter = program.SelfAttnAdapter(e.text.shape[-1], 4, ratio=RATIO).double()
    attention = adapter.attn
    attention.dropout.p = attention.attention.dropout.p = 0.0
    start = {name: value[0] for name, value in create_method("vdt", variant="official")._start(e).items()}
    layers = {"query": attention.w_qs, "key": attention.w_ks, "value": attention.w_vs, "out": attention.fc}
    for name, layer in layers.items():
        layer.weight.data.copy_(start[name].T)
    attention.fc.bias.data.copy_(start["bias"][0])
    model = program.CustomCLIP.__new__(program.CustomCLIP)
    nn.Module.__init__(model)
    model.image_encoder, model.adapter, model.attr = nn.Identity(), adapter, e.prompts[0]
    model.logit_scale, model.dtype, model.we_adapter = torch.tensor(100.0).double().log(), torch.float64, "self_attn"
    return model


def official_logits(program, e: Episodes) -> np.ndarray:
    """[Q, N] after training."""
    model = network(program, e)
    optimiser = torch.optim.AdamW(model.adapter.parameters(), RATE, eps=EPSILON, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(e.support[0]), e.support_labels[0]).backward()
        optimiser.step()
        schedule.step()
    return model(e.query[0]).detach().numpy()


def main() -> None:
    checkout = checkout_argument(__doc__.splitlines()[0])
    sys.path.insert(0, str(checkout))
    stubs = {name: mock.MagicMock(__all__=[]) for name in ABSENT}
    stubs["dassl.engine"].TrainerX = object
    stubs["dassl.engine"].TRAINER_REGISTRY.register = lambda: lambda trainer: trainer
    with mock.patch.dict(sys.modules, stubs):
        from trainers import clip_adapter_gpt as program  # noqa: PLC0415 - a file of the checkout

    for inputs in INPUTS:
        episodes = load_inputs(SHARED / "oracles", inputs)[0]
        episodes = episodes.replace(prompts=sentences_near(episodes.text, SENTENCES))
        keep("vdt", inputs, logits_f64=official_logits(program, episodes), sentences=np.array(SENTENCES))
    describe("vdt", checkout, method="vdt", repository="mayug/VDT-Adapter", primary_output="logits",
             entry_point="trainers/clip_adapter_gpt.py CustomCLIP, SelfAttnAdapter",
             hyperparameters={"ratio": RATIO, "steps": STEPS, "learning_rate": RATE, "epsilon": EPSILON, "dropout": 0},
             per_input={inputs: {} for inputs in INPUTS}, expected_agreement={"float64": 1e-8})


if __name__ == "__main__":
    main()
