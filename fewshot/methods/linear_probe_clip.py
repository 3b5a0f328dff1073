"""The linear probe of CLIP: logistic regression on features of unit length, without texts."""

from __future__ import annotations

from dataclasses import dataclass

from fewshot.methods.contract import METHODS
from fewshot.methods.logistic_regression import LogisticRegression


@METHODS.register("linear_probe_clip")
@dataclass(frozen=True, eq=False)
class LinearProbeCLIP(LogisticRegression):
    """`logistic_regression` under the name and with the C of the linear probe that methods with texts are compared with.

    C   0.316, the example in CLIP's own program. The few-shot comparisons choose it on validation images: the best of 1e6,
        1e4, ..., 1e-6, then that and its surroundings halved again and again (`tune` does the former)

    The other parameters are those of `logistic_regression`. Deviations: solved to convergence.
    """

    paper = ("Radford et al. 2021 (CLIP), arXiv:2103.00020, section 3.2; openai/CLIP; methods/linear_probe.py of "
             "FereshteShakeri/FewShot-CLIP-Strong-Baseline")

    C: float = 0.316
