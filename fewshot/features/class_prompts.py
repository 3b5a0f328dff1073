"""From class names to texts: sentences by templates or from a file of descriptions, and a vector of each class."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewshot.core.errors import FewshotError
from fewshot.core.optional import needed
from fewshot.core.registry import unknown_message

if TYPE_CHECKING:
    from torch import Tensor

    from fewshot.backbones import Backbone
    from fewshot.data.class_texts import ClassTexts

HOLE = "{}"  # where the name of the class goes
# OpenAI's, as open_clip lists them: all 80 of the paper, and the 7 that their notebook found to do as well.
NAMED = {"imagenet": "OPENAI_IMAGENET_TEMPLATES", "imagenet7": "SIMPLE_IMAGENET_TEMPLATES"}

_NUMBER = re.compile(r"^(n\d{8}|\d+)[-_. ]+(?=\D)")  # of a synset, "n02085620-Chihuahua", or a place, "002.Laysan_Albatross"
_JOINED = re.compile(r"([A-Z][a-z]+){2,}")  # "AnnualCrop", and no name with a space or a mark in it

Prompts = tuple[tuple[str, ...], ...]


def class_texts(model: Backbone, class_names: Sequence[str], templates: str | Path | Sequence[str] | None = "imagenet",
                descriptions: str | Path | Mapping[str, Sequence[str]] | None = None,
                words: str | Path | Mapping[str, str] | None = None) -> ClassTexts:
    """The texts of classes, read by the text tower of `model`: of every class its sentences, their vectors made unit length,
    averaged, and made unit length again (Radford et al. 2021, section 3.1.4).

    model          a backbone with a text tower, see `encode_texts`
    class_names    one a label, as a bank has them
    templates      "imagenet", OpenAI's 80; "imagenet7", the 7 best of them; one template such as "a photo of a {}."; a file
                   with one a line; a list; or None, where there are descriptions
    descriptions   {class: [sentences]}, or a JSON file of that, which may know further classes; with templates both count
    words          what to call classes in the templates, see `class_words`

    What CLIP multiplies cosines by is kept with the vectors, and the projection of a model that was made with
    `pre_projection`. Raises FewshotError for names that are given twice, templates without {}, a class without description,
    and for features that are not in the space of the texts.
    """
    from fewshot.backbones.two_towers import TwoTowers, encode_texts
    from fewshot.core.compiled import plain
    from fewshot.data.class_texts import ClassTexts

    prompts, used = class_prompts(class_names, templates, descriptions, words)
    vectors, each = class_vectors(lambda sentences: encode_texts(model, sentences), prompts)
    towers = plain(model)
    assert isinstance(towers, TwoTowers), "encode_texts refuses others"
    if towers.reduce is not None:
        raise FewshotError(f"reduce={towers.reduce!r} makes features of a map, and the texts of {towers.name} are in "
                           "another space; leave reduce out, or take pre_projection=True")
    projection = towers.projection
    return ClassTexts(vectors, prompts, each, used, towers.name, towers.logit_scale, towers.logit_bias,
                      None if projection is None else projection.cpu())


def class_prompts(class_names: Sequence[str], templates: str | Path | Sequence[str] | None = "imagenet",
                  descriptions: str | Path | Mapping[str, Sequence[str]] | None = None,
                  words: str | Path | Mapping[str, str] | None = None) -> tuple[Prompts, tuple[str, ...]]:
    """(the sentences of every class, the templates that they were made by), as `class_texts` takes them."""
    names = class_words(class_names, words)
    for name, count in Counter(names).items():
        if not name:
            raise FewshotError("a class has no name; give every class one, or take texts from elsewhere")
        if count > 1:
            raise FewshotError(f"{count} classes are called {name!r}, and their texts would be equal; give them names that "
                               "tell them apart")
    if templates is None and descriptions is None:
        raise FewshotError("neither templates nor descriptions given; templates='imagenet' is the usual choice")
    used = () if templates is None else read_templates(templates)
    told = {} if descriptions is None else _read_descriptions(descriptions)
    if descriptions is not None and (missing := [name for name in class_names if name not in told]):
        first = unknown_message("class", missing[0], list(told)) if told else "no class has a description"
        raise FewshotError(f"{first}; {len(missing)} of {len(names)} classes are without descriptions: give each a list of "
                           "sentences")
    return tuple(tuple(template.replace(HOLE, name) for template in used) + told.get(given, ())
                 for given, name in zip(class_names, names, strict=True)), used


def class_words(class_names: Sequence[str], words: str | Path | Mapping[str, str] | None = None) -> tuple[str, ...]:
    """What each class is called in a sentence: what `words` says of it; else its name without a number in front, with "_"
    read as a space, and joined words apart: "002.Laysan_Albatross" is "Laysan Albatross", "AnnualCrop" is "annual crop".

    words   {class: its words}, or a JSON file of that, for names that this does not make right, as {"car_side": "side of a
            car"}; it may know further classes

    Raises FewshotError for a file that is not such, and for words that are empty.
    """
    told = {} if words is None else _read_words(words)
    return tuple(told[name] if name in told else _plain_words(name) for name in class_names)


def class_vectors(encode: Callable[[list[str]], Tensor], prompts: Prompts) -> tuple[Tensor, Tensor]:
    """(unit vectors [C, D] of the classes, unit vectors [P, D] of their sentences, class by class) in float32 on the CPU;
    `encode` takes sentences to vectors [n, D], and is called once, with each sentence once."""
    import torch
    from torch.nn import functional as F

    sentences = list(dict.fromkeys(sentence for of_class in prompts for sentence in of_class))
    at = {sentence: number for number, sentence in enumerate(sentences)}
    vectors = F.normalize(encode(sentences).to("cpu", torch.float32), dim=1)
    each = vectors[[at[sentence] for of_class in prompts for sentence in of_class]]
    means = torch.stack([part.mean(0) for part in each.split([len(of_class) for of_class in prompts])])
    if len(lost := (means.norm(dim=1) < 1e-6).nonzero()):
        raise FewshotError(f"the vectors of {prompts[int(lost[0])][0]!r} and of the other sentences of its class cancel "
                           "each other out; give the class other sentences")
    return F.normalize(means, dim=1), each


def read_templates(given: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Templates by name, from a file with one a line, a single one, or a list of them; raises FewshotError for one that is
    empty or has no {} for the class name."""
    if isinstance(given, str) and given in NAMED:
        library = needed("open_clip", f"templates={given!r}", "clip")
        return tuple(make(HOLE) for make in getattr(library, NAMED[given]))
    if isinstance(given, (str, Path)):
        if HOLE in str(given):
            return (str(given),)
        if not Path(given).is_file():
            raise FewshotError(f"templates={str(given)!r} is neither a file, nor one of {', '.join(NAMED)}, nor a template "
                               "with {} for the class name, such as 'a photo of a {}.'")
        found, where = _text_of(Path(given)).splitlines(), f"{given}, line"
    else:
        found, where = list(given), "template"
    if not found:
        raise FewshotError(f"{given or 'templates'} has no template; give one a line, such as 'a photo of a {{}}.'")
    for number, template in enumerate(found, 1):
        if not isinstance(template, str) or HOLE not in template:
            raise FewshotError(f"{where} {number}: {template!r} has no {{}} for the class name; write it as in "
                               "'a photo of a {}.'")
    return tuple(template.strip() for template in found)


def _plain_words(name: str) -> str:
    bare = _NUMBER.sub("", name)
    if _JOINED.fullmatch(bare):
        bare = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", bare).lower()
    return " ".join(bare.replace("_", " ").split())


def _read_words(given: str | Path | Mapping[str, str]) -> dict[str, str]:
    """Class -> what it is called."""
    where, found = _read_classes("words", given, '{"class": "its words", ...}')
    for name, words in found.items():
        if not isinstance(words, str) or not words.strip():
            raise FewshotError(f"{where}: class {name!r} has {str(words)[:60]!r}; give it words, or leave it out")
    return {name: " ".join(words.split()) for name, words in found.items()}


def _read_descriptions(given: str | Path | Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Class -> sentences."""
    where, found = _read_classes("descriptions", given, '{"class": ["a sentence", ...], ...}')
    return {name: _sentences(where, name, of_class) for name, of_class in found.items()}


def _read_classes(what: str, given: str | Path | Mapping[str, Any], expected: str) -> tuple[str, dict[str, Any]]:
    """(where it is from, class -> what it has there) of a dictionary or of a JSON file that holds one."""
    where, found = what, given
    if isinstance(given, (str, Path)):
        where = str(given)
        try:
            found = json.loads(_text_of(Path(given)))
        except (ValueError, RecursionError) as error:
            raise FewshotError(f"{given} is not JSON ({error}); expected {expected}") from None
    if not isinstance(found, Mapping):
        raise FewshotError(f"{where} holds a {type(found).__name__}; expected {expected}")
    return where, {str(name): each for name, each in found.items()}


def _sentences(where: str, name: object, given: Any) -> tuple[str, ...]:
    listed = isinstance(given, Iterable) and not isinstance(given, (str, Mapping))
    found = tuple(given) if listed else ()
    if not found or not all(isinstance(sentence, str) and sentence.strip() for sentence in found):
        raise FewshotError(f"{where}: class {name!r} has {str(given)[:60]!r}; give it a list of sentences, at least one and "
                           "none empty")
    return tuple(sentence.strip() for sentence in found)


def _text_of(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FewshotError(f"{path} cannot be read as text ({error}); it must be a file in UTF-8") from None
