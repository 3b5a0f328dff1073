"""Relation Networks: a small convolutional network learns how alike a query and a class are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.core.checked import check_at_least, check_choice
from fewshot.core.errors import FewshotError
from fewshot.core.seeding import isolated_rng
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method, feature_dim_of
from fewshot.ops.chunked import in_blocks
from fewshot.ops.descriptors import map_side
from fewshot.ops.prototypes import one_hot

LOSSES = ("mse", "cross_entropy")
_PADDED_BELOW = 10  # maps of smaller sides would not survive two unpadded blocks


class RelationModule(nn.Module, Method):
    """The relation module with its weights, made by `create_method("relation_net", ...).with_backbone(backbone, ways)`.

    Takes episodes of features, flattened maps [C, h, w]. Any number of ways.
    """

    def __init__(self, settings: RelationNet, feature_dim: int, seed: int):
        super().__init__()
        C, side = settings.channels, map_side(feature_dim, settings.channels)
        padding = int(side < _PADDED_BELOW)
        left = side
        for _ in range(2):
            left = (left - 2 + 2 * padding) // 2
        if left < 1:
            raise FewshotError(f"maps of {side}x{side} are too small for the two poolings of the relation module; use a "
                               "backbone with larger ones, e.g. conv4 with pools=2")
        self.settings, self.paper, self.side = settings, settings.paper, side
        with isolated_rng(seed):
            self.first = nn.Conv2d(2 * C, C, 3, padding=padding)
            self.rest = nn.Sequential(nn.BatchNorm2d(C), nn.ReLU(), nn.MaxPool2d(2),
                                      nn.Conv2d(C, C, 3, padding=padding), nn.BatchNorm2d(C), nn.ReLU(), nn.MaxPool2d(2),
                                      nn.Flatten(), nn.Linear(C * left * left, settings.hidden), nn.ReLU(),
                                      nn.Linear(settings.hidden, 1))
            for layer in self.modules():
                _initialise(layer)

    def forward(self, episodes: Episodes) -> Tensor:
        """Logits [E, Q, N], the scores before the sigmoid."""
        labels = one_hot(episodes.support_labels, episodes.ways, episodes.support.dtype)  # [E, S, N]
        classes = labels.transpose(1, 2) @ episodes.support  # [E, N, D]
        # The convolution of a concatenation is the sum of those of its halves: N + Q maps are convolved, not N Q.
        of_class, of_query = self.first.weight.chunk(2, dim=1)
        classes = self._convolved(classes, of_class, self.first.bias)  # [E, N, C, h, w]
        query = self._convolved(episodes.query, of_query, None)  # [E, Q, C, h, w]
        if self.training:  # BatchNorm has to see all pairs at once
            return self._compared(query, classes)
        return in_blocks(self._compared, query, classes, elements=classes[0].numel())

    def loss(self, episodes: Episodes, query_labels: Tensor) -> tuple[Tensor, Tensor]:
        """(mean loss, logits [E, Q, N]) for query labels [E, Q]."""
        logits = self(episodes)
        if self.settings.loss == "cross_entropy":
            return F.cross_entropy(logits.flatten(0, 1), query_labels.flatten()), logits
        return F.mse_loss(logits.sigmoid(), one_hot(query_labels, episodes.ways, logits.dtype)), logits

    def _convolved(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        maps = features.reshape(-1, self.settings.channels, self.side, self.side)
        return F.conv2d(maps, weight, bias, padding=self.first.padding).unflatten(0, features.shape[:2])

    def _compared(self, query: Tensor, classes: Tensor) -> Tensor:
        pairs = query.unsqueeze(2) + classes.unsqueeze(1)  # [E, Q, N, C, h, w]
        return self.rest(pairs.flatten(0, 2)).view(pairs.shape[:3])


@METHODS.register("relation_net")
@dataclass(frozen=True, eq=False)
class RelationNet(Method):
    """r[q, n] = sigmoid(g(concatenation of the sum of the maps of class n's support and the map of q)): eq. 1, with g two
    blocks [3x3 convolution, BatchNorm, ReLU, 2x2 max-pooling] of C channels and two linear layers (figure 2).

    These are the hyper-parameters; `with_backbone(backbone, ways)` makes the `RelationModule` that has the weights and is
    trained together with the backbone.

    channels   C of the maps [C, h, w] that are flattened into the features: D = C h w, h = w. The paper's encoder is
               `conv4` with pools=2
    hidden     outputs of the first linear layer
    loss       "mse": mean of (r - [y_q = n])^2, as in the paper (eq. 2); "cross_entropy": of the logits, over the classes

    The logits are the scores before the sigmoid: the same order, and softmax of them is the probability of each class given
    that exactly one of the relations holds. The maps of a class are summed, so evaluate with the shots of the training.

    Blocks are padded for maps below 10x10 (the official Omniglot network) and not above (that of mini-ImageNet), as in
    wyharveychen/CloserLookFewShot. Initial weights are the official ones: convolutions normal with variance
    2 / (9 outputs), linear layers normal with standard deviation 0.01 and bias 1.

    Deviations: the official code never leaves training mode, so that BatchNorm uses the other queries of a test episode.
    Here evaluation mode uses running statistics (momentum 0.1, there 1), which makes the method inductive; in training
    mode BatchNorm sees all pairs of the step. The official encoder has no padding in its first two blocks: 19x19 maps at
    84 pixels and 5x5 at 28, where `conv4` has 21x21 and 7x7.
    """

    needs_backbone = True
    paper = "Sung et al. 2018, arXiv:1711.06025; floodsung/LearningToCompare_FSL"

    channels: int = 64
    hidden: int = 8
    loss: str = "mse"

    def __post_init__(self) -> None:
        check_at_least(1, channels=self.channels, hidden=self.hidden)
        check_choice(LOSSES, loss=self.loss)

    def with_backbone(self, backbone: nn.Module, ways: int, *, feature_dim: int | None = None,
                      seed: int = 0) -> RelationModule:
        """The relation module for the maps of `backbone`, in evaluation mode, with weights drawn from `seed`; `ways` does
        not matter. Raises FewshotError where the features are no square maps, or too small ones."""
        weight = next(backbone.parameters(), torch.empty(0))
        return RelationModule(self, feature_dim_of(backbone, feature_dim), seed).to(weight.device, weight.dtype).eval()

    def __call__(self, episodes: Episodes) -> Tensor:
        raise self.without_network()


def _initialise(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.normal_(layer.weight, 0, math.sqrt(2 / (9 * layer.out_channels)))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    elif isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, 0, 0.01)
        nn.init.ones_(layer.bias)
