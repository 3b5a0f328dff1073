"""A run is a value: checked when it is made, equal where it means the same, and it reads nothing from the disk."""

from __future__ import annotations

import builtins
import dataclasses
import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import fewshot
from fewshot.core.errors import FewshotError
from fewshot.core.settings import real, setting, settings_of, whole
from fewshot.data.banks import FeatureBank
from fewshot.episodes.protocol import PROTOCOLS, EpisodicProtocol, Protocol, protocol_settings, read_protocol
from fewshot.evaluation.method_spec import MethodSpec
from fewshot.evaluation.record import Record
from fewshot.evaluation.run import Run
from fewshot.features.subject import Subject


def test_the_defaults_can_be_evaluated():
    run = Run(episodes=20)
    assert run.queries == 7, "of the 12 images a class of glyphs"
    assert fewshot.evaluate(run).correct.mean() > 0.3


@pytest.mark.parametrize("wrong", [
    {"shots": "1"}, {"ways": 5.5}, {"ways": 1}, {"queries": -3}, {"queries": 0}, {"seed": "x"}, {"seed": True},
    {"alpha": -1}, {"alpha": float("nan")}, {"split": "tset"},
    {"dataset": "nope"}, {"method": "pt_mp"}, {"episodes": 1}, {"episodes": "9"},
    {"query_distribution": "uniform"}, {"k_eff": 3}, {"query_distribution": "k_eff"}, {"open_classes": 2}, {"way": 5},
    {"query_distribution": "k_eff", "k_eff": 6}, {"parameters": {"temprature": 1}}, {"parameters": {"temperature": "x"}},
    {"parameters": [1]}, {"transforms": "l3"}, {"crops": "keep"}, {"data_options": 3}, {"weights": 3}, {"ways": (3, 6)},
    {"shots": None}, {"backbone": None}])
def test_wrong_values_are_named_when_a_run_is_made(wrong):
    with pytest.raises(FewshotError) as error:
        Run(**wrong)
    (value,) = list(wrong.values())[:1]
    named = [*wrong, str(value), *(value if isinstance(value, dict) else ())]
    assert any(part in str(error.value) for part in named), error.value


@pytest.mark.parametrize(("wrong", "message"), [
    ({"way": 5}, "unknown run setting 'way'; did you mean 'ways'"), ({"ways": 5.5}, "ways=5.5; expected an integer"),
    ({"split": "tset"}, "unknown split 'tset'; did you mean 'test'"), ({"dataset": "glyph"}, "did you mean 'glyphs'")])
def test_messages_name_value_and_remedy(wrong, message):
    with pytest.raises(FewshotError, match=message):
        Run(**wrong)


@pytest.mark.parametrize(("one", "other"), [
    ({"shots": 1}, {"shots": 1.0}), ({}, {"queries": 7}), ({}, {"alpha": 5}), ({}, {"parameters": {"temperature": 1}}),
    ({"query_distribution": "dirichlet", "alpha": 2}, {"query_distribution": "dirichlet", "alpha": 2.0}),
    ({"transforms": "power(0.5), l2"}, {"transforms": "power(0.5),l2"}), ({"weights": "w"}, {"weights": Path("w")}),
    ({"seed": 3}, {"seed": torch.tensor(3).item()})])
def test_equal_requests_are_equal(one, other):
    a, b = Run(**one), Run(**other)
    assert a == b and hash(a) == hash(b) and a.key == b.key


@pytest.mark.parametrize("change", [{"shots": 2}, {"seed": 1}, {"method": "ridge"}, {"parameters": {"temperature": 2.0}},
                                    {"query_distribution": "dirichlet"}, {"weights": "random"}, {"transforms": "l2"},
                                    {"open_classes": 1, "open_queries": 1}, {"backbone_options": {"width": 8}}])
def test_other_requests_differ(change):
    assert Run(**change) != Run() and Run(**change).key != Run().key


def test_nothing_in_a_run_can_be_changed():
    run = Run(backbone_options={"width": 8})
    key = run.key
    for change in (lambda: run.parameters.update(temperature=5), lambda: run.parameters.pop("temperature"),
                   lambda: run.backbone_options.__setitem__("width", 9), lambda: run.parameters.clear()):
        with pytest.raises(TypeError, match="cannot be changed"):
            change()
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.seed = 3
    given = {"temperature": 2.0}
    other = Run(parameters=given)
    given["temperature"] = 3.0
    assert run.key == key and other.parameters["temperature"] == 2.0


def test_a_run_reads_nothing(monkeypatch, tmp_path):
    """Not even a weights file that it names."""
    (tmp_path / "w.safetensors").write_bytes(b"no weights")
    Run(method="maml"), Run(transforms="l2")  # the first use imports methods
    monkeypatch.setattr(builtins, "open", lambda *_, **__: pytest.fail("a file was opened"))
    monkeypatch.setattr(Path, "is_file", lambda *_: pytest.fail("the disk was asked"))
    assert Run(method="maml", weights=tmp_path / "w.safetensors").weights.endswith("w.safetensors")


def test_replacing_keeps_what_was_left_to_the_data_set():
    run = Run()
    assert dataclasses.replace(run, dataset="omniglot").queries == 15
    assert dataclasses.replace(dataclasses.replace(run, shots=5), dataset="omniglot").queries == 15
    assert dataclasses.replace(Run(queries=3), dataset="omniglot").queries == 3
    warm = Run(parameters={"temperature": 3.0})
    assert dataclasses.replace(warm, method="ridge").parameters == Run(method="ridge").parameters
    kept = dataclasses.replace(warm, shots=5)
    assert kept.parameters["temperature"] == 3.0 and kept.shots == 5


def test_a_bank_brings_its_own_default_of_queries():
    labels = torch.arange(6).repeat_interleave(20)
    bank = FeatureBank(torch.randn(120, 4, generator=torch.Generator().manual_seed(0)), labels, name="mine")
    for run, queries in ((Run(episodes=10), 15), (Run(episodes=10, queries=7), 7)):
        result = fewshot.evaluate(run, bank)
        assert result.record.queries == queries and result.measures["class_total"].eq(queries).all()
        again = fewshot.evaluate(result.record, bank)
        assert again.record == result.record and again.correct.equal(result.correct)


def test_runs_survive_json_and_pickle():
    for run in (Run(), Run(method="unem_gaussian", query_distribution="dirichlet", alpha=0.5, crops="mean(3)"),
                Run(method="maml", parameters={"inner_steps": 2}, weights="w")):
        assert Run.from_dict(json.loads(json.dumps(run.to_dict()))).key == run.key
        assert pickle.loads(pickle.dumps(run)) == run


def test_flat_names_lead_to_the_parts():
    run = Run(dataset="omniglot", method="ridge", transforms="l2", shots=5)
    assert (run.subject, run.spec) == (Subject("omniglot"), MethodSpec("ridge", {}, "l2"))
    assert run.protocol == EpisodicProtocol(shots=5, queries=15) and str(run.protocol) == "5-way 5-shot"
    with pytest.raises(AttributeError, match="'shot'"):
        run.shot  # noqa: B018


def test_the_method_is_made_once_and_the_transforms_are_read_once(monkeypatch):
    """From the request to the result."""
    import fewshot.features.transforms as transforms
    import fewshot.methods.contract as contract

    made, read = [], []
    plain, parse = contract.create_method, transforms.parse_transforms
    monkeypatch.setattr(contract, "create_method", lambda name, **given: made.append(name) or plain(name, **given))
    monkeypatch.setattr(transforms, "parse_transforms", lambda spec: read.append(spec) or parse(spec))
    Run()
    made.clear(), read.clear()
    fewshot.evaluate(Run(method="ridge", transforms="l2", episodes=10))
    assert made == ["ridge"] and read == ["l2"]


# -- records -----------------------------------------------------------------------------------------------------------

KEPT = sorted(Path(__file__).resolve().parents[2].glob("experiments/kept/*/run.json"))


def test_kept_results_are_read_under_their_keys():
    assert len(KEPT) == 30
    for path in KEPT:
        record = Record(json.loads(path.read_text()))
        assert record.key == path.parent.name and record.to_dict() == json.loads(path.read_text())
        asked = Run.from_record(record)
        identities = {name: getattr(record, name) for name in ("data", "base")}
        assert asked.record(**identities).key == record.key, "a request for it is stored under the same key today"


def test_the_identities_are_in_the_record_alone():
    result = fewshot.evaluate(Run(episodes=10, backbone="pixels"))
    assert result.record.weights == "none" and len(result.record.data) == 64 and result.record.base is None
    assert result.record.protocol == Run().protocol and str(result.record.protocol) == result.protocol == "5-way 1-shot"
    with pytest.raises(AttributeError, match="no 'shot'"):
        result.record.shot  # noqa: B018


# -- protocols ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def own_protocol():
    @PROTOCOLS.register("half")
    @dataclass(frozen=True)
    class Half(Protocol):
        name = "half"
        ways: int = setting(4, "classes", whole(2), axis="ways", named=True)
        share: float = setting(0.5, "of the images", real(0), axis="share")

        def sampler(self, bank, seed):
            return fewshot.EpisodeSampler(bank, ways=self.ways, shots=1, queries=round(10 * self.share), seed=seed)

        def text(self, without: str = "") -> str:
            return f"half of {self.ways}"

    yield Half
    del PROTOCOLS._items["half"]


def test_a_protocol_of_ones_own_is_asked_for_evaluated_and_stored(own_protocol, tmp_path):
    run = Run(protocol=own_protocol(ways=3), backbone="pixels", episodes=12)
    store = fewshot.Store(tmp_path)
    result = fewshot.evaluate(run, store=store)
    assert result.protocol == "half of 3" and result.measures["class_total"].shape == (12, 3)
    assert result.record.to_dict()["protocol"] == "half" and "shots" not in result.record.to_dict()
    (stored,) = store
    assert stored.record.protocol == run.protocol and fewshot.evaluate(stored.record).correct.equal(result.correct)
    assert "share" in protocol_settings() and dataclasses.replace(run, share=0.3).share == 0.3
    with pytest.raises(FewshotError, match="share"):
        Run(share=0.3)  # a setting of another protocol
    with pytest.raises(FewshotError, match="unknown setting of the protocol half 'shots'"):
        read_protocol({"protocol": "half", "shots": 3})


def test_settings_say_what_the_command_line_and_figures_need():
    for name, known in settings_of(EpisodicProtocol).items():
        assert known.help and known.option(name).startswith("--"), name
