"""APE: Tip-Adapter on the channels in which classes differ, with support items weighted by how well the texts know them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewshot.core.checked import check_at_least, check_choice, check_integer, check_positive
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.bases.grid import GridMethod, equal_steps
from fewshot.methods.contract import METHODS
from fewshot.methods.tip_adapter import reused_after_training, steps_for
from fewshot.ops.adam import Adam, cosine_rate
from fewshot.ops.distances import l2_normalise
from fewshot.ops.key_cache import KeyCache
from fewshot.ops.prototypes import class_sums, one_hot
from fewshot.ops.text import logit_scale, unit_texts

_TINY = 1e-6  # added to both sides of the divergence
_KEPT = 0.7  # of the channels: the median of the official settings
_EPSILON, _DECAY = 1e-3, 0.1  # of AdamW in the official program


@dataclass(frozen=True, eq=False)
class _Cache(KeyCache):
    """surprise [E, S]: log2 of 1 / probability of the class of each support item by the texts, None where weights are
    trained; weights [E, S] the trained ones."""

    surprise: Tensor | None = None
    weights: Tensor | None = None


@dataclass(frozen=True, eq=False)
class _Points:
    """Unit vectors [E, ., D] of an episode's items as the terms of the logits take them: `whole` for the texts, `keyed` for
    the keys and `chosen`, the chosen channels of `whole`."""

    whole: Tensor
    chosen: Tensor
    keyed: Tensor


@METHODS.register("ape")
@dataclass(frozen=True)
class APE(GridMethod):
    """Adaptive prior refinement: a cache on chosen channels, without training or with trained residuals (APE-T).

        logits_n = text_scale (scale cos(q, w_n) + bias)
                   + alpha sum over support i of class n of exp(-beta (1 - q' k'_i)) r_i,
        r_i = exp(gamma log2((1 + 1e-6) / (p_i + 1e-6))),   p_i = softmax over texts of cos(k'_i, w'_n), at n = label of i

    with ' for the chosen channels, brought to unit length. Chosen are those of the largest

        -weights[0] * mean product of the channel over pairs of different classes (support and texts alike)
        +weights[1] * its variance over the texts

    gamma=0 with all channels is `tip_adapter`.

    alpha, beta, gamma   the official initial values for ImageNet
    channels      how many; None is 0.7 D. The official settings for 1,024 are 400 to 800
    weights       of the criterion; the official settings go from (0.1, 0.9) to (0.9, 0.1)
    text_scale    weight of the texts; 0 leaves them out of all that is above: the criterion is that of the support, r_i = 1
    trained       train on the support by cross-entropy: a residual for each class on the chosen channels, added to its text
                  and its keys, and r_i (APE-T)
    steps         of AdamW, as for `tip_adapter`; train_alpha, train_beta, too. 0 is the form without training
    variant       "official": the trained form as in the program, which departs from the paper: channels chosen by the texts
                  alone, keys of all channels and r_i = 1 at the start

    Deviations: unequal shots (the mean over pairs is one over pairs of items); training as for `tip_adapter`: all items in
    each step and without other views, the last step instead of the best epoch on validation images.
    """

    paper = "Zhu et al. 2023 (APE), arXiv:2304.01195; yangyangyang127/APE"
    needs_text = True
    searched_grid = {"beta": equal_steps(0.1, 7, 200), "alpha": equal_steps(0.1, 7, 20), "gamma": equal_steps(0, 1, 20)}
    multipliers = ("alpha",)

    alpha: float = 2.0
    beta: float = 1.0
    gamma: float = 0.1
    channels: int | None = None
    weights: tuple = (0.5, 0.5)
    text_scale: float = 1.0
    trained: bool = False
    steps: int | None = None
    learning_rate: float = 1e-3
    train_alpha: float | None = None
    train_beta: float | None = None
    variant: str = "sane"

    def __post_init__(self) -> None:
        check_at_least(0, alpha=self.alpha, beta=self.beta, gamma=self.gamma, text_scale=self.text_scale, steps=self.steps,
                       train_alpha=self.train_alpha, train_beta=self.train_beta)
        check_positive(learning_rate=self.learning_rate)
        check_choice(("sane", "official"), variant=self.variant)
        if self.channels is not None:
            check_integer("channels", self.channels, 1)
        if len(self.weights) != 2 or min(self.weights) < 0:
            raise FewshotError(f"weights={self.weights!r}; give two numbers of at least 0, for differences between classes "
                               "and for the variance of the texts")

    @property
    def reused(self) -> tuple[str, ...]:
        of_gamma = () if self.trained else ("gamma",)
        return reused_after_training(self.trained, ("alpha", "beta"), self.train_alpha, self.train_beta) + of_gamma

    def shared(self, episodes: Episodes) -> _Cache:
        kept = self.chosen_channels(episodes)
        official = self.trained and self.variant == "official"
        support, query = (_points(x, kept, official) for x in (episodes.support, episodes.query))
        cache = KeyCache.of(episodes, support.keyed, query.keyed, self.text_scale)
        surprise = torch.zeros_like(support.whole[..., 0])
        if self.text_scale > 0 and not official:
            texts = l2_normalise(_at(unit_texts(episodes), kept))
            of_class = (support.keyed @ texts.transpose(1, 2)).softmax(-1)
            of_class = of_class.gather(2, episodes.support_labels.unsqueeze(-1)).squeeze(-1)
            surprise = ((1 + _TINY) / (of_class + _TINY)).log2()
        if not self.trained:
            return _Cache(cache.text, cache.distances, cache.labels, cache.ways, surprise)
        residual, weights = self._trained(episodes, support, (self.gamma * surprise).exp())
        return replace(_moved(cache, residual, query, self._texts_say(episodes), official), weights=weights)

    def parts(self, shared: _Cache) -> tuple[Tensor, Tensor]:
        weights = shared.weights if shared.surprise is None else (self.gamma * shared.surprise).exp()
        return shared.text, shared.votes(self.beta, weights)

    def chosen_channels(self, episodes: Episodes) -> Tensor:
        """Indices [E, channels] in the order of decreasing criterion."""
        texts, dim = unit_texts(episodes), episodes.support.shape[-1]
        count = max(1, round(_KEPT * dim)) if self.channels is None else self.channels
        if count > dim:
            raise FewshotError(f"channels={count} of features of {dim}; give at most {dim}")
        with_text = self.text_scale > 0
        if self.trained and self.variant == "official":
            sums, counts = texts, torch.ones_like(texts[..., 0])
        else:
            sums, counts = class_sums(l2_normalise(episodes.support), episodes.support_labels, episodes.ways)
            if with_text:
                sums, counts = sums + texts, counts + 1
        # The sum over pairs of different classes is that over all pairs less that within classes.
        pairs = counts.sum(1).square() - counts.square().sum(1)
        alike = (sums.sum(1).square() - sums.square().sum(1)) / pairs.unsqueeze(-1)
        criterion = -self.weights[0] * alike + self.weights[1] * with_text * texts.var(1)
        return criterion.topk(count, -1).indices

    def _texts_say(self, episodes: Episodes) -> float:
        """What inner products with texts are multiplied by."""
        return self.text_scale * logit_scale(episodes)

    @torch.no_grad()
    def _trained(self, episodes: Episodes, support: _Points, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(residuals [E, N, channels], weights [E, S]) by the gradient of the mean cross-entropy of the support, in closed
        form."""
        alpha = self.alpha if self.train_alpha is None else self.train_alpha
        beta = self.beta if self.train_beta is None else self.train_beta
        official, say, weights = self.variant == "official", self._texts_say(episodes), weights.clone()
        labels, ways, shots = episodes.support_labels, episodes.ways, weights.shape[1]
        start = KeyCache.of(episodes.replace(query=episodes.support), support.keyed, support.keyed, self.text_scale)
        wanted = one_hot(labels, ways, weights.dtype).transpose(1, 2)
        owner = labels.unsqueeze(-1).expand(-1, -1, shots)
        residual = weights.new_zeros(len(labels), ways, support.chosen.shape[-1])
        of_key = support.chosen if official else support.keyed
        steps = steps_for(self.steps, shots)
        adam = Adam([residual, weights], self.learning_rate, epsilon=_EPSILON, weight_decay=_DECAY)
        for step in range(steps):
            adam.learning_rate = cosine_rate(self.learning_rate, step, steps)
            now = _moved(start, residual, support, say, official)
            near = (now.distances * -beta).exp_()  # [E, keys, items]
            votes = class_sums(near * weights.unsqueeze(-1), labels, ways)[0]
            errors = ((now.text + alpha * votes).softmax(1) - wanted) / shots  # [E, N, items]
            of_weight = alpha * near * errors.gather(1, owner)
            of_residual = class_sums(beta * weights.unsqueeze(-1) * of_weight, labels, ways)[0]
            adam.step([say * errors @ support.chosen + of_residual @ of_key, of_weight.sum(-1)])
        return residual, weights


def _points(x: Tensor, kept: Tensor, official: bool) -> _Points:
    """Of features [E, ., D]."""
    whole = l2_normalise(x)
    chosen = _at(whole, kept)
    return _Points(whole, chosen, whole if official else l2_normalise(chosen))


def _at(x: Tensor, kept: Tensor) -> Tensor:
    """The channels [E, channels] of x [E, ., D]."""
    return x.take_along_dim(kept.unsqueeze(1), -1)


def _moved(cache: KeyCache, residual: Tensor, points: _Points, say: float, official: bool) -> _Cache:
    """`cache` for `points` with the residuals [E, N, channels] added to texts and keys."""
    by_text = residual @ points.chosen.transpose(1, 2)  # [E, N, items]
    by_key = by_text if official else residual @ points.keyed.transpose(1, 2)
    moved = by_key.take_along_dim(cache.labels.unsqueeze(-1), 1)  # [E, S, items]
    return _Cache(cache.text + say * by_text, cache.distances - moved, cache.labels, cache.ways)
