"""Adaptation of any module: gradients against finite differences, layers of every kind, wrong input."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

import fewshot
from fewshot.core.errors import FewshotError
from fewshot.ops.adapt import conjugate_gradients


def mse(model, batch):
    x, y = batch
    return F.mse_loss(model(x), y)


def mlp(seed=0, outputs=2):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def batch(seed, *leading):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*leading, 6, size, generator=generator, dtype=torch.float64) for size in (3, 2))


def gradients(module, value):
    return torch.autograd.grad(value, list(module.parameters()), materialize_grads=True)


SUPPORT, QUERY = batch(1), batch(2)


# -- explicit gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_gradients_are_those_of_finite_differences(steps):
    """Of the query loss after adaptation, in the initial weights, the rates, and the support."""
    module = mlp()
    names = [name for name, _ in module.named_parameters()]

    def outer(x, *tensors):
        weights, rates = tensors[:4], tensors[4:]
        start = fewshot.Adapted(module, dict(zip(names, weights, strict=True)), {})
        model = fewshot.adapt(start, mse, (x, SUPPORT[1]), steps=steps, learning_rate=dict(zip(names, rates, strict=True)))
        return mse(model, QUERY)

    weights = [value.detach().requires_grad_() for value in module.parameters()]
    rates = [torch.full_like(value, 0.3).requires_grad_() for value in weights]
    assert torch.autograd.gradcheck(outer, (SUPPORT[0].clone().requires_grad_(), *weights, *rates))
    if steps == 1:
        assert torch.autograd.gradgradcheck(outer, (SUPPORT[0], *weights, *(rate.detach() for rate in rates)))


def test_first_order_takes_the_inner_gradients_as_constants():
    module, reference = mlp(), mlp()
    found = gradients(module, mse(fewshot.adapt(module, mse, SUPPORT, steps=2, learning_rate=0.3, first_order=True), QUERY))
    for _ in range(2):
        inner = gradients(reference, mse(reference, SUPPORT))
        with torch.no_grad():
            for value, gradient in zip(reference.parameters(), inner, strict=True):
                value -= 0.3 * gradient
    torch.testing.assert_close(found, gradients(reference, mse(reference, QUERY)), atol=1e-14, rtol=0)
    second = gradients(module, mse(fewshot.adapt(module, mse, SUPPORT, steps=2, learning_rate=0.3), QUERY))
    assert max((a - b).abs().max() for a, b in zip(found, second, strict=True)) > 1e-2


def test_on_a_quadratic_the_gradient_is_that_of_the_formula():
    """(I - rate H) dL_query(w'), H = A^T A."""
    module = nn.Linear(3, 1, bias=False).double()
    (x, _), (u, _) = SUPPORT, QUERY
    y, v = SUPPORT[1][:, :1], QUERY[1][:, :1]
    loss = lambda model, pair: (model(pair[0]) - pair[1]).square().sum() / 2  # noqa: E731
    found, = gradients(module, loss(fewshot.adapt(module, loss, (x, y), learning_rate=0.05), (u, v)))
    w = module.weight.detach().T
    moved = w - 0.05 * x.T @ (x @ w - y)
    expected = (torch.eye(3, dtype=torch.float64) - 0.05 * x.T @ x) @ (u.T @ (u @ moved - v))
    torch.testing.assert_close(found.T, expected, atol=1e-13, rtol=0)


def test_equals_maml_of_the_registry():
    """On a head over features, with cross-entropy."""
    from fewshot.methods import create_method

    torch.manual_seed(0)
    learner = create_method("maml", inner_lr=0.3, inner_steps=3).with_backbone(nn.Identity(), 2, feature_dim=3)
    learner = learner.double().train()
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    episodes = fewshot.Episodes(SUPPORT[0][None], labels[None], QUERY[0][None], 2)
    head = copy.deepcopy(learner.head)
    model = fewshot.adapt(head, lambda model, pair: F.cross_entropy(model(pair[0]), pair[1]), (SUPPORT[0], labels), steps=3,
                          learning_rate=0.3)
    torch.testing.assert_close(model(QUERY[0]), learner(episodes)[0], atol=1e-14, rtol=0)


# -- many tasks at once ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapt", [fewshot.adapt, fewshot.adapt_implicitly])
def test_tasks_at_once_are_those_one_after_the_other(adapt):
    module = mlp()
    support, query = batch(3, 4), batch(4, 4)
    settings = {"steps": 3, "learning_rate": 0.2}
    model = adapt(module, mse, support, batched=True, **settings)
    losses = model.each(mse, query)
    assert losses.shape == (4,) and model(query[0]).shape == (4, 6, 2)
    found = gradients(module, losses @ torch.arange(4.0, dtype=torch.float64))
    singles = [adapt(module, mse, tuple(part[i] for part in support), **settings) for i in range(4)]
    expected = [mse(single, tuple(part[i] for part in query)) for i, single in enumerate(singles)]
    torch.testing.assert_close(losses, torch.stack(expected), atol=1e-14, rtol=0)
    weighted = sum(i * value for i, value in enumerate(expected))
    torch.testing.assert_close(found, gradients(module, weighted), atol=1e-13, rtol=0)


def test_going_on_is_the_same_as_more_steps():
    module = mlp()
    for batched, support in ((False, SUPPORT), (True, batch(3, 4))):
        at_once = fewshot.adapt(module, mse, support, steps=3, learning_rate=0.2, batched=batched)
        model = fewshot.adapt(module, mse, support, learning_rate=0.2, batched=batched)
        for _ in range(2):
            model = fewshot.adapt(model, mse, support, learning_rate=0.2)
        assert all(torch.equal(model.weights[name], value) for name, value in at_once.weights.items())


# -- modules of every kind ---------------------------------------------------------------------------------------------


class Kinds(nn.Module):
    """Several inputs, tied weights, BatchNorm, a buffer that is replaced in every call, a frozen layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encode, self.norm, self.frozen = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3).requires_grad_(False)
        self.decode = nn.Linear(3, 3)
        self.decode.weight = self.encode.weight
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x, *, shift):
        self.calls = self.calls + 1
        return self.decode(torch.tanh(self.frozen(self.norm(self.encode(x + shift)))))


def shifted(model, batch):
    return F.mse_loss(model(batch["x"], shift=batch["shift"]), batch["x"])


@pytest.mark.parametrize("batched", [False, True])
def test_the_module_stays_as_it_was(batched):
    module = Kinds().double().train()
    before = copy.deepcopy(module.state_dict())
    x = batch(1, 2)[0] if batched else batch(1)[0]
    support = {"x": x, "shift": x.new_ones(2) if batched else x.new_ones(())}
    model = fewshot.adapt(module, shifted, support, steps=2, learning_rate=0.1, batched=batched)
    model.each(shifted, support).sum().backward()
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(value.grad is not None for value in module.parameters() if value.requires_grad)
    assert module.frozen.weight.grad is None and "frozen.weight" not in model.weights
    # Two steps and the query set, in the model's own buffers.
    assert (model.buffers["calls"] == 3).all() and (model.buffers["norm.num_batches_tracked"] == 3).all()
    assert (model.buffers["norm.running_mean"] != before["norm.running_mean"]).all()


def test_buffers_are_those_of_as_many_calls_of_the_module():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
    reference = copy.deepcopy(module)
    frozen = {"1.bias": 0.0}  # a step of size 0: all calls are those of the initial weights
    model = fewshot.adapt(module, lambda model, x: model(x).square().mean(), SUPPORT[0], steps=3, learning_rate=frozen)
    for _ in range(3):
        reference(SUPPORT[0])
    for name, value in reference.named_buffers():
        torch.testing.assert_close(model.buffers[name], value, atol=0, rtol=0)


def test_tied_parameters_stay_tied():
    """The gradient of a shared weight is that of both places."""
    module = Kinds().double().eval()
    x = SUPPORT[0]
    support = {"x": x, "shift": x.new_zeros(())}
    inner = torch.autograd.grad(shifted(module, support), module.encode.weight)[0]
    model = fewshot.adapt(module, shifted, support, learning_rate=0.1)
    assert "decode.weight" not in model.weights
    torch.testing.assert_close(model.weights["encode.weight"], module.encode.weight - 0.1 * inner, atol=1e-15, rtol=0)
    changed = copy.deepcopy(module)
    with torch.no_grad():
        for name, value in model.weights.items():
            changed.get_parameter(name).copy_(value)
    torch.testing.assert_close(model(x, shift=0.5), changed(x, shift=0.5), atol=1e-15, rtol=0)


@pytest.mark.parametrize("adapt", [fewshot.adapt, fewshot.adapt_implicitly])
def test_only_the_named_parameters_adapt(adapt):
    """The others are meta-learned all the same; frozen ones adapt where they are named."""
    module = mlp()
    module[0].requires_grad_(False)
    rates = {"0.bias": 0.1, "2.weight": 0.1}
    model = adapt(module, mse, SUPPORT, learning_rate=rates)
    assert set(model.weights) == set(rates) and not torch.equal(model.weights["0.bias"], module[0].bias)
    mse(model, QUERY).backward()
    assert module[2].bias.grad.abs().min() > 0 and module[0].bias.grad is None


def test_dropout_draws_anew_in_every_step_and_task():
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(200, 1))
    seen = []

    def loss(model, x):
        output = model[0](x) if isinstance(model, nn.Sequential) else model(x)
        return output.mean()

    model = fewshot.adapt(module, loss, torch.ones(3, 1, 200), learning_rate=1.0, batched=True)
    for weight in (module[1].weight - model.weights["1.weight"]).squeeze(1):  # the step is the mask of the task
        seen.append((weight != 0).float())
        assert 60 < seen[-1].sum() < 140
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def test_layers_that_write_their_buffers():
    """The power iteration of spectral norm goes on in the model; gradients can be taken after several calls."""
    module = nn.Sequential(spectral_norm(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 2)).double().train()
    names = [name for name, _ in module.named_buffers()]
    before = {name: module.get_buffer(name).clone() for name in names}
    model = fewshot.adapt(module, mse, SUPPORT, steps=2, learning_rate=0.1)
    (mse(model, QUERY) + mse(model, SUPPORT)).backward()
    assert names and all(torch.equal(module.get_buffer(name), before[name]) for name in names)
    assert any(not torch.equal(model.buffers[name], before[name]) for name in names)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("adapt", [fewshot.adapt, fewshot.adapt_implicitly])
def test_without_gradients_the_steps_are_taken_all_the_same(guard, adapt):
    module = mlp()
    expected = adapt(module, mse, SUPPORT, steps=2, learning_rate=0.1)
    with guard():
        model = adapt(module, mse, tuple(part.clone() for part in SUPPORT), steps=2, learning_rate=0.1)
    for name, value in model.weights.items():
        assert not value.requires_grad and torch.equal(value, expected.weights[name])


# -- implicit gradients ------------------------------------------------------------------------------------------------


def quadratic():
    """(module, loss, A, b): loss(w) = w^T A w / 2 - b^T w, on one weight of 4 numbers."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    matrix, offset = root @ root.T, torch.randn(4, generator=generator, dtype=torch.float64)
    module = nn.Linear(4, 1, bias=False).double()

    def loss(model, task):
        w = model(torch.eye(4, dtype=torch.float64)).squeeze(1)
        return w @ task[0] @ w / 2 - task[1] @ w

    return module, loss, matrix, offset


@pytest.mark.parametrize(("strength", "steps"), [(0.5, 900), (20.0, 60)])
def test_implicit_gradients_of_a_quadratic_are_exact(strength, steps):
    """w = (A + s I)^-1 (b + s w_0), dw/dw_0 = (I + A / s)^-1."""
    module, loss, matrix, offset = quadratic()
    rate = 1 / (torch.linalg.eigvalsh(matrix)[-1] + strength).item()
    model = fewshot.adapt_implicitly(module, loss, (matrix, offset), steps=steps, learning_rate=rate, strength=strength,
                                     conjugate_steps=4)
    initial, identity = module.weight.detach()[0], torch.eye(4, dtype=torch.float64)
    minimum = torch.linalg.solve(matrix + strength * identity, offset + strength * initial)
    torch.testing.assert_close(model.weights["weight"].detach()[0], minimum, atol=1e-10, rtol=0)
    outer = torch.arange(1.0, 5.0, dtype=torch.float64)
    found, = torch.autograd.grad(model.weights["weight"][0] @ outer, module.weight)
    torch.testing.assert_close(found[0], torch.linalg.solve(identity + matrix / strength, outer), atol=1e-10, rtol=0)


def test_implicit_gradients_are_those_of_finite_differences():
    """Of initial weights that adapt and of parameters that do not, for several tasks at once, each to its minimum."""
    module = mlp()
    support, query = batch(3, 2), batch(4, 2)
    rates = {"0.weight": 0.4, "0.bias": 0.4, "2.weight": 0.4}

    def outer(*tensors):
        with torch.no_grad():
            for value, tensor in zip(module.parameters(), tensors, strict=True):
                value.copy_(tensor)
        model = fewshot.adapt_implicitly(module, mse, support, steps=160, learning_rate=rates, strength=1.0,
                                         conjugate_steps=30, batched=True)
        return model.each(mse, query).mean()

    start = [value.detach().clone() for value in module.parameters()]
    found = gradients(module, outer(*start))
    for place, gradient in enumerate(found):
        ends = []
        for sign in (1, -1):
            moved = [value.clone() for value in start]
            moved[place].view(-1)[-1] += sign * 1e-5
            ends.append(outer(*moved).item())
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(gradient.flatten()[-1].item(), abs=1e-9)


def test_explicit_gradients_approach_the_implicit_ones():
    """Differentiating through more and more steps on the same objective."""
    module = mlp()
    anchor = {name: value for name, value in module.named_parameters()}

    def proximal(model, pair):
        away = sum((model.weights[name] - anchor[name]).square().sum() for name in anchor)
        return mse(model, pair) + away / 2

    model = fewshot.adapt_implicitly(module, mse, SUPPORT, steps=200, learning_rate=0.2, strength=1.0, conjugate_steps=30)
    implicit = gradients(module, mse(model, QUERY))
    errors = []
    for steps in (2, 8, 32, 128):
        explicit = gradients(module, mse(fewshot.adapt(module, proximal, SUPPORT, steps=steps, learning_rate=0.2), QUERY))
        errors.append(max((a - b).abs().max().item() for a, b in zip(explicit, implicit, strict=True)))
    assert errors[0] > 2 * errors[1] > 20 * errors[2] and errors[3] < 1e-7, errors


def test_conjugate_gradients_solve_each_system_by_itself():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, 5, 5, generator=generator, dtype=torch.float64)
    matrix, wanted = root @ root.mT + torch.eye(5, dtype=torch.float64), torch.randn(3, 5, generator=generator).double()
    matrix[1] = torch.eye(5)  # solved before the first step
    wanted[2] = 0
    product = lambda x: (matrix @ x.unsqueeze(-1)).squeeze(-1)  # noqa: E731
    found = conjugate_gradients(product, wanted, 20)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, wanted), atol=1e-10, rtol=0)
    alone = conjugate_gradients(lambda x: x @ matrix[0], wanted[:1], 20)
    torch.testing.assert_close(found[:1], alone, atol=1e-12, rtol=0)
    torch.testing.assert_close(conjugate_gradients(product, wanted, 0), wanted, atol=0, rtol=0)
    negative = conjugate_gradients(lambda x: -x, wanted, 5)
    assert torch.equal(negative, wanted), "no step along negative curvature"


# -- wrong input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "message"), [
    ({"steps": -1}, "steps=-1; expected an integer of at least 0"),
    ({"learning_rate": float("nan")}, "learning_rate of 0.weight=nan"),
    ({"learning_rate": {"0.wieght": 0.1}}, "did you mean '0.weight'"),
    ({"learning_rate": {"0.bias": torch.ones(3)}}, r"shape \(3,\), the parameter \(4,\)"),
    ({"learning_rate": {}}, "no parameter of Sequential adapts"),
    ({"batched": True, "support": (torch.ones(2, 6, 3), torch.ones(3, 6, 2))}, r"have \[2, 3\] rows"),
    ({"batched": True, "support": (torch.ones(2, 6, 3), object())}, "holds a object"),
    ({"loss": lambda model, pair: (model(pair[0]) - pair[1]).square()}, r"scalar tensor; got \(6, 2\)"),
    ({"loss": lambda model, pair: mse(model, pair).item()}, "scalar tensor; got float"),
    ({"loss": lambda model, pair: mse(mlp(), pair)}, "does not depend on the weights that adapt"),
    ({"loss": lambda model, pair: mse(model, pair).detach()}, "does not depend on the weights that adapt"),
    ({"module": mse}, "module is a function"),
])
def test_wrong_arguments(settings, message):
    arguments = {"module": mlp(), "loss": mse, "support": SUPPORT, **settings}
    with pytest.raises(FewshotError, match=message):
        fewshot.adapt(**arguments)


def test_wrong_arguments_of_the_implicit_form():
    module, free = mlp(), (SUPPORT[0].clone().requires_grad_(), SUPPORT[1])
    with pytest.raises(FewshotError, match="implicit gradients do not reach it"):
        fewshot.adapt_implicitly(module, mse, free)
    with pytest.raises(FewshotError, match="strength=0; expected a finite number above 0"):
        fewshot.adapt_implicitly(module, mse, SUPPORT, strength=0)
    with pytest.raises(FewshotError, match="starts from a module"):
        fewshot.adapt_implicitly(fewshot.adapt(module, mse, SUPPORT), mse, SUPPORT)


def test_other_tasks_than_before():
    model = fewshot.adapt(mlp(), mse, batch(3, 4), batched=True)
    with pytest.raises(FewshotError, match="a batch of 3 tasks for a model adapted to 4"):
        model.each(mse, batch(3, 3))
    with pytest.raises(FewshotError, match="a support of 3 tasks for a model adapted to 4"):
        fewshot.adapt(model, mse, batch(3, 3))


def test_layers_without_a_second_derivative_and_without_vmap():
    class Fading(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 0.5

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return g * 0.5

    class Fade(nn.Module):
        def forward(self, x):
            return Fading.apply(x)

    module = nn.Sequential(nn.Linear(3, 2), Fade()).double()
    with pytest.raises(FewshotError, match="no second derivative.*first_order=True"):
        fewshot.adapt(module, mse, SUPPORT)
    mse(fewshot.adapt(module, mse, SUPPORT, first_order=True), QUERY).backward()
    with pytest.raises(FewshotError, match="take one task after the other"):
        fewshot.adapt(module, mse, batch(3, 2), batched=True, first_order=True)
