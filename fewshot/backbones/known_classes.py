"""The classes that pre-trained weights know: their names, and the rows of the classifier that came with the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.backbones.base import Backbone
from fewshot.core.compiled import plain
from fewshot.core.errors import FewshotError
from fewshot.core.optional import needed


@dataclass(frozen=True, eq=False)
class KnownClasses:
    """A linear classifier on features: scores = features weight^T + bias.

    class_names   K; a name may be twice ("missile" and "sunglasses" of ImageNet)
    weight        [K, D]
    bias          [K]

    Raises FewshotError for other shapes.
    """

    class_names: Sequence[str]
    weight: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        known = len(self.class_names)
        if self.weight.ndim != 2 or len(self.weight) != known or self.bias.shape != (known,):
            raise FewshotError(f"a classifier of shape {tuple(self.weight.shape)} and bias {tuple(self.bias.shape)} for "
                               f"{known} class names; give every class one row")

    def scores(self, features: Tensor) -> Tensor:
        """[M, D] -> [M, K], in the dtype of the features; their softmax is the probabilities of the classes."""
        return torch.nn.functional.linear(features, self.weight.to(features.dtype), self.bias.to(features.dtype))


def known_classes(backbone: Backbone) -> KnownClasses:
    """Of `backbone`, on the CPU. Raises FewshotError where its weights came without a classifier, where that is not a linear
    map of the features, and where the names of the classes are not known."""
    network, classifier = plain(backbone), None
    if isinstance(network, Backbone) and network.reduce is None:
        classifier = network.classifier()
    if classifier is None:
        raise FewshotError(f"{getattr(network, 'name', type(network).__name__)} has no text tower and brings no classifier "
                           "of known classes, by which names could be matched to its features; choose efficientnet_lite0 "
                           "with its ImageNet weights and without reduce, a model of timm with weights='pretrained', or "
                           "open_clip/<model>; or give the classifier as known=KnownClasses(...)")
    weight, bias = classifier
    if weight.shape[1] != network.feature_dim:
        raise FewshotError(f"the classifier of {network.name} takes {weight.shape[1]} features, and it makes "
                           f"{network.feature_dim}; choose another model, or leave out the option that changes them")
    if len(weight) != 1000:
        raise FewshotError(f"the classifier of {network.name} knows {len(weight):,} classes, and only the names of the "
                           "1,000 of ImageNet-1k are known here; choose a model trained on these, or give the names with "
                           "the classifier as known=KnownClasses(...)")
    return KnownClasses(imagenet_names(), weight, bias)


def imagenet_names() -> tuple[str, ...]:
    """What the 1,000 classes of ImageNet-1k are called, in their usual order: as corrected for CLIP, listed by open_clip."""
    return tuple(needed("open_clip", "the names of ImageNet's classes", "text").IMAGENET_CLASSNAMES)
