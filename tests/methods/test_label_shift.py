from __future__ import annotations

import math

import pytest
import torch

from fewshot.contract.synthetic import noise_bank, random_episodes
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods import create_method


def frequencies_by_loop(p, steps, pseudo_count):
    """p: a list of lists, one query each."""
    ways = len(p[0])
    w = [1 / ways] * ways
    for _ in range(steps):
        new = [pseudo_count / (len(p) + ways * pseudo_count)] * ways
        for row in p:
            total = sum(w[n] * row[n] for n in range(ways))
            for n in range(ways):
                new[n] += w[n] * row[n] / total / (len(p) + ways * pseudo_count)
        w = new
    return w


@pytest.mark.parametrize("pseudo_count", [0.0, 0.7])
def test_against_a_loop(pseudo_count):
    e = random_episodes(episodes=2, ways=4, queries=9, spread=0.6)
    inner = create_method("protonet")(e) / 3
    found = create_method("label_shift", temperature=3.0, pseudo_count=pseudo_count, iterations=12, tolerance=0.0).refine(e)
    assert found.iterations.tolist() == [12, 12]
    for i in range(2):
        w = frequencies_by_loop(inner[i].softmax(-1).tolist(), 12, pseudo_count)
        expected = inner[i] + torch.tensor([math.log(4 * value) for value in w], dtype=torch.float64)
        torch.testing.assert_close(found.logits[i], expected, atol=1e-10, rtol=0)


def test_at_the_end_the_frequencies_are_the_mean_answer():
    """The condition of the maximum: what the answer says on average is what was assumed."""
    e = random_episodes(ways=3, queries=30, spread=0.6)
    found = create_method("label_shift", temperature=5.0, tolerance=1e-13, iterations=20000).refine(e)
    assert found.converged.all()
    inner = (create_method("protonet")(e) / 5).log_softmax(-1)
    assumed = (found.logits.log_softmax(-1) - inner)
    assumed = (assumed - assumed.logsumexp(-1, keepdim=True)).exp()  # w, the same for every query
    torch.testing.assert_close(assumed.mean(1), found.logits.softmax(-1).mean(1), atol=1e-9, rtol=0)


def gaussian_episodes(count, ways, queries, skewed, seed=0):
    """Classes N(centre, 1/2) whose one support item is the centre: softmax of minus squared distances, protonet's, is the
    posterior for equal frequencies. Frequencies are Dirichlet(1) or equal."""
    generator = torch.Generator().manual_seed(seed)
    centres = 0.9 * torch.randn(count, ways, 4, generator=generator, dtype=torch.float64)
    exponential = -torch.rand(count, ways, generator=generator, dtype=torch.float64).log()
    shares = exponential / exponential.sum(1, keepdim=True) if skewed else torch.full_like(exponential, 1 / ways)
    labels = torch.multinomial(shares, queries, replacement=True, generator=generator)
    noise = torch.randn(count, queries, 4, generator=generator, dtype=torch.float64) * 0.5**0.5
    query = centres.gather(1, labels.unsqueeze(-1).expand(-1, -1, 4)) + noise
    support_labels = torch.arange(ways).expand(count, -1).contiguous()
    return Episodes(support=centres, support_labels=support_labels, query=query, ways=ways), labels


@pytest.mark.parametrize("skewed", [True, False])
def test_what_it_brings_where_probabilities_are_right(skewed):
    """Skewed classes: more right answers. Equally frequent ones: fewer, and imagined queries save most of the loss."""
    e, labels = gaussian_episodes(400, 5, 75, skewed)
    methods = [create_method("label_shift"), create_method("label_shift", pseudo_count=15.0), create_method("protonet")]
    right = torch.stack([(method(e).argmax(-1) == labels).double().mean(1) for method in methods])
    gains = right[:2] - right[2]
    error = gains.std(1) / 400**0.5
    if skewed:
        assert (gains.mean(1) > 6 * error).all()
    else:
        assert gains[0].mean() < -4 * error[0]
        assert gains[1].mean() > gains[0].mean() / 3
    found = methods[0].refine(e)
    assert found.converged.double().mean() > 0.9


def test_of_a_method_with_base_statistics():
    e = random_episodes(dim=32)
    method = create_method("label_shift", method="simple_shot", parameters={"norm": "cl2n"})
    assert method.needs_base
    bank = noise_bank(32, split="train")
    fitted = method.fit(bank)
    inner = create_method("simple_shot", norm="cl2n").fit(bank)(e)
    torch.testing.assert_close(fitted(e) - inner, (fitted(e) - inner)[:, :1].expand_as(inner))
    assert not torch.allclose(inner, create_method("simple_shot", norm="l2n")(e))


def test_of_a_method_with_texts():
    e = random_episodes(with_text=True).replace(logit_scale=8.0)
    method = create_method("label_shift", method="zero_shot")
    assert method.needs_text
    assert not create_method("label_shift").needs_text
    torch.testing.assert_close(method.transfer(e, e.query, e.text), method(e))
    with pytest.raises(FewshotError, match="needs the texts of the classes"):
        method(random_episodes())


def test_a_class_without_queries_stays_finite():
    e = random_episodes(ways=2, queries=10, dtype=torch.float32)
    far = e.replace(query=e.support[:, :1].expand(-1, 10, -1) * 1.0, support=e.support * 30)
    assert create_method("label_shift")(far).isfinite().all()


@pytest.mark.parametrize(("wrong", "says"), [
    ({"temperature": 0.0}, "temperature"), ({"iterations": -1}, "iterations"), ({"tolerance": -1.0}, "tolerance"),
    ({"pseudo_count": -1.0}, "pseudo_count"),
    ({"method": "label_shift"}, "name the method whose"), ({"method": "maml"}, "such as protonet"),
    ({"method": "relation_net"}, "such as protonet"), ({"parameters": {"scales": 2}}, "scales")])
def test_wrong_values(wrong, says):
    with pytest.raises(FewshotError, match=says):
        create_method("label_shift", **wrong)
