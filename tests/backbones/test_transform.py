"""The image transform: value range, channels, size, normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fewshot.backbones import ImageTransform, create_backbone
from fewshot.core.errors import FewshotError


def images(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [None, 28, 84])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stored", [1, 3])
def test_uint8_and_float_agree_for_any_leading_axes(size, channels, stored):
    transform = ImageTransform(channels, size, (0.5,), (0.25,), "bicubic")
    x = images(2, 5, stored, 40, 40)
    kept = x.clone()
    y = transform(x)
    assert y.shape == (2, 5, channels, size or 40, size or 40) and y.dtype == torch.float32
    torch.testing.assert_close(transform(x / 255), y)
    torch.testing.assert_close(transform(x[1, 3]), y[1, 3])
    assert y.min() >= -2 and y.max() <= 2  # bicubic overshoot is clipped
    assert torch.equal(x, kept)


def test_values():
    x = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1)
    assert ImageTransform()(x).flatten().tolist() == pytest.approx([0, 0.2, 1])
    normalised = ImageTransform(mean=(0.1, 0.2, 0.3), std=(1, 2, 0.5))(x)
    assert normalised.flatten().tolist() == pytest.approx([-0.1, 0, 1.4])
    grey = ImageTransform(channels=1)(x)
    assert grey.flatten().tolist() == pytest.approx([0.587 * 0.2 + 0.114])
    repeated = ImageTransform()(x[2:])
    assert repeated.flatten().tolist() == [1, 1, 1]


@pytest.mark.parametrize(("name", "filter_"), [("bilinear", Image.Resampling.BILINEAR),
                                               ("bicubic", Image.Resampling.BICUBIC)])
@pytest.mark.parametrize("size", [12, 55])
def test_resize_agrees_with_pillow(name, filter_, size):
    # Mid-range values: Pillow clips what bicubic overshoots between its two passes already, we once at the end.
    x = images(3, 31, 31) // 2 + 64
    picture = Image.fromarray(x.permute(1, 2, 0).numpy())
    expected = torch.from_numpy(np.array(picture.resize((size, size), filter_))).permute(2, 0, 1)
    ours = ImageTransform(size=size, interpolation=name)(x) * 255
    assert (ours - expected).abs().max() < 1.5  # Pillow rounds after each pass


def test_float_images_keep_gradient_and_dtype():
    x = torch.rand(2, 1, 20, 20, dtype=torch.float64, requires_grad=True)
    y = ImageTransform(3, 28, (0.5,), (0.5,))(x)
    y.sum().backward()
    assert y.dtype == torch.float64 and x.grad.abs().min() > 0


@pytest.mark.parametrize(("x", "message"), [
    (torch.rand(3, 8, 8) * 255, "divide by 255"),
    (torch.full((3, 8, 8), float("nan")), "nan"),
    (torch.zeros(3, 8, 8, dtype=torch.int64), "int64"),
    (torch.rand(8, 8, 3), "C, H, W"),
    (torch.rand(8, 8), "C, H, W"),
])
def test_wrong_images_are_refused(x, message):
    with pytest.raises(FewshotError, match=message):
        ImageTransform()(x)


@pytest.mark.parametrize("keywords", [dict(mean=(1, 2)), dict(std=(0,)), dict(interpolation="nearest")])
def test_wrong_settings_are_refused(keywords):
    with pytest.raises(FewshotError):
        ImageTransform(**keywords)


def test_specs_tell_transforms_apart():
    specs = [create_backbone(*a, **k).transform.spec for a, k in
             [(("conv4",), dict(image_size=28)), (("conv4",), dict(image_size=28, channels=1)), (("conv4",), {}),
              (("timm/vit_tiny_patch16_224",), dict(image_size=32, depth=1))]]
    assert len({str(spec) for spec in specs}) == len(specs)
    assert specs[3]["mean"] == [0.5, 0.5, 0.5] and specs[3]["interpolation"].startswith("bicubic")
