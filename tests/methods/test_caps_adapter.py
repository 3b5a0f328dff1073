from __future__ import annotations

import math

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from tests.methods.agreement import check_soft
from tests.methods.test_tip_adapter import uneven_episodes, unit

OFFICIAL = {"alpha": 2.595, "beta": 3.45, "gamma": 12.06, "delta": 0.3, "variant": "official"}
AGREEMENT = [("caps_adapter", OFFICIAL, "caps_adapter")]


@pytest.mark.parametrize(("name", "params", "official"), AGREEMENT)
def test_agreement(oracles, name, params, official):
    check_soft(oracles, name, params, official)


def captioned(e):
    """The episodes with features of captions, of no particular direction, behind those of the images."""
    return e.with_features(lambda x: torch.cat([x, x.sin().flip(-1)], -1))


@pytest.mark.parametrize("captions", ["texts", "features"])
def test_only_the_votes_of_tip_x_change(captions):
    e = uneven_episodes()
    given = captioned(e) if captions == "features" else e
    logits = create_method("caps_adapter", alpha=1.7, beta=2.5, gamma=0.8, delta=0.3, captions=captions)(given)
    others = create_method("tip_x", alpha=0.0, beta=2.5, gamma=0.8)(e)
    for i in range(len(e)):
        for q, query in enumerate(e.query[i]):
            expected = others[i, q].tolist()
            for item, label in enumerate(e.support_labels[i].tolist()):
                image = e.support[i, item]
                caption = e.text[i, label] if captions == "texts" else image.sin().flip(-1)
                key = 0.7 * unit(image) + 0.3 * unit(caption)
                expected[label] += 1.7 * math.exp(-2.5 * (1 - float(unit(query) @ key)))
            assert logits[i, q].tolist() == pytest.approx(expected, abs=1e-12)


def test_without_captions_it_is_tip_x():
    e = uneven_episodes()
    for captions, given in (("texts", e), ("features", captioned(e))):
        assert torch.equal(create_method("caps_adapter", delta=0.0, captions=captions)(given), create_method("tip_x")(e))


def test_of_captions_alone_the_images_do_not_vote():
    e = uneven_episodes()
    method = create_method("caps_adapter", delta=1.0, gamma=0.0)
    other = e.replace(support=e.support.flip(-1) + 1)
    assert torch.equal(method(e), method(other))


def test_without_texts_there_are_no_captions():
    e = uneven_episodes()
    without = create_method("tip_adapter", text_scale=0.0)(e)
    assert torch.equal(create_method("caps_adapter", text_scale=0.0)(e), without)
    assert torch.equal(create_method("caps_adapter", text_scale=0.0, captions="features")(captioned(e)), without)


def test_officially_texts_take_no_part_in_the_comparison_of_images():
    e = random_episodes(episodes=1, queries=20, with_text=True)
    method = create_method("caps_adapter", alpha=0.0, delta=0.0, text_scale=1e-9, variant="official")
    torch.testing.assert_close(method(e), method(e.replace(text=e.text.flip(1))), atol=1e-6, rtol=0)
    assert method.setting == "transductive" and create_method("caps_adapter").setting == "inductive"


@pytest.mark.parametrize(("params", "message"), [({"delta": 1.5}, "delta=1.5"), ({"captions": "images"}, "texts, features"),
                                                 ({"gamma": -1.0}, "gamma")])
def test_refuses_what_makes_no_sense(params, message):
    with pytest.raises(FewshotError, match=message):
        create_method("caps_adapter", **params)


def test_refuses_features_without_captions():
    with pytest.raises(FewshotError, match=r"features of 16 channels beside texts of 16; .* takes 32"):
        create_method("caps_adapter", captions="features")(random_episodes(with_text=True))
