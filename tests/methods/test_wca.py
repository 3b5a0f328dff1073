from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from tests.methods.agreement import check_soft

AGREEMENT = [("wca", {}, "wca")]


@pytest.mark.parametrize(("name", "params", "official"), AGREEMENT)
def test_agreement(oracles, name, params, official):
    check_soft(oracles, name, params, official)


def test_against_a_loop_with_unequal_numbers_of_sentences():
    e = random_episodes(episodes=2, ways=3, with_text=True).replace(logit_scale=7.0)
    more = torch.cat([e.prompts, 2 * e.prompts.roll(1, -1)], 2)
    more[:, 1, 2:] = 0  # this class has two, the others four
    found = create_method("wca", sharpness=3.0, text_scale=0.5)(e.replace(prompts=more))
    for i in range(2):
        for n in range(3):
            name = e.text[i, n].numpy()
            sentences = [x / np.linalg.norm(x) for x in more[i, n].numpy() if x.any()]
            assert len(sentences) == (2 if n == 1 else 4)
            weights = [math.exp(3 * float(x @ name) / np.linalg.norm(name)) for x in sentences]
            vector = sum(weight * x for weight, x in zip(weights, sentences, strict=True))
            for q, query in enumerate(e.query[i].numpy()):
                cosine = float(query @ vector) / (np.linalg.norm(query) * np.linalg.norm(vector))
                assert float(found[i, q, n]) == pytest.approx(3.5 * cosine, abs=1e-10)


def test_one_sentence_is_zero_shot_and_no_sharpness_the_average():
    e = random_episodes(with_text=True)
    one = e.replace(prompts=e.prompts[:, :, :1])
    by_sentence = create_method("zero_shot")(e.replace(text=e.prompts[:, :, 0]))
    torch.testing.assert_close(create_method("wca")(one), by_sentence)
    by_mean = create_method("zero_shot")(e.replace(text=e.prompts.mean(2)))
    torch.testing.assert_close(create_method("wca", sharpness=0.0)(e), by_mean)


def test_classes_without_sentences_are_refused():
    e = random_episodes(with_text=True)
    with pytest.raises(FewshotError, match=r"no sentences about their classes; give prompts"):
        create_method("wca")(e.replace(prompts=None))
    gone = e.prompts.clone()
    gone[1, 2] = 0
    with pytest.raises(FewshotError, match="class 2 of episode 1 has no sentence"):
        create_method("wca")(e.replace(prompts=gone))


@pytest.mark.parametrize("wrong", [{"sharpness": -1.0}, {"text_scale": 0.0}])
def test_wrong_values(wrong):
    with pytest.raises(FewshotError, match=next(iter(wrong))):
        create_method("wca", **wrong)
