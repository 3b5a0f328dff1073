from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods.contract import create_method
from fewshot.tuning.unrolled import fit_method, load_fitted, save_fitted


def problem(**kwargs):
    """Half of the classes have no query, which the initial prior weights do not suit."""
    episodes, labels = random_episodes(episodes=12, shots=2, queries=20, spread=1.2, with_labels=True, **kwargs)
    return episodes, labels


def test_lowers_the_loss_and_leaves_the_method_alone():
    episodes, labels = problem()
    method = create_method("unem_gaussian", layers=4)
    before = method.learned
    found = fit_method(method, episodes, labels, epochs=15)
    assert method.learned == before and not any(p.requires_grad for p in found.method.parameters())
    assert len(found.history) == 16 and found.best_epoch > 0
    assert found.history[found.best_epoch] == min(found.history) < 0.9 * found.history[0]
    logits = found.method(episodes)
    assert float(cross_entropy(logits.flatten(0, 1), labels.flatten())) == pytest.approx(min(found.history), abs=1e-9)


def test_matches_adam_written_out():
    episodes, labels = problem()
    found = fit_method(create_method("unem_gaussian", layers=2), episodes, labels, epochs=6, lr=0.2, halve_every=2)
    method = create_method("unem_gaussian", layers=2).requires_grad_()
    history = []
    optimizer = torch.optim.Adam(method.parameters())
    for epoch in range(7):
        loss = cross_entropy(method(episodes).flatten(0, 1), labels.flatten())
        history.append(loss.item())
        optimizer.param_groups[0]["lr"] = 0.2 * 0.5 ** (epoch // 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert found.history == pytest.approx(history, abs=1e-9)


def test_a_step_that_overshoots_is_not_kept():
    episodes, labels = problem()
    found = fit_method(create_method("unem_gaussian", layers=2), episodes, labels, epochs=2, lr=500.0)
    assert found.best_epoch == 0 and min(found.history) == found.history[0]
    assert found.method.learned == create_method("unem_gaussian", layers=2).learned


def test_the_official_loss_is_bounded_by_its_double_softmax():
    episodes, labels = problem()
    sane = fit_method(create_method("unem_gaussian", layers=2), episodes, labels, epochs=1)
    official = fit_method(create_method("unem_gaussian", layers=2), episodes, labels, epochs=1,
                          loss="official_double_softmax")
    # Probabilities as logits: the loss cannot fall below log(1 + 4 / e) for five classes, however good the prediction.
    assert official.history[0] > torch.tensor(4 / torch.e).log1p()
    assert official.history[0] != pytest.approx(sane.history[0], abs=1e-3)
    assert official.provenance["loss"] == "official_double_softmax"


def test_batches_depend_on_the_seed_alone():
    episodes, labels = problem()
    method = create_method("unem_gaussian", layers=2)
    a, b, c = (fit_method(method, episodes, labels, epochs=3, batch=5, seed=seed).history for seed in (1, 1, 2))
    assert a == b != c
    assert min(a) < a[0]


def test_dirichlet_learns_too():
    episodes, labels = random_episodes(episodes=4, ways=3, shots=2, queries=9, dim=3, spread=1.2, with_labels=True)
    episodes = episodes.with_features(lambda x: (3 * x).softmax(-1))
    seen = []
    found = fit_method(create_method("unem_dirichlet", layers=2, mm_steps=60), episodes, labels, epochs=3,
                       progress=lambda epoch, loss: seen.append((epoch, loss)))
    assert min(found.history) < found.history[0]
    assert seen == list(enumerate(found.history))[1:]
    assert found.provenance["batch"] == 15 and found.provenance["lr"] == 0.5 and found.provenance["halve_every"] == 40


@pytest.mark.parametrize("name", ["unem_gaussian", "unem_dirichlet"])
def test_saved_and_loaded(tmp_path, name):
    episodes, labels = random_episodes(episodes=3, ways=3, shots=2, queries=6, dim=3, with_labels=True)
    params = {"layers": 2, **({"mm_steps": 60, "simplex": "prototypes"} if name == "unem_dirichlet" else {})}
    found = fit_method(create_method(name, **params), episodes, labels, epochs=2, seed=7,
                       provenance={"dataset": "toy", "split": "val"})
    path = save_fitted(tmp_path / "new" / "fitted.safetensors", found)
    again = load_fitted(path)
    assert torch.equal(again.method(episodes), found.method(episodes))
    assert (again.history, again.best_epoch, again.provenance) == (found.history, found.best_epoch, found.provenance)
    expected = {"dataset": "toy", "split": "val", "shots": 2, "ways": 3, "queries": 6, "episodes": 3, "epochs": 2,
                "seed": 7, "loss": "cross_entropy"}
    assert expected.items() <= again.provenance.items() and "torch" in again.provenance["versions"]
    assert [p.name for p in path.parent.iterdir()] == ["fitted.safetensors"]


def test_files_that_are_no_fits(tmp_path):
    with pytest.raises(FewshotError, match="no fitted method"):
        load_fitted(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(FewshotError, match="not readable"):
        load_fitted(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(("change", "message"), [
    ({"loss": "hinge"}, "loss='hinge'"),
    ({"lr": -1.0}, "lr=-1.0"),
    ({"batch": -2}, "batch=-2"),
    ({"provenance": {"split": "test"}}, "validation"),
])
def test_wrong_arguments(change, message):
    episodes, labels = problem()
    with pytest.raises(FewshotError, match=message):
        fit_method(create_method("unem_gaussian", layers=1), episodes, labels, **change)


def test_nothing_to_learn_and_wrong_labels():
    episodes, labels = problem()
    with pytest.raises(FewshotError, match="nothing to learn"):
        fit_method(create_method("protonet"), episodes, labels)
    with pytest.raises(FewshotError, match="query_labels has shape"):
        fit_method(create_method("unem_gaussian"), episodes, labels[:, 1:])
