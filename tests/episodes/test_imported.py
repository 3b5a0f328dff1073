"""Published lists of episodes, as text."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.data.banks import ImageBank
from fewshot.episodes.imported import import_episodes
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.run import Run
from fewshot.reporting.accuracy_tables import results_table
from tests.evaluation.test_evaluate import toy_bank

TOY = toy_bank()
TWO = {"support": [0, 30], "query": [1, 31]}
RUN = Run(episodes=12, seed=3, ways=4, shots=2, queries=3)


def pictured() -> ImageBank:
    """The items of TOY as images with paths, of which the last part alone is not enough."""
    files = tuple(f"images/{TOY.class_names[label]}/{row % 30:02d}.png" for row, label in enumerate(TOY.labels))
    images = torch.zeros(len(files), 1, 2, 2, dtype=torch.uint8)
    return ImageBank(images, TOY.labels, TOY.class_names, TOY.name, TOY.split, files)


def as_csv(indices, item) -> str:
    """The columns in another order, queries first."""
    rows = [(item(row), f"e{e}", role) for e in range(len(indices)) for role in ("query", "support")
            for row in getattr(indices, role)[e].tolist()]
    return "\n".join(",".join(map(str, row)) for row in [("item", "episode", "role"), *rows])


@pytest.mark.parametrize("form", ["rows.csv", "rows.json", "paths.csv", "short_paths.json"])
def test_a_list_has_the_episodes_that_it_was_written_from(tmp_path, form):
    drawn, images, path = RUN.drawn(TOY), pictured(), tmp_path / form
    item = {"rows": int, "paths": lambda row: "data/" + images.files[row],
            "short_paths": lambda row: images.files[row].removeprefix("images/")}[form.partition(".")[0]]
    if form.endswith("csv"):
        path.write_text(as_csv(drawn.all, item))
    else:
        path.write_text(json.dumps([{role: [item(row) for row in getattr(drawn.all, role)[e].tolist()]
                                     for role in ("support", "query")} for e in range(12)]))
    found = import_episodes(path, images if "paths" in form else TOY)
    assert found.protocol == {**drawn.protocol, "seed": 0} and found.identity == drawn.identity
    for name in ("support", "query"):
        assert torch.equal(getattr(found.all, name).sort(1).values, getattr(drawn.all, name).sort(1).values)
    listed = evaluate(bank=TOY, episodes_file=found.save(tmp_path / "list.safetensors"))
    assert torch.equal(listed.correct, evaluate(RUN, TOY).correct)


def test_queries_lose_their_order_and_classes_take_that_of_the_support(tmp_path):
    path = tmp_path / "list.json"
    support, query = [30, 0, 60], [*range(40, 50), *range(10, 20), *range(70, 80)]
    path.write_text(json.dumps([{"support": support, "query": query}] * 2))
    found = import_episodes(path, TOY).all
    assert found.classes[0].tolist() == TOY.labels[support].tolist() and found.support[0].tolist() == support
    assert torch.equal(TOY.labels[found.query], found.classes.gather(1, found.query_labels))
    assert found.query[0].tolist() != query and not torch.equal(found.query[0], found.query[1])
    assert sorted(found.query[0].tolist()) == sorted(query)


def test_unequal_queries_are_natural_ones(tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{**TWO, "query": [1, 2, 3, 31]}, {**TWO, "query": [1, 2, 31, 32]}]))
    found = import_episodes(path, TOY)
    assert (found.protocol["query_distribution"], found.protocol["queries"], len(found)) == ("natural", 2, 2)


def test_tables_name_the_list_and_who_uses_that_every_class_has_one_query(tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"support": [0, 30], "query": [1, 31]}, {"support": [60, 30], "query": [62, 31]}]))
    found = import_episodes(path, TOY)
    saved = found.save(tmp_path / "list.safetensors")
    results = [evaluate(method=method, bank=TOY, episodes_file=saved) for method in ("protonet", "pt_map")]
    notes = " ".join(results_table(results).notes)
    assert f"Episodes of a file, fingerprint {found.fingerprint[:12]}." in notes and "seed" not in notes.split("Data:")[1]
    assert "Using that every class has exactly one query, which other methods are not told: pt_map." in notes
    notes = " ".join(results_table([evaluate(RUN, TOY, method="pt_map")]).notes)
    assert "Using that every class" not in notes and "Episode seed 3." in notes


@pytest.mark.parametrize(("episodes", "message"), [
    ([TWO], "lists 1 episode"), ([TWO, {"support": [0, 30]}], "entry 1 has no lists"), ({"a": 1}, "holds no list"),
    ([TWO, {"support": [0, 30], "query": []}], "needs both"), ([TWO, {**TWO, "query": [0, 31]}], "holds item 0 twice"),
    ([TWO, {**TWO, "query": [1, 61]}], "query 61 of episode 1 is of class .* support does not have"),
    ([TWO, {**TWO, "query": [1, 360]}], "row 360; toy, split test, has rows 0 to 359"),
    ([TWO, {**TWO, "query": [1, -1]}], "row -1"), ([TWO, {**TWO, "query": [1, 2.5]}], "item 2.5; give a row number"),
    ([TWO, {**TWO, "query": [1, "a.png"]}], "features know no paths"),
    ([TWO, {"support": [0, 2], "query": [1, 31]}], "has 1 class; an episode needs"),
    ([TWO, {"support": [0, 2, 30], "query": [1, 31]}], r"has \[2, 1\] images of its classes"),
    ([TWO, {**TWO, "query": [1, 31, 32, 33]}], "episode 1 has 2 classes, 2 support images and 4 queries, episode 0 2 c"),
    ([{**TWO, "query": [1, 31, 32]}] * 2, "3 queries an episode and 2 classes; give a multiple")])
def test_wrong_lists_are_named(tmp_path, episodes, message):
    path = tmp_path / "list.json"
    path.write_text(json.dumps(episodes))
    with pytest.raises(FewshotError, match=message):
        import_episodes(path, TOY)


@pytest.mark.parametrize(("item", "message"), [
    ("03.png", "may be images/.*/03.png or images/.*/03.png; give more of the path"),
    ("elsewhere/03.png", "does not have; did you mean 'images/"), ("99.png", "does not have"),
    (f"{TOY.class_names[0]}\\99.png", "does not have")])
def test_wrong_paths_are_named(tmp_path, item, message):
    path = tmp_path / "list.json"
    path.write_text(json.dumps([TWO, {**TWO, "query": [item, 31]}]))
    with pytest.raises(FewshotError, match=message):
        import_episodes(path, pictured())


@pytest.mark.parametrize(("text", "message"), [
    ("episode,item\n", "no column role"), ("episode,role,item\n0,train,3\n", "line 2 has role 'train' and item '3'"),
    ("episode,role,item\n0,support\n", "line 2 has role 'support' and item None"), (b"\xff\xfe\x00", "no list of episodes")])
def test_wrong_csv_is_named(tmp_path, text, message):
    path = tmp_path / "list.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FewshotError, match=message):
        import_episodes(path, TOY)
    with pytest.raises(FewshotError, match="no list of episodes at"):
        import_episodes(tmp_path / "lost.csv", TOY)


def test_the_list_belongs_to_its_data(tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps([TWO] * 2))
    saved = import_episodes(path, TOY).save(tmp_path / "list.safetensors")
    with pytest.raises(FewshotError, match="same items"):
        evaluate(bank=dataclasses.replace(TOY, split="val"), episodes_file=saved)
