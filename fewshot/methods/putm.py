"""PUTM: prototypes moved by conditional transport whose plan is produced by a small network trained on each episode."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_at_least, check_choice, check_positive
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, IterativeMethod, Refinement
from fewshot.ops.adam import Adam
from fewshot.ops.distances import l2_normalise, squared_euclidean
from fewshot.ops.features import power_transform
from fewshot.ops.prototypes import one_hot, prototypes
from fewshot.ops.span import principal_coordinates, to_span
from fewshot.ops.transport import assumed_queries, query_marginals

VARIANTS = ("sane", "official")
HIDDEN = (128, 64)
SLOPE = 0.01  # of the leaky ReLU
OFFICIAL_TASKS = 1000
_BYTES = 10 << 20  # of a layer's inputs and outputs, for what is trained side by side: more would not stay in the caches
_MOST_BYTES = 1 << 28  # of those of an episode whose queries are not cut into blocks


@METHODS.register("putm")
@dataclass(frozen=True, eq=False)
class PUTM(IterativeMethod):
    """Features to a power, then unit length. A navigator network per episode maps (w_n - z_q)^2, elementwise, through
    layers of 128, 64 and 1 to a distance d_qn. Its softmax of -d over classes is the forward plan f, that over queries
    the backward plan b. `outer` times: `inner` Adam steps (betas 0.5 and 0.99) on the navigator minimise

        (1 - balance) [rho mean_q sum_n c f + (1 - rho) mean_n sum_q c b] + balance mean_n (sum_q m_qn - t_n)^2

    with c = |w - z|^2, m = rho f + (1 - rho) b and the target t; then the prototypes w move by `step_size` towards the
    means of support and f-weighted queries. logits = -d of the last of `inner` further steps. The navigator and Adam's
    state are kept between outer rounds, as in the official code, and f is the one before the last Adam step.

    step_size      "auto": 0.2 for 1 shot (support items / ways), 0.1 otherwise
    query_prior    "balanced", "unknown" or frequencies [N]; it sets the target and the defaults of:
    rho, balance   None for 1 and 0.001 (balanced or given frequencies), 0.5 and 0 ("unknown"; the paper's Dirichlet
                   protocol)
    seed           of the initial weights, which are the same for every episode: an episode's answer depends neither on
                   its batch mates nor on its place among them
    variant        "sane": t_n = rho Q prior_n + (1 - rho), what the sums are for the prior; Glorot normal weights; the
                   features are expressed in the principal axes of the episode's points, so that the order of the points
                   does not matter.
                   "official": t_n = 0.2 whatever Q and N; the axes of a QR factorisation of the points (support first);
                   weights of variance 2 / (outputs (inputs + 1000)), which is what Glorot's rule gives when applied to
                   the stacked weights of the 1000 tasks that the official program trains at once.

    Slow: 1530 training steps of a network per episode by default. Squared differences per axis are not rotation
    invariant: the axes are part of the method. The final bias of the network cancels in both plans and is left out.
    Work is done in float64 whatever the input: training amplifies rounding so much that in float32 probabilities would
    visibly depend on the size of the batch.
    """

    paper = "Tian et al. 2023, arXiv:2308.03047; RashLog/PUTM"

    power: float = 0.6
    outer: int = 50
    inner: int = 30
    learning_rate: float = 1e-3
    step_size: float | str = "auto"
    query_prior: str | Tensor | tuple[float, ...] = "balanced"
    rho: float | None = None
    balance: float | None = None
    seed: int = 0
    variant: str = "sane"

    @property
    def assumes(self) -> tuple[str, ...]:
        return assumed_queries(self.query_prior)

    def __post_init__(self) -> None:
        check_choice(VARIANTS, variant=self.variant)
        for name in ("rho", "balance"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise FewshotError(f"{name}={value}; it is a weight between 0 and 1")
        if self.step_size != "auto" and (isinstance(self.step_size, str) or not 0 < self.step_size <= 1):
            raise FewshotError(f"step_size={self.step_size!r}; it must lie in (0, 1], or be 'auto'")
        check_positive(power=self.power, learning_rate=self.learning_rate)
        check_at_least(0, outer=self.outer, seed=self.seed)
        check_at_least(1, inner=self.inner)

    @torch.no_grad()
    def refine(self, episodes: Episodes, history: bool = False) -> Refinement:
        one_shot = episodes.support.shape[1] <= episodes.ways
        step_size = (0.2 if one_shot else 0.1) if isinstance(self.step_size, str) else self.step_size
        dtype = episodes.query.dtype
        episodes = episodes.to(torch.float64).with_features(lambda x: power_transform(x, self.power))
        episodes = (to_span if self.variant == "official" else _to_principal_axes)(episodes)
        episodes = episodes.with_features(l2_normalise)
        queries, dim = episodes.query.shape[1:]
        of_query = episodes.query.element_size() * episodes.ways * (dim + 2 * sum(HIDDEN))
        size = max(1, _BYTES // (of_query * queries))
        block = queries if of_query * queries <= _MOST_BYTES else max(1, _BYTES // of_query)
        logits, means, traces = zip(*(self._move(episodes[i : i + size], step_size, block, history)
                                      for i in range(0, len(episodes), size)), strict=True)
        trace = [torch.cat(step) for step in zip(*traces, strict=True)]
        return Refinement.of_fixed_steps(torch.cat(logits).to(dtype), torch.cat(means), self.outer, trace or None,
                                         episodes if history else None)

    def _move(self, episodes: Episodes, step_size: float, block: int,
              history: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits, prototypes and with `history` those of every round, of episodes whose features are ready; `block` queries
        pass through the network at a time."""
        query = episodes.query
        labels = one_hot(episodes.support_labels, episodes.ways, query.dtype)
        support_sums, support_counts = labels.transpose(1, 2) @ episodes.support, labels.sum(1)
        rho, balance, target = self._balance(query, episodes.ways)
        means, trace = prototypes(episodes), []
        network = _Navigator(self._weights(query), block * episodes.ways, self.learning_rate)
        for _ in range(self.outer):
            forward = network.train(query, means, self.inner, rho, balance, target).softmax(-1)
            estimate = torch.baddbmm(support_sums, forward.transpose(1, 2), query)
            estimate /= (support_counts + forward.sum(1)).unsqueeze(-1)
            means = means + step_size * (estimate - means)
            if history:
                trace.append(means)
        return network.train(query, means, self.inner, rho, balance, target), means, trace

    def _balance(self, query: Tensor, ways: int) -> tuple[float, float, Tensor]:
        """rho, balance and the target column sums [E, 1, N]."""
        unknown = isinstance(self.query_prior, str) and self.query_prior == "unknown"
        rho = self.rho if self.rho is not None else 0.5 if unknown else 1.0
        balance = self.balance if self.balance is not None else 0.0 if unknown else 0.001
        sums = query_marginals("balanced" if unknown else self.query_prior, query.new_empty(*query.shape[:2], ways))
        target = torch.full_like(sums, 0.2) if self.variant == "official" else rho * sums + (1 - rho)
        return rho, balance, target.to(query.dtype).unsqueeze(1)

    def _weights(self, query: Tensor) -> list[Tensor]:
        """Initial parameters [E, ...]: weight, bias, weight, bias, weight."""
        generator = torch.Generator().manual_seed(self.seed)
        sizes, parameters = (query.shape[-1], *HIDDEN, 1), []
        for inputs, outputs in zip(sizes, sizes[1:], strict=False):
            spread = outputs * (inputs + OFFICIAL_TASKS) if self.variant == "official" else inputs + outputs
            weight = torch.randn(inputs, outputs, generator=generator, dtype=torch.float64) * (2 / spread) ** 0.5
            parameters += [weight, torch.zeros(1, outputs, dtype=torch.float64)]
        return [p.to(query).expand(len(query), *p.shape) for p in parameters[:-1]]


class _Navigator:
    """E three-layer networks trained side by side, with hand-written gradients.

    Every step writes into the same memory: fresh arrays of this size would have to be mapped anew each time. Where the
    queries of an episode take several blocks, a block passes through the network twice in a step: for the scores, all of
    which the objective needs, and for the gradients.
    """

    def __init__(self, parameters: list[Tensor], rows: int, learning_rate: float):
        """`rows` = q N, the inputs of each network for a block of q queries."""
        flat = torch.cat([p.flatten() for p in parameters])  # Adam takes all weights in one piece
        self.adam, self.gradient = Adam([flat], learning_rate, betas=(0.5, 0.99)), torch.empty_like(flat)
        self.parameters, self.gradients = (_views(each, parameters) for each in (flat, self.gradient))
        self.hidden, self.back = ([flat.new_empty(len(parameters[0]), rows, width) for width in HIDDEN] for _ in range(2))

    def train(self, query: Tensor, means: Tensor, steps: int, rho: float, balance: float, target: Tensor) -> Tensor:
        """Take `steps` Adam steps; returns the scores -d [E, Q, N] before the last one."""
        cost = squared_euclidean(query, means)  # [E, Q, N]
        size = self.hidden[0].shape[1] // means.shape[1]
        blocks = query.split(size, 1)
        x = _squared_differences(blocks[0], means)
        for _ in range(steps):
            scores = self._scores(x)
            if len(blocks) > 1:
                others = [self._scores(_squared_differences(block, means)) for block in blocks[1:]]
                scores = torch.cat([scores, *others], 1)
                self._scores(x)
            scores = scores.view_as(cost)
            out = _score_gradient(scores, cost, rho, balance, target).neg_().split(size, 1)
            self._gradient_of(x, out[0])
            for block, of_block in zip(blocks[1:], out[1:], strict=True):
                again = _squared_differences(block, means)
                self._scores(again)
                self._gradient_of(again, of_block, before=1)
            self.adam.step([self.gradient])
        return scores

    def _scores(self, x: Tensor) -> Tensor:
        """-d [E, qN, 1] of x [E, qN, D]; what the hidden layers put out is left in `hidden`."""
        weight1, bias1, weight2, bias2, weight3 = self.parameters
        hidden1, hidden2 = (hidden[:, : x.shape[1]] for hidden in self.hidden)
        torch.nn.functional.leaky_relu_(torch.baddbmm(bias1, x, weight1, out=hidden1), SLOPE)
        torch.nn.functional.leaky_relu_(torch.baddbmm(bias2, hidden1, weight2, out=hidden2), SLOPE)
        return (hidden2 @ weight3).neg_()

    def _gradient_of(self, x: Tensor, by_distance: Tensor, before: int = 0) -> None:
        """The gradient with respect to the parameters, from that with respect to the distances d [E, q, N] of x
        [E, qN, D], whose scores were the last to be computed; added to `before` times the gradient that is there."""
        _, _, weight2, _, weight3 = self.parameters
        by_weight1, by_bias1, by_weight2, by_bias2, by_weight3 = self.gradients
        hidden1, hidden2, back1, back2 = (values[:, : x.shape[1]] for values in (*self.hidden, *self.back))
        out = by_distance.flatten(1).unsqueeze(-1)  # [E, qN, 1]
        _through_relu(torch.mul(out, weight3.transpose(1, 2), out=back2), hidden2)
        _through_relu(torch.bmm(back2, weight2.transpose(1, 2), out=back1), hidden1)
        for by_weight, by_bias, inputs, back in ((by_weight1, by_bias1, x, back1), (by_weight2, by_bias2, hidden1, back2)):
            by_weight.baddbmm_(inputs.transpose(1, 2), back, beta=before)
            if before:
                by_bias += back.sum(1, keepdim=True)
            else:
                torch.sum(back, 1, keepdim=True, out=by_bias)
        by_weight3.baddbmm_(hidden2.transpose(1, 2), out, beta=before)


def _squared_differences(query: Tensor, means: Tensor) -> Tensor:
    """(z_q - w_n)^2 [E, QN, D], elementwise."""
    return (query.unsqueeze(2) - means.unsqueeze(1)).square_().flatten(1, 2)


def _views(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Pieces of `flat` in the shapes of `like`."""
    return [part.view_as(p) for part, p in zip(flat.split([p.numel() for p in like]), like, strict=True)]


def _through_relu(gradient: Tensor, hidden: Tensor) -> None:
    """Turn `gradient` after the leaky ReLU, whose output `hidden` has the sign of its input, into that before it."""
    torch.ops.aten.leaky_relu_backward(gradient, hidden, SLOPE, True, grad_input=gradient)


def _score_gradient(scores: Tensor, cost: Tensor, rho: float, balance: float, target: Tensor) -> Tensor:
    """Gradient of the objective with respect to the scores [E, Q, N]."""
    queries, ways = scores.shape[1:]
    forward, backward = scores.softmax(2), scores.softmax(1)
    excess = (rho * forward + (1 - rho) * backward).sum(1, keepdim=True) - target
    excess *= 2 * balance / ways
    by_forward = rho * (cost * ((1 - balance) / queries) + excess)
    by_backward = (1 - rho) * (cost * ((1 - balance) / ways) + excess)
    return (forward * (by_forward - (by_forward * forward).sum(2, keepdim=True))
            + backward * (by_backward - (by_backward * backward).sum(1, keepdim=True)))


def _to_principal_axes(episodes: Episodes) -> Episodes:
    points = principal_coordinates(torch.cat([episodes.support, episodes.query], dim=1))
    support, query = points.split([episodes.support.shape[1], episodes.query.shape[1]], dim=1)
    return Episodes.trusted(support=support, support_labels=episodes.support_labels, query=query, ways=episodes.ways)
