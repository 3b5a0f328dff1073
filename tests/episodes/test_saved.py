"""Lists of episodes as files: the same episodes elsewhere, and refusal of other data."""

from __future__ import annotations

import dataclasses

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.episodes.saved import EpisodeList
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.result import compare
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store
from tests.evaluation.test_evaluate import toy_bank

RUN = Run(episodes=2100, seed=3, shots=2)  # more than one block of the fingerprint


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return RUN.drawn(toy_bank()).save(tmp_path_factory.mktemp("list") / "episodes.safetensors")


def test_a_saved_list_gives_the_results_of_the_episodes_drawn(saved, tmp_path):
    store = Store(tmp_path)
    drawn, listed = evaluate(RUN, toy_bank()), evaluate(bank=toy_bank(), episodes_file=saved, store=store)
    assert torch.equal(drawn.correct, listed.correct) and drawn.fingerprint == listed.fingerprint
    assert compare(drawn, listed).difference.mean == 0
    assert (listed.record.shots, listed.record.episodes, listed.record.seed) == (2, 2100, 3)
    assert listed.record.episode_list == EpisodeList.load(saved).fingerprint == drawn.fingerprint
    assert evaluate(bank=toy_bank(), episodes_file=saved, store=store).seconds == listed.seconds, "found in the store"
    other = evaluate(bank=toy_bank(dim=40, seed=4), episodes_file=saved)
    assert other.fingerprint == drawn.fingerprint, "features of another backbone"


@pytest.mark.parametrize("change", [{"name": "other"}, {"split": "val"}])
def test_other_data_are_refused(saved, change):
    with pytest.raises(FewshotError, match="360 items of toy, split test.*same items"):
        evaluate(bank=dataclasses.replace(toy_bank(), **change), episodes_file=saved)


def test_open_queries_are_saved(tmp_path):
    run = dataclasses.replace(RUN, episodes=20, open_classes=2, open_queries=4)
    path = run.drawn(toy_bank()).save(tmp_path / "open.safetensors")
    drawn, listed = evaluate(run, toy_bank()), evaluate(bank=toy_bank(), episodes_file=path)
    assert torch.equal(drawn.measures["auroc_logit"], listed.measures["auroc_logit"])


def rewritten(path, **changes):
    """The list in `path` with other numbers and a fingerprint that fits them."""
    found = EpisodeList.load(path)
    return dataclasses.replace(found, all=dataclasses.replace(found.all, **changes))


def test_lists_that_leak_or_mislead_are_refused(saved):
    indices = EpisodeList.load(saved).all
    leak, lie, far = indices.query.clone(), indices.query_labels.clone(), indices.support.clone()
    leak[5, 0] = indices.support[5, 0]
    lie[7] = (lie[7] + 1) % 5
    far[0, 0] = 10**6
    opened = indices.query_labels.clone()
    opened[3, 0] = -1
    for changes, message in (({"query": leak}, "must not overlap"), ({"query_labels": lie}, "not those of the data"),
                             ({"support": far}, "data do not have"), ({"query_labels": opened}, "not those of the data"),
                             ({"classes": indices.classes.flip(1)}, "not those of the data")):
        with pytest.raises(FewshotError, match=message):
            rewritten(saved, **changes).of(toy_bank())


def test_damaged_files_are_named(saved, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(saved.read_bytes()[:-8])
    with pytest.raises(FewshotError, match="not a readable list"):
        EpisodeList.load(cut)
    with pytest.raises(FewshotError, match="no episodes at .*fewshot episodes save"):
        EpisodeList.load(tmp_path / "lost")
    bank = FeatureBank(torch.zeros(3, 2), [0, 1, 2]).save(tmp_path / "bank.safetensors")
    with pytest.raises(FewshotError, match="no list of episodes"):
        EpisodeList.load(bank)
    with safetensors.safe_open(saved, framework="pt") as handle:
        about = handle.metadata()
    rows = load_file(saved)
    rows["query"][0, 0] += 1
    save_file(rows, cut, metadata=about)
    with pytest.raises(FewshotError, match="does not match its fingerprint"):
        EpisodeList.load(cut)
