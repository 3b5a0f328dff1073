"""Label own images from a few examples: `predict_folder`, and what it returns."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewshot.backbones import Backbone
from fewshot.core.files import write_together
from fewshot.core.team import own_device
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.evaluation.decisions import COVERAGE, Decided, Decisions, check_coverage
from fewshot.evaluation.one_episode import (
    decide,
    doubt,
    fitted_method,
    logits_of,
    nearest_examples,
    parameters_of_own_data,
)
from fewshot.features.extract import embed
from fewshot.features.transforms import TransformChain
from fewshot.labelling.answers import LOW, Answers
from fewshot.labelling.contact_sheet import sheet
from fewshot.labelling.reading import (
    examples,
    image_shape,
    network_of,
    pixel_sha256,
    query_files,
    read_readable,
    shown,
    support_listing,
)
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
        table, contact = Path(folder) / "predictions.csv", Path(folder) / "predictions.html"
        write_together({table: self.to_csv().encode(), contact: page.encode()})
        return table, contact


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
    parameters = own_parameters(method, parameters)
    chosen, chain = fitted_method(method, parameters, transforms, base_bank)
    listing = support_listing(support)
    tree, names = query_files(queries, support)
    network, where = network_of(backbone, weights), own_device(device)
    check_decisions(decisions, method, parameters, chain, network)
    size, channels = image_shape(network)
    known = examples(listing, support, size, channels)
    asked, unreadable = read_readable(tree, names, size, channels, queries)
    repeated = _repeated(known, asked)
    values = [embed(bank, network, batch_size=batch_size, progress=progress, device=where).features
              for bank in (known, asked)]
    ways, files = len(known.class_names), known.files or ()
    episode = values[0], known.labels, values[1], ways, chosen, chain
    logits = logits_of(*episode)
    decided = decide(*episode, decisions, logits)
    nearest = tuple(tuple(files[row] for row in rows) for rows in nearest_examples(*episode).tolist())
    setting, description, notes = told(method, parameters, chosen, chain, network, len(asked), ways)
    notes += decision_notes(method, known.labels, ways, decisions, decided)
    return Predictions(asked.files or (), tuple(known.class_names), logits.softmax(-1), setting, description, notes,
                       unreadable, repeated, known, asked.images, nearest=nearest, decided=decided)


def check_decisions(decisions: Decisions | float, method: str, parameters: Mapping, chain: TransformChain,
                    network: Backbone) -> None:
    """Raise FewshotError unless the decisions were chosen for such answers, or are a rate."""
    if isinstance(decisions, Decisions):
        decisions.check(method, parameters, str(chain), (network.name, network.weights_id))
    else:
        check_coverage(decisions, "decisions")


def own_parameters(method: str, given: dict | None) -> dict:
    """Hyper-parameters for labelling own images: those given, and what stands in for a paper's defaults."""
    usual = {"temperature": TEMPERATURE} if method == "protonet" else {}
    return parameters_of_own_data(method, {**usual, **(given or {})})


def told(name: str, parameters: Mapping, method: Method, chain: TransformChain, network: Backbone, queries: int,
         ways: int) -> tuple[str, str, tuple[str, ...]]:
    """(setting, description, notes) of answers to so many queries, as `Answers` has them. parameters: those to name."""
    transductive = method.setting == "transductive" or chain.transductive or network.batch_norm == "batch"
    setting = "transductive" if transductive else "inductive"
    notes = tuple(_notes(setting, name, method, network, doubt(method, chain, queries, ways)))
    return setting, described(name, parameters, chain, network), notes


def described(method: str, parameters: Mapping, chain: TransformChain, network: Backbone) -> str:
    """Method, hyper-parameters, transforms and backbone as one line."""
    return " ".join([method, *([f"({parameter_text(dict(parameters))})"] if parameters else []),
                     *([f"after {chain}"] if chain.steps else []), f"on {network.name}"])


def _repeated(support: ImageBank, queries: ImageBank) -> dict[str, str]:
    """Query file -> support file with the same pixels."""
    homes = dict(zip(map(pixel_sha256, support.images), support.files or (), strict=True))
    keys = dict(zip(queries.files or (), map(pixel_sha256, queries.images), strict=True))
    found = {file: homes[key] for file, key in keys.items() if key in homes}
    if found:
        warnings.warn(f"{len(found)} of the images to label are also in the support, so their answers are trivial: "
                      + shown(found, "{} = {}"), stacklevel=3)
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


def decision_notes(name: str, labels: Tensor, ways: int, decisions: Decisions | float,
                   decided: Decided | None) -> tuple[str, ...]:
    """What is promised of sets, probabilities and "unknown", and why where it is not."""
    if isinstance(decisions, Decisions):
        doubtful = decisions.doubt(labels, ways)
        return (f"Sets are to hold the true class in {100 * decisions.coverage:g} % of the images, and at most "
                f"{100 * (1 - decisions.keep):.3g} % of images of these classes are to be called unknown; thresholds and "
                "the temperature of the probabilities were chosen on "
                f"{decisions.origin}.", *([f"{doubtful[0].upper()}{doubtful[1:]}."] if doubtful else []))
    first = f"Probabilities are those of {name}, not calibrated; compare them with each other."
    if decided is None:
        return (first, "There are no sets: without values chosen on validation episodes (fewshot decide) they come from the "
               "support, and need an inductive method and 2 examples of a class or more.")
    sets = (f"Sets are to hold the true class in {100 * decided.coverage:g} % of the images; they come from the support, "
            "each example answered by the others, and are larger than with values chosen on validation episodes (fewshot "
            "decide).")
    asked = int((torch.bincount(labels, minlength=ways)[labels] > 1).sum())
    few = conformal_rank(asked, decided.coverage) > asked
    return first, sets, *([f"{asked} examples are too few for sets that hold less than all classes."] if few else [])
