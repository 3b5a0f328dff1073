"""The small CLIP that comes with the package, and its tokenizer."""

from __future__ import annotations

import importlib.util
import unicodedata

import pytest
import torch
from torch.nn import functional as F

from fewshot.backbones import create_backbone, save_weights
from fewshot.backbones.glyph_clip import WEIGHTS, known_words
from fewshot.backbones.seen import leak_notes
from fewshot.backbones.two_towers import encode_texts
from fewshot.backbones.weights import provenance_of
from fewshot.backbones.word_tokenizer import WordTokenizer
from fewshot.core.errors import FewshotError
from fewshot.datasets import load_dataset
from fewshot.datasets.base import read_splits
from tests.project.test_docs import ROOT


@pytest.fixture(scope="module")
def model():
    return create_backbone("glyph_clip")


@pytest.fixture(scope="module")
def letters(model):
    """Protocol -> (the vector of an image of each test class, their names)."""
    found = {}
    for protocol in ("compositions", "scripts"):
        bank = load_dataset("named_glyphs", protocol=protocol)
        first = bank.class_sizes().cumsum(0) - bank.class_sizes()
        with torch.no_grad():
            found[protocol] = F.normalize(model(model.transform(bank.images[first])), dim=1), list(bank.class_names)
    return found


def accuracy(model, features, texts):
    nearest = (features @ encode_texts(model, texts).T).argmax(1)
    return float((nearest == torch.arange(len(texts))).double().mean())


def test_words_become_tokens_with_their_end():
    tokenizer = WordTokenizer(["acute", "e", "oi-yo"], 5)
    assert tokenizer(["E  ACUTE", "e, Oi-Yo nothing", "e e e e e e", ""]).tolist() == [
        [4, 3, 1, 0, 0], [4, 5, 2, 1, 0], [4, 4, 4, 4, 1], [1, 0, 0, 0, 0]]


def test_every_word_is_read_up_to_the_last():
    """By default open_clip reads the token with the largest id, and what follows has no effect."""
    fresh = create_backbone("glyph_clip", weights="random")
    sentences = ["latin letter e with acute", "latin letter e with grave", "greek letter e with acute", "latin letter e"]
    assert torch.pdist(encode_texts(fresh, sentences)).min() > 1e-3
    fresh.net.encode_text(fresh.tokens(sentences[:1])).sum().backward()
    moved = fresh.net.token_embedding.weight.grad.abs().sum(1) > 0
    assert moved[fresh.tokens(sentences[:1])[0, :6]].all()
    beside = encode_texts(fresh, ["e", "a much longer one of words"])[:1]
    torch.testing.assert_close(encode_texts(fresh, ["e"]), beside, rtol=0, atol=1e-6)


def test_letters_are_known_by_names_never_seen(model, letters):
    """279 letters at once, one face; chance is 0.4 %. On letters whose words were never read it fails."""
    assert accuracy(model, *letters["compositions"]) > 0.75 and accuracy(model, *letters["scripts"]) < 0.05


def test_with_the_words_exchanged_it_is_chance(model, letters):
    (features, names), words = letters["compositions"], known_words()
    accuracies = []
    for seed in range(5):
        order = torch.randperm(len(words), generator=torch.Generator().manual_seed(seed)).tolist()
        other = {word: words[place] for word, place in zip(words, order, strict=True)}
        swapped = [" ".join(other[word] for word in name.lower().split()) for name in names]
        accuracies.append(accuracy(model, features, swapped))
    assert sum(accuracies) / 5 < 0.03


def test_what_it_has_seen_is_said(model):
    for dataset, split, said in (("named_glyphs", "train", "was trained on 854 of the 854 classes"),
                                 ("named_glyphs", "val", "was chosen by its accuracy on 141 of the 141 classes"),
                                 ("named_glyphs", "test", ""), ("named_glyphs", "scripts", ""),
                                 ("glyphs", "train", "of the 297 classes evaluated here"), ("glyphs", "test", "")):
        names = [unicodedata.name(letter) for letter in read_splits(dataset)[split]]
        notes = leak_notes("glyph_clip", model.seen, dataset, split, "", names)
        assert said in notes[0] if said else not notes


def test_the_weights_are_those_of_the_recipe(model):
    spec = importlib.util.spec_from_file_location("glyph_clip_recipe", ROOT / "experiments" / "glyph_clip.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    about = provenance_of(WEIGHTS)
    assert (about["steps"], about["batch"], about["learning_rate"], about["weight_decay"], about["warm_up"]) == \
        (recipe.STEPS, recipe.BATCH, recipe.RATE, recipe.DECAY, recipe.WARM_UP)
    assert WEIGHTS.stat().st_size < 4e6 and model.net.visual.conv1.weight.dtype == torch.float32


def test_images_and_files_that_fit_and_do_not(tmp_path, model):
    for keywords, message in (({"channels": 1}, "channels=1 with glyph_clip"), ({"image_size": 40}, "multiples of 32"),
                              ({"image_size": 96}, "positional_embedding"),
                              ({"nonsense": 1}, "unknown option of glyph_clip")):
        with pytest.raises(FewshotError, match=message):
            create_backbone("glyph_clip", **keywords)
    save_weights(model, tmp_path / "a.safetensors")
    again = create_backbone("glyph_clip", weights=tmp_path / "a.safetensors", pre_projection=True)
    x = model.transform(torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        torch.testing.assert_close(again(x) @ again.projection[:-1] + again.projection[-1], model(x), rtol=1e-4, atol=1e-4)
    assert again.weights_id == model.weights_id
