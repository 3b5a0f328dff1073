"""What methods with class texts share."""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.ops.distances import l2_normalise

LOGIT_SCALE = 100.0  # of CLIP, and of the official programs whatever the model says


def unit_texts(episodes: Episodes) -> Tensor:
    """Unit vectors [E, N, D] of the texts, in the dtype of the features. Raises FewshotError where there are none."""
    return l2_normalise(_texts(episodes))


def present_prompts(episodes: Episodes) -> tuple[Tensor, Tensor]:
    """(vectors [E, N, M, D] of the sentences in the dtype of the features, [E, N, M] whether there is such a sentence; the
    rows of those that are missing are zero). Raises FewshotError where the episodes have none, or a class has none."""
    if episodes.prompts is None:
        raise FewshotError("these episodes have no sentences about their classes; give prompts=[E, N, M, D], or make a bank "
                           "with several (`fewshot embed ... --templates` or `--descriptions`)")
    prompts = episodes.prompts.to(episodes.query.dtype)
    present = prompts.ne(0).any(-1)
    if not present.any(-1).all():
        episode, label = (~present.any(-1)).nonzero()[0].tolist()
        raise FewshotError(f"class {label} of episode {episode} has no sentence; give each class one at least")
    return prompts, present


def text_logits(episodes: Episodes, text_scale: float = 1.0) -> Tensor:
    """[E, Q, N] = text_scale * (logit_scale * cos(query, text) + logit_bias): what the model says of the queries by the
    names of the classes alone."""
    cosines = l2_normalise(episodes.query) @ unit_texts(episodes).transpose(1, 2)
    return text_scale * (logit_scale(episodes) * cosines + episodes.logit_bias)


def logit_scale(episodes: Episodes) -> float:
    """What cosines with texts are multiplied by."""
    return LOGIT_SCALE if episodes.logit_scale is None else episodes.logit_scale


def with_known_classes(episodes: Episodes) -> tuple[Tensor, Tensor]:
    """(texts [E, N, D], vectors of the known classes [E or 1, K, D] in their space), not made unit length, of episodes whose
    features are the scores of K known classes: the rows of `projection`, its bias added to each; without one the directions
    of the features. Raises FewshotError where there are no texts, or none in that space."""
    texts, known = _texts(episodes), episodes.query.shape[-1]
    if (given := episodes.projection) is None:
        vectors = torch.eye(known, dtype=texts.dtype, device=texts.device)[None]
    else:
        vectors = (given[:, :-1] + given[:, -1:]).to(texts.dtype)  # probabilities sum to 1
    if vectors.shape[1:] != (known, texts.shape[-1]):
        raise FewshotError(f"features of {known} channels, {vectors.shape[1]} known classes of {vectors.shape[2]} channels "
                           f"and texts of {texts.shape[-1]}; the features must be the scores of the known classes, as "
                           "`fewshot embed --text-space scores` writes them")
    return texts, vectors


def known_class_probabilities(scores: Tensor, temperature: float = 1.0, top: int | None = None) -> Tensor:
    """softmax(scores / temperature) over the last axis; with `top` only of that many largest ones, the others being 0."""
    scores = scores / temperature
    if top is not None and top < scores.shape[-1]:
        kept, where = scores.topk(top)
        scores = torch.full_like(scores, -torch.inf).scatter(-1, where, kept)
    return scores.softmax(-1)


def _texts(episodes: Episodes) -> Tensor:
    if episodes.text is None:
        raise FewshotError("these episodes have no texts; give text=[E, N, D]")
    return episodes.text.to(episodes.query.dtype)


def text_items(episodes: Episodes) -> tuple[Tensor, Tensor, Tensor]:
    """(unit vectors [E, N M, D] of every prompt of each class, or of its text where there are no prompts; their classes
    [E, N M]; [E, N M] 1, or 0 for the rows that fill up a class with fewer prompts than another)."""
    texts = unit_texts(episodes).unsqueeze(2)  # [E, N, 1, D]
    if episodes.prompts is not None:
        texts = l2_normalise(episodes.prompts.to(texts.dtype))
    labels = torch.arange(episodes.ways, device=texts.device).repeat_interleave(texts.shape[2])
    known = (texts != 0).any(-1).to(texts.dtype)
    return texts.flatten(1, 2), labels.expand(len(texts), -1), known.flatten(1)
