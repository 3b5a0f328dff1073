"""Own images as files: which there are, what can be read of them, and the network that takes them."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fewshot.backbones import Backbone, create_backbone
from fewshot.backbones.weights import describe_weights
from fewshot.core.errors import FewshotError
from fewshot.data.banks import ImageBank
from fewshot.datasets.decoding import reason
from fewshot.datasets.files import Folder as FolderTree
from fewshot.datasets.folder import Folder, refuse_splits
from fewshot.datasets.images import Listing, decoded


def support_listing(support: Path) -> Listing:
    """The files of a folder of class folders; raises FewshotError where it is none."""
    if not support.is_dir():
        raise FewshotError(f"the support {support} is not a folder; give a folder with one folder of images per class")
    names = FolderTree(support).names()
    full = {name.split("/")[0] for name in names if "/" in name}
    folders = sorted(p.name for p in support.iterdir() if p.is_dir() and not p.name.startswith("."))
    empty = [name for name in folders if name not in full]
    if empty and full:
        raise FewshotError(f"{len(empty)} class folders of {support} hold no image: {', '.join(empty[:10])}; put at least "
                           "one into each, or remove the folder")
    if len(full) == 1:
        raise FewshotError(f"{support} has only one class ({folders[0]}); labelling needs at least 2 class folders")
    loose = [name for name in names if "/" not in name]
    if loose and full:
        warnings.warn(f"{len(loose)} images of {support} are in no class folder and are not used: {', '.join(loose[:10])}",
                      stacklevel=3)
    refuse_splits(support, full)
    return Folder(level=1).listing(support, "all")


def query_files(queries: Path, support: Path | None = None) -> tuple[FolderTree, list[str]]:
    """The images of a folder, with all folders below it, or one image; raises FewshotError for none, and for those of the
    support."""
    if queries.is_file():
        return FolderTree(queries.parent), [queries.name]
    if not queries.is_dir():
        raise FewshotError(f"the queries {queries} are neither a folder nor an image file")
    if support is not None and support.resolve() in queries.resolve().parents:
        raise FewshotError(f"the queries {queries} lie inside the support {support}, where each folder is a class; move "
                           "them out of it")
    tree = FolderTree(queries)
    names = tree.names()
    if not names:
        raise FewshotError(f"{queries} has no image to label (.jpg, .png, .webp, .bmp, .gif, .tif, ...)")
    return tree, names


def network_of(backbone: str | Backbone | None, weights: str | Path | None) -> Backbone:
    """The network by name, by the file of its weights, or itself."""
    if isinstance(backbone, Backbone):
        if weights is not None:
            raise FewshotError(f"weights={str(weights)!r} beside a backbone that is made already; give one of them")
        return backbone
    if weights is None or not Path(weights).is_file():
        return create_backbone(backbone or "efficientnet_lite0", weights=weights)
    described = describe_weights(weights)  # knows the size and channels of its images
    name = backbone or described["backbone"]
    return create_backbone(name, weights=weights, **(described["options"] if name == described["backbone"] else {}))


def read(files: list, size: int, channels: int) -> tuple[Tensor, dict[str, str]]:
    """uint8 [M, C, size, size] of the readable files, and file -> reason of the others."""
    images, bad = [], {}
    with warnings.catch_warnings():
        # Pillow suspects an attack behind any image beyond 90 megapixels; these are the user's own.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for (_, name), image in zip(files, decoded(files, size, channels), strict=True):
            if isinstance(image, Exception):
                bad[name] = reason(image)
            else:
                images.append(torch.tensor(image))
    return torch.stack(images) if images else torch.empty(0), bad


def read_all(files: list, size: int, channels: int, of: str) -> Tensor:
    """uint8 [M, C, size, size] of every file; raises FewshotError that names those that cannot be read."""
    images, bad = read(files, size, channels)
    if bad:
        raise FewshotError(f"{len(bad)} of {len(files)} images of {of} cannot be read; replace or remove them: {shown(bad)}")
    return images


def image_shape(network: Backbone) -> tuple[int, int]:
    """(side in pixels, channels) of the images that are decoded for `network`."""
    return network.input_size or Folder.image_size, network.transform.channels


def examples(listing: Listing, support: Path, size: int, channels: int) -> ImageBank:
    """The decoded images of `support`. Raises FewshotError naming those that cannot be read."""
    images = read_all(listing.files, size, channels, f"the support {support}")
    return ImageBank(images, torch.tensor(listing.labels), listing.class_names, "support", "all",
                     tuple(name for _, name in listing.files))


def read_readable(tree: FolderTree, names: list[str], size: int, channels: int,
                  of: Path) -> tuple[ImageBank, dict[str, str]]:
    """The readable files, and file -> reason of the others, which are warned about; raises FewshotError where none is
    left."""
    images, unreadable = read([(tree, name) for name in names], size, channels)
    if unreadable:
        message = f"{len(unreadable)} of {len(names)} images of {of} cannot be read"
        if not len(images):
            raise FewshotError(f"{message}, so nothing is left to label: {shown(unreadable)}")
        warnings.warn(f"{message} and are left out: {shown(unreadable)}", stacklevel=3)
    files = tuple(name for name in names if name not in unreadable)
    return ImageBank(images, torch.zeros(len(images), dtype=torch.int64), name="queries", files=files), unreadable


def pixel_sha256(image: Tensor) -> str:
    """Which image it is, whatever its file is called: sha256 of uint8 [C, H, W]."""
    return hashlib.sha256(image.contiguous().numpy().data).hexdigest()


def shown(found: dict[str, str], joined: str = "{} ({})", most: int = 10) -> str:
    """The first pairs as one text."""
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(joined.format(*pair) for pair in list(found.items())[:most]) + more
