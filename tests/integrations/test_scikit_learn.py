"""Any method as a scikit-learn estimator."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.model_selection import GridSearchCV, LeaveOneOut, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fewshot import Episodes, FeatureBank, FewShotClassifier, Run, choose_decisions, create_backbone, create_method
from fewshot.core.errors import FewshotError

TRANSDUCTIVE = {"check_methods_subset_invariance": "a transductive answer depends on the other rows of the call"}


@parametrize_with_checks(
    [FewShotClassifier(), FewShotClassifier("pt_map"), FewShotClassifier("logistic_regression", transforms="l2")],
    expected_failed_checks=lambda estimator: TRANSDUCTIVE if estimator.method == "pt_map" else {})
def test_what_scikit_learn_asks_of_an_estimator(estimator, check):
    check(estimator)


@pytest.fixture
def blobs():
    return make_blobs(60, 8, centers=3, cluster_std=2.0, random_state=0)


@pytest.mark.parametrize("method", ["pt_map", "protonet"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_probabilities_are_those_of_the_method(blobs, method, dtype):
    X, y = blobs[0].astype(dtype), np.array(["c", "a", "b"])[blobs[1]]
    model = FewShotClassifier(method, {"scale": 5.0} if method == "pt_map" else {"temperature": 4.0}).fit(X[:30], y[:30])
    episodes = Episodes(torch.tensor(X[None, :30]), torch.tensor(np.searchsorted(["a", "b", "c"], y[:30])[None]),
                        torch.tensor(X[None, 30:]), 3)
    unbalanced = {"query_prior": "unknown"} if method == "pt_map" else {}  # rows of one's own need not be balanced
    expected = create_method(method, **model.method_parameters, **unbalanced)(episodes)[0].softmax(1).numpy()
    found = model.predict_proba(X[30:])
    assert found.dtype == dtype and np.array_equal(found, expected) and list(model.classes_) == ["a", "b", "c"]
    assert np.array_equal(model.predict(X[30:]), model.classes_[expected.argmax(1)])


def test_by_default_every_row_is_answered_alone(blobs, recwarn):
    X, y = blobs
    X = X + 100  # all classes lie in the same direction from the origin
    model = FewShotClassifier().fit(X[:30], y[:30])
    alone = np.concatenate([model.predict(row[None]) for row in X[30:]])
    assert np.array_equal(alone, model.predict(X[30:])) and (alone == y[30:]).mean() > 0.95 and not recwarn.list
    assert cross_val_score(FewShotClassifier(), X, y, cv=LeaveOneOut()).mean() > 0.95


def test_a_transductive_method_says_how_many_rows_it_needs(blobs):
    X, y = blobs
    model = FewShotClassifier("pt_map").fit(X[:30], y[:30])
    with pytest.warns(UserWarning, match="14 queries may be too few .* about 5 a class, here 15") as found:
        model.predict(X[30:44])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(X[30:45])
    with pytest.warns(UserWarning, match="1 query may be too few") as one:
        assert [model.predict(X[i : i + 1])[0] for i in range(30, 40)] == list(y[30:40])
    assert len(found) == 1 and len(one) == 10
    with pytest.warns(UserWarning, match="2 queries"):
        FewShotClassifier(transforms="center_episode").fit(X[:30], y[:30]).predict(X[30:32])


def test_arrays_that_run_backwards_or_are_byte_swapped(blobs):
    X, y = blobs
    expected = FewShotClassifier("protonet").fit(X[::-1].copy(), y[::-1].copy()).predict_proba(X[::-1].copy())
    for form in (lambda x: x, lambda x: x.astype(x.dtype.newbyteorder("S"))):
        found = FewShotClassifier("protonet").fit(form(X[::-1]), form(y[::-1])).predict_proba(form(X[::-1]))
        assert np.array_equal(found, expected)
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
    model = FewShotClassifier("protonet", backbone="pixels").fit(images[:, ::-1], list("aabbcc"))
    assert list(model.predict(images[:, ::-1])) == list("aabbcc")


@pytest.mark.parametrize("method", ["pt_map", "protonet"])
def test_no_row_and_one_row(blobs, method):
    model = FewShotClassifier(method).fit(*blobs)
    assert model.predict(blobs[0][:0]).shape == (0,) and model.predict_proba(blobs[0][:0]).shape == (0, 3)
    assert model.predict(blobs[0][:1]).shape == (1,)
    with pytest.raises(ValueError, match="7 features"):
        model.predict(blobs[0][:0, :7])


def test_inside_scikit_learn(blobs):
    X, y = blobs
    model = make_pipeline(StandardScaler(), FewShotClassifier("ridge"))
    assert cross_val_score(model, X, y, cv=3).mean() > 0.9
    grid = GridSearchCV(FewShotClassifier("protonet"), {"transforms": ["", "l2"], "method_parameters": [
        {"temperature": 1.0}, {"temperature": 50.0}]}, scoring="neg_log_loss", cv=3).fit(X, y)
    assert len({round(score, 6) for score in grid.cv_results_["mean_test_score"]}) == 4
    fitted = clone(grid.best_estimator_).fit(X, y)
    assert np.array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(X), fitted.predict_proba(X))


@pytest.mark.parametrize("order", [np.arange(30), np.argsort(np.arange(30) % 3), np.arange(30)[::-1]],
                         ids=["mixed", "class by class", "backwards"])
def test_a_support_that_comes_in_pieces_answers_as_one_that_comes_at_once(blobs, order):
    X, y = blobs[0][order], np.array(["late", "a", "b2"])[blobs[1]][order]
    pieces, whole = FewShotClassifier("ridge"), FewShotClassifier("ridge").fit(X, y)
    for part in np.array_split(np.arange(30), 7):
        pieces.partial_fit(X[part], y[part])
    assert list(pieces.classes_) == list(whole.classes_) == ["a", "b2", "late"]
    assert np.array_equal(pieces.decision_function(blobs[0]), whole.decision_function(blobs[0]))
    assert np.array_equal(pieces.fit(X[:9], y[:9]).support_, X[:9]), "fit begins anew"
    assert len(pieces.partial_fit(X[9:], y[9:]).support_) == 30, "and is added to"


def test_declared_classes_are_all_that_there_will_be(blobs):
    X, y = blobs
    model = FewShotClassifier().partial_fit(X[y < 2], y[y < 2], classes=[2, 0, 1, 3])
    assert list(model.classes_) == [0, 1, 2, 3]
    found, plain = model.predict_proba(X), FewShotClassifier().fit(X[y < 2], y[y < 2]).predict_proba(X)
    assert np.array_equal(found[:, :2], plain) and (found[:, 2:] == 0).all()
    assert np.isneginf(model.decision_function(X)[:, 2:]).all()
    before = model.predict_proba(X)
    with pytest.raises(FewshotError, match=r"y holds \[7\], which are not among the classes of the first call"):
        model.partial_fit(X[:3], [0, 7, 1])
    with pytest.raises(FewshotError, match=r"classes=\[0, 1\]; the classes so far are \[0, 1, 2, 3\]"):
        model.partial_fit(X[:3], y[:3], classes=[0, 1])
    with pytest.raises(FewshotError, match="give labels of one kind"):
        model.partial_fit(X[:2], ["0", "1"])
    assert np.array_equal(model.predict_proba(X), before), "a refused call changes nothing"
    model.partial_fit(X[y == 2], y[y == 2], classes=[0, 1, 2, 3])
    assert (model.predict(X) == y).mean() > 0.9


def test_a_first_call_may_bring_one_class_and_a_wrong_one_nothing(blobs):
    X, y = blobs
    model = FewShotClassifier().partial_fit(X[y == 1], y[y == 1])
    with pytest.raises(FewshotError, match="holds only one class so far .*partial_fit"):
        model.predict(X)
    both = y < 2
    assert (model.partial_fit(X[y == 0], y[y == 0]).predict(X[both]) == y[both]).mean() > 0.9
    wrong = FewShotClassifier("simple_shot", {"norm": "cl2n"})
    with pytest.raises(FewshotError, match="needs statistics of the base classes"):
        wrong.partial_fit(X[:30], y[:30])
    wrong.set_params(base=X[:10]).partial_fit(X[30:], y[30:])
    assert len(wrong.support_) == 30


def test_decision_values_are_the_logits_of_the_method(blobs):
    X, y = blobs
    episodes = Episodes(torch.tensor(X[None, :30]), torch.tensor(y[None, :30]), torch.tensor(X[None]), 3)
    logits = create_method("protonet", temperature=4.0)(episodes)[0].numpy()
    model = FewShotClassifier(method_parameters={"temperature": 4.0}).fit(X[:30], y[:30])
    assert np.array_equal(model.decision_function(X), logits) and model.decision_function(X[:0]).shape == (0, 3)
    pair = y < 2
    model.fit(X[pair], y[pair])
    values, p = model.decision_function(X), model.predict_proba(X)
    assert values.shape == (60,) and np.allclose(values, np.log(p[:, 1]) - np.log(p[:, 0]), atol=1e-6)


def images(classes=3, each=6, channels=3):
    generator = np.random.default_rng(0)
    y = np.arange(classes).repeat(each)
    noise = generator.normal(0, 15, (len(y), channels, 12, 12))
    return np.clip(60 + 60 * y[:, None, None, None] + noise, 0, 255).astype(np.uint8), y


@pytest.mark.parametrize("backbone", ["pixels", "instance"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_with_a_backbone(backbone, channels):
    X, y = images(channels=channels)
    made = create_backbone("pixels", channels=channels, image_size=12) if backbone == "instance" else backbone
    model = pickle.loads(pickle.dumps(clone(FewShotClassifier("protonet", backbone=made)).fit(X[::2], y[::2])))
    plain = FewShotClassifier("protonet").fit(X[::2].reshape(9, -1).astype(np.float32) / 255, y[::2])
    assert np.array_equal(model.predict(X[1::2]), y[1::2]) and model.n_features_in_ == channels * 144
    assert np.allclose(model.predict_proba(X[1::2]), plain.predict_proba(X[1::2].reshape(9, -1) / 255), atol=1e-5)
    assert model.predict(X[:0]).shape == (0,) and cross_val_score(model, X, y, cv=2).mean() == 1


@pytest.mark.parametrize("backbone", [None, "pixels"])
def test_statistics_of_base_classes(blobs, backbone):
    X, y = blobs if backbone is None else images()
    model = FewShotClassifier("simple_shot", {"norm": "cl2n"}, backbone=backbone)
    with pytest.raises(FewshotError, match="simple_shot needs statistics of the base classes.*base="):
        model.fit(X, y)
    given = clone(model).set_params(base=X[:10])
    values = torch.tensor(X, dtype=torch.float64).flatten(1) / (255 if backbone else 1)
    centred = values - values[:10].mean(0)
    plain = FewShotClassifier("simple_shot", {"norm": "l2n"}).fit(centred.numpy(), y)
    assert np.allclose(given.fit(X, y).predict_proba(X), plain.predict_proba(centred.numpy()), atol=1e-5)
    with pytest.raises(FewshotError, match=r"base has shape \(4, 3\)" if backbone is None else "expected uint8"):
        clone(model).set_params(base=np.ones((4, 3))).fit(X, y)


def test_wrong_input(blobs):
    X, y = images()
    model = FewShotClassifier("protonet", backbone="pixels")
    for wrong in (X.astype(np.float32), X[0], X[:, :2]):
        with pytest.raises(FewshotError, match="must be uint8 images"):
            model.fit(wrong, y)
    with pytest.raises(FewshotError, match="18 images and 17 labels"):
        model.fit(X, y[1:])
    with pytest.raises(FewshotError, match=r"images of shape \(3, 8, 8\); those of the support have \(3, 12, 12\)"):
        model.fit(X, y).predict(X[:, :, :8, :8])
    with pytest.raises(FewshotError, match="only one class"):
        FewShotClassifier().fit(blobs[0], np.zeros(60))
    with pytest.raises(FewshotError, match="did you mean 'pt_map'"):
        FewShotClassifier("ptmap").fit(*blobs)
    with pytest.raises(FewshotError, match="maml adapts a backbone"):
        FewShotClassifier("maml").fit(*blobs)


def test_sets_unknown_rows_and_nearest_examples(blobs):
    X, y = blobs
    run = Run(ways=3, shots=10, method="protonet", parameters={"temperature": 4.0})
    bank = FeatureBank(torch.tensor(make_blobs(300, 8, centers=10, cluster_std=2.0, random_state=1)[0], dtype=torch.float64),
                       torch.tensor(make_blobs(300, 8, centers=10, cluster_std=2.0, random_state=1)[1]), split="val")
    chosen = choose_decisions(run, bank, coverage=0.99)
    model = FewShotClassifier("protonet", {"temperature": 4.0}, decisions=chosen).fit(X[:30], y[:30])
    plain = FewShotClassifier("protonet", {"temperature": 4.0}, decisions=0.9).fit(X[:30], y[:30])
    logits = torch.tensor(plain.decision_function(X[30:]))
    assert np.allclose(model.predict_proba(X[30:]), (logits / chosen.temperature).softmax(1))
    assert np.array_equal(model.is_unknown(X[30:]), logits.amax(1) < chosen.unknown_below)
    assert model.is_unknown(X[30:] + 1000).all() and not model.is_unknown(X[30:]).all()
    sets, rows = model.predict_set(X[30:]), np.arange(30)
    assert sets.shape == (30, 3) and sets[rows, y[30:]].mean() > 0.9
    near = model.nearest_examples(X[30:], 4)
    assert np.array_equal(near, np.linalg.norm(X[30:, None] - X[None, :30], axis=2).argsort(1)[:, :4])
    assert plain.predict_set(X[30:])[rows, y[30:]].mean() >= 0.9
    assert plain.predict_set(X[:0]).shape == (0, 3) and plain.nearest_examples(X[:0]).shape == (0, 3)
    assert np.array_equal(pickle.loads(pickle.dumps(clone(model).fit(X[:30], y[:30]))).predict_set(X[30:]), sets)
    with pytest.raises(FewshotError, match=r"decisions=0\.9; unknown rows"):
        plain.is_unknown(X)
    with pytest.raises(FewshotError, match="need an inductive method"):
        FewShotClassifier("pt_map").fit(X, y).predict_set(X)
    with pytest.raises(FewshotError, match="chosen with parameters="):
        FewShotClassifier("protonet", decisions=chosen).fit(X, y)
    with pytest.warns(UserWarning, match="3-way 10-shot episodes, and here are 3 classes with 20 examples"):
        clone(model).fit(X, y).predict_set(X)
    late = FewShotClassifier(decisions=0.5).partial_fit(X[:30], y[:30], classes=[0, 1, 2, 3])
    assert not late.predict_set(X[30:])[:, 3].any() and late.predict_set(X[30:]).any()
