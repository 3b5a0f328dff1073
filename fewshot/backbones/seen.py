"""What data made or chose weights, and what that means for a test on other data.

An item of `Backbone.seen` is a plain dictionary: role ("trained" or "chosen", by validation), name, split and content_hash
of the images, and the class_names among them; the last two are None where they are not known.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.datasets.base import DATASETS

_VERBS = {"trained": "was trained on", "chosen": "was chosen by its accuracy on"}
_GENERATED = re.compile(r"class \d+")  # names of a bank that was given none say nothing


def seen_data(role: str, bank: ImageBank) -> dict[str, Any]:
    """What is remembered of `bank`, which trained weights or chose among them."""
    return {"role": role, "name": bank.name, "split": bank.split, "content_hash": bank.content_hash,
            "class_names": sorted(present_classes(bank))}


def present_classes(bank: ImageBank | FeatureBank) -> set[str]:
    """The names that tell classes apart, of the classes with items."""
    names = (bank.class_names[label] for label in bank.classes.tolist())
    return {name for name in names if not _GENERATED.fullmatch(name)}


def seen_in(provenance: dict[str, Any]) -> list[dict[str, Any]]:
    """What the provenance of a weights file says: of training here, or of `convert_official` with a data set."""
    if "seen" in provenance:
        return list(provenance["seen"])
    unknown = {"content_hash": None, "class_names": None}
    banks = [(role, provenance.get("run", {}).get(key)) for role, key in (("trained", "train_bank"), ("chosen", "val_bank"))]
    found = [{"role": role, **unknown, **bank} for role, bank in banks if bank]
    if provenance.get("dataset"):
        found.append({"role": "trained", "name": provenance["dataset"], "split": "train", **unknown})
    return found


def collection(dataset: str) -> str:
    """Where the classes of a data set come from, "" where it is alone with them."""
    return DATASETS[dataset].collection if dataset in DATASETS else ""


def leak_notes(backbone: str, seen: Iterable[dict[str, Any]], name: str, split: str, content: str,
               classes: Collection[str]) -> tuple[str, ...]:
    """The warnings that a table must carry where what is evaluated (data set, split, content hash of its images, names of
    its classes) made or chose the weights of `backbone`. Equal names in a data set, or collection, are equal classes."""
    notes = [f"{backbone} {_VERBS[item['role']]} {what}: accuracy on classes seen before is not few-shot accuracy"
             for item in seen if (what := _shared(item, name, split, content, classes))]
    return tuple(dict.fromkeys(notes))


def _shared(item: dict[str, Any], name: str, split: str, content: str, classes: Collection[str]) -> str:
    """What of the evaluated data is in `item`; "" for nothing."""
    where = f"split {item['split']} of {item['name']}"
    if item["content_hash"] == content:
        return f"the same images ({where})"
    related = item["name"] != name and collection(name) and collection(item["name"]) == collection(name)
    if item["name"] != name and not related:
        return ""
    if item["class_names"] and classes:
        shared = len(set(classes) & set(item["class_names"]))
        return f"{shared} of the {len(classes)} classes evaluated here ({where})" if shared else ""
    if related:
        return f"{where}, which divides {collection(name)} anew and may share classes"
    return where if item["split"] == split or "all" in (item["split"], split) else ""
