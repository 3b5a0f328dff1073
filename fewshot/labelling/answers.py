"""What a method says of a folder of images."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from fewshot.core.html import html_table, picture
from fewshot.data.banks import ImageBank
from fewshot.evaluation.decisions import Decided

LOW = 0.5  # probability below which an answer is marked
_ROWS, _SIDE = 20, 48  # images in a notebook, and pixels of each


@dataclass(frozen=True, eq=False)
class Answers:
    """Labels of a folder of images.

    files           [Q] paths below the folder, sorted, of the images that could be read
    class_names     [N] names of the support's folders, sorted
    probabilities   [Q, N], softmax of the method's logits (its temperature or scale included; not calibrated)
    setting         "inductive", or "transductive": every answer depends on the other images of the same call
    description     method, hyper-parameters, transforms and backbone as one line
    notes           what a reader must know, one sentence each
    unreadable      file -> why it could not be read
    repeated        file -> the support file with the same pixels
    support         ImageBank of the examples, None where only their features are kept
    images          uint8 [Q, C, H, W] as the backbone saw them
    nearest         [Q] of tuples: the files of the 3 examples nearest to each image, nearest first
    decided         sets, calibrated probabilities and "unknown", as far as they are known; None: nothing is
    """

    files: tuple[str, ...]
    class_names: tuple[str, ...]
    probabilities: Tensor
    setting: str
    description: str
    notes: tuple[str, ...]
    unreadable: dict[str, str]
    repeated: dict[str, str]
    support: ImageBank | None
    images: Tensor
    nearest: tuple[tuple[str, ...], ...] = dataclasses.field(default=(), kw_only=True)
    decided: Decided | None = dataclasses.field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[tuple[str, str, float]]:
        """(file, predicted class, probability of it) of every image."""
        return zip(self.files, self.predicted, self.confidence.tolist(), strict=True)

    @property
    def predicted(self) -> tuple[str, ...]:
        """[Q] class names."""
        return tuple(self.class_names[label] for label in self.probabilities.argmax(1).tolist())

    @property
    def believed(self) -> Tensor:
        """[Q, N] the calibrated probabilities where they are known, else those of the method."""
        return self.probabilities if self.calibrated is None else self.calibrated

    @property
    def confidence(self) -> Tensor:
        """[Q] probability of the predicted class, of those `believed`."""
        return self.believed.amax(1)

    @property
    def calibrated(self) -> Tensor | None:
        """[Q, N] calibrated probabilities, where they are known."""
        return None if self.decided is None else self.decided.probabilities

    def set_of(self, row: int) -> tuple[str, ...] | None:
        """Names of the classes in the set of one image; None where sets are not known."""
        if self.decided is None:
            return None
        return tuple(self.class_names[label] for label in self.decided.sets[row].nonzero()[:, 0].tolist())

    def is_unknown(self, row: int) -> bool | None:
        """Whether one image seems to be of no class of the support; None where that is not known."""
        return None if self.decided is None or self.decided.unknown is None else bool(self.decided.unknown[row])

    def _repr_html_(self) -> str:
        """The images of which the method is least sure."""
        order = self.confidence.argsort(stable=True)[:_ROWS].tolist()
        rows = [(self.files[row], picture(self.images[row], _SIDE, self.files[row]), self.predicted[row],
                 f"{100 * float(self.confidence[row]):.1f} %") for row in order]
        which = f", the {_ROWS} least certain ones below" if len(self) > _ROWS else ""
        unread = [f"{file} could not be read: {why}" for file, why in self.unreadable.items()]
        return html_table(f"{len(self)} images, {len(self.class_names)} classes; {self.description}, {self.setting}{which}",
                          rows, ("file", "image", "class", "probability"), [*self.notes, *unread])

    def to_csv(self) -> str:
        """file, predicted, probability, note, what was decided (empty where it is not known), the files of the nearest
        examples, then p(class) of every class; sorted by file, unreadable ones included.

        probability   the method's own of the predicted class, as p(class) is;  calibrated: that class again, calibrated
        set   its classes, separated by "/", which no name of a folder contains
        """
        near = len(self.nearest[0]) if self.nearest else 0
        rows = []
        for row, ((file, name, _), every) in enumerate(zip(self, self.probabilities.tolist(), strict=True)):
            note = f"same pixels as support {self.repeated[file]}" if file in self.repeated else ""
            members, unknown = self.set_of(row), self.is_unknown(row)
            calibrated = "" if self.calibrated is None else f"{float(self.calibrated[row].amax()):.6f}"
            rows.append([file, name, f"{max(every):.6f}", note, calibrated,
                         *(("", "") if members is None else (str(len(members)), "/".join(members))),
                         "" if unknown is None else "yes" if unknown else "no",
                         *(self.nearest[row] if near else ()), *(f"{p:.6f}" for p in every)])
        rows += [[file, "", "", f"unreadable: {why}", *[""] * (4 + near + len(self.class_names))]
                 for file, why in self.unreadable.items()]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", "predicted", "probability", "note", "calibrated", "set size", "set", "unknown",
                         *(f"nearest {place + 1}" for place in range(near)), *(f"p({name})" for name in self.class_names)])
        writer.writerows(sorted(rows))
        return text.getvalue()
