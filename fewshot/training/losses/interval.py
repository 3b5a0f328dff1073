"""What `ibp` and `ibi` share: one design for methods on features and for gradient-based learners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.core.checked import check_number, check_positive
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.bases.gradient_learner import GradientLearner
from fewshot.ops.intervals import IntervalNetwork, TwinNetwork, with_mix
from fewshot.training.losses.base import NetworkLoss
from fewshot.training.types import Moment

if TYPE_CHECKING:
    from fewshot.training.types import Trainable


@dataclass(frozen=True, eq=False)
class IntervalLoss(NetworkLoss):
    """Mean over episodes of sum_i w_i L_i, with L = (cross-entropy of the queries, mean squared distance of the query maps
    to their upper bounds, the same to their lower bounds) after the first blocks, and w = softmax(L / temperature) of the
    episode. As in the official code, gradients flow through w.

    epsilon        half the width of the interval around every input of the network, after its transform
    blocks         S, the blocks of the backbone that bounds go through
    temperature    gamma; small values leave the largest of the three parts
    bound_weight   None for the softmax; a number b for L_1 + b (L_2 + L_3)
    ramp           share of the training in which epsilon grows linearly from 0; 0.9 in the official code, 0 is off

    The official code has no defaults for the first three: those here are not tuned. Its pixels are in 0..1.

    Fits backbones that are a plain sequence of blocks (Conv-4), and two kinds of methods. One on features (`protonet`; not
    in the official code): support and query set of all episodes, and of the artificial one behind the blocks, go through
    the network together, as in any episodic training. A gradient-based learner (`maml` and those like it): the bounds are
    those of the weights adapted to the episode. There the bounds are a second pass, whose statistics are not recorded; with
    batch_norm="running" the artificial episode records its statistics after the others.

    Raises FewshotError for values out of range and for other backbones and methods: Reptile, which has no loss of the
    queries, and MAML with multi_step_episodes, which has several.
    """

    epsilon: float = 0.1
    blocks: int = 2
    temperature: float = 1.0
    bound_weight: float | None = None
    ramp: float = 0.9

    def __post_init__(self) -> None:
        check_positive(temperature=self.temperature)
        for name in ("epsilon", "bound_weight"):
            value = getattr(self, name)
            if value is not None:
                check_number(name, value, 0)
        check_number("ramp", self.ramp, 0, 1)

    def check(self, learner: Trainable) -> None:
        IntervalNetwork(learner.backbone, self.blocks, self.epsilon)
        method = learner.method
        adapts = getattr(method, "plain_loss", False)
        if not adapts and (hasattr(method, "loss") or method.inputs == "images"):
            name = type(getattr(method, "settings", method)).__name__
            raise FewshotError(f"{name} with these parameters has a loss of its own, which interval bounds do not fit; "
                               "choose protonet, or maml with multi_step_episodes=0")

    def of(self, learner: Trainable, episodes: Episodes, query_labels: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        images = episodes.with_features(learner.backbone.transform)
        ramp = min(1, moment.step / (self.ramp * moment.steps)) if self.ramp else 1
        run = _adapting if learner.method.inputs == "images" else _on_features
        parts, logits = run(learner, images, query_labels, self.blocks, self.epsilon * ramp,
                            *self._twin(moment, episodes.ways))
        if self.bound_weight is None:
            weights = (parts / self.temperature).softmax(1)
        else:
            weights = parts.new_tensor([1, self.bound_weight, self.bound_weight])
        return (weights * parts).sum(1).mean(), logits

    def _twin(self, moment: Moment, ways: int) -> tuple[int | None, Tensor | None]:
        """(position of the episode that gets an artificial twin, its mix of every class [N]); None without."""
        return None, None


def _on_features(learner: Trainable, e: Episodes, query_labels: Tensor, blocks: int, epsilon: float, chosen: int | None,
                 mix: Tensor | None) -> tuple[Tensor, Tensor]:
    """(cross-entropy and distances to the bounds [E, 3], logits [E, Q, N]) of a method on features."""
    network, shots = IntervalNetwork(learner.backbone, blocks, epsilon), e.support.shape[1]
    images = torch.cat([e.support, e.query], dim=1)  # [E, S + Q, C, H, W]
    labels = torch.cat([e.support_labels, query_labels], dim=1)
    with learner.autocast():
        found = network.bounds(learner.backbone.check(images.flatten(0, 1)))
        rows = torch.arange(labels.numel(), device=labels.device).view(labels.shape)
        distances = found[rows[:, shots:].flatten()].distances().view(len(e), -1, 2).mean(1)
        maps = found.nominal
        if chosen is not None and mix is not None:
            maps = torch.cat([maps, found[rows[chosen]].interpolate(mix.to(labels.device)[labels[chosen]])])
            labels = torch.cat([labels, labels[chosen : chosen + 1]])
        features = network.finish(maps)
    features = features.float() if features.dtype == torch.bfloat16 else features
    features = features.unflatten(0, labels.shape)  # [E (+ 1), S + Q, D]
    logits = learner.method(Episodes.trusted(support=features[:, :shots], support_labels=labels[:, :shots],
                                             query=features[:, shots:], ways=e.ways))
    task = _cross_entropies(logits, labels[:, shots:])
    if chosen is not None:
        both = (task[chosen] + task[-1]) / 2
        task = torch.cat([task[:chosen], both.view(1), task[chosen + 1 : -1]])
    return torch.cat([task.unsqueeze(1), distances.to(task)], dim=1), logits[: len(e)]


def _adapting(learner: Trainable, e: Episodes, query_labels: Tensor, blocks: int, epsilon: float, chosen: int | None,
              mix: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same of a gradient-based learner.

    The chosen episode runs with its labels doubled on a network that doubles its images: the mean cross-entropy over both
    halves is the mean of the two tasks' losses, in the inner loop and after it.
    """
    method, queries = learner.method, e.query.shape[1]
    assert isinstance(method, GradientLearner), "`check` takes no other on images"
    order = [i for i in range(len(e)) if i != chosen]
    parts = []
    with learner.autocast():
        if order:
            logits, weights = method.adapt(e[torch.tensor(order, device=query_labels.device)])
            parts.append((_cross_entropies(logits, query_labels[order]), logits, weights))
        if chosen is not None and mix is not None:
            mix, one = mix.to(query_labels.device), slice(chosen, chosen + 1)
            twins = Episodes.trusted(support=with_mix(e.support[one], mix[e.support_labels[one]]),
                                     support_labels=e.support_labels[one].repeat(1, 2), ways=e.ways,
                                     query=with_mix(e.query[one], mix[query_labels[one]]))
            logits, weights = method.on(TwinNetwork(learner.backbone, blocks, epsilon)).adapt(twins)
            parts.append((_cross_entropies(logits, query_labels[one].repeat(1, 2)), logits[:, :queries], weights))
            order.append(chosen)
        # Episodes back in their order.
        place = torch.tensor(order, device=query_labels.device).argsort()
        task, logits = torch.cat([part[0] for part in parts])[place], torch.cat([part[1] for part in parts])[place]
        weights = {name: torch.cat([part[2][name] for part in parts])[place] for name in parts[0][2]}
        distances = method.on(IntervalNetwork(learner.backbone, blocks, epsilon)).features(e.query, weights).mean(1)
    return torch.cat([task.unsqueeze(1), distances.to(task)], dim=1), logits


def _cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the queries of each episode [E]."""
    logits = logits if logits.dtype.itemsize > 2 else logits.float()
    return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)
