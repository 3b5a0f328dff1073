"""What methods with class texts share."""

from __future__ import annotations

from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.ops.distances import l2_normalise

LOGIT_SCALE = 100.0  # of CLIP, and of the official programs whatever the model says


def unit_texts(episodes: Episodes) -> Tensor:
    """Unit vectors [E, N, D] of the texts, in the dtype of the features. Raises FewshotError where there are none."""
    if episodes.text is None:
        raise FewshotError("these episodes have no texts; give text=[E, N, D]")
    return l2_normalise(episodes.text.to(episodes.query.dtype))


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
