from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from tests.methods.agreement import check_soft
from tests.methods.trained_heads import fitted, uneven_episodes

AGREEMENT = [("prolip", {"steps": 30, "learning_rate": 1e-3}, "prolip")]


@pytest.mark.parametrize(("name", "params", "official"), AGREEMENT)
def test_agreement(oracles, name, params, official):
    check_soft(oracles, name, params, official)


def projected_episodes():
    """Features of 12 channels, texts of 6, and a projection of no particular form between them."""
    generator = torch.Generator().manual_seed(4)
    return uneven_episodes(text_dim=6).replace(projection=torch.randn(3, 13, 6, generator=generator, dtype=torch.float64))


def zero_shot(e):
    return create_method("zero_shot")(e.with_features(lambda x: x @ e.projection[:, :-1] + e.projection[:, -1:]))


def test_against_a_loop():
    e = projected_episodes()
    for penalty in (None, 0.3):
        settings = {"steps": 8, "learning_rate": 0.02, "epsilon": 1e-4}
        logits = create_method("prolip", penalty=penalty, text_scale=0.5, **settings)(e)
        for i in range(len(e)):
            start, bias = e.projection[i, :-1], e.projection[i, -1]

            def answer(x, matrix, i=i, bias=bias):
                return 0.5 * (20 * normalize(x @ matrix + bias, dim=-1) @ normalize(e.text[i], dim=-1).T - 3)

            def loss(matrix, i=i, answer=answer, start=start, penalty=penalty):
                weight = 5 / 14 if penalty is None else penalty  # 14 items of 5 classes
                moved = (matrix - start).square().sum()
                return cross_entropy(answer(e.support[i], matrix), e.support_labels[i]) + weight * moved

            torch.testing.assert_close(logits[i], answer(e.query[i], *fitted(loss, start, **settings)), atol=1e-9, rtol=0)


def test_it_starts_from_zero_shot_and_the_penalty_holds_it_there():
    e = projected_episodes()
    torch.testing.assert_close(create_method("prolip", steps=0)(e), zero_shot(e))
    settings = {"steps": 60, "learning_rate": 2e-2}
    free, held = (create_method("prolip", penalty=penalty, **settings)(e) - zero_shot(e) for penalty in (0.0, 1e6))
    assert held.abs().max() < 0.05 < 1 < free.abs().max()


def test_what_is_refused():
    e = projected_episodes()
    with pytest.raises(FewshotError, match="these episodes have none"):
        create_method("prolip")(e.replace(projection=None))
    with pytest.raises(FewshotError, match=r"features of 12 channels.*\[E, 13, D\]"):
        create_method("prolip")(e.replace(projection=e.projection[:, 1:]))
    for params, message in (({"penalty": -1.0}, "penalty"), ({"text_scale": 0.0}, "text_scale"), ({"steps": 1.5}, "steps")):
        with pytest.raises(FewshotError, match=message):
            create_method("prolip", **params)
