"""Backbones with a text tower beside them: images and sentences in one space."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fewshot.backbones.base import Backbone
from fewshot.backbones.transform import ImageTransform
from fewshot.core.checked import check_at_least
from fewshot.core.compiled import plain
from fewshot.core.errors import FewshotError

_BATCH = 256  # sentences at a time


class TwoTowers(Backbone):
    """The image tower of a model of open_clip as a backbone. The model is held whole, so that one weights file, and its
    sha256, are of both towers.

    net              the model: `encode_image`, `encode_text`, `logit_scale`, `logit_bias` (None or a number), `visual`
    tokenizer        makes its tokenizer, of sentences to tokens [n, L]; called when sentences are first encoded
    pre_projection   features as they are before the last linear map of the image tower, `projection`, takes them into the
                     space of the texts; other maps than a linear one raise FewshotError

    Features are the vectors of the model, not of unit length. The last map (`reduce`) is that of the image tower.
    """

    own_input = True

    def __init__(self, net: nn.Module, tokenizer: Callable[[], Callable[[list[str]], Tensor]], transform: ImageTransform,
                 pre_projection: bool = False):
        super().__init__(0, transform)
        if not isinstance(pre_projection, bool):
            raise FewshotError(f"pre_projection={pre_projection!r}; it is True or False")
        self.net: Any = net.eval()  # they come in train mode
        self.pre_projection = pre_projection
        self._make_tokenizer = tokenizer
        self._tokenizer: Callable[[list[str]], Tensor] | None = None
        if pre_projection:
            _last_linear(self.net.visual)
        side = transform.size or 1
        with torch.no_grad():
            self.feature_dim = self._features(torch.zeros(1, transform.channels, side, side)).shape[1]

    @property
    def projection(self) -> Tensor | None:
        """[Dp + 1, D] from features of length Dp into the space of the texts, the last row added: of a backbone with
        `pre_projection`; else None, as its features are there already."""
        if not self.pre_projection:
            return None
        name, matrix, bias = _last_linear(self.net.visual)
        return torch.cat([matrix, matrix.new_zeros(1, matrix.shape[1]) if bias is None else bias[None]]).detach()

    @property
    def logit_scale(self) -> float:
        """What the model multiplies cosines by."""
        return float(self.net.logit_scale.detach().exp())

    @property
    def logit_bias(self) -> float:
        """What the model adds to scaled cosines: 0 but for models trained pair by pair, as SigLIP."""
        return 0.0 if self.net.logit_bias is None else float(self.net.logit_bias.detach())

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) if self.reduce is not None else self._features(self.check(images))  # [B, D]

    def spatial(self, x: Tensor) -> Tensor:
        visual = self.net.visual
        # The last norm of a tower that pools by attention comes after that, and does not fit its tokens.
        plain_pool = getattr(visual, "attn_pool", None) is None
        made = visual.forward_intermediates(x, indices=1, normalize_intermediates=plain_pool, intermediates_only=True)
        return made["image_intermediates"][-1]  # [B, C', h, w]

    def describe(self) -> dict:
        return {**super().describe(), "open_clip": importlib.metadata.version("open_clip_torch")}

    def tokens(self, sentences: list[str]) -> Tensor:
        """int64 [n, L], as the text tower takes them."""
        if self._tokenizer is None:
            self._tokenizer = self._make_tokenizer()
        return self._tokenizer(sentences)

    def _features(self, x: Tensor) -> Tensor:
        if not self.pre_projection:
            made = self.net.encode_image(x, normalize=False)
        else:  # the identity in place of the projection, whichever operator of the tower applies it
            name, matrix, bias = _last_linear(self.net.visual)
            instead = {name: torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)}
            if bias is not None:
                instead[name.replace("weight", "bias")] = matrix.new_zeros(len(matrix))
            made = functional_call(self.net.visual, instead, (x,))
        return made[0] if isinstance(made, tuple) else made  # CoCa's tower returns its tokens, too


def check_colour(name: str, channels: int) -> None:
    """Raise FewshotError for other images than open_clip's towers take."""
    if channels != 3:
        raise FewshotError(f"channels={channels} with {name}, whose image tower takes 3; keep channels=3: its transform "
                           "repeats greyscale images")


def _last_linear(visual: Any) -> tuple[str, Tensor, Tensor | None]:
    """(name of the weights, matrix [Dp, D], bias [D]) of the last map of an image tower: of a vision transformer, of a
    ResNet with attention pooling, or of a network of timm."""
    if isinstance(getattr(visual, "proj", None), nn.Parameter):
        return "proj", visual.proj, None
    for part, layer in (("attnpool", "c_proj"), ("head", "proj")):
        found = getattr(getattr(visual, part, None), layer, None)
        if isinstance(found, nn.Linear):
            return f"{part}.{layer}.weight", found.weight.T, found.bias
    raise FewshotError("pre_projection=True, but the image tower of this model does not end in a linear map; leave "
                       "pre_projection out, and features are its vectors in the space of the texts")


def encode_texts(model: Backbone, sentences: Sequence[str]) -> Tensor:
    """Unit vectors [n, D] float32 of sentences, in the space of the image features of `model`, on its device.

    model       a backbone with a text tower: "open_clip/..."; its `logit_scale` and `logit_bias` say what its
                cosines are multiplied by, and what is added
    sentences   one or more; what is longer than the model reads is cut by its tokenizer

    Runs in eval mode without gradients; the model is put back into its mode. Raises FewshotError for a backbone without a
    text tower, empty sentences, and where the vectors are not finite.
    """
    towers = plain(model)
    if not isinstance(towers, TwoTowers):
        raise FewshotError(f"{getattr(model, 'name', type(model).__name__)} has no text tower; choose a backbone that has "
                           "one: open_clip/<model>, such as open_clip/ViT-B-32:laion2b_s34b_b79k")
    if isinstance(sentences, str):
        raise FewshotError(f"sentences={sentences!r} is one text; pass a list of them")
    check_at_least(1, sentences=len(sentences))
    for at, sentence in enumerate(sentences):
        if not isinstance(sentence, str) or not sentence.strip():
            raise FewshotError(f"sentence {at} is {sentence!r}; each must be a text with words")
    device, training = next(towers.parameters()).device, towers.training
    towers.eval()
    try:
        with torch.no_grad():
            parts = [_vectors(towers, list(sentences[at : at + _BATCH]), device) for at in range(0, len(sentences), _BATCH)]
    finally:
        towers.train(training)
    vectors = torch.cat(parts)
    finite = vectors.isfinite().all(1)
    if not finite.all():
        raise FewshotError(f"the text tower of {towers.name} gives NaN or infinity for "
                           f"{sentences[int((~finite).nonzero()[0])]!r}; look at its weights")
    return vectors


def _vectors(towers: TwoTowers, sentences: list[str], device: torch.device) -> Tensor:
    tokens, known = towers.tokens(sentences), getattr(towers.net, "vocab_size", 0)
    if known and int(tokens.max()) >= known:  # the tokenizer of a configuration of one's own is CLIP's
        raise FewshotError(f"the tokenizer of {towers.name} makes token {int(tokens.max())}, and its text tower knows "
                           f"{known}; give the configuration the vocab_size of its tokenizer (49408 for CLIP's)")
    return F.normalize(towers.net.encode_text(tokens.to(device)).to(torch.float32), dim=1)
