"""Zero-shot classification by class names (CLIP)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewshot.core.checked import check_number
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method
from fewshot.ops.text import text_logits


@METHODS.register("zero_shot")
@dataclass(frozen=True)
class ZeroShot(Method):
    """Each query belongs to the class whose text is nearest by cosine; the support is not looked at.

    logits = text_scale * logit_scale * cos(query, text), logit_scale of the model of the texts (100 where unknown).

    text_scale  multiplies the logits; predictions do not change
    """

    paper = "Radford et al. 2021 (CLIP), arXiv:2103.00020; openai/CLIP"
    needs_text = True

    text_scale: float = 1.0

    def __post_init__(self) -> None:
        check_number("text_scale", self.text_scale, 0, low_allowed=False)

    def __call__(self, episodes: Episodes) -> Tensor:
        return text_logits(episodes, self.text_scale)
