"""Pieces of an evaluation: what is kept of them on disk, where runs are cut, and what is drawn only once."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import ClassVar

import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.core.files import read_safetensors, save_tensors
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.episodes.saved import EpisodeDigest
from fewshot.evaluation.collect import Rows, collect
from fewshot.evaluation.progress import Part, Parts, summed
from fewshot.evaluation.scorer import Cancelled, Scorer
from fewshot.evaluation.work import Work
from fewshot.methods.contract import create_method
from fewshot.methods.protonet import ProtoNet

# -- parts on disk --------------------------------------------------------------------------------------------------


def arrays(episodes=40):
    return {"correct": torch.arange(episodes, dtype=torch.float64) / 7, "classes": torch.arange(2 * episodes).view(-1, 2)}


def part(start, stop):
    return Part(start, stop, {}, {"hits": torch.tensor([stop - start, 1])})


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def anywhere(_):
    return True


def test_totals_of_two_ranges():
    one, two = torch.tensor([1, 2]), torch.tensor([10, 20])
    assert {name: x.tolist() for name, x in summed({"a": one, "b": two}, {"b": one, "c": two}).items()} == {
        "a": [1, 2], "b": [11, 22], "c": [10, 20]}


def test_parts_that_touch_become_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr("fewshot.evaluation.progress.EVERY", math.inf)
    parts, folder = Parts(tmp_path / "parts", {"scores": True}), tmp_path / "parts"
    for start, stop in ((0, 4), (4, 9)):
        parts.add(part(start, stop), arrays())
    assert names(folder) == [], "nothing before its time"
    parts.add(part(12, 15), arrays())
    assert names(folder) == ["0000000000-0000000009.safetensors"], "a gap ends a file"
    for _ in range(2):
        parts.flush(arrays())
    assert names(folder) == ["0000000000-0000000009.safetensors", "0000000012-0000000015.safetensors"]
    parts.add(part(15, 16), arrays())
    parts.flush(arrays())
    assert names(folder)[2:] == ["0000000015-0000000016.safetensors"]

    found = list(Parts(folder, {"scores": True}).read(40, anywhere))
    assert [(one.start, one.stop, len(one)) for one in found] == [(0, 9, 9), (12, 15, 3), (15, 16, 1)]
    assert [one.totals["hits"].tolist() for one in found] == [[9, 2], [3, 1], [1, 1]]
    assert found[0] in {*found} and found[0] != found[1], "compared as objects"
    for one in found:
        assert one.rows.keys() == {"correct", "classes"} and one.totals.keys() == {"hits"}
        assert all(torch.equal(one.rows[name], x[one.start : one.stop]) for name, x in arrays().items())
    parts.remove()
    assert not folder.exists() and names(tmp_path) == []


def test_parts_are_written_when_it_is_time(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("fewshot.evaluation.progress.time.perf_counter", lambda: clock[0])
    parts = Parts(tmp_path, {})
    for start, now, files in ((0, 109.5, 0), (4, 110.0, 1), (8, 119.5, 1), (12, 121.0, 2)):
        clock[0] = now
        parts.add(part(start, start + 4), arrays())
        assert len(names(tmp_path)) == files
    assert [(one.start, one.stop, one.seconds) for one in Parts(tmp_path, {}).read(40, anywhere)] == [
        (0, 8, 10.0), (8, 16, 11.0)]


def test_without_a_folder_nothing_is_kept(monkeypatch):
    monkeypatch.setattr("fewshot.evaluation.progress.EVERY", 0.0)
    parts = Parts()
    parts.add(part(0, 4), arrays())
    parts.flush(arrays())
    parts.remove()
    assert list(parts.read(40, anywhere)) == []


def written(folder, *ranges, made_by=None):
    for start, stop in ranges:
        parts = Parts(folder, made_by or {})
        parts.add(part(start, stop), arrays(60))
        parts.flush(arrays(60))


def test_parts_that_are_read_lie_side_by_side(tmp_path):
    """Of parts that begin together the longest, of those that overlap the first; none beyond the run or between borders."""
    def found(episodes, is_border):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return [(one.start, one.stop) for one in Parts(tmp_path, {}).read(episodes, is_border)]

    (tmp_path / "a-b.safetensors").write_bytes(b"not ours")
    assert found(40, anywhere) == []
    written(tmp_path, (0, 5), (0, 10), (5, 10), (8, 20), (10, 20), (20, 24), (24, 30), (30, 40), (40, 45))
    assert found(40, anywhere) == [(0, 10), (10, 20), (20, 24), (24, 30), (30, 40)]
    assert found(39, anywhere) == [(0, 10), (10, 20), (20, 24), (24, 30)]
    assert found(45, lambda episode: episode % 10 == 0) == [(0, 10), (10, 20), (30, 40)]
    assert found(45, lambda episode: episode % 5 == 0 and episode != 10) == [(0, 5), (30, 40), (40, 45)]


def content(path):
    """(tensors, metadata) of a file that will be written anew: copies, because what is read is the file itself, mapped."""
    tensors, about = read_safetensors(path, "", "", "", "")
    return {name: x.clone() for name, x in tensors.items()}, about


def test_files_that_are_left_out_are_counted_by_reason(tmp_path):
    written(tmp_path, (0, 5), (5, 10), (10, 15), (15, 20), made_by={"torch": "1", "scores": True})
    written(tmp_path, (20, 25), made_by={"torch": "2", "scores": True})
    for start in (0, 5):
        (tmp_path / f"{start:010d}-{start + 5:010d}.safetensors").write_bytes(b"cut")
    path = tmp_path / "0000000010-0000000015.safetensors"
    tensors, about = content(path)
    tensors["correct"][1] += 1
    save_tensors(path, tensors, about)
    with pytest.warns(UserWarning) as warned:
        found = list(Parts(tmp_path, {"torch": "1", "scores": True}).read(40, anywhere))
    assert [(one.start, one.stop) for one in found] == [(15, 20)]
    assert {one.filename for one in warned} == {__file__}, "they point at the line that asked"
    assert {str(one.message) for one in warned} == {
        f"3 files of finished episodes in {tmp_path} left out: damaged; these episodes are evaluated again",
        f"1 file of finished episodes in {tmp_path} left out: made with other software or measures (torch 2, here 1); these "
        "episodes are evaluated again"}
    notes = ("made_by", "sha256", "start", "seconds")
    for other in (*({key: about[key] for key in about if key != name} for name in notes), about | {"made_by": "{"}):
        save_tensors(path, tensors, other)
        with pytest.warns(UserWarning) as warned:
            list(Parts(tmp_path, {"torch": "1", "scores": True}).read(40, anywhere))
        assert any("3 files" in str(one.message) and "damaged" in str(one.message) for one in warned)


@pytest.mark.parametrize("change", [
    lambda x: x.pop("total.hits"), lambda x: x.update(other=x.pop("classes")),
    lambda x: x.update(classes=x["classes"].view(torch.float64)), lambda x: x.update(classes=x["classes"].view(2, -1))],
    ids=["missing", "name", "dtype", "shape"])
def test_the_checksum_is_of_names_types_shapes_and_values(tmp_path, change):
    written(tmp_path, (4, 10))
    path, = tmp_path.iterdir()
    tensors, about = content(path)
    save_tensors(path, dict(reversed(tensors.items())), about)
    assert len(list(Parts(tmp_path, {}).read(40, anywhere))) == 1, "their order says nothing"
    change(tensors)
    save_tensors(path, tensors, about)
    with pytest.warns(UserWarning, match="damaged"):
        assert list(Parts(tmp_path, {}).read(40, anywhere)) == []


# -- rows -----------------------------------------------------------------------------------------------------------


def test_rows_are_complete_when_all_episodes_are_known():
    rows = Rows(5)
    rows.add(Part(3, 5, {"correct": torch.tensor([4.0, 5.0])}, {"hits": torch.tensor(2)}, 1.5))
    assert (rows.known, rows.complete, rows.seconds) == (2, False, 1.5)
    rows.add(Part(0, 3, {"correct": torch.tensor([1.0, 2.0, 3.0])}, {"hits": torch.tensor(3)}, 0.25))
    assert (rows.known, rows.complete, rows.seconds) == (5, True, 1.75)
    assert rows.arrays["correct"].tolist() == [1, 2, 3, 4, 5] and rows.totals["hits"] == 5


# -- units ----------------------------------------------------------------------------------------------------------

LABELS = torch.arange(12).repeat_interleave(30)


class Counting:
    """A sampler that says what was drawn of it."""

    def __init__(self, **protocol):
        self.sampler, self.drawn = EpisodeSampler(LABELS, **protocol), []

    def indices(self, start, count):
        self.drawn.append((start, count))
        return self.sampler.indices(start, count)


def scorer(episodes=300, method=None, bank=None, **protocol):
    bank = FeatureBank(torch.randn(360, 16, generator=torch.Generator().manual_seed(0)), LABELS) if bank is None else bank
    return Scorer(bank, Counting(**protocol), method or ProtoNet(), lambda x: x, episodes)


def test_a_chunk_is_ten_mebibytes_of_features_images_or_logits():
    """5 support items and 75 queries of 16 float32 numbers; images as float32; the logits of 12 ways are larger than
    features of one number, with 600 or 5 queries beside the 12 of the support."""
    assert scorer().chunk == (10 << 20) // (80 * 16 * 4) == 2048
    images = ImageBank(torch.zeros(360, 3, 8, 8, dtype=torch.uint8), LABELS)
    assert scorer(bank=images).chunk == (10 << 20) // (80 * 3 * 64 * 4)
    narrow = FeatureBank(torch.zeros(360, 1), LABELS)
    assert scorer(bank=narrow, ways=12, queries=20).chunk == (10 << 20) // (4 * 240 * 12)
    assert scorer(bank=FeatureBank(torch.zeros(360, 40_000), LABELS)).chunk == 1


@pytest.mark.parametrize(("chunk", "unit"), [(1, 6), (5, 30), (40, 240), (43, 215), (50, 250), (128, 256), (200, 200),
                                             (300, 300), (3000, 2048)])
def test_a_unit_is_six_chunks_256_episodes_or_one_chunk(chunk, unit):
    made = scorer()
    made.chunk = chunk
    assert made.unit == unit and made.block == 2048
    whole = scorer(method=create_method("pt_map"))
    whole.chunk = chunk
    assert whole.unit == 2048, "several chunks are solved together"


@pytest.fixture
def cut():
    """Blocks of 10 episodes in units of 4, 4 and 2; the last block of 25 episodes is half as long."""
    made = scorer(25)
    made.block, made.chunk, made.unit = 10, 2, 4
    return made


def test_shards_end_at_borders_of_units(cut):
    assert [episode for episode in range(26) if cut.is_border(episode)] == [0, 4, 8, 10, 14, 18, 20, 24, 25]
    units = [(0, 4), (4, 8), (8, 10), (10, 14), (14, 18), (18, 20), (20, 24), (24, 25)]
    assert [cut.cuts((i, 8)) for i in range(8)] == units
    assert [cut.cuts((i, 3)) for i in range(3)] == [(0, 8), (8, 18), (18, 25)]
    assert cut.cuts((0, 1)) == (0, 25)


def test_tasks_lie_within_blocks(cut):
    assert list(cut.split(0, 25, 4)) == [(0, 4), (4, 8), (8, 10), (10, 14), (14, 18), (18, 20), (20, 24), (24, 25)]
    assert list(cut.split(4, 24, 8)) == [(4, 8), (8, 10), (10, 18), (18, 20), (20, 24)]
    assert list(cut.split(10, 20, 10)) == [(10, 20)] and list(cut.split(8, 8, 4)) == []


def test_row_numbers_are_drawn_once(cut):
    source = cut.drawn_from
    first = cut.draw(10, 20)
    assert torch.equal(cut.draw(12, 15).query, first.query[2:5]) and len(cut.draw(20, 20)) == 0
    assert source.drawn == [(10, 10)]
    for start, stop in ((8, 12), (18, 22)):
        assert torch.equal(cut.draw(start, stop).query, source.sampler.indices(start, stop - start).query)
    assert source.drawn == [(10, 10), (8, 4), (18, 4)], "what is not known in full is drawn"


def test_row_numbers_drawn_elsewhere_are_put_together(cut):
    source, block = cut.drawn_from, cut.drawn_from.sampler.indices(10, 10)
    cut.receive(14, block[4:8])
    assert torch.equal(cut.draw(14, 18).query, block.query[4:8]) and source.drawn == [], "nothing came before"
    for start, stop in ((10, 14), (14, 18), (18, 20)):
        cut.receive(start, block[start - 10 : stop - 10])
    assert torch.equal(cut.draw(10, 20).support, block.support) and source.drawn == []
    cut.receive(20, source.sampler.indices(20, 4))
    assert torch.equal(cut.draw(20, 24).support, source.sampler.indices(20, 4).support) and source.drawn == []
    cut.draw(10, 20)
    assert source.drawn == [(10, 10)], "a block takes the place of the one before"
    cut.receive(4, source.sampler.indices(4, 4))
    cut.receive(10, source.sampler.indices(10, 4))
    cut.receive(18, source.sampler.indices(18, 2))
    assert torch.equal(cut.draw(18, 20).support, source.sampler.indices(18, 2).support), "pieces that do not touch"


def test_parts_of_a_block_are_its_units(cut):
    found = list(cut.score(10, 20))
    assert [(one.start, one.stop, len(one.rows["correct"])) for one in found] == [(10, 14, 4), (14, 18, 4), (18, 20, 2)]
    episodes, labels = cut.drawn_from.sampler.sample(cut.bank, 10, 10)
    expected = (ProtoNet()(episodes).argmax(-1) == labels).double().mean(1)
    assert torch.equal(torch.cat([one.rows["correct"] for one in found]), expected)
    assert found[0].rows["correct"].dtype == torch.float64


def test_a_unit_that_nobody_waits_for_is_left(cut):
    asked = []

    def going():
        asked.append(None)
        return len(asked) < 2

    with pytest.raises(Cancelled):
        cut.score_unit(10, cut.drawn_from.sampler.indices(10, 4), going)
    assert len(asked) == 2, "asked before every chunk"
    assert len(cut.score_unit(10, cut.drawn_from.sampler.indices(10, 4))) == 4


# -- all of them together -------------------------------------------------------------------------------------------


class Seen(ProtoNet):
    """Remembers how many episodes it was given at a time."""

    calls: ClassVar[list[int]] = []

    def __call__(self, episodes):
        self.calls.append(len(episodes))
        return super().__call__(episodes)


@pytest.fixture
def seen(cut, monkeypatch):
    monkeypatch.setattr(Seen, "calls", [])
    cut.method = Seen()
    return cut


def expected_of(cut):
    """(accuracy [25], fingerprint) without units, parts or blocks kept."""
    episodes, labels = cut.drawn_from.sampler.sample(cut.bank, 0, 25)
    digest = EpisodeDigest(cut.bank.identity)
    for start, count in ((0, 10), (10, 10), (20, 5)):
        digest.update(cut.drawn_from.sampler.indices(start, count))
    return (ProtoNet()(episodes).argmax(-1) == labels).double().mean(1), digest.hexdigest()


def test_a_run_is_its_units_one_after_the_other(seen):
    correct, digest = expected_of(seen)
    rows, fingerprint = collect(seen, Parts(), Work())
    assert rows.complete and torch.equal(rows.arrays["correct"], correct) and Seen.calls == [2, 2, 2, 2, 2] * 2 + [2, 2, 1]
    drawn = [one for one in seen.drawn_from.drawn if one != (0, 1)]  # one episode is drawn to see how large they are
    assert fingerprint.hexdigest() == digest and drawn == [(0, 10), (10, 10), (20, 5)], "blocks are not drawn again"
    assert [one for one in seen.drawn_from.drawn if one != (0, 1)] == drawn


def test_what_is_kept_is_not_scored_again(seen, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fewshot.evaluation.progress.EVERY", 0.0)
    seen.scores = True
    correct, digest = expected_of(seen)
    whole, _ = collect(seen, Parts(tmp_path, {}), Work())
    assert len(names(tmp_path)) == 8, "one for each unit"
    for path in tmp_path.iterdir():
        if path.stem not in {"0000000004-0000000008", "0000000008-0000000010", "0000000014-0000000018"}:
            path.unlink()
    Seen.calls.clear()
    rows, fingerprint = collect(seen, Parts(tmp_path, {}), Work(progress=True), label="toy")
    assert Seen.calls == [2, 2, 2, 2, 2, 2, 2, 1], "episodes 0 to 3, 10 to 13 and 18 to 24"
    assert rows.known == 25 and torch.equal(rows.arrays["correct"], correct) and fingerprint.hexdigest() == digest
    assert rows.totals.keys() == whole.totals.keys() == {"confusion", "calibration"}
    assert all(torch.equal(rows.totals[name], x) for name, x in whole.totals.items())
    shown = capsys.readouterr().err
    assert shown.startswith("\rtoy:  40%") and "10/25" in shown and "?ep/s" in shown
    assert shown.endswith("\r"), "wiped at the end"
    Seen.calls.clear()
    collect(seen, Parts(tmp_path, {}), Work())
    assert Seen.calls == [] and capsys.readouterr().err == ""


def test_a_shard_scores_its_own_episodes_alone(seen, tmp_path, capsys):
    correct, digest = expected_of(seen)
    rows, _ = collect(seen, Parts(tmp_path, {}), Work(shard=(1, 3), progress=True))
    assert Seen.calls == [2] * 5 and rows.known == 10 and not rows.complete
    assert "0/10" in capsys.readouterr().err
    assert torch.equal(rows.arrays["correct"][8:18], correct[8:18])
    assert names(tmp_path) == ["0000000008-0000000018.safetensors"]
    Seen.calls.clear()
    rows, _ = collect(seen, Parts(tmp_path, {}), Work(shard=(0, 2), progress=True))
    assert Seen.calls == [2] * 4 and rows.known == 18
    Seen.calls.clear()
    rows, fingerprint = collect(seen, Parts(tmp_path, {}), Work(shard=(2, 3)))
    assert sum(Seen.calls) == 7 and rows.complete and torch.equal(rows.arrays["correct"], correct)
    assert fingerprint.hexdigest() == digest


def test_a_shard_ends_with_what_others_finished_meanwhile(seen, tmp_path):
    correct, _ = expected_of(seen)

    class Meanwhile(Seen):
        """The other shard is finished by another process after the first call."""

        def __call__(self, episodes):
            if len(self.calls) == 1:
                collect(other, Parts(tmp_path, {}), Work(shard=(1, 2)))
            return super().__call__(episodes)

    other = dataclasses.replace(seen, method=ProtoNet())
    other.block, other.chunk, other.unit = seen.block, seen.chunk, seen.unit
    seen.method = Meanwhile()
    rows, _ = collect(seen, Parts(tmp_path, {}), Work(shard=(0, 2)))
    assert sum(Seen.calls) == 14 and rows.complete and torch.equal(rows.arrays["correct"], correct)


def test_a_disk_that_takes_no_parts_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    parts = Parts(tmp_path / "file", {})
    parts.add(part(0, 4), arrays())
    with pytest.raises(FewshotError, match="cannot keep finished episodes in .*file.*then give the same command"):
        parts.flush(arrays())
