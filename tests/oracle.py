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
from fewshot.ops.distances import cosine

OFFICIAL = Path(__file__).parent / "official"
# These return cosines: the logits of a model whose scale is 1.
COSINES = ("vlm_proker", "vlm_lfa_init_beta0", "vlm_lfa_init_beta0.85")


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
    if method in COSINES:
        outputs["logit_scale"] = np.ones(())
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


def with_known_scores(episodes: Episodes, known: int) -> Episodes:
    """The episodes with features 10 cos(x, text) to the texts of the first `known` classes, which are the known ones."""
    texts = episodes.text[:, :known]
    scores = episodes.with_features(lambda x: 10 * cosine(x, texts))
    return scores.replace(projection=torch.cat([texts, torch.zeros_like(texts[:, :1])], 1))


def with_auxiliary(episodes: Episodes) -> Episodes:
    """With the roots of the channels as the features of a second network beside them."""
    return episodes.with_features(lambda x: torch.cat([x, x.abs().sqrt()], -1))


def with_projection(episodes: Episodes) -> Episodes:
    """As if the features were those from before a projection, of no particular form, into the space of the texts."""
    size = torch.arange(episodes.query.shape[-1], dtype=torch.float64)
    matrix = torch.eye(len(size), dtype=torch.float64) + 0.05 * torch.outer(size, size + 1).cos()
    projection = torch.cat([matrix, 0.01 * size.sin()[None]]).to(episodes.query.dtype)
    return episodes.replace(projection=projection.expand(len(episodes), -1, -1))


def sentences_near(text: torch.Tensor, count: int) -> torch.Tensor:
    """[E, N, count, D] vectors around texts [E, N, D], not of unit length, where a method takes several of each class."""
    return torch.stack([text + 0.5 * text.roll(by, -1) for by in range(count)], 2)


PREPARED = {"auxiliary": with_auxiliary, "projection": with_projection}


def as_given(episodes: Episodes, outputs: dict[str, np.ndarray]) -> Episodes:
    """The episodes as the official program got them: as many and with as many queries, with the support in the order, the
    scale of logits and as many sentences of each class as were stored, if any, and prepared as is said there."""
    if "known_classes" in outputs:
        return with_known_scores(episodes, int(outputs["known_classes"][0]))
    if "prepared" in outputs:
        episodes = PREPARED[outputs["prepared"].item()](episodes)
    episodes = episodes[: len(outputs["preds"])]
    if (queries := outputs["preds"].shape[1]) < episodes.query.shape[1]:
        episodes = episodes.replace(query=episodes.query[:, :queries])
    if "sentences" in outputs:
        episodes = episodes.replace(prompts=sentences_near(episodes.text, int(outputs["sentences"][0])))
    if "logit_scale" in outputs:
        episodes = episodes.replace(logit_scale=outputs["logit_scale"].item())
    order = outputs.get("support_order")
    return episodes if order is None else with_support_order(episodes, torch.from_numpy(order))
