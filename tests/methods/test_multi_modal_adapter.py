from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from fewshot.ops.heads import uniform


def initial(dim, hidden, seed):
    """The weights at the beginning."""
    shapes = {"image": (dim, hidden), "text": (dim, hidden), **dict.fromkeys(("query", "key", "value"), (hidden, hidden))}
    start = {name: uniform(shape, (6 / sum(shape)) ** 0.5, seed, name) for name, shape in shapes.items()}
    return start | {name: torch.zeros(hidden, dim, dtype=torch.float64) for name in ("to_image", "to_text")}


def test_against_masked_attention_over_all_tokens():
    """Image by image, with one matrix of attention among the image and all texts."""
    e = random_episodes(episodes=2, shots=3, queries=7, dim=12, with_text=True).replace(logit_scale=20.0, logit_bias=-3.0)
    e = e.replace(support=e.support[:, 1:], support_labels=e.support_labels[:, 1:])
    method = create_method("multi_modal_adapter", ratio=0.4, reduction=3, seed=2, text_scale=0.5, steps=6,
                           learning_rate=0.02, weight_decay=0.1)
    found = method(e)
    mask = torch.eye(6, dtype=torch.bool)
    mask[0] = mask[:, 0] = True  # the image is token 0
    for i in range(2):
        w = {name: value.clone().requires_grad_() for name, value in initial(12, 4, 2).items()}

        def answer(points, w=w, i=i):
            rows, texts = [], normalize(e.text[i], dim=-1)
            for f in normalize(points, dim=-1):
                tokens = torch.cat([(f @ w["image"])[None], texts @ w["text"]])
                scores = (tokens @ w["query"]) @ (tokens @ w["key"]).T / 4**0.5
                seen = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ (tokens @ w["value"])
                image = 0.4 * seen[0] @ w["to_image"] + 0.6 * f
                changed = 0.4 * seen[1:] @ w["to_text"] + 0.6 * texts
                rows.append(0.5 * (20 * normalize(changed, dim=-1) @ normalize(image, dim=0) - 3))
            return torch.stack(rows)

        optimiser = torch.optim.AdamW(w.values(), 0.02, eps=1e-4, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 6)
        for _ in range(6):
            optimiser.zero_grad()
            cross_entropy(answer(e.support[i]), e.support_labels[i]).backward()
            optimiser.step()
            schedule.step()
        torch.testing.assert_close(found[i], answer(e.query[i]).detach(), atol=1e-9, rtol=0)


def test_untrained_or_without_a_share_it_is_zero_shot():
    e = random_episodes(with_text=True).replace(logit_scale=9.0)
    for settings in ({"steps": 0}, {"ratio": 0.0, "steps": 3}):
        torch.testing.assert_close(create_method("multi_modal_adapter", **settings)(e), create_method("zero_shot")(e))


def test_new_classes_and_inference_mode():
    e = random_episodes(with_text=True).replace(logit_scale=9.0)
    method = create_method("multi_modal_adapter", steps=3)
    assert method.transfer(e, e.query[:, :4], e.text[:, :3]).shape == (3, 4, 3)
    with torch.inference_mode():
        torch.testing.assert_close(method.transfer(e, e.query, e.text), method(e))
    assert not torch.allclose(method(e), create_method("zero_shot")(e))


@pytest.mark.parametrize(("wrong", "says"), [
    ({"ratio": -0.1}, "ratio"), ({"reduction": 0}, "reduction"), ({"text_scale": 0.0}, "text_scale"),
    ({"steps": -1}, "steps"), ({"learning_rate": 0.0}, "learning_rate")])
def test_wrong_values(wrong, says):
    with pytest.raises(FewshotError, match=says):
        create_method("multi_modal_adapter", **wrong)
