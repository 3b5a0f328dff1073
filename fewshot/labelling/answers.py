"""What a method says of a folder of images."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from fewshot.core.html import html_table, picture
from fewshot.data.banks import ImageBank

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
    def confidence(self) -> Tensor:
        """[Q] probability of the predicted class."""
        return self.probabilities.amax(1)

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
        """file, predicted, probability, note, then p(class) of every class; sorted by file, unreadable ones included."""
        rows = [[file, name, f"{value:.6f}", f"same pixels as support {self.repeated[file]}" if file in self.repeated
                 else "", *(f"{p:.6f}" for p in every)]
                for (file, name, value), every in zip(self, self.probabilities.tolist(), strict=True)]
        rows += [[file, "", "", f"unreadable: {why}", *[""] * len(self.class_names)]
                 for file, why in self.unreadable.items()]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", "predicted", "probability", "note", *(f"p({name})" for name in self.class_names)])
        writer.writerows(sorted(rows))
        return text.getvalue()
