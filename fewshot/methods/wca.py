"""WCA: the sentences about a class count by how close each is to the class's name."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_number
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method
from fewshot.ops.distances import l2_normalise
from fewshot.ops.text import present_prompts, text_logits, unit_texts


@METHODS.register("wca")
@dataclass(frozen=True)
class WCA(Method):
    """Each query belongs to the class whose weighted description is nearest by cosine; the support is not looked at. With
    the unit vectors p_nm of the sentences (`episodes.prompts`) and t_n of the name (`episodes.text`) of class n

        w_n = sum_m a_nm p_nm,   a_n = softmax over m of sharpness cos(p_nm, t_n),   logits = those of `zero_shot` by w

    Features of crops that count by their likeness to the whole image, the other half of the paper, are made when images are
    embedded: `crops="weighted(60,smallest=0.25)"`. One sentence a class, and whole images: `zero_shot` by that sentence.

    The official program takes "a photo of a {}." for the name, and descriptions by a language model for the sentences.

    sharpness    of the weights of sentences, e^2 in the official program; 0 is their plain average
    text_scale   multiplies the logits; predictions do not change

    Deviations: crops have sides in ratios of 3/4 to 4/3 and up to the whole image, the program's are squares of 0.5 to 0.9
    of the shorter side; it draws 60 of its 100 crops again for each of 20 repetitions and reports their mean accuracy.
    """

    paper = "Li et al. 2024 (WCA), arXiv:2406.02915; tmlr-group/WCA"
    needs_text = True
    reads_prompts = True

    sharpness: float = math.e**2
    text_scale: float = 1.0

    def __post_init__(self) -> None:
        check_number("sharpness", self.sharpness, 0)
        check_number("text_scale", self.text_scale, 0, low_allowed=False)

    def __call__(self, episodes: Episodes) -> Tensor:
        prompts, present = present_prompts(episodes)  # [E, N, M, D], [E, N, M]
        prompts = l2_normalise(prompts)
        cosines = (prompts @ unit_texts(episodes).unsqueeze(-1)).squeeze(-1)
        weights = (self.sharpness * cosines).masked_fill(~present, -torch.inf).softmax(-1)
        described = l2_normalise((weights.unsqueeze(-2) @ prompts).squeeze(-2))
        return text_logits(episodes.replace(text=described), self.text_scale)
