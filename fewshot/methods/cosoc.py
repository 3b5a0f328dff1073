"""SOC, the test-time part of COSOC: classes and queries are compared by what their crops share."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_at_least, check_choice, check_positive
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method
from fewshot.ops.chunked import in_blocks
from fewshot.ops.distances import l2_normalise
from fewshot.ops.prototypes import one_hot

VARIANTS = ("paper", "official")
_CHOICES = 1 << 17  # combinations of crops that are tried for one class; 7 crops of 6 images are 117,649


@dataclass(frozen=True, eq=False)
class _Focus:
    vectors: Tensor  # [E, N, V, D]
    weights: Tensor  # [E, N, V]


@METHODS.register("cosoc")
@dataclass(frozen=True, eq=False)
class Cosoc(Method):
    """Takes V crops of every image, features [V, D] flattened, as `--crops "keep(7,flip=True)"` makes them. Each crop gets
    unit length.

    Support   a class of one image is described by its V crops. Of k images, V - 1 times: one crop of each is chosen so that
              the sum of their pairwise cosines is largest; their mean, of unit length, becomes a vector of the class, of
              weight alpha^r in round r; the chosen crops are removed. The mean of what is left is the last one.
    Query     logits[q, n] = scale * sum_r beta^r max(0, m_r), with m_r the largest entry of the cosines [V, V] (times the
              weights) between the class's vectors and the query's crops; its row and column are removed.

    crops     V
    variant   "paper", or "official" with two slips of the released code: the last vector of a class of several images is
              the one before it once more, of weight alpha^(V - 1), and the crops that are left are not used; and once the
              row and column of the first m are gone, only the diagonal of what remains is left to choose from
    scale     multiplies the scores; it changes probabilities, not predictions

    Choosing is exhaustive up to 131,072 combinations, V^k (7 crops: 6 shots). Beyond, each crop in turn is tried as a
    centre, with the nearest crop of every other image, and the best of these k V choices is taken: a deviation.

    Deviations: the official code normalises the maps over their channels before pooling, too; a feature bank holds pooled
    features. COS, the paper's training (contrastive pre-training, then sampling crops of the foreground), is not here: this
    is the classifier on any backbone's crops. Of a class with fewer shots than others nothing is made up.

    Raises FewshotError where the length of the features is no multiple of `crops`.
    """

    paper = "Luo et al. 2021, arXiv:2107.07746; Frankluox/LightningFSL architectures/classifier/SOC.py"

    crops: int = 7
    alpha: float = 1.0
    beta: float = 0.8
    scale: float = 1.0
    variant: str = "paper"

    def __post_init__(self) -> None:
        check_at_least(1, crops=self.crops)
        check_positive(alpha=self.alpha, beta=self.beta, scale=self.scale)
        check_choice(VARIANTS, variant=self.variant)

    def __call__(self, episodes: Episodes) -> Tensor:
        if episodes.query.shape[2] % self.crops:
            raise FewshotError(f"features of length {episodes.query.shape[2]} are not those of crops={self.crops}; embed "
                               f"with crops='keep({self.crops})', or give the number of crops that they have")
        support, query = (l2_normalise(x.unflatten(2, (self.crops, -1))) for x in (episodes.support, episodes.query))
        focus = self._focus(*_by_class(support, episodes))
        vectors = focus.vectors * focus.weights.unsqueeze(-1)  # before the maximum: a vector of less weight matches later
        size = episodes.ways * self.crops**2
        return self.scale * in_blocks(self._scores, query, vectors, elements=size)

    def _focus(self, images: Tensor, shots: Tensor) -> _Focus:
        """Of images [E, N, K, V, D], of which the first `shots` [E, N] are real and the others zero."""
        several = (shots > 1).unsqueeze(-1)
        left, weights = images, []
        vectors: list[Tensor] = []
        for number in range(self.crops):
            last = number == self.crops - 1
            if last and self.variant == "official" and number:
                vectors.append(torch.where(several, vectors[-1], left[:, :, :, 0].sum(2)))
            else:
                choice = _closest(left)  # [E, N, K]
                vectors.append(l2_normalise(_taken(left, choice).sum(2)))
                left = _without(left, choice)
            weights.append(1 + several[..., 0].to(images) * (self.alpha**number - 1))
        return _Focus(torch.stack(vectors, 2), torch.stack(weights, 2))

    def _scores(self, query: Tensor, vectors: Tensor) -> Tensor:
        """[E, Q, N] for crops [E, Q, V, D] of the queries and vectors [E, N, V, D] of the classes."""
        cosines = torch.einsum("eqvd,enwd->eqnwv", query, vectors).contiguous()  # each round reads it by query and class
        if self.variant == "official":
            return self._first_and_diagonal(cosines)
        total = torch.zeros_like(cosines[..., 0, 0])
        for number in range(self.crops):
            best, place = cosines.flatten(3).max(-1)  # [E, Q, N]
            total = total + self.beta**number * best.relu()
            if number == self.crops - 1:
                break
            row, column = (place // self.crops, place % self.crops)
            steps = torch.arange(self.crops, device=query.device)
            gone = (steps == row.unsqueeze(-1)).unsqueeze(-1) | (steps == column.unsqueeze(-1)).unsqueeze(-2)
            cosines.masked_fill_(gone, float("-inf"))
        return total

    def _first_and_diagonal(self, cosines: Tensor) -> Tensor:
        """[E, Q, N]: the largest of the cosines [E, Q, N, V, V], then the diagonal of those of other rows and columns."""
        best, place = cosines.flatten(3).max(-1, keepdim=True)  # [E, Q, N, 1]
        steps = torch.arange(self.crops - 1, device=cosines.device)
        row, column = (steps + (steps >= gone) for gone in (place // self.crops, place % self.crops))  # [E, Q, N, V - 1]
        rest = cosines.flatten(3).gather(3, row * self.crops + column).sort(dim=-1, descending=True).values
        weights = self.beta ** torch.arange(self.crops, device=cosines.device).to(cosines)
        return torch.cat([best, rest], dim=-1).relu() @ weights


def _by_class(support: Tensor, e: Episodes) -> tuple[Tensor, Tensor]:
    """Support [E, S, V, D] -> images of each class [E, N, K, V, D], filled up with zeros, and their numbers [E, N]."""
    shots = one_hot(e.support_labels, e.ways, torch.int64).sum(1)
    order = e.support_labels.argsort(dim=1, stable=True)
    place = torch.arange(int(shots.max()), device=order.device)
    rows = (shots.cumsum(1) - shots).unsqueeze(-1) + place  # [E, N, K]
    rows = order.gather(1, rows.clamp_max(order.shape[1] - 1).flatten(1))
    images = support.gather(1, rows[..., None, None].expand(-1, -1, *support.shape[2:])).unflatten(1, (e.ways, -1))
    return images * (place < shots.unsqueeze(-1))[..., None, None], shots


def _closest(images: Tensor) -> Tensor:
    """[E, N, K] one crop of each of the images [E, N, K, V, D], such that the sum of pairwise cosines is largest."""
    K, V = images.shape[2:4]
    if V**K > _CHOICES:
        return _closest_to_one(images)
    sums = images.new_zeros(*images.shape[:2], *[V] * K)
    for i in range(K):
        for j in range(i + 1, K):
            cosines = images[:, :, i] @ images[:, :, j].transpose(-1, -2)  # [E, N, V, V]
            sums = sums + cosines.view(*cosines.shape[:2], *(V if axis in (i, j) else 1 for axis in range(K)))
    best = sums.flatten(2).argmax(-1)
    return torch.stack([best // V**(K - 1 - i) % V for i in range(K)], -1)


def _closest_to_one(images: Tensor) -> Tensor:
    """As `_closest`, among the choices that take the nearest crop of every image to one of the crops."""
    K, V = images.shape[2:4]
    crops = images.flatten(2, 3)  # [E, N, K V, D]
    choices = (crops @ crops.transpose(-1, -2)).unflatten(-1, (K, V)).argmax(-1)  # [E, N, K V, K]
    chosen = [images[:, :, i].gather(2, choices[..., i, None].expand(-1, -1, -1, crops.shape[-1])) for i in range(K)]
    total = functools.reduce(torch.add, chosen)
    best = total.square().sum(-1).argmax(-1)  # pairwise cosines and the K constant ones of a crop with itself
    return choices.gather(2, best[..., None, None].expand(-1, -1, 1, K)).squeeze(2)


def _taken(images: Tensor, choice: Tensor) -> Tensor:
    """[E, N, K, D] crop choice [E, N, K] of images [E, N, K, V, D]."""
    return images.gather(3, choice[..., None, None].expand(*choice.shape, 1, images.shape[-1])).squeeze(3)


def _without(images: Tensor, choice: Tensor) -> Tensor:
    """The other crops [E, N, K, V - 1, D], in their order."""
    rest = torch.arange(images.shape[3] - 1, device=images.device)
    rest = rest + (rest >= choice.unsqueeze(-1))
    return images.gather(3, rest.unsqueeze(-1).expand(*rest.shape, images.shape[-1]))
