from __future__ import annotations

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from tests.methods.agreement import check_soft

AGREEMENT = [("zero_shot", {}, "vlm_zero_shot")]


@pytest.mark.parametrize(("name", "params", "official"), AGREEMENT)
def test_agreement(oracles, name, params, official):
    check_soft(oracles, name, params, official)


def test_against_a_loop():
    e = random_episodes(with_text=True).replace(logit_scale=7.0, logit_bias=-2.0)
    logits = create_method("zero_shot", text_scale=0.5)(e)
    for i in range(len(e)):
        for q, query in enumerate(e.query[i]):
            for n, text in enumerate(e.text[i]):
                cosine = float(query @ text) / (float(query.norm()) * float(text.norm()))
                assert float(logits[i, q, n]) == pytest.approx(0.5 * (7 * cosine - 2), abs=1e-12)


def test_is_refused_without_texts_of_the_features():
    episodes = random_episodes()
    with pytest.raises(FewshotError, match=r"ZeroShot needs the texts of the classes.*--templates"):
        create_method("zero_shot")(episodes)
    with pytest.raises(FewshotError, match="features of 16 channels with texts of 7"):
        create_method("zero_shot")(episodes.replace(text=torch.ones(3, 5, 7, dtype=torch.float64)))
    with pytest.raises(FewshotError, match="text_scale"):
        create_method("zero_shot", text_scale=0.0)
