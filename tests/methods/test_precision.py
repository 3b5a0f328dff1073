"""Every method on features whose numbers are out of the ordinary: the answer is right to rounding, or a FewshotError.

The reference is the same method in float64. What rounding decides has no right answer: queries whose answer changes in
float64 when the features move by a few units of the last place of the precision worked in (ties, duplicates, rank 1 after
normalisation) are not compared.
"""

from __future__ import annotations

import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.data.precision import working_dtype
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.episodes.types import Episodes
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.run import Run
from fewshot.methods.contract import METHODS, create_method, method_parameters
from tests.methods.test_contract import QUICK as FEWER_STEPS  # of the same code: seconds a case instead of a minute

QUICK = {"protonet", "simple_shot", "matching_net", "ridge", "logistic_regression", "nearest_neighbour"}
TRAINED_ON_NOTHING = {"multi_modal_adapter"}
SLOW = {"putm"}  # minutes an episode, and in float64 throughout
NAMES = [name for name in METHODS if METHODS[name].inputs == "features" and name not in SLOW
         and not METHODS[name].needs_validation]


def drawn(ways=4, shots=2, queries=8, dim=16, seed=0, episodes=2):
    """support, labels, query, all non-negative."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(episodes, ways, dim, generator=generator, dtype=torch.float64)
    labels = torch.arange(ways).repeat_interleave(shots).expand(episodes, -1).contiguous()
    asked = (torch.arange(queries) % ways).expand(episodes, -1)

    def around(classes):
        noise = torch.randn(*classes.shape, dim, generator=generator, dtype=torch.float64)
        return (centres.gather(1, classes[..., None].expand(-1, -1, dim)) + noise).abs()

    return around(labels), labels, around(asked)


def scaled(factor):
    return lambda support, query, labels: (support * factor, query * factor)


def shifted(offset):
    return lambda support, query, labels: (support + offset, query + offset)


def far_class(distance, offset=0.0):
    return lambda support, query, labels: (support + offset + distance * (labels == 0).unsqueeze(-1), query + offset)


def of_rank(rank):
    def projected(support, query, labels):
        axes = torch.randn(support.shape[-1], rank, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return support @ axes @ axes.t(), query @ axes @ axes.t()

    return projected


def rows_times(support_factor, query_factor):
    def changed(support, query, labels):
        support, query = support.clone(), query.clone()
        support[:, 0] *= support_factor
        query[:, 1] *= query_factor
        return support, query

    return changed


def duplicates(support, query, labels):
    support, query = support.clone(), query.clone()
    support[:, 1], query[:, 3], query[:, 4] = support[:, 0], query[:, 2], support[:, 2]
    return support, query


CASES = {**{f"scale 1e{k}": scaled(10.0**k) for k in (-20, -12, -6, 0, 4, 6, 12, 19, 20)},
         **{f"offset 1e{k}": shifted(10.0**k) for k in (2, 3, 4, 5)},
         **{f"far class 1e{k}": far_class(10.0**k) for k in (3, 6, 12)},
         "far class and offset": far_class(1e6, 1e3), "zero rows": rows_times(0, 0), "a tiny row": rows_times(1e-22, 1e-22),
         "a huge row": rows_times(1, 1e18), "duplicates": duplicates, "rank 1": of_rank(1), "rank 2": of_rank(2)}


def settings(name):
    needed = {"dn4": {"channels": 4}, "cosoc": {"crops": 2}}.get(name, {})
    return [needed | {"norm": norm} for norm in ("l2n", "un")] if "norm" in method_parameters(name) else [needed]


def answered(name, parameters, support, labels, query):
    method = create_method(name, **{**FEWER_STEPS.get(name, {}), **parameters})
    if method.needs_backbone:
        pytest.skip("has weights of its own")
    if method.needs_base:
        _, _, features = drawn(ways=8, queries=80, episodes=1, seed=3)
        method = method.fit(FeatureBank(features[0].float(), torch.arange(80) % 8))
    ways = int(labels.max()) + 1
    with torch.no_grad():
        return method(Episodes(support=support, support_labels=labels, query=query, ways=ways,
                               **texts(method, ways, support)))


def texts(method, ways, support):
    """Texts of random directions, in numbers that every type holds; shorter ones where they need not be of the features."""
    if not method.needs_text:
        return {}
    dim = support.shape[-1] if method.text_of_features else support.shape[-1] // 2
    generator = torch.Generator().manual_seed(7)
    text = torch.randn(ways, dim, generator=generator).bfloat16().to(support.dtype).expand(len(support), -1, -1)
    if method.text_of_features:
        return {"text": text, "prompts": torch.stack([text, text.roll(1, -1)], 2)}
    projection = torch.eye(support.shape[-1] + 1, dim, dtype=support.dtype).expand(len(support), -1, -1)
    return {"text": text, "projection": projection}


def mistakes(name, parameters, change, dtype) -> tuple[float, int]:
    """(largest difference of a probability, number of other predictions) where float64 has an answer; 0 for an error."""
    support, labels, query = drawn()
    support, query = (x.to(dtype) for x in change(support, query, labels))
    if not (support.isfinite().all() and query.isfinite().all()):
        return 0.0, 0  # the type does not hold these features
    if name in TRAINED_ON_NOTHING and not support.any():
        return 0.0, 0  # of zeros there is nothing to learn, and Adam follows the signs of rounding errors
    working = Episodes(support=support, support_labels=labels, query=query, ways=4).working().query.dtype
    level = 1e-13 if working == torch.float64 else 4 * torch.finfo(working).eps
    try:
        found = answered(name, parameters, support, labels, query)
        wanted = answered(name, parameters, support.double(), labels, query.double())
    except FewshotError as error:
        assert any(word in str(error) for word in ("scale", "regularise", "float64")), error
        return 0.0, 0
    assert found.isfinite().all() and found.dtype == torch.float32
    p, settled = wanted.softmax(-1), torch.ones(found.shape[:2], dtype=torch.bool)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        moved = [x.double() * (1 + level * torch.randn(x.shape, generator=generator, dtype=torch.float64))
                 for x in (support, query)]
        try:
            other = answered(name, parameters, moved[0], labels, moved[1])
        except FewshotError:
            return 0.0, 0
        settled &= ((other.softmax(-1) - p).abs().amax(-1) < 1e-3) & (other.argmax(-1) == wanted.argmax(-1))
    change = (found.double().softmax(-1) - p).abs().amax(-1)
    first, second = p.topk(2, -1).values.unbind(-1)
    apart = settled & (first - second > 1e-6)  # two classes that tie in float64 have no order
    return float((change * settled).max()), int(((found.argmax(-1) != wanted.argmax(-1)) & apart).sum())


def check(name, case, dtypes):
    for parameters in settings(name):
        for dtype in dtypes:
            change, wrong = mistakes(name, parameters, CASES[case], dtype)
            assert change < 5e-3 and wrong == 0, (parameters, dtype)


@pytest.mark.parametrize("case", ["scale 1e19", "scale 1e-6", "offset 1e5", "far class and offset", "zero rows"])
@pytest.mark.parametrize("name", sorted(QUICK))
def test_inductive_methods_are_right_or_say_so(name, case):
    check(name, case, [torch.float32])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(QUICK | {"opta", "kmeans", "paddle"}))
def test_half_precision_is_answered_as_float32(name, dtype):
    support, labels, query = drawn()
    support, query = support.to(dtype), query.to(dtype)
    for parameters in settings(name):
        wide = answered(name, parameters, support.float(), labels, query.float())
        assert torch.equal(answered(name, parameters, support, labels, query), wide)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_every_method_is_right_or_says_so(name, case):
    check(name, case, [torch.float32, torch.float16, torch.bfloat16])


@pytest.mark.slow
@pytest.mark.parametrize("ways", [2, 30, 1000])
@pytest.mark.parametrize("name", sorted(QUICK))
def test_with_few_and_many_classes(name, ways):
    support, labels, query = drawn(ways=ways, shots=1, queries=2 * ways, dim=64, episodes=1)
    for parameters in settings(name):
        for factor in (1e-12, 1.0, 1e12):
            try:
                found, wanted = (answered(name, parameters, (support * factor).to(dtype), labels, (query * factor).to(dtype))
                                 for dtype in (torch.float32, torch.float64))
            except FewshotError:
                assert factor > 1 and parameters == {"norm": "un"}
                continue
            assert (found.argmax(-1) == wanted.argmax(-1)).double().mean() > 0.998
            torch.testing.assert_close(found.double().softmax(-1), wanted.softmax(-1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("factor", [1e19, 1e-19])
@pytest.mark.parametrize("method", ["protonet", "simple_shot", "matching_net", "logistic_regression"])
def test_banks_of_huge_and_tiny_rows_are_evaluated_as_others(method, factor):
    support, labels, _ = drawn(ways=8, shots=20, dim=32, episodes=1)
    parameters = {"norm": "l2n"} if "norm" in method_parameters(method) else {}
    run = Run(method=method, parameters=parameters, ways=5, queries=5, episodes=20)
    for transforms in ("", "l2"):
        plain, other = (evaluate(run, FeatureBank((support[0] * x).float(), labels[0]), transforms=transforms)
                        for x in (1.0, factor))
        assert torch.equal(plain.correct, other.correct) and plain.accuracy.mean > 0.5


@pytest.mark.parametrize(("features", "expected"), [
    (torch.ones(0, 3), torch.float32), (torch.zeros(9, 3), torch.float32), (torch.eye(9), torch.float32),
    (1e19 * torch.eye(9), torch.float64), (1e-5 * torch.eye(9), torch.float64), (torch.eye(9).double(), torch.float64),
    (torch.eye(9).bfloat16(), torch.float32), (1e30 * torch.eye(9).bfloat16(), torch.float64),
    (torch.eye(9) + 1e3, torch.float64), (torch.ones(9, 3), torch.float32), (torch.eye(9) + 1, torch.float32),
    (torch.diag(torch.tensor([1.0] * 8 + [1e4])), torch.float64),
    (torch.diag(torch.tensor([1.0] * 8 + [1e-20])), torch.float64)])
def test_the_precision_to_work_in(features, expected):
    assert working_dtype(features) == expected


def test_rows_and_lengths_are_gathered_in_the_precision_to_work_in():
    labels = torch.arange(5).repeat_interleave(4)
    half = torch.randn(20, 64, generator=torch.Generator().manual_seed(0)).half() * 1000
    for bank, dtype in ((FeatureBank(half, labels), torch.float32),
                        (FeatureBank(1e18 * half.float(), labels), torch.float64)):
        episodes, _ = EpisodeSampler(bank, 5, 1, 2).sample(bank, count=3)
        assert episodes.query.dtype == episodes.query_lengths.dtype == dtype and bank.working().features.dtype == dtype
        torch.testing.assert_close(episodes.query_lengths, episodes.query.norm(dim=-1))
