"""BaseTransformers, a reconstruction: support features are completed by attention over prototypes of base classes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewshot.core.checked import check_at_least, check_number, check_positive
from fewshot.core.errors import FewshotError
from fewshot.core.seeding import isolated_rng
from fewshot.data.banks import FeatureBank
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method, feature_dim_of, fitted
from fewshot.ops.descriptors import descriptors
from fewshot.ops.distances import squared_euclidean
from fewshot.ops.prototypes import prototypes


class BaseAttention(nn.Module, Method):
    """The attention with its weights and the prototypes of the base classes, which its weights file holds, too. Made by
    `create_method("base_transformer", ...).fit(base_bank).with_backbone(backbone, ways)`. Any number of ways.
    """

    base: Tensor

    def __init__(self, settings: BaseTransformer, feature_dim: int, seed: int):
        super().__init__()
        channels = settings.channels or feature_dim
        if feature_dim % channels or channels % settings.heads:
            raise FewshotError(f"channels={channels} with heads={settings.heads} and features of length {feature_dim}; "
                               "channels must divide the length, and heads the channels")
        # The prototypes travel as a tensor, not as a hyper-parameter.
        self.settings, self.paper, self.channels = dataclasses.replace(settings, base=None), settings.paper, channels
        self.register_buffer("base", torch.zeros(settings.base_classes, feature_dim) if settings.base is None
                             else settings.base.clone())
        with isolated_rng(seed):
            self.of_support, self.of_base, self.value = (nn.Linear(channels, channels, bias=False) for _ in range(3))
            self.out = nn.Linear(channels, channels)
            self.dropout = nn.Dropout(settings.dropout)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, episodes: Episodes) -> Tensor:
        """Logits [E, Q, N] of episodes of features."""
        if not len(self.base):
            raise FewshotError("base_transformer has no base classes: call .fit(base_bank) before .with_backbone(...), or "
                               "name the weights file of a trained one")
        completed = Episodes.trusted(support=self.complete(episodes), support_labels=episodes.support_labels,
                                     query=descriptors(episodes.query, self.channels).mean(2), ways=episodes.ways)
        return -squared_euclidean(completed.query, prototypes(completed)) / self.settings.temperature

    def complete(self, episodes: Episodes) -> Tensor:
        """Pooled support features [E, S, C] with the residual of the attention."""
        tokens = descriptors(episodes.support, self.channels)  # [E, S, P, C]
        base = descriptors(self.base.unsqueeze(0), self.channels)[0]  # [B, P, C]
        which = self._nearest(episodes, tokens.mean(2), base.mean(1))  # [E, S, k]
        keys, values = (self._heads(layer(base))[which].movedim(3, 2).flatten(3, 4) for layer in (self.of_base, self.value))
        asked = self._heads(self.of_support(tokens))  # [E, S, H, P, C / H]
        attention = (asked @ keys.transpose(-1, -2) / math.sqrt(keys.shape[-1])).softmax(-1)  # [E, S, H, P, k P]
        found = (attention @ values).movedim(2, 3).flatten(3)  # [E, S, P, C]
        return (tokens + self.dropout(self.out(found))).mean(2)

    def _heads(self, x: Tensor) -> Tensor:
        """[..., P, C] -> [..., H, P, C / H]"""
        return x.unflatten(-1, (self.settings.heads, -1)).movedim(-2, -3)

    @torch.no_grad()
    def _nearest(self, episodes: Episodes, support: Tensor, base: Tensor) -> Tensor:
        """[E, S, k] the base classes nearest to each support item; in training without those of the episode."""
        distances = squared_euclidean(support, base.expand(len(support), -1, -1))  # [E, S, B]
        if self.training:
            means = prototypes(Episodes.trusted(support=support, support_labels=episodes.support_labels, query=None,
                                                ways=episodes.ways))
            own = squared_euclidean(means, base.expand(len(support), -1, -1)).argmin(-1)  # [E, N]
            own = torch.zeros_like(distances[:, 0]).scatter(1, own, 1.0)  # [E, B]
            distances = distances.masked_fill(own.unsqueeze(1).bool(), float("inf"))
        return distances.topk(min(self.settings.neighbours, len(base)), largest=False).indices


@METHODS.register("base_transformer")
@dataclass(frozen=True, eq=False)
class BaseTransformer(Method):
    """A reconstruction of BaseTransformers; report no number of it as theirs. For each support item the nearest base classes
    are taken; multi-head attention asks with the item's descriptors, keys and values are the descriptors of those classes'
    mean maps; its output is added to the item's. Then the nearest class mean of pooled features: logits -|z - c|^2.

    channels       C of the maps [C, h, w] that are flattened into the features; None: features are one descriptor each
    neighbours     base classes that an item asks
    heads          of the attention; they divide C
    dropout        of its output, in training
    temperature    divides the logits
    base_classes   how many prototypes the weights hold; `fit` says so

    The output layer begins at zero, so that an untrained one answers like `protonet` on pooled features.

    These are hyper-parameters; train with `method.fit(features of the base classes).with_backbone(backbone, ways)` as
    `train(..., method=)`. The prototypes are those of that time and stay, as in the paper, which caches them; a weights file
    holds them.

    Deviations: base classes are chosen by distance of pooled features alone, not by semantic similarity. There is no layer
    normalisation after the residual and no contrastive loss, which the official code has. In training the official code
    leaves out the base classes that are the episode's own; an episode does not say which they are, and the nearest one to
    each class mean is left out for it.
    """

    needs_backbone = True
    paper = "Maniparambil, McGuinness, O'Connor 2022, arXiv:2210.02476; mayug/BaseTransformers (reconstruction)"

    channels: int | None = None
    neighbours: int = 5
    heads: int = 1
    dropout: float = 0.5
    temperature: float = 1.0
    base_classes: int = 0
    base: Tensor | None = fitted()

    def __post_init__(self) -> None:
        check_at_least(1, neighbours=self.neighbours, heads=self.heads)
        if self.channels is not None:
            check_at_least(1, channels=self.channels)
        check_at_least(0, base_classes=self.base_classes)
        check_positive(temperature=self.temperature)
        check_number("dropout", self.dropout, 0, 1, high_allowed=False)

    def fit(self, base_bank: FeatureBank) -> BaseTransformer:
        """A copy with the mean features of the base classes."""
        owner = torch.searchsorted(base_bank.classes, base_bank.labels)
        total = base_bank.features.new_zeros(len(base_bank.classes), base_bank.features.shape[1])
        means = total.index_add(0, owner, base_bank.features) / base_bank.class_sizes()[:, None]
        return dataclasses.replace(self, base=means, base_classes=len(means))

    def with_backbone(self, backbone: nn.Module, ways: int, *, feature_dim: int | None = None,
                      seed: int = 0) -> BaseAttention:
        """The module for the features of `backbone`, in evaluation mode, with weights drawn from `seed`; `ways` does not
        matter. Raises FewshotError where the settings do not suit the features."""
        weight = next(backbone.parameters(), torch.empty(0))
        dim = feature_dim_of(backbone, feature_dim)
        if self.base is not None and self.base.shape[1] != dim:
            raise FewshotError(f"base classes of {self.base.shape[1]} features for a backbone of {dim}; embed them with it")
        return BaseAttention(self, dim, seed).to(weight.device, weight.dtype).eval()

    def __call__(self, episodes: Episodes) -> Tensor:
        raise self.without_network()
