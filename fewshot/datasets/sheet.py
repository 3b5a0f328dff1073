"""Contact sheets: look at a bank before training on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

from fewshot.core.errors import FewshotError
from fewshot.data.banks import ImageBank


def contact_sheet(bank: ImageBank, classes: Sequence[int | str] | None = None, per_class: int = 10, columns: int = 1,
                  scale: float | None = None, captions: bool = True) -> Image.Image:
    """One row of images per class as an RGB picture.

    classes     labels or class names, in this order; the first 20 classes by default
    per_class   images per class, evenly spread over those it has; fewer leave a gap
    columns     how many classes stand side by side
    scale       magnification; by default images are shown about 64 pixels wide
    captions    class name and number of images above each row

    Raises FewshotError for a class that the bank does not have.
    """
    labels = [_label(bank, c) for c in (range(min(20, len(bank.class_names))) if classes is None else classes)]
    if not labels or per_class < 1 or columns < 1:
        raise FewshotError(f"nothing to show: {len(labels)} classes, per_class={per_class}, columns={columns}")
    height, width = bank.images.shape[-2:]
    scale = max(0.25, 64 / width) if scale is None else scale
    cell = (max(1, round(width * scale)), max(1, round(height * scale)))
    gap, text = 2, 15 if captions else 0
    block = (per_class * (cell[0] + gap) + 6, cell[1] + gap + text)
    rows = -(-len(labels) // columns)
    sheet = Image.new("RGB", (block[0] * columns, block[1] * rows), (96, 96, 96))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for place, label in enumerate(labels):
        left, top = block[0] * (place // rows), block[1] * (place % rows)
        items = (bank.labels == label).nonzero()[:, 0]
        if captions:
            caption = _fit(f"{bank.class_names[label]} ({len(items)})", block[0], font)
            pen.text((left + 2, top + 1), caption, "white", font)
        if len(items) > per_class:
            items = items[torch.linspace(0, len(items) - 1, per_class).round().long()]
        for column, item in enumerate(items.tolist()):
            sheet.paste(_picture(bank.images[item]).resize(cell, Image.Resampling.BILINEAR),
                        (left + column * (cell[0] + gap), top + text))
    return sheet


def _label(bank: ImageBank, wanted: int | str) -> int:
    if isinstance(wanted, str) and wanted in bank.class_names:
        return bank.class_names.index(wanted)
    if not isinstance(wanted, str) and 0 <= int(wanted) < len(bank.class_names):
        return int(wanted)
    raise FewshotError(f"no class {wanted!r} in {bank.name}/{bank.split}; it has {len(bank.class_names)} classes, "
                       f"0 ({bank.class_names[0]!r}) to {len(bank.class_names) - 1} ({bank.class_names[-1]!r})")


def _picture(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).expand(-1, -1, 3).contiguous().numpy())


def _fit(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """`text` cut to `width` pixels; the built-in font has no other letters than ASCII."""
    text = text.encode("ascii", "replace").decode()
    while len(text) > 1 and font.getlength(text) > width - 4:
        text = text[:-1]
    return text
