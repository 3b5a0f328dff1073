"""Read one file of reference outputs as (Episodes, arrays of the official run, its description)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from fewshot.episodes import Episodes


def inputs_of(folder: Path, method: str) -> list[str]:
    """Names of the inputs on which the official code of `method` was run."""
    return sorted(path.stem.split("__")[1] for path in folder.glob(f"{method}__*.npz"))


def load_inputs(folder: Path, name: str, dtype=torch.float64) -> tuple[Episodes, dict[str, np.ndarray]]:
    raw = dict(np.load(folder / f"inputs_{name}.npz"))
    if "support_maps" in raw:  # [E, ., C, h, w], here flattened features
        raw.update({part: raw[f"{part}_maps"].reshape(*raw[f"{part}_maps"].shape[:2], -1) for part in ("support", "query")})
    episodes = Episodes(support=torch.from_numpy(raw["support"]).to(dtype),
                        support_labels=torch.from_numpy(raw["support_labels"]),
                        query=torch.from_numpy(raw["query"]).to(dtype), ways=int(raw["ways"]))
    return episodes, raw


def load_outputs(folder: Path, method: str, name: str) -> tuple[dict[str, np.ndarray], dict]:
    description = json.loads((folder / f"{method}.json").read_text())
    outputs = dict(np.load(folder / f"{method}__{name}.npz"))
    primary = description["primary_output"]
    if "preds" not in outputs and primary in outputs:
        outputs["preds"] = outputs[primary].argmax(-1)
    return outputs, description
