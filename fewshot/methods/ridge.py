"""Ridge regression to one-hot targets, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewshot.core.checked import check_choice
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, BaseMean, Method, fitted
from fewshot.ops.features import NORMS, normalise_episodes
from fewshot.ops.linear import fit_ridge
from fewshot.ops.point_classifier import PointClassifier, by_products


@METHODS.register("ridge")
@dataclass(frozen=True, eq=False)
class Ridge(BaseMean, Method):
    """logits = scale (W x + b) with W, b the ridge regression of the one-hot labels on the normalised support.

    regularisation  weight of |W|^2 against the summed squared error
    scale           multiplies the outputs, which lie around 0 and 1: it sets how sharp the probabilities are, not the
                    predictions
    intercept       fit b without penalty (centres features and targets)
    norm            "l2n" x/|x|, "cl2n" (needs `fit`), or "un" for features used as they are

    Deviations from R2-D2: regularisation and scale are constants instead of meta-learned scalars, features are
    L2-normalised, and there is an intercept. `norm="un", intercept=False` is the layer of the paper (eq. 6, solved in
    the dimension of the support, its Woodbury form). Differentiable, so it can be trained through.
    """

    paper = "Bertinetto et al. 2019, arXiv:1805.08136 (R2-D2), section 3.2"

    regularisation: float = 1.0
    scale: float = 10.0
    intercept: bool = True
    norm: str = "l2n"
    base_mean: Tensor | None = fitted()

    def __post_init__(self) -> None:
        if not self.regularisation > 0:
            raise FewshotError(f"regularisation={self.regularisation!r}; it must be positive, or the few "
                               "support points do not determine the weights")
        if not self.scale > 0:
            raise FewshotError(f"scale={self.scale!r}; it must be positive, or the ranking of the classes is lost")
        check_choice(NORMS, norm=self.norm)

    def __call__(self, episodes: Episodes) -> Tensor:
        e = normalise_episodes(episodes, self.norm, self.base_mean)
        return self.scale * fit_ridge(e.support, e.support_labels, e.ways, self.regularisation, self.intercept)(e.query)

    def point_classifier(self, episodes: Episodes) -> PointClassifier:
        e = normalise_episodes(episodes, self.norm, self.base_mean)
        fit = fit_ridge(e.support, e.support_labels, e.ways, self.regularisation, self.intercept)
        return by_products(fit, self.scale, self.norm, self.base_mean)
