"""Compare a method with the stored outputs of an official implementation, on every input that was run."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from fewshot.episodes.types import Episodes
from fewshot.methods.contract import create_method
from tests.official.networks import SmallResNet
from tests.oracle import as_given, as_images, inputs_of, load_inputs, load_outputs


def prepared(name: str, params, raw: dict, dtype: torch.dtype = torch.float32):
    """The method with its parameters and, where it has them, initial weights in `dtype` or the base mean of the inputs."""
    method = create_method(name, **(params(raw) if callable(params) else params))
    if method.needs_backbone:
        ways = int(raw["ways"])
        if method.inputs == "images":
            method = method.with_backbone(SmallResNet().to(dtype), ways)
        else:
            method = method.with_backbone(torch.nn.Identity(), ways, feature_dim=raw["query"].shape[-1]).to(dtype)
    if getattr(method, "needs_base", False):
        method = dataclasses.replace(method, base_mean=torch.from_numpy(raw["base_mean"]))
    return method


def official_episodes(method, episodes: Episodes, raw: dict, outputs: dict) -> Episodes:
    """The episodes as the official program got them, and as `method` takes them."""
    episodes = as_given(episodes, outputs)
    return as_images(episodes, raw) if method.inputs == "images" else episodes


def check_soft(folder, name: str, params, official: str, only: tuple[str, ...] = (), first: int | None = None) -> None:
    """float64 against the official float64 run; float32 against the official float32 run if there is one, values and labels.

    `only` names some of the inputs and `first` says how many of their episodes, for methods too slow to run on all of them
    in the quick suite. Official probabilities are first divided by their sum over classes (PT-MAP's early stop leaves them
    up to 1e-3 off).
    """
    names = [inputs for inputs in inputs_of(folder, official) if not only or inputs in only]
    assert names, f"no stored outputs of {official}"
    for inputs in names:
        outputs, description = load_outputs(folder, official, inputs)
        primary = description["primary_output"]

        def output(dtype, count, inputs=inputs, primary=primary, outputs=outputs):
            episodes, raw = load_inputs(folder, inputs, dtype)
            method = prepared(name, params, raw, dtype)
            logits = method(official_episodes(method, episodes, raw, outputs)[:count]).detach()
            return (logits.softmax(-1) if primary == "probs" else logits).numpy()

        exact, official_single = (p if p is None or primary != "probs" else p / p.sum(-1, keepdims=True)
                                  for p in (outputs[f"{primary}_f64"][:first], outputs.get(primary)))
        here = description["per_input"][inputs]
        tolerance = here.get("tolerance_float64", description["expected_agreement"]["float64"])
        np.testing.assert_allclose(output(torch.float64, len(exact)), exact, atol=tolerance, rtol=0, err_msg=inputs)
        if official_single is None:
            continue
        official_single = official_single[:first]
        single = output(torch.float32, len(official_single))
        tolerance = here["tolerance_float32"]
        np.testing.assert_allclose(single, official_single, atol=tolerance, rtol=0, err_msg=inputs)
        top = np.sort(official_single, axis=-1)
        clear = top[..., -1] - top[..., -2] > 2 * tolerance
        assert clear.mean() > 0.9
        assert np.array_equal(single.argmax(-1)[clear], outputs["preds"][:first][clear]), inputs


def check_distances(folder, name: str, params, official: str) -> None:
    """Every predicted label, and the Euclidean distances (logits are minus their squares) of the float64 run."""
    check_labels(folder, name, params, official)
    for inputs in inputs_of(folder, official):
        outputs, description = load_outputs(folder, official, inputs)
        episodes, raw = load_inputs(folder, inputs)
        distances = (-prepared(name, params, raw)(episodes[:4])).sqrt()
        tolerance = description["expected_agreement"]["float64"]
        np.testing.assert_allclose(distances, outputs["distances_f64"], atol=tolerance, rtol=0)


def check_labels(folder, name: str, params, official: str) -> None:
    """Every predicted label of every episode, in float64 and float32."""
    for inputs in inputs_of(folder, official):
        outputs, _ = load_outputs(folder, official, inputs)
        for dtype in (torch.float64, torch.float32):
            episodes, raw = load_inputs(folder, inputs, dtype)
            found = prepared(name, params, raw)(episodes).argmax(-1).numpy()
            assert np.array_equal(found, outputs["preds"]), f"{inputs}, {dtype}: {(found != outputs['preds']).sum()}"
