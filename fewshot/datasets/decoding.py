"""Bytes of an image file to square pixels. Needs numpy and Pillow alone: the text of this file is part of the program that
`fewshot export` writes, so that it sees the same pixels."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif", ".tif", ".tiff", ".jp2",
                  ".ppm", ".pgm", ".pbm", ".pnm")
# What Pillow raises on damaged input, over its many decoders.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, zlib.error,
              Image.DecompressionBombError, MemoryError)


def decode(data: bytes | Image.Image, size: int, channels: int) -> np.ndarray:
    """uint8 [C, size, size] of an encoded image, or a decoded one: EXIF orientation applied, transparency on white, shorter
    side resized to `size` (antialiased bilinear), centre-cropped."""
    image: Image.Image = Image.open(io.BytesIO(data)) if isinstance(data, bytes) else data
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _eight_bit(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = fit(image.convert("RGB" if channels == 3 else "L"), size)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def fit(image: Image.Image, size: int) -> Image.Image:
    """Centre square of the image, resized to `size`."""
    width, height = image.size
    side = min(width, height)
    if (width, height) == (size, size):
        return image
    # Cropping first by an exact (fractional) box equals resize-then-crop without rounding the longer side.
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))


def _eight_bit(image: Image.Image) -> Image.Image:
    """Deeper greyscale: 16 bits are divided by 256 (Pillow's own conversion clips them to white). Where the depth is not
    said, values beyond 255 are taken for 16 bits, and floating ones up to 1 for fractions of white."""
    pixels = np.asarray(image, dtype=np.float64)
    if not np.isfinite(pixels).all():
        raise ValueError("NaN or infinite pixels")
    if image.mode == "F" and pixels.max() <= 1:
        pixels = pixels * 255
    elif image.mode.startswith("I;16") or pixels.max() > 255:
        pixels = pixels / 256
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def reason(error: Exception) -> str:
    """Why an image could not be read, in a few words."""
    if isinstance(error, UnidentifiedImageError):  # its own text is a memory address
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} megapixels"
    return str(error) or type(error).__name__
