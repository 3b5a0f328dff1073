"""What notebooks show of values: escaped, and without colours of its own."""

from __future__ import annotations

import re

import torch

import fewshot
from fewshot.core.html import Markup, html_table, picture
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.episodes.types import Episodes
from fewshot.evaluation.record import Record
from fewshot.evaluation.result import Result
from fewshot.evaluation.run import Run
from fewshot.labelling.answers import Answers
from fewshot.statistics import paired_difference

EVIL = "<script>alert('&')</script>"
IMAGES = torch.arange(4 * 3 * 8 * 8).reshape(4, 3, 8, 8).to(torch.uint8)


def test_all_but_markup_is_escaped():
    html = html_table(EVIL, [(EVIL, EVIL, Markup("<b>bold</b>"))], (EVIL,), [EVIL])
    assert "<script" not in html and html.count("&lt;script&gt;") == 5 and "<b>bold</b>" in html
    assert "<script" not in picture(IMAGES[0], 20, EVIL + '" onload="')


def shown():
    bank = ImageBank(IMAGES, [0, 0, 1, 1], (EVIL, "b"), name="folder", title=EVIL)
    answers = Answers((EVIL, "2.png"), (EVIL, "b"), torch.tensor([[0.7, 0.3], [0.4, 0.6]]), "inductive", EVIL, (EVIL,),
                      {EVIL: EVIL}, {}, bank, IMAGES[:2])
    correct = torch.tensor([0.2, 0.4, 0.9], dtype=torch.float64)
    record = Run(method="protonet", episodes=3).record(data="d" * 64, dataset="folder", weights="a" * 64)
    result = Result(record, correct, "f", 1.0, notes=(EVIL,), title=f"{EVIL}#3fa2c1")
    episodes = Episodes(IMAGES[None, ::2], torch.tensor([[0, 1]]), IMAGES[None], 2)
    features = FeatureBank(torch.zeros(2, 3), [EVIL, "b"], name=EVIL)
    return {"bank": bank, "answers": answers, "result": result, "episodes": episodes, "features": features,
            "comparison": paired_difference(correct, correct * 0.5)}


def test_values_show_themselves():
    html = {name: value._repr_html_() for name, value in shown().items()}
    for name, text in html.items():
        assert "<script" not in text and text.startswith("<table"), name
        assert not re.search("color|background|font", re.sub('src="[^"]*"', "", text)), name
    assert "50.00 ± 89.57 %, 95% interval over 3 episodes" in html["result"] and "#3fa2c1, split test" in html["result"]
    assert "weights aaaaaaaa<" in html["result"]
    assert html["episodes"].count("<img") == 2 + 4 and "1 episode of 2 classes" in html["episodes"]
    assert html["answers"].count("<img") == 2 and html["answers"].index("2.png") < html["answers"].index("70.0 %")
    assert "2 classes, 4 images, 2 each" in html["bank"] and "[3, 8, 8] uint8" in html["bank"]
    assert "25.00 ± 44.78 percentage points" in html["comparison"]


def test_of_many_images_and_episodes_a_few_are_shown():
    query = IMAGES[None].repeat(3, 5, 1, 1, 1)
    many = Episodes(IMAGES[None, ::2].repeat(3, 1, 1, 1, 1), torch.tensor([[0, 1]] * 3), query, 2)
    html = many._repr_html_()
    assert html.count("<img") == 2 + 15 and "and 5 more" in html and "3 episodes of 2 classes, the first one below" in html
    assert many.with_features(lambda x: x.flatten(2).float())._repr_html_().count("<img") == 0


def test_a_result_of_old_shows_the_name_of_its_data_set():
    found = fewshot.evaluate(Run(method="protonet", episodes=20, queries=5, ways=2), FeatureBank(
        torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) // 20, name="mine"))
    assert found.data_name == "mine" and "title" not in found.summary()
    assert isinstance(found.record, Record) and "mine, split all" in found._repr_html_()
