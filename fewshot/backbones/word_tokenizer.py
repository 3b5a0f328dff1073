"""A tokenizer of whole words, for text towers that were trained on few of them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

PAD, END, UNKNOWN = 0, 1, 2  # ids; those of the words follow
SPECIAL = 3  # how many they are


class WordTokenizer:
    """Sentences to tokens [n, length] int64: the words in lower case, an end, and padding.

    Words that are not known are one token; of sentences that are too long the end is cut off, and its token stays: it is
    what the text tower reads (`pool_type="eos"`).
    """

    def __init__(self, words: Sequence[str], length: int):
        self.ids = {word: number for number, word in enumerate(words, SPECIAL)}
        self.length = length

    def __call__(self, sentences: list[str]) -> Tensor:
        tokens = torch.full((len(sentences), self.length), PAD)
        for row, sentence in zip(tokens, sentences, strict=True):
            found = [self.ids.get(word, UNKNOWN) for word in words_of(sentence)][: self.length - 1]
            row[: len(found) + 1] = torch.tensor([*found, END])
        return tokens


def words_of(sentence: str) -> list[str]:
    return re.findall(r"[\w-]+", sentence.lower())
