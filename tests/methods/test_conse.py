from __future__ import annotations

import math

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods import create_method

KNOWN, SPACE = 16, 6


def with_projection(bias: float = 0.3) -> Episodes:
    """Scores of 16 known classes, whose vectors, plus a bias, lie in the space of the texts."""
    draw = torch.Generator().manual_seed(1)
    episodes = random_episodes(dim=KNOWN)
    projection = torch.randn(3, KNOWN + 1, SPACE, generator=draw, dtype=torch.float64)
    projection[:, -1] *= bias
    return episodes.replace(text=torch.randn(3, 5, SPACE, generator=draw, dtype=torch.float64), projection=projection,
                            logit_scale=7.0)


@pytest.mark.parametrize(("top", "temperature"), [(None, 1.0), (3, 1.0), (16, 0.5), (1, 2.0)])
def test_against_a_loop(top, temperature):
    e = with_projection()
    logits = create_method("conse", top=top, temperature=temperature)(e)
    for i in range(len(e)):
        known = [e.projection[i, j] + e.projection[i, -1] for j in range(KNOWN)]
        for q, scores in enumerate(e.query[i].tolist()):
            kept = sorted(range(KNOWN), key=lambda j: -scores[j])[:top]
            weights = {j: math.exp(scores[j] / temperature) for j in kept}
            total = sum(weights.values())
            found = sum(weight / total * known[j] / known[j].norm() for j, weight in weights.items())
            for n in range(5):
                cosine = float(found @ e.text[i, n] / found.norm() / e.text[i, n].norm())
                assert float(logits[i, q, n]) == pytest.approx(7 * cosine, abs=1e-9)


def test_a_certain_image_is_its_known_class():
    """With all probability on one class the answer is the text nearest to its name."""
    e = with_projection()
    certain = e.replace(query=1000.0 * torch.eye(KNOWN, dtype=torch.float64).expand(3, -1, -1))
    names = e.projection[:, :-1] + e.projection[:, -1:]
    cosines = torch.nn.functional.cosine_similarity(names.unsqueeze(2), e.text.unsqueeze(1), dim=-1)
    torch.testing.assert_close(create_method("conse")(certain), 7 * cosines)


def test_refusals():
    e = with_projection()
    with pytest.raises(FewshotError, match=r"features of 16 channels, 9 known classes of 6 channels.*text-space scores"):
        create_method("conse")(e.replace(projection=e.projection[:, :10]))
    with pytest.raises(FewshotError, match="ConSE needs the texts"):
        create_method("conse")(random_episodes())
    for wrong in ({"temperature": 0.0}, {"top": 0}):
        with pytest.raises(FewshotError, match=next(iter(wrong))):
            create_method("conse", **wrong)
