from __future__ import annotations

import numpy as np
import sklearn.linear_model
import torch

from fewshot.methods import create_method
from tests.methods.test_gda import uneven_episodes


def test_against_scikit_learn():
    e = uneven_episodes()
    found = create_method("linear_probe_clip")(e).softmax(-1)
    for i in range(len(e)):
        support, query = (torch.nn.functional.normalize(x[i], dim=-1) for x in (e.support, e.query))
        fit = sklearn.linear_model.LogisticRegression(C=0.316, tol=1e-10).fit(support, e.support_labels[i])
        np.testing.assert_allclose(found[i], fit.predict_proba(query), atol=1e-6)


def test_reads_no_texts():
    method = create_method("linear_probe_clip")
    e = uneven_episodes()
    assert not method.needs_text and torch.equal(method(e), method(e.replace(text=None)))
