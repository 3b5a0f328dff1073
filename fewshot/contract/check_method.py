"""`check_method`: whether a method keeps its promises. The contract tests check the same ones."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fewshot.contract.checks import PROMISES, Candidate, Promise
from fewshot.core.errors import FewshotError
from fewshot.core.html import html_table
from fewshot.core.registry import unknown_message
from fewshot.data.banks import FeatureBank
from fewshot.methods.contract import METHODS, Method, create_method


@dataclass(frozen=True)
class Checked:
    """A promise that was kept: its name, the number measured (None: an answer only had to exist), and what is allowed."""

    promise: str
    measured: float | None
    allowed: str


@dataclass(frozen=True)
class MethodReport:
    """What `check_method` found for a method that keeps all its promises; shown as a table."""

    method: str
    setting: str
    checks: tuple[Checked, ...]

    def __repr__(self) -> str:
        width = max(len(check.promise) for check in self.checks)
        lines = [f"{check.promise:{width}}  {_number(check):>7}  {check.allowed}".rstrip() for check in self.checks]
        return "\n".join([self._title(), *lines])

    def _repr_html_(self) -> str:
        return html_table(self._title(), [(check.promise, _number(check), check.allowed) for check in self.checks],
                          ("promise", "measured", "allowed"))

    def _title(self) -> str:
        return f"{self.method} ({self.setting}) keeps its {len(self.checks)} promises"


def _number(check: Checked) -> str:
    return "kept" if check.measured is None else f"{check.measured:.1e}"


def check_method(method: str | Method, *, skip: Sequence[str] = (), dim: int = 32, device: str = "cpu",
                 **parameters: Any) -> MethodReport:
    """Check what a method on features promises: its answer has the right shape and is finite, whatever the episode; it does
    not depend on the names and order of the classes, on the order of the items or on other episodes of the batch; an
    inductive method looks at one query at a time; labels of queries are not used.

    method      a name, with `parameters`, or an instance, registered or not. It is fitted to synthetic base classes; a
                module with weights is examined in evaluation mode
    skip        names of PROMISES to leave out, such as "support_order" for a network that reads the support in order
    dim         length of the features, for a method that expects a certain one
    device      where it computes

    Returns a table of what was measured. Raises FewshotError for the first promise that is not kept, naming it, by how much
    the answers differ and what to look for, and for a method on images.
    """
    for name in skip:
        if name not in PROMISES:
            raise FewshotError(unknown_message("promise", name, list(PROMISES)))
    candidate = candidate_of(method, dim, device, **parameters)
    checks = [check_promise(candidate, name) for name in PROMISES if name not in skip]
    return MethodReport(candidate.name, candidate.method.setting, tuple(found for found in checks if found))


def candidate_of(method: str | Method, dim: int = 32, device: str = "cpu", **parameters: Any) -> Candidate:
    """The method, ready to be examined."""
    if isinstance(method, str):
        method = create_method(method, **parameters)
    elif parameters or not isinstance(method, Method):
        raise FewshotError(f"method is a {type(method).__name__}; give a name with parameters, or an instance of a subclass "
                           "of fewshot.methods.Method (without parameters)")
    cls = type(getattr(method, "settings", method))  # a learner keeps its hyper-parameters apart
    name = next((name for name in METHODS if METHODS[name] is cls), cls.__name__)
    if method.inputs != "features":
        raise FewshotError(f"{name} takes {method.inputs}; check_method examines methods on features. Learners on images "
                           "have contract tests of their own, tests/methods/test_contract_images.py")
    if method.needs_validation:
        raise FewshotError(f"{name} reads validation images, and check_method has none; examine the method inside it")
    if method.needs_backbone:
        raise method.without_network()
    if isinstance(method, nn.Module):
        method = copy.deepcopy(method).eval()
    return Candidate(method.fit(synthetic_base(dim)), name, dim, device)


def check_promise(candidate: Candidate, name: str) -> Checked | None:
    """Check one of PROMISES; None where it says nothing about this method. Raises FewshotError where it is not kept."""
    promise = PROMISES[name]
    if not promise.applies(candidate.method):
        return None
    try:
        measured = promise.measure(candidate)
    except Exception as error:  # whatever a method raises on an episode that is allowed is a promise not kept
        raised = str(error) if isinstance(error, FewshotError) else f"{type(error).__name__}: {error}"
        raise FewshotError(f"{candidate.name} does not keep the promise {name!r} ({promise.says}): {raised}. "
                           f"{promise.remedy}") from error
    if not promise.allows(measured):
        raise FewshotError(f"{candidate.name} does not keep the promise {name!r} ({promise.says}): the {promise.unit} is "
                           f"{measured:.3g}, allowed is {_bound(promise)}. {promise.remedy}")
    return Checked(name, measured, "" if measured is None else f"{_bound(promise)}, {promise.unit}")


def _bound(promise: Promise) -> str:
    return f"at {'least' if promise.at_least else 'most'} {promise.limit:g}"


@functools.cache
def synthetic_base(dim: int) -> FeatureBank:
    """Base classes that methods are fitted to here: 20 classes of 20 items."""
    features = torch.randn(400, dim, generator=torch.Generator().manual_seed(9), dtype=torch.float64).relu()
    return FeatureBank(features, torch.arange(400) % 20)
