"""What a backbone was trained on, beside what it is tested on: numbers across data sets, and which of them are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewshot.backbones.base import BACKBONES
from fewshot.backbones.seen import collection, seen_in
from fewshot.backbones.weights import describe_weights, read_weights
from fewshot.core.errors import FewshotError
from fewshot.datasets import DATASETS
from fewshot.evaluation.result import Result
from fewshot.evaluation.run import Run
from fewshot.reporting.accuracy_tables import result_notes
from fewshot.reporting.table import TIED, Cell, Table

ACROSS, WITHIN, SIMILAR, TRAINED = "across", "within", "similar", "trained"


@dataclass(frozen=True)
class Origin:
    """A backbone and where its weights come from.

    name      for people, e.g. "omniglot"
    weights   as in `Run`; options are further ones of the backbone
    data      (data set, split, content hash of the images or None) of every bank that made or chose the weights
    pretrained_on   as in `Backbone`
    """

    name: str
    backbone: str
    weights: str | None = None
    options: dict = field(default_factory=dict)
    data: tuple[tuple[str, str, str | None], ...] = ()
    pretrained_on: str | None = None

    @classmethod
    def of_file(cls, path: str | Path) -> Origin:
        """The backbone in a file of `save_weights`: what it was trained and validated on is in its provenance (of training
        here, or of `convert_official` with a data set). Raises FewshotError as `read_weights`."""
        described, provenance = describe_weights(path), read_weights(path)[2]
        data = [(item["name"], item["split"], item["content_hash"]) for item in seen_in(provenance)]
        name = data[0][0] if data else described["pretrained_on"] or f"unknown data ({Path(path).name})"
        return cls(name, described["backbone"], str(path), {}, tuple(data), described["pretrained_on"])

    @classmethod
    def untrained(cls, backbone: str, name: str, **options: Any) -> Origin:
        """A backbone without weights, or with those that come with it."""
        return cls(name, backbone, None, options, (), BACKBONES[backbone].default_pretrained_on)

    def relation(self, dataset: str, split: str, content: str) -> str:
        """How test images (data set, split, content hash) relate to what the weights have seen:

        "trained"   their classes made or chose the weights, or may have: the same images, the same split (or one of them
                    "all"), another split of the same collection (mini- and tieredImageNet, CIFAR-FS and FC100), or weights
                    of own images tested on own images of the same kind, which may share classes. Accuracy on them is not
                    few-shot accuracy
        "similar"   pre-training saw classes like these (`Dataset.in_imagenet`)
        "within"    other classes of the same data set
        "across"    another data set
        """
        for name, part, images in self.data:
            own = name in DATASETS and DATASETS[name].state == "own images"  # whose name says little
            if images == content or (name == dataset and (own or part == split or "all" in (part, split))):
                return TRAINED
            if name != dataset and collection(name) and collection(name) == collection(dataset):
                return TRAINED  # split in different ways: a test class of one may train the other
        if self.pretrained_on and DATASETS[dataset].in_imagenet:
            return SIMILAR
        return WITHIN if any(name == dataset for name, _, _ in self.data) else ACROSS

    def run(self, dataset: str, method: str, **settings: Any) -> Run:
        """The evaluation of this backbone on a data set. The network keeps the input it was trained with: greyscale is
        repeated to its three channels or colour reduced to luma, and images are resized to its side.

        Raises FewshotError for a method or transform that takes statistics of base classes: a run finds them in the tested
        data set, where the network was not trained."""
        run = Run(dataset=dataset, backbone=self.backbone, weights=self.weights, backbone_options=self.options,
                  method=method, **settings)
        if run.spec.needs_base:
            raise FewshotError(f"{method} with these parameters takes statistics of base classes, and would take those of "
                               f"{dataset}; choose e.g. norm='l2n', which needs none")
        return run


def domain_table(entries: Sequence[tuple[Origin, str, Result]], left_out: Sequence[str] = ()) -> Table:
    """Rows: what the backbone was trained on, backbone and method; columns: what it is tested on and the protocol.

    entries    (source, its relation to the test images, result)
    left_out   one sentence for each pair without a number
    """
    labels = list(dict.fromkeys((source.name, source.backbone, r.record.method) for source, _, r in entries))
    columns = list(dict.fromkeys(_column(r) for _, _, r in entries))
    found = {((source.name, source.backbone, r.record.method), _column(r)): (relation, r) for source, relation, r in entries}
    cells, records = [], []
    for label in labels:
        row: list[Cell | None] = []
        for column in columns:
            relation, result = found.get((label, column), (None, None))
            if result is None:
                row.append(None)
                continue
            row.append(Cell(result.accuracy.mean, result.accuracy.half_width, "" if relation == ACROSS else TIED,
                            result.record.key))
            records.append({"trained_on": label[0], "relation": relation, "protocol": result.protocol,
                            "accuracy_percent": 100 * result.accuracy.mean,
                            "half_width_percent": 100 * result.accuracy.half_width, "run": result.record.key,
                            **result.record.to_dict(), "commit": result.commit})
        cells.append(tuple(row))
    legend = {TIED: "not across data sets: tested on other classes of the data set that trained the backbone, or on classes "
                    "like those of its pre-training."}
    notes = [*result_notes([r for _, _, r in entries]), *left_out]
    return Table(("trained on", "backbone", "method"), tuple(labels), tuple(columns), tuple(cells), legend, tuple(notes),
                 tuple(records))


def _column(result: Result) -> str:
    return f"{result.data_name}, {result.protocol}"
