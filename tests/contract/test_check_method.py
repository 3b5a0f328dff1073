"""`check_method`: its report, and what it refuses. That it catches wrong methods is in test_leaks.py."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import fewshot
from fewshot.contract.check_method import candidate_of, check_promise
from fewshot.contract.checks import PROMISES
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods import Method, create_method
from fewshot.methods.contract import IterativeMethod, Refinement
from fewshot.ops.distances import squared_euclidean
from fewshot.ops.prototypes import prototypes


@dataclass(frozen=True, eq=False)
class Own(Method):
    """A method of a notebook, which is not registered. `fault` spoils its answer."""

    paper = "this file"
    fault: str = ""

    def __call__(self, episodes: Episodes) -> Tensor:
        logits = -squared_euclidean(episodes.query, prototypes(episodes))
        if self.fault == "in_place":
            episodes.query.zero_()
        if self.fault == "batch":
            return logits / logits.std()
        if self.fault == "division":
            return logits / episodes.query.norm(dim=-1, keepdim=True)
        if self.fault == "random":
            return logits + 1e-3 * torch.rand_like(logits)
        return {"shape": logits.transpose(1, 2), "dtype": logits.double(), "sign": -logits}.get(self.fault, logits)


def test_the_report_is_a_table_of_what_was_measured():
    report = fewshot.check_method(Own())
    lines = repr(report).splitlines()
    assert lines[0] == f"Own (inductive) keeps its {len(report.checks)} promises" and len(lines) == 1 + len(report.checks)
    assert {check.promise for check in report.checks} == PROMISES.keys() - {"transductive", "refinement", "text_order"}
    found = {check.promise: check for check in report.checks}
    assert found["zeros"].measured is None and 0 <= found["precision"].measured < 5e-3
    assert found["inductive"].allowed == "at most 1e-09, largest change of a probability"
    html = report._repr_html_()
    assert html.count("<tr>") == 1 + len(report.checks) and "at most 1e-09" in html and lines[0] in html


def test_texts_are_read_or_not_asked_for():
    class Deaf(Own):
        needs_text = True

    with pytest.raises(FewshotError, match="'text_order' .*Read episodes.text"):
        fewshot.check_method(Deaf())
    assert "text_order" in {check.promise for check in fewshot.check_method("zero_shot").checks}


def test_names_have_parameters_and_registered_names():
    report = fewshot.check_method("soft_kmeans", skip=("chance",), scale=5.0)
    assert report.method == "soft_kmeans" and report.setting == "transductive"
    assert {"refinement", "transductive"} < {check.promise for check in report.checks}
    assert "chance" not in {check.promise for check in report.checks}


@pytest.mark.parametrize(("fault", "message"), [
    ("shape", r"'shape_and_dtype' .*the logits are \(3, 5, 15\); expected \[E, Q, N\] = \(3, 15, 5\)"),
    ("dtype", "'shape_and_dtype' .*dtype torch.float64, the features torch.float32"),
    ("in_place", "'inputs_unchanged' .*the largest change of an input is"),
    ("batch", "'batch_invariance' .*largest change of a probability is 0.* Reduce over no episodes"),
    ("division", "'zeros' .*the logit of query 3 and class 0 is -inf"),
    ("random", "'class_relabelling' .*allowed is at most 1e-06"),
    ("sign", "'learns' .*share of wrong answers is .*wrong sign")])
def test_the_first_broken_promise_is_named_with_its_size(fault, message):
    with pytest.raises(FewshotError, match=f"Own does not keep the promise {message}"):
        fewshot.check_method(Own(fault))


def test_a_refinement_without_convergence_is_named():
    @dataclass(frozen=True, eq=False)
    class Silent(IterativeMethod):
        def refine(self, episodes: Episodes, history: bool = False) -> Refinement:
            return Refinement(-squared_euclidean(episodes.query, prototypes(episodes)), None, torch.zeros(1),
                              torch.ones(len(episodes), dtype=torch.bool))

    with pytest.raises(FewshotError, match="'refinement' .*iterations has shape .1,. and dtype torch.float32"):
        check_promise(candidate_of(Silent()), "refinement")
    with pytest.raises(FewshotError, match="'transductive' .*is 0, allowed is at least 1e-06"):
        check_promise(candidate_of(Silent()), "transductive")
    with pytest.raises(FewshotError, match="the paper is empty"):
        check_promise(candidate_of(Silent()), "describes_itself")


def test_a_module_is_examined_in_evaluation_mode_and_stays_as_it_was():
    class Normalised(nn.Module, Method):
        """BatchNorm over the queries, in training mode only."""

        paper = "this file"

        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(32)

        def forward(self, episodes: Episodes) -> Tensor:
            query = self.norm(episodes.query.flatten(0, 1)).view_as(episodes.query)
            return -squared_euclidean(query, prototypes(episodes))

    method = Normalised().train()
    fewshot.check_method(method, skip=("chance",))
    assert method.training and method.norm.num_batches_tracked == 0


def test_what_cannot_be_examined_is_refused():
    with pytest.raises(FewshotError, match="maml takes images"):
        fewshot.check_method("maml")
    with pytest.raises(FewshotError, match="with_backbone"):
        fewshot.check_method("relation_net")
    with pytest.raises(FewshotError, match="method is a function"):
        fewshot.check_method(prototypes)
    with pytest.raises(FewshotError, match="with parameters"):
        fewshot.check_method(create_method("protonet"), temperature=2.0)
    with pytest.raises(FewshotError, match="did you mean"):
        fewshot.check_method("protonet", skip=("zero",))
