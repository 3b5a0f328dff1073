"""ProLIP: the projection into the space of the texts, trained on the support and held near where it was."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewshot.core.checked import check_number
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method
from fewshot.ops.head_training import Tensors, check_training, cross_entropy, differentiates, gradient_of, train
from fewshot.ops.prototypes import one_hot
from fewshot.ops.text import text_logits


@METHODS.register("prolip")
@dataclass(frozen=True, eq=False)
class ProLIP(Method):
    """Features x from before the model's projection (P_0, b) into the space of the texts;

        logits = text_scale (logit_scale cos(P x + b, text) + logit_bias),

    and P is trained on the support, from P_0 on, by CE + penalty |P - P_0|^2.
    No step is zero_shot on the projected features. The intercept b is not trained.

    penalty         weight of the squared distance, summed over all entries; None: 1 / shots, the mean over the classes
    text_scale      multiplies the logits, in training, too. 0 is refused: the texts are all there is to compare with
    steps, learning_rate, epsilon   of Adam on the whole support, the learning rate following half a cosine; as published

    Features keep their lengths, to which the intercept is relative. Deviation: step i of the official code takes the i-th
    of 300 augmented views of the support; here every step takes what the episode holds.
    """

    paper = "Fahes et al. 2024 (ProLIP), arXiv:2410.05270; astra-vision/ProLIP"
    needs_text = True
    text_of_features = False
    assumes = ("features from before the projection to the texts",)

    penalty: float | None = None
    text_scale: float = 1.0
    steps: int = 300
    learning_rate: float = 1e-5
    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        if self.penalty is not None:
            check_number("penalty", self.penalty, 0)
        check_number("text_scale", self.text_scale, 0, low_allowed=False)
        check_training(self.steps, self.learning_rate, epsilon=self.epsilon)

    @differentiates
    def __call__(self, episodes: Episodes) -> Tensor:
        support, query = episodes.support, episodes.query
        projection = _projection(episodes)
        start, intercept = projection[:, :-1], projection[:, -1:]
        targets = one_hot(episodes.support_labels, episodes.ways, support.dtype)
        penalty = episodes.ways / support.shape[1] if self.penalty is None else self.penalty

        def logits(matrix: Tensor, points: Tensor) -> Tensor:
            return text_logits(episodes.replace(query=points @ matrix + intercept), self.text_scale)

        def loss(values: Tensors) -> Tensor:
            moved = (values["matrix"] - start).square().sum((1, 2))
            return cross_entropy(logits(values["matrix"], support), targets) + penalty * moved

        values = train({"matrix": start}, gradient_of(loss), self.steps, self.learning_rate, epsilon=self.epsilon)
        return logits(values["matrix"], query)


def _projection(episodes: Episodes) -> Tensor:
    """[E, P + 1, D] in the dtype of the features, or FewshotError where there is none of their length."""
    expected = (len(episodes), episodes.query.shape[-1] + 1)
    if episodes.projection is None:
        raise FewshotError("prolip trains the model's projection into the space of its texts, and these episodes have none; "
                           "make a bank of features from before it (`fewshot embed ... --templates --backbone-option "
                           "pre_projection=True`, or texts=ClassTexts(..., projection=[P + 1, D]))")
    if episodes.projection.shape[:2] != expected:
        raise FewshotError(f"projection has shape {tuple(episodes.projection.shape)} for features of {expected[1] - 1} "
                           f"channels; prolip takes those from before the projection, with projection [E, {expected[1]}, D]")
    return episodes.projection.to(episodes.query.dtype)
