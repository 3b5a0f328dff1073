"""A small CLIP that reads the names of letters, trained here: images and texts in one space without a download."""

from __future__ import annotations

import functools
import unicodedata
from pathlib import Path

from fewshot.backbones.base import BACKBONES
from fewshot.backbones.transform import ImageTransform
from fewshot.backbones.two_towers import TwoTowers, check_colour
from fewshot.backbones.weights import load_weights
from fewshot.backbones.word_tokenizer import END, PAD, SPECIAL, WordTokenizer, words_of
from fewshot.core.errors import FewshotError
from fewshot.core.optional import needed
from fewshot.datasets.base import read_splits

WEIGHTS = Path(__file__).with_suffix(".safetensors")  # float16; experiments/glyph_clip.py trains them
_DIM, _SIDE, _LENGTH = 64, 64, 16
# Mean and deviation of the pixels of the letters that it was trained on.
_MEAN, _STD = 0.1, 0.27


@BACKBONES.register("glyph_clip")
class GlyphClip(TwoTowers):
    """CLIP's ResNet of one block a stage, 16 channels wide, and a text transformer of 2 layers, 64 wide: 1.5 million
    weights, D = 64. It reads 251 words, those of the names in the split train of `named_glyphs`; all others are one word.

    image_size       default 64, to which the images of 32 pixels are enlarged: marks of two pixels need them
    weights          "trained" (default): contrastively on the 854 base letters of `named_glyphs`, chosen on its validation
                     letters, by experiments/glyph_clip.py; or "random"
    pre_projection   features before the last linear map, see `TwoTowers`

    Source: Radford et al. 2021, arXiv:2103.00020, in the modules of mlfoundations/open_clip. Deviations: words instead of
    byte pairs, and the text is read at its end token wherever that has another id than the largest.
    """

    weights = ("trained", "random")
    at_defaults = _DIM, _SIDE
    smallest = 32

    def __init__(self, channels: int, image_size: int | None, *, weights: str = "trained", pre_projection: bool = False):
        check_colour("glyph_clip", channels)
        open_clip = needed("open_clip", "backbone glyph_clip", "clip")
        side = _SIDE if image_size is None else image_size
        if side % self.smallest:  # the tower halves its maps five times, and pools over what is left
            raise FewshotError(f"image_size={side} with glyph_clip; it takes multiples of 32, its trained weights {_SIDE}")
        net = open_clip.CLIP(
            _DIM, {"layers": [1, 1, 1, 1], "width": 16, "image_size": side},
            {"context_length": _LENGTH, "vocab_size": SPECIAL + len(known_words()), "width": 64, "heads": 4, "layers": 2,
             "pool_type": "eos", "eos_id": END, "pad_id": PAD})
        super().__init__(net, functools.partial(WordTokenizer, known_words(), _LENGTH),
                         ImageTransform(3, side, (_MEAN,), (_STD,)), pre_projection)
        if weights == "trained":
            load_weights(self, WEIGHTS)


def known_words() -> list[str]:
    """Those in the names of the letters to train on, sorted."""
    letters = read_splits("named_glyphs")["train"]
    return sorted({word for letter in letters for word in words_of(unicodedata.name(letter))})
