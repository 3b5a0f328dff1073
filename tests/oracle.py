"""Read one file of reference outputs as (Episodes, arrays of the official run, its description).

Outputs lie beside their inputs in the folder of reference outputs, or in tests/official with the program that made them.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import torch

from fewshot.episodes.types import Episodes

OFFICIAL = Path(__file__).parent / "official"


def inputs_of(folder: Path, method: str) -> list[str]:
    """Names of the inputs on which the official code of `method` was run: one at least, a loop over none tests nothing."""
    names = sorted(path.stem.split("__")[1] for each in (folder, OFFICIAL) for path in each.glob(f"{method}__*.npz"))
    assert names, f"no stored outputs of {method}"
    return names


@functools.lru_cache(maxsize=64)
def _arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file, read once: many tests compare with the same ones."""
    return dict(np.load(path))


def load_inputs(folder: Path, name: str, dtype=torch.float64) -> tuple[Episodes, dict[str, np.ndarray]]:
    raw = dict(_arrays(folder / f"inputs_{name}.npz"))
    if "text" in raw:  # one task: all classes, with their texts, and the whole test set
        support, query, text = (torch.tensor(raw[part], dtype=dtype)[None] for part in ("train_features", "test_features",
                                                                                        "text"))
        labels = torch.tensor(raw["train_labels"])[None].long()
        return Episodes(support=support, support_labels=labels, query=query, ways=text.shape[1], text=text), raw
    if "support_maps" in raw:  # [E, ., C, h, w], here flattened features
        raw.update({part: raw[f"{part}_maps"].reshape(*raw[f"{part}_maps"].shape[:2], -1) for part in ("support", "query")})
    support, query = (torch.tensor(raw[part], dtype=dtype) for part in ("support", "query"))
    episodes = Episodes(support=support, support_labels=torch.tensor(raw["support_labels"]), query=query,
                        ways=int(raw["ways"]))
    return episodes, raw


def as_images(episodes: Episodes, raw: dict[str, np.ndarray]) -> Episodes:
    """The episodes with the maps of their inputs for images [C, h, w]."""
    return episodes.with_features(lambda x: x.unflatten(-1, raw["query_maps"].shape[2:]))


def load_outputs(folder: Path, method: str, name: str) -> tuple[dict[str, np.ndarray], dict]:
    if not (folder / f"{method}.json").is_file():
        folder = OFFICIAL
    description = json.loads((folder / f"{method}.json").read_text())
    outputs = dict(_arrays(folder / f"{method}__{name}.npz"))
    primary = description["primary_output"]
    if "vlm" in name:  # stored without an axis of episodes
        outputs = {key: values[None] for key, values in outputs.items()}
    scores = outputs.get(primary, outputs.get(f"{primary}_f64"))  # some ran in float64 only
    if "preds" not in outputs and scores is not None:
        outputs["preds"] = scores.argmax(-1)
    return outputs, description


def with_support_order(episodes: Episodes, order: torch.Tensor) -> Episodes:
    """The episodes with their support items in the order [E, S]."""
    return Episodes(support=episodes.support.take_along_dim(order.unsqueeze(-1), dim=1),
                    support_labels=episodes.support_labels.take_along_dim(order, dim=1), query=episodes.query,
                    ways=episodes.ways)


def sentences_near(text: torch.Tensor, count: int) -> torch.Tensor:
    """[E, N, count, D] vectors around texts [E, N, D], not of unit length, where a method takes several of each class."""
    return torch.stack([text + 0.5 * text.roll(by, -1) for by in range(count)], 2)


def as_given(episodes: Episodes, outputs: dict[str, np.ndarray]) -> Episodes:
    """The episodes as the official program got them: as many, with the support in the order that was stored, if any, and
    with as many sentences of each class as it was given."""
    episodes = episodes[: len(outputs["preds"])]
    if "sentences" in outputs:
        episodes = episodes.replace(prompts=sentences_near(episodes.text, int(outputs["sentences"][0])))
    order = outputs.get("support_order")
    return episodes if order is None else with_support_order(episodes, torch.from_numpy(order))
