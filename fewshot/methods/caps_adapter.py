"""CapS-Adapter: TIP-X whose keys are mixtures of the features of images and of their captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fewshot.core.checked import check_choice, check_number
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS
from fewshot.methods.tip_x import TipX
from fewshot.ops.distances import l2_normalise
from fewshot.ops.key_cache import KeyCache
from fewshot.ops.text import unit_texts

CAPTIONS = ("texts", "features")


@METHODS.register("caps_adapter")
@dataclass(frozen=True)
class CapSAdapter(TipX):
    """The votes of `tip_x` come from keys (1 - delta) x_i + delta c_i of the support, for unit features x_i of an image and
    c_i of its caption; keys are not made unit length again. The third term compares images alone. delta=0 is `tip_x`.

    delta        share of the captions; the official program searches 0, 0.1 .. 1 together with the grid of `tip_x`
    captions     "features": the second half of the features of each item is that of its caption, read by the model of
                 the texts (`fewshot join` puts two banks side by side, that with texts first); that of queries is not
                 read. "texts": the text of its class stands for the caption of an image, where there are no captions
    text_scale   0 is without any text, captions neither: `tip_adapter` without text
    variant      "official": that of `tip_x`, in blocks of 10 queries, and with p_x a softmax over the *channels* of the
                 features, so that the texts take no part in the comparison that they are there for

    The paper draws the support from a text-to-image model; here it is that of the episode. Other parameters: see `tip_x`.
    Raises FewshotError for features of captions that are not as long as those of images.
    """

    paper = "Wang et al. 2024 (CapS-Adapter), arXiv:2405.16591; WLuLi/CapS-Adapter"
    searched_grid = {**TipX.searched_grid, "delta": tuple(number / 10 for number in range(11))}
    block: ClassVar[int] = 10

    delta: float = 0.5
    captions: str = "texts"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "delta", check_number("delta", self.delta, 0, 1))
        check_choice(CAPTIONS, captions=self.captions)
        if self.captions == "features":
            object.__setattr__(self, "text_of_features", False)

    def shared(self, episodes: Episodes) -> tuple[KeyCache, Tensor]:
        images, captions = self._captioned(episodes)
        keys = l2_normalise(images.support)
        if self.text_scale > 0:
            keys = keys.lerp(captions, self.delta)
        return self.with_keys(images, keys)

    def scores(self, points: Tensor, texts: Tensor) -> Tensor:
        return points if self.variant == "official" else super().scores(points, texts)

    def _captioned(self, episodes: Episodes) -> tuple[Episodes, Tensor]:
        """The episodes with the features of images alone, and the captions of the support [E, S, D], unit length."""
        texts = unit_texts(episodes)
        dim, channels = texts.shape[-1], episodes.support.shape[-1]
        if self.captions == "texts":
            return episodes, texts.take_along_dim(episodes.support_labels.unsqueeze(-1), dim=1)
        if channels != 2 * dim:
            raise FewshotError(f"features of {channels} channels beside texts of {dim}; captions='features' takes "
                               f"{2 * dim}, images and then captions: put the two side by side (`fewshot join`), or "
                               "take captions='texts'")
        return episodes.with_features(lambda x: x[..., :dim]), l2_normalise(episodes.support[..., dim:])
