"""Label own images from a few examples: `predict_folder`, and what it returns."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fewshot.backbones import Backbone, create_backbone
from fewshot.backbones.weights import describe_weights
from fewshot.core.errors import FewshotError
from fewshot.core.files import write_atomically
from fewshot.core.team import own_device
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.datasets.files import Folder as FolderTree
from fewshot.datasets.folder import Folder, refuse_splits
from fewshot.datasets.images import Listing, decoded
from fewshot.evaluation.decisions import COVERAGE, Decided, Decisions, check_coverage
from fewshot.evaluation.one_episode import (
    answer,
    decide,
    doubt,
    fitted_method,
    nearest_examples,
    parameters_of_own_data,
)
from fewshot.features.extract import embed
from fewshot.labelling.answers import LOW, Answers
from fewshot.labelling.contact_sheet import sheet
from fewshot.methods import Method
from fewshot.reporting.naming import parameter_text
from fewshot.statistics import conformal_rank

# ProtoNet's own temperature, 1, makes every probability of L2-normalised features nearly equal. With 0.1, few answers on
# Caltech-101's validation classes are below LOW, and these are wrong far more often than the others.
TEMPERATURE = 0.1


@dataclass(frozen=True, eq=False)
class Predictions(Answers):
    """Answers that can be written to a folder."""

    def save(self, folder: str | Path, low: float = LOW) -> tuple[Path, Path]:
        """Write predictions.csv and the contact sheet predictions.html, where answers below `low` are marked."""
        page = sheet(self, low)  # first: a mistake leaves no file
        return (write_atomically(Path(folder) / "predictions.csv", self.to_csv().encode()),
                write_atomically(Path(folder) / "predictions.html", page.encode()))


def predict_folder(support: str | Path, queries: str | Path, *, method: str = "protonet", parameters: dict | None = None,
                   backbone: str | Backbone | None = None, weights: str | Path | None = None, transforms: str = "l2",
                   base_bank: FeatureBank | None = None, decisions: Decisions | float = COVERAGE, batch_size: int = 64,
                   progress: bool = False, device: str = "cpu") -> Predictions:
    """Label the images of `queries` with the classes of `support`, all as one episode.

    support      folder with one folder of images per class; shots may be unequal
    queries      folder of images, with all folders below it, or one image
    method       any method on features; parameters: its hyper-parameters. Deviations: the temperature of protonet is 0.1
                 unless given, see `TEMPERATURE`, and a prior of the queries is "unknown". A transductive one needs about
                 `ENOUGH_QUERIES` images a class to label; with fewer a note says so
    backbone     name or instance; by default the one that `weights` belong to, else efficientnet_lite0 with ImageNet
                 weights
    weights      of the backbone, as for `create_backbone`
    transforms   feature transforms before the method
    base_bank    features of base classes, for methods and transforms that need their statistics
    decisions    of `fewshot.choose_decisions` for the same method, transforms and weights: sets, calibrated probabilities
                 and "unknown". Or a number: sets from the support alone, of an inductive method with 2 examples of a class
                 or more, that are to hold the true class at this rate
    device       where the backbone computes: cpu, cuda, mps, or auto

    Images are decoded as by the data set "folder": EXIF orientation applied, transparency on white, centre square. An
    unreadable query is left out with a warning; an unreadable support image, a class without images, fewer than two
    classes and no readable query raise FewshotError. A query with the pixels of a support image is warned about.
    """
    support, queries = Path(support).expanduser(), Path(queries).expanduser()
    parameters = parameters_of_own_images(method, parameters or {})
    chosen, chain = fitted_method(method, parameters, transforms, base_bank)
    listing = _support_listing(support)
    tree, names = _query_files(queries, support)
    network, where = _network(backbone, weights), own_device(device)
    size, channels = network.input_size or Folder.image_size, network.transform.channels
    if isinstance(decisions, Decisions):
        decisions.check(method, parameters, str(chain), network.weights_id)
    else:
        check_coverage(decisions, "decisions")
    examples, bad = _read(listing.files, size, channels)
    if bad:
        raise FewshotError(f"{len(bad)} of {len(listing.files)} images of the support {support} cannot be read; replace or "
                           f"remove them: {_shown(bad)}")
    images, unreadable = _read([(tree, name) for name in names], size, channels)
    if unreadable:
        message = f"{len(unreadable)} of {len(names)} images of {queries} cannot be read"
        if not len(images):
            raise FewshotError(f"{message}, so nothing is left to label: {_shown(unreadable)}")
        warnings.warn(f"{message} and are left out: {_shown(unreadable)}", stacklevel=2)
    files = tuple(name for name in names if name not in unreadable)
    known = ImageBank(examples, torch.tensor(listing.labels), listing.class_names, "support", "all",
                      tuple(name for _, name in listing.files))
    asked = ImageBank(images, torch.zeros(len(images), dtype=torch.int64), name="queries", files=files)
    repeated = _repeated(known, asked)
    values = [embed(bank, network, batch_size=batch_size, progress=progress, device=where).features
              for bank in (known, asked)]
    ways = len(known.class_names)
    probabilities = answer(values[0], known.labels, values[1], ways, chosen, chain)
    decided = decide(values[0], known.labels, values[1], ways, chosen, chain, decisions)
    nearest = nearest_examples(values[0], known.labels, values[1], ways, chain)
    transductive = chosen.setting == "transductive" or chain.transductive or network.batch_norm == "batch"
    setting = "transductive" if transductive else "inductive"
    description = " ".join([method, *([f"({parameter_text(parameters)})"] if parameters else []),
                            *([f"after {chain}"] if chain.steps else []), f"on {network.name}"])
    notes = [*_notes(setting, method, chosen, network, doubt(chosen, chain, len(images), ways)),
             *_decision_notes(method, known.labels, ways, decisions, decided)]
    return Predictions(files, tuple(known.class_names), probabilities, setting, description, tuple(notes), unreadable,
                       repeated, known, images, nearest, decided)


def parameters_of_own_images(method: str, given: dict) -> dict:
    """The hyper-parameters that `predict_folder` takes for those given."""
    return parameters_of_own_data(method, {**({"temperature": TEMPERATURE} if method == "protonet" else {}), **given})


def _support_listing(support: Path) -> Listing:
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


def _query_files(queries: Path, support: Path) -> tuple[FolderTree, list[str]]:
    if queries.is_file():
        return FolderTree(queries.parent), [queries.name]
    if not queries.is_dir():
        raise FewshotError(f"the queries {queries} are neither a folder nor an image file")
    if support.resolve() in queries.resolve().parents:
        raise FewshotError(f"the queries {queries} lie inside the support {support}, where each folder is a class; move "
                           "them out of it")
    tree = FolderTree(queries)
    names = tree.names()
    if not names:
        raise FewshotError(f"{queries} has no image to label (.jpg, .png, .webp, .bmp, .gif, .tif, ...)")
    return tree, names


def _network(backbone: str | Backbone | None, weights: str | Path | None) -> Backbone:
    if isinstance(backbone, Backbone):
        if weights is not None:
            raise FewshotError(f"weights={str(weights)!r} beside a backbone that is made already; give one of them")
        return backbone
    if weights is None or not Path(weights).is_file():
        return create_backbone(backbone or "efficientnet_lite0", weights=weights)
    described = describe_weights(weights)  # knows the size and channels of its images
    name = backbone or described["backbone"]
    return create_backbone(name, weights=weights, **(described["options"] if name == described["backbone"] else {}))


def _read(files: list, size: int, channels: int) -> tuple[Tensor, dict[str, str]]:
    """uint8 [M, C, size, size] of the readable files, and file -> reason of the others."""
    images, bad = [], {}
    with warnings.catch_warnings():
        # Pillow suspects an attack behind any image beyond 90 megapixels; these are the user's own.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for (_, name), image in zip(files, decoded(files, size, channels), strict=True):
            if isinstance(image, Exception):
                bad[name] = _reason(image)
            else:
                images.append(torch.tensor(image))
    return torch.stack(images) if images else torch.empty(0), bad


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own text is a memory address
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} megapixels"
    return str(error) or type(error).__name__


def _shown(found: dict[str, str], joined: str = "{} ({})", most: int = 10) -> str:
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(joined.format(*pair) for pair in list(found.items())[:most]) + more


def _repeated(support: ImageBank, queries: ImageBank) -> dict[str, str]:
    """Query file -> support file with the same pixels."""
    def digests(bank: ImageBank) -> list[bytes]:
        return [hashlib.sha256(image.contiguous().numpy().data).digest() for image in bank.images]

    homes = dict(zip(digests(support), support.files or (), strict=True))
    found = {file: homes[key] for file, key in zip(queries.files or (), digests(queries), strict=True) if key in homes}
    if found:
        warnings.warn(f"{len(found)} of the images to label are also in the support, so their answers are trivial: "
                      + _shown(found, "{} = {}"), stacklevel=3)
    return found


def _notes(setting: str, name: str, method: Method, network: Backbone, doubtful: str) -> Iterator[str]:
    if setting == "transductive":
        yield f"{name} is used transductively: every answer depends on the other images that were labelled with it."
    if doubtful:
        yield f"{doubtful[0].upper()}{doubtful[1:]}."
    for assumption in method.assumes:
        yield f"{name} assumes {assumption}."
    if network.weights_id.startswith("random:"):
        yield f"The weights of {network.name} are untrained, so the answers mean little: give trained weights."


def _decision_notes(name: str, labels: Tensor, ways: int, decisions: Decisions | float,
                    decided: Decided | None) -> Iterator[str]:
    """What is promised of sets, probabilities and "unknown", and why where it is not."""
    if isinstance(decisions, Decisions):
        place = decisions.chosen_on
        yield (f"Sets are to hold the true class in {100 * decisions.coverage:g} % of the images, and at most "
               f"{100 * (1 - decisions.keep):.3g} % of images of these classes are to be called unknown; thresholds and the "
               f"temperature of the probabilities were chosen on validation episodes of {place.get('dataset')}.")
        if doubtful := decisions.doubt(labels, ways):
            yield f"{doubtful[0].upper()}{doubtful[1:]}."
        return
    yield f"Probabilities are those of {name}, not calibrated; compare them with each other."
    if decided is None:
        yield ("There are no sets: without values chosen on validation episodes (fewshot decide) they come from the "
               "support, and need an inductive method and 2 examples of a class or more.")
        return
    yield (f"Sets are to hold the true class in {100 * decided.coverage:g} % of the images; they come from the support, "
           "each example answered by the others, and are larger than with values chosen on validation episodes (fewshot "
           "decide).")
    asked = int((torch.bincount(labels, minlength=ways)[labels] > 1).sum())
    if conformal_rank(asked, decided.coverage) > asked:
        yield f"{asked} examples are too few for sets that hold less than all classes."
