"""The command line that makes a stored result again."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path

from fewshot.backbones import check_backbone
from fewshot.cli.values import literal
from fewshot.core.errors import FewshotError
from fewshot.core.frozen import frozen
from fewshot.core.settings import default_of, settings_of
from fewshot.datasets import DATASETS
from fewshot.episodes.protocol import EpisodicProtocol
from fewshot.evaluation.result import Result
from fewshot.methods import METHODS, method_parameters


def eval_command(result: Result, data_root: str | Path | None = None, weights: Mapping[str, Path] | None = None) -> str:
    """`fewshot eval ...` for one result. What a result does not know, such as where its weights file lay, stands there as a
    word in capitals, and a line that begins with # above the command says what it is.

    weights   identity -> file of weights at hand
    """
    run = result.record
    words, remarks = _subject(result, data_root, weights or {})
    words += ["--method", run.method]
    defaults = method_parameters(run.method) if run.method in METHODS else {}
    own = "+" in (run.weights or "")  # the file brings parameters, too: only all of them are sure to win
    for name, value in run.parameters.items():
        if own or name not in defaults or value != frozen(defaults[name]):
            words += ["--set", f"{name}={_text(value)}"]
    if run.transforms:
        words += ["--transforms", run.transforms]
    if run.episode_list:
        words += ["--episode-file", "EPISODES"]
        remarks.append(f"EPISODES: the list of episodes with the fingerprint {run.episode_list}")
    else:
        protocol = run.protocol
        words += ["--protocol", protocol.name] if protocol.name != EpisodicProtocol.name else []
        for name, known in settings_of(protocol).items():
            value = getattr(protocol, name)
            # A list of the command line may have several values by default.
            if value != default_of(protocol, name) or (known.several and known.axis and not known.unused(protocol)):
                words += [known.option(name), str(value)]
        words += ["--episodes", str(run.episodes), *(["--seed", str(run.seed)] if run.seed else [])]
    words += ["--metrics"] if "nll" in result.measures else []
    if "coverage_target" in result.measures:
        words += ["--coverage", f"{float(result.measures['coverage_target']):g}"]
    if "temperature" in result.measures:
        words.append("--calibrate")
        if "--features" in words:
            words += ["--calibration-features", "VALIDATION"]
            remarks.append("VALIDATION: the feature bank of the validation classes")
    return "\n".join([*(f"# {remark}" for remark in remarks), shlex.join(["fewshot", "eval", *words])])


def _subject(result: Result, data_root: str | Path | None, weights: Mapping[str, Path]) -> tuple[list[str], list[str]]:
    run = result.record
    if run.dataset not in DATASETS or run.backbone == "features":
        words, remarks = ["--features", "FEATURES"], [f"FEATURES: the feature bank of {result.data_name} with the "
                                                      f"content hash {run.data}"]
        if run.base:
            words += ["--base-features", "BASE"]
            remarks.append(f"BASE: the feature bank of its base classes with the content hash {run.base}")
        return words, remarks
    words, remarks = ["--dataset", run.dataset, "--split", run.split], []
    for name, value in run.data_options.items():
        words += ["--data-option", f"{name}={_text(value)}"]
    if data_root is not None:
        words += ["--data-root", str(data_root)]
    elif is_path := DATASETS[run.dataset].root_is:
        words += ["--data-root", "PLACE"]
        called = f"{result.title.rpartition('#')[0]}, " if result.title else ""
        remarks.append(f"PLACE: {called}{is_path}, whose images have the content hash {run.data}")
    words += ["--backbone", run.backbone, *(["--crops", run.crops] if run.crops else [])]
    for name, value in run.backbone_options.items():
        words += ["--backbone-option", f"{name}={_text(value)}"]
    identity = (run.weights or "none").split("+")[0]
    if run.weights in weights or identity in weights:
        words += ["--weights", str(weights.get(run.weights, weights.get(identity)))]
    elif identity == "random:0":
        words += ["--weights", "random"]
    elif identity.startswith("random:"):
        remarks.append(f"in Python only: weights={identity!r}, untrained weights of another seed than 0")
    elif identity != "none" and _default_is_random(run.backbone):
        words += ["--weights", "WEIGHTS"]
        remarks.append(f"WEIGHTS: the weights file with the identity {run.weights}")
    elif identity != "none":
        remarks.append(f"with --weights FILE, unless the default weights of the backbone have the identity {run.weights}")
    return words, remarks


def _default_is_random(backbone: str) -> bool:
    try:
        return check_backbone(backbone)[0].weights[0] == "random"
    except FewshotError:  # a backbone that is not installed here
        return False


def _text(value: object) -> str:
    """What `options.literal` reads as `value`."""
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"
    return value if isinstance(value, str) and literal(value) == value else repr(value)
