"""Augmentation steps: image by image what torchvision's kernels give, values in range, texts that read."""

from __future__ import annotations

import math

import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.training.augment import (
    AUGMENTS,
    Affine,
    ColorJitter,
    Flip,
    ResizedCrop,
    Views,
    parse_augmentation,
    turn_hue,
)

EVERYTHING = "crop(3),resized_crop(0.1),affine(30,0.2,0.3),color_jitter(1.0,hue=0.5,p=0.9),greyscale(0.3),flip"


def photographs(count=6, channels=3, size=20, seed=0):
    """Smooth colour gradients with a bright and a black corner, as uint8."""
    generator = torch.Generator().manual_seed(seed)
    ramps = torch.rand(count, channels, 2, 1, 1, generator=generator)
    rows = torch.linspace(0, 1, size).view(1, 1, size, 1)
    images = (ramps[:, :, 0] * rows + ramps[:, :, 1] * rows.transpose(2, 3)) / 2
    images[..., :4, :4], images[..., -4:, -4:] = 1, 0
    return (images * 255).to(torch.uint8)


def draws(count, number, seed=0):
    return torch.rand(count, number, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_colours_are_those_of_torchvision():
    from torchvision.transforms.v2 import functional as reference

    images, numbers = photographs() / 255.0, draws(6, 5)
    found = ColorJitter(0.4)(images, numbers)
    for image, (b, c, s, _, _), result in zip(images, numbers, found, strict=True):
        expected = reference.adjust_brightness(image, 0.6 + 0.8 * float(b))
        expected = reference.adjust_contrast(expected, 0.6 + 0.8 * float(c))
        expected = reference.adjust_saturation(expected, 0.6 + 0.8 * float(s))
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-3)  # their luma has 0.2989 where BT.601 has 0.299
    assert (found - images).abs().max() > 0.05


def test_hue_turns_chroma_and_keeps_luma():
    images = 0.3 + 0.4 * photographs() / 255.0  # so that nothing is cut off
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    angles = torch.full((6,), 0.5)
    turned = turn_hue(images, angles)
    torch.testing.assert_close((turned * luma).sum(1), (images * luma).sum(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(turn_hue(turned, -angles), images, rtol=0, atol=1e-5)
    torch.testing.assert_close(turn_hue(images, torch.full((6,), 2 * math.pi)), images, rtol=0, atol=1e-5)
    assert (turned - images).abs().max() > 0.02
    grey = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(turn_hue(grey, angles), grey, rtol=0, atol=2e-3)


def test_boxes_are_those_of_torchvision():
    """A box of whole pixels; in its inside, as torchvision does not look beyond the box at its edge."""
    from torchvision.transforms.v2 import functional as reference

    images = photographs(2, size=20) / 255.0
    step = ResizedCrop(0.25)
    # Area 0.25, aspect ratio 1: half of the side, from row 5 and column 2.
    numbers = torch.tensor([[0.0, 0.5, 2 / 10, 5 / 10]] * 2, dtype=torch.float64)
    found = step(images, numbers)
    expected = reference.resized_crop(images, 5, 2, 10, 10, [20, 20], antialias=False)
    torch.testing.assert_close(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], rtol=0, atol=1e-5)
    whole = torch.tensor([[1 - 1e-12, 0.5, 0.3, 0.3]], dtype=torch.float64)
    torch.testing.assert_close(step(images[:1], whole), images[:1], rtol=0, atol=1e-5)


def test_boxes_have_the_areas_and_ratios_they_promise():
    """Measured on images whose values are their coordinates."""
    size, count = 32, 3000
    axis = (torch.arange(size) + 0.5) / size
    images = torch.stack([axis.view(1, -1).expand(size, -1), axis.view(-1, 1).expand(-1, size)]).expand(count, -1, -1, -1)
    found = ResizedCrop(0.2)(images, draws(count, 4))
    middle = slice(size // 4, size - size // 4)  # away from the border of the image, where values stop rising
    slope = (size // 2 - 1) / size
    width = (found[:, 0, :, middle][..., -1] - found[:, 0, :, middle][..., 0])[:, size // 2] / slope
    height = (found[:, 1, middle][:, -1] - found[:, 1, middle][:, 0])[:, size // 2] / slope
    area, ratio = width * height, width / height
    assert area.min() + 1e-3 >= 0.2 and area.max() <= 1 + 1e-3
    assert 0.55 < area.mean() < 0.62, "uniform between 0.2 and 1, a little less where a side is cut"
    assert 3 / 4 - 1e-3 <= ratio.min() < 0.78 and 1.28 < ratio.max() <= 4 / 3 + 1e-3
    left = found[:, 0, size // 2, 0]
    assert left.min() < 0.05 and left.max() > 0.3


def test_affine_maps_are_those_of_torchvision():
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as reference

    images = photographs(1, 1, 21) / 255.0
    for numbers, (angle, shift, scale) in [((1.0, 0.5, 0.5, 0.5), (-30.0, (0, 0), 1.0)),
                                           ((0.5, 1.0, 0.5, 0.5), (0.0, (0, 0), 1.5)),
                                           ((0.5, 0.5, 0.0, 1.0), (0.0, (4, -4), 1.0))]:
        found = Affine(30, 4 / 21, 0.5)(images, torch.tensor([numbers], dtype=torch.float64))
        expected = {value: reference.affine(images, value, list(shift), scale, [0.0, 0.0], InterpolationMode.BILINEAR)
                    for value in (angle, -angle)}
        inside = (..., slice(6, -6), slice(6, -6))  # torchvision treats what comes from outside in another way
        errors = [(found[inside] - value[inside]).abs().max() for value in expected.values()]
        assert min(errors) < 0.02, errors
    assert Affine(0, 0, 0)(images, draws(1, 4)).allclose(images, atol=1e-5)


def test_flips_and_probabilities():
    images = photographs(1000, size=12) / 255.0
    mirrored = torch.tensor([not torch.equal(a, b) for a, b in zip(Flip()(images, draws(1000, 1)), images, strict=True)])
    assert 0.45 < mirrored.double().mean() < 0.55
    grey = parse_augmentation("greyscale(0.3)")(images, draws(1000, 1))
    assert 0.25 < (grey.std(1).amax((1, 2)) < 1e-6).double().mean() < 0.35
    jittered = parse_augmentation("color_jitter(0.4,p=0.25)")(images, draws(1000, 5))
    assert 0.2 < ((jittered - images).abs().amax((1, 2, 3)) > 1e-6).double().mean() < 0.3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spec", [*sorted(AUGMENTS), EVERYTHING])
def test_values_stay_in_range(channels, spec):
    """Bright and black images, with the strongest settings: nothing wraps, nothing leaves [0, 1]."""
    images = torch.cat([photographs(40, channels), torch.full((1, channels, 20, 20), 255, dtype=torch.uint8)])
    before = images.clone()
    chain = parse_augmentation(spec)
    found = chain(images, draws(41, chain.draws))
    assert found.shape == images.shape and found.dtype == torch.float32
    assert found.min() >= 0 and found.max() <= 1 and torch.equal(images, before)
    assert (found - images / 255).abs().max() > 0.1 or spec == "greyscale" or (spec == "color_jitter" and channels == 1)
    assert torch.equal(chain(images / 255.0, draws(41, chain.draws)), found), "stored floating images are treated alike"


def test_an_image_does_not_depend_on_its_batch():
    images, chain = photographs(6), parse_augmentation(EVERYTHING)
    numbers = draws(6, chain.draws)
    together = chain(images, numbers)
    for i in range(6):
        torch.testing.assert_close(chain(images[i:i + 1], numbers[i:i + 1])[0], together[i])
    assert (chain(images, draws(6, chain.draws, seed=1)) - together).abs().max() > 0.1


def test_views_draw_each_for_themselves():
    images, views = photographs(4), parse_augmentation("crop(2) | affine,flip", views=2)
    assert views.draws == 7 and repr(views) == "crop(padding=2) | affine(degrees=10.0,translate=0.1,scale=0.1),flip"
    numbers = draws(4, 7)
    expected = torch.cat([parse_augmentation("crop(2)")(images, numbers[:, :2]),
                          parse_augmentation("affine,flip")(images, numbers[:, 2:])])
    assert torch.equal(views(images, numbers), expected)
    twice = parse_augmentation("affine", views=2)
    assert isinstance(twice, Views) and twice.draws == 8
    first, second = twice(images, numbers.repeat(1, 2)[:, :8]).chunk(2)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("spec", "message"), [
    ("flipp", "unknown augmentation step 'flipp'; did you mean 'flip'"), ("crop(0)", "at least 1 pixel"),
    ("resized_crop(scale=0)", "must lie in"), ("crop(padding=2", "cannot read"), ("affine(200)", "degrees must lie in"),
    ("color_jitter(hue=0.7)", "hue in"), ("crop(2)|flip", "describes 2 views, and this recipe takes 1"),
    ("crop(two)", "is not a int"), ("resized_crop(ratio=2)", "argument of resized_crop")])
def test_texts_that_do_not_read(spec, message):
    with pytest.raises(FewshotError, match=message):
        parse_augmentation(spec)
