"""Any classifier with scikit-learn's interface as a method."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from fewshot.contract.check_method import check_method
from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store
from fewshot.methods.contract import create_method
from fewshot.methods.estimator import Estimator
from fewshot.reporting.accuracy_tables import results_table
from tests.evaluation.test_evaluate import toy_bank


class InContext(ClassifierMixin, BaseEstimator):
    """Answers as tabular networks do that take the support as context: `fit` keeps it, probabilities come from attention."""

    def __init__(self, sharpness=1.0):
        self.sharpness = sharpness

    def fit(self, X, y):
        self.classes_, self.context_, self.places_ = np.unique(y), X, y
        return self

    def predict_proba(self, X):
        distances = ((X[:, None] - self.context_) ** 2).sum(-1)
        weights = np.exp(self.sharpness * (distances.min(1, keepdims=True) - distances))
        found = weights @ (self.places_[:, None] == self.classes_)
        return found / found.sum(1, keepdims=True)

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(1)]


class OnlyLabels(ClassifierMixin, BaseEstimator):
    """The label of the nearest support item, and nothing else."""

    def fit(self, X, y):
        self.inside_ = KNeighborsClassifier(1).fit(X, y)
        return self

    def predict(self, X):
        return self.inside_.predict(X)


class Forgetful(InContext):
    """Loses a class."""

    def fit(self, X, y):
        return super().fit(X[y > 0], y[y > 0])


PIPELINE = make_pipeline(StandardScaler(), SVC(C=3.0, tol=1e-10))  # libsvm's default stops where the order of rows shows


def unequal():
    """Two episodes of classes with 3, 3, 1 and 2 shots, and their support, labels and queries as arrays."""
    full = random_episodes(episodes=2, ways=4, shots=3, queries=12)
    kept = torch.tensor([0, 1, 2, 3, 4, 5, 7, 8, 9])
    episodes = type(full)(full.support[:, kept], full.support_labels[:, kept], full.query, 4)
    arrays = (x.numpy() for x in (episodes.support, episodes.support_labels, episodes.query))
    return episodes, list(zip(*arrays, strict=True))


SLOW = [LogisticRegression(), PIPELINE, RandomForestClassifier(n_estimators=3), OnlyLabels()]


@pytest.mark.parametrize("estimator", [
    KNeighborsClassifier(n_neighbors=1), InContext(), *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)],
    ids=lambda e: type(e).__name__)
def test_keeps_its_promises(estimator):
    """SVC is among the methods of test_contract.py."""
    check_method(Estimator(estimator))


@pytest.mark.parametrize("estimator", [LogisticRegression(), SVC(tol=1e-10), PIPELINE, KNeighborsClassifier(n_neighbors=1),
                                       InContext()], ids=lambda e: type(e).__name__)
def test_equals_a_plain_loop(estimator):
    """Scores and labels, with classes in the order of their numbers."""
    episodes, arrays = unequal()
    found = Estimator(estimator)(episodes)
    for e, (support, labels, query) in enumerate(arrays):
        plain = clone(estimator).fit(support, labels)
        scores = plain.decision_function(query) if hasattr(plain, "decision_function") else np.log(
            np.maximum(plain.predict_proba(query), 1.1754943508222875e-38))
        np.testing.assert_allclose(found[e].numpy(), scores, atol=1e-6)
        np.testing.assert_array_equal(found[e].argmax(-1).numpy(), plain.predict(query))


@pytest.mark.parametrize("ways", [2, 5])
def test_logistic_regression_is_ours(ways):
    """Solved to the end, scikit-learn's model is that of the method `logistic_regression`; with two classes its C is ours
    twice (see there)."""
    episodes = random_episodes(ways=ways, shots=3)
    exact = {"tol": 1e-10, "max_iter": 10_000, "C": 2.0 if ways == 2 else 1.0}
    found = create_method("estimator", estimator="sklearn.linear_model.LogisticRegression", params=exact)(episodes)
    ours = create_method("logistic_regression", norm="un")(episodes)
    torch.testing.assert_close(found.softmax(-1), ours.softmax(-1), atol=1e-5, rtol=0)


def test_labels_alone_are_logarithms_of_one_hot_ones():
    episodes, arrays = unequal()
    found = Estimator(OnlyLabels)(episodes)
    for e, (support, labels, query) in enumerate(arrays):
        assert torch.equal(found[e].argmax(-1), torch.from_numpy(OnlyLabels().fit(support, labels).predict(query)))
    probabilities = found.softmax(-1)
    assert ((probabilities == 1).sum(-1) == 1).all() and (probabilities.sum(-1) == 1).all()


def test_seeds():
    """Every random_state that is not set is set, in pipelines, too; one that is set stays."""
    episodes = random_episodes(shots=3)
    forest = {"estimator": "sklearn.ensemble.RandomForestClassifier", "params": {"n_estimators": 3}}
    piped = {"estimator": "sklearn.pipeline.Pipeline", "params": {"steps": [["forest", forest]]}}
    first, other, again, inside = (create_method("estimator", **settings)(episodes) for settings in (
        forest, {**forest, "seed": 1}, {**forest, "params": {"n_estimators": 3, "random_state": 0}, "seed": 1}, piped))
    assert torch.equal(first, again) and torch.equal(first, inside) and not torch.equal(first, other)


def test_path_class_and_instance_are_one_setting():
    """The record holds plain values whatever was given: the shortest path, and what differs from the defaults."""
    asked = [{"estimator": "sklearn.svm.SVC", "params": {"C": 3.0}}, {"estimator": SVC(C=3.0)},
             {"estimator": SVC, "params": {"C": 3.0, "kernel": "rbf"}}, {"estimator": "sklearn.svm._classes.SVC",
                                                                         "params": {"C": np.float64(3)}}]
    runs = [Run(method="estimator", parameters=each) for each in asked]
    assert len({run.key for run in runs}) == len(set(runs)) == 1
    assert json.loads(json.dumps(runs[0].to_dict()))["parameters"]["params"] == {"C": 3.0}
    assert Run.from_dict(json.loads(json.dumps(runs[0].to_dict()))) == runs[0]
    assert runs[0].key != Run(method="estimator", parameters={"estimator": SVC()}).key
    episodes = random_episodes()
    piped, expected = Run(method="estimator", parameters={"estimator": PIPELINE}), Estimator(PIPELINE)(episodes)
    assert torch.equal(Run.from_dict(json.loads(json.dumps(piped.to_dict()))).spec.make()(episodes), expected)
    assert torch.equal(pickle.loads(pickle.dumps(Estimator(PIPELINE)))(episodes), expected)


def test_results_belong_to_a_version_of_the_library(tmp_path, monkeypatch):
    import sklearn

    run, store = Run(method="estimator", parameters={"estimator": SVC}, episodes=20), Store(tmp_path)
    first = evaluate(run, toy_bank(), store=store)
    assert first.record.parameters["library"] == f"sklearn {sklearn.__version__}"
    assert evaluate(run, toy_bank(), store=store).seconds == first.seconds, "found in the store"
    instance = evaluate(run, toy_bank(), method=Estimator())
    assert instance.record.parameters["library"] == f"sklearn {sklearn.__version__}", "also of one that was not asked for it"
    monkeypatch.setattr(sklearn, "__version__", "99.1")
    other = Run(method="estimator", parameters={"estimator": SVC}, episodes=20)
    assert other.key != run.key and evaluate(other, toy_bank(), store=store).record != first.record
    with pytest.raises(FewshotError, match=r"library='sklearn .*installed is 'sklearn 99.1'; install that version"):
        Run.from_record(first.record)


def test_tables_show_the_settings():
    parameters = {"estimator": "sklearn.svm.SVC", "params": {"C": 3.0}}
    found = evaluate(Run(method="estimator", parameters=parameters, episodes=20), toy_bank())
    assert "estimator=sklearn.svm.SVC, params={'C': 3.0}, library=sklearn " in " ".join(results_table([found]).notes)


@pytest.mark.slow
def test_workers_share_the_episodes():
    run = Run(method="estimator", parameters={"estimator": RandomForestClassifier(2)}, episodes=600)
    alone, shared = evaluate(run, toy_bank()), evaluate(run, toy_bank(), workers=2)
    assert torch.equal(alone.correct, shared.correct)


@pytest.mark.parametrize(("settings", "message"), [
    ({"estimator": "SVC"}, "expected a dotted path"), ({"estimator": "sklearn.svn.SVC"}, "cannot be imported"),
    ({"estimator": "sklearn.svm.SVD"}, "did you mean .*'SVC'"), ({"estimator": "math.sqrt"}, "no class with scikit-learn"),
    ({"estimator": 3}, "expected the dotted path"), ({"estimator": Ridge}, "no classifier"),
    ({"estimator": StandardScaler()}, "no classifier"), ({"params": {"CC": 1}}, "refuses params.*CC"),
    ({"params": {"C": abs}}, "C=.*cannot be written"), ({"estimator": SVC(), "params": {"C": 1}}, "or the instance alone"),
    ({"estimator": SVC(decision_function_shape="ovo")}, "pairs of classes"), ({"seed": -1}, "seed=-1"),
    ({"estimator": type("Local", (OnlyLabels,), {})}, "top of a module")])
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(FewshotError, match=message):
        create_method("estimator", **settings)


@pytest.mark.parametrize(("estimator", "message"), [
    (KNeighborsClassifier(n_neighbors=50), r"fails on an episode of 10 support items of 5 classes \(Expected n_neighbors"),
    (SVC(C=-1.0), "C' parameter"), (Forgetful(), r"shape \(15, 4\); expected \(15, 5\)")])
def test_failures_name_the_estimator(estimator, message):
    with pytest.raises(FewshotError, match=message):
        Estimator(estimator)(random_episodes())
