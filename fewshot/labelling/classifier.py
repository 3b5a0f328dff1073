"""`Classifier`: learns classes from a few images each, is corrected, kept in a file, and taken up again."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewshot.backbones import BACKBONES, Backbone, create_backbone
from fewshot.backbones.create import FAMILIES
from fewshot.core.errors import FewshotError
from fewshot.core.frozen import frozen_dict
from fewshot.core.team import own_device
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.datasets.files import Folder as FolderTree
from fewshot.datasets.files import Tree, composed
from fewshot.evaluation.decisions import COVERAGE, Decisions
from fewshot.evaluation.method_spec import MethodSpec
from fewshot.evaluation.one_episode import decide, fitted_method, logits_of, nearest_examples
from fewshot.features.extract import embed
from fewshot.labelling.contents import Contents, Example
from fewshot.labelling.predict import check_decisions, decision_notes, own_parameters, told
from fewshot.labelling.reading import (
    image_shape,
    network_of,
    pixel_sha256,
    query_files,
    read_all,
    read_readable,
    shown,
    support_listing,
)
from fewshot.labelling.review import Correction, Review, read_corrections
from fewshot.methods.contract import method_parameters

Images = str | Path | Sequence[str | Path]  # files, and folders with all images in them


class Classifier:
    """A classifier of own images that lives: classes and images come, are corrected and go, and a file keeps it.

        classifier = Classifier.from_folder("examples")          # a folder of images per class
        review = classifier.predict("photos")
        review.save("labelled")                                  # pick corrections in labelled/review.html
        classifier.correct("corrections.csv")
        classifier.save("pets.safetensors")

    What it knows is which images are in which class: the order in which they came, and what was removed again, change
    neither its answers nor its file. An image is known by its pixels and held once. Its features are computed from it alone,
    not in batches, whose size would show in the last bits; the images themselves are not kept.

    backbone     name or instance; by default the one that `weights` belong to, else efficientnet_lite0 with ImageNet
                 weights
    weights      of the backbone, as for `create_backbone`; the file of the classifier holds their sha256 only
    method       any method on features; parameters: its hyper-parameters, as for `predict_folder`
    transforms   feature transforms before the method
    base_bank    features of base classes, for methods and transforms that need their statistics; kept in the file
    decisions    of `fewshot.choose_decisions`, as `decide_by` takes them; kept in the file
    device       where the backbone computes: cpu, cuda, mps, or auto;  progress: show progress bars

    A method of this class changes everything that it is to change or, where it raises FewshotError, nothing.
    """

    def __init__(self, backbone: str | Backbone | None = None, *, weights: str | Path | None = None,
                 method: str = "protonet", parameters: dict | None = None, transforms: str = "l2",
                 base_bank: FeatureBank | None = None, decisions: Decisions | None = None, device: str = "cpu",
                 progress: bool = False):
        given = own_parameters(method, parameters)
        fitted_method(method, given, transforms, base_bank)  # a mistake is named before a network is built
        network, spec = network_of(backbone, weights), MethodSpec(method, frozen_dict(given), transforms)
        if not spec.needs_base:
            base_bank = None
        size, _ = image_shape(network)
        contents = Contents(_described(network), size, spec, base_bank).deciding(decisions)
        self._begin(contents, network, device, progress)

    def _begin(self, contents: Contents, network: Backbone, device: str, progress: bool) -> None:
        if network.batch_norm == "batch":
            raise FewshotError(f"{network.name} has batch_norm='batch', so that the features of an image depend on those it "
                               "is embedded with; create it with batch_norm='running'")
        self._contents, self._network, self._device, self._progress = contents, network, own_device(device), progress
        spec = contents.spec
        self._fitted = fitted_method(spec.method, dict(spec.parameters), spec.transforms, contents.base)

    @classmethod
    def from_folder(cls, support: str | Path, backbone: str | Backbone | None = None, **settings: object) -> Classifier:
        """A classifier of a folder with one folder of images per class; `settings` are the other keywords of the class."""
        made = cls(backbone, **settings)  # type: ignore[arg-type]  # checked there
        support = Path(support).expanduser()
        listing = support_listing(support)
        names = [listing.class_names[label] for label in listing.labels]
        made._add(listing.files, [name for _, name in listing.files], names, support)
        made.decide_by(made.decisions)  # the numbers of classes and examples are known only now
        return made

    @classmethod
    def load(cls, path: str | Path, backbone: Backbone | None = None, *, weights: str | Path | None = None,
             device: str = "cpu", progress: bool = False) -> Classifier:
        """Read a file by `save`. Its answers are those of the classifier that was saved, bit for bit.

        backbone, weights   one of them where the weights do not come with a package: the network itself, or the file of its
                            weights

        Raises FewshotError where the file is missing, damaged or of a newer format, and where the network is not the one
        that made the features.
        """
        contents = Contents.read(path)
        network = _network(contents.backbone, backbone, weights)
        _check_network(path, contents.backbone, _described(network))
        made = cls.__new__(cls)
        made._begin(contents, network, device, progress)
        return made

    def save(self, path: str | Path) -> Path:
        """Write everything but the network to one file (.safetensors), atomically. Equal classifiers give equal bytes."""
        return self._contents.write(path)

    @property
    def class_names(self) -> tuple[str, ...]:
        """[N], sorted."""
        return tuple(self._contents.class_sizes)

    @property
    def class_sizes(self) -> dict[str, int]:
        """Class -> number of its images."""
        return self._contents.class_sizes

    @property
    def files(self) -> dict[str, tuple[str, ...]]:
        """Class -> its images, each by its folder and file when it came."""
        return {name: tuple(sorted(one.file for one in self._contents.examples if one.name == name))
                for name in self.class_names}

    @property
    def decisions(self) -> Decisions | None:
        """What `decide_by` was given, None without any."""
        return self._contents.decisions

    def __len__(self) -> int:
        """Number of images."""
        return len(self._contents.examples)

    def __repr__(self) -> str:
        return f"Classifier({self._contents.spec.method} on {self._network.name}, {len(self)} images: {self.class_sizes})"

    def add_class(self, name: str, images: Images) -> None:
        """A new class and its images: files, and folders with all folders below them. Raises FewshotError where there is
        such a class, where an image cannot be read, and where an image is in another class."""
        name = composed(name).strip()
        if not name:
            raise FewshotError("name=''; give the class a name")
        if name in self.class_sizes:
            raise FewshotError(f"there is a class {name!r} with {self.class_sizes[name]} images; add_images adds to it")
        self._add_images(name, images)

    def add_images(self, name: str, images: Images) -> None:
        """More images of a class: files, and folders with all folders below them. Those that it has are passed over with a
        warning. Raises FewshotError for an unknown class, and otherwise as `add_class`."""
        self._add_images(self._contents.check_class(name), images)

    def remove_class(self, name: str) -> None:
        """Forget a class and its images; raises FewshotError where there is no such class."""
        self._contents = self._contents.without_class(name)

    def remove_images(self, images: Sequence[str]) -> None:
        """Forget images, each by its entry in `files` or the beginning of its hash (8 digits at least). Raises FewshotError
        for one that is not there, and where a class would be left empty."""
        self._contents = self._contents.without_images([images] if isinstance(images, str) else images)

    def correct(self, corrections: str | Path | Mapping[str, str], images: str | Path | None = None) -> None:
        """Learn the classes of images: each becomes an example of its class; one that is held in another class changes over.

        corrections   file -> class; or a CSV file, saved from the page of `Review.save` or filled in by hand: its rows with
                      a correction count
        images        folder that the files lie below; by default the one that the CSV file names, else the current one

        Raises FewshotError for an unknown class, an image that cannot be read or has changed since it was labelled, and one
        that is given two classes, and where a class would be left empty.
        """
        if isinstance(corrections, Mapping):
            folder = Path(images or "").expanduser()
            found = [Correction(folder, str(file), name) for file, name in corrections.items()]
        else:
            found = read_corrections(corrections, images)
            if not found:
                raise FewshotError(f"{corrections} corrects nothing: its column correction is empty; pick classes in "
                                   "review.html, or fill it in")
        if not found:
            return
        names = [self._contents.check_class(one.name) for one in found]
        pixels = self._read([(FolderTree(one.folder), one.file) for one in found], "the corrections")
        hashes = [pixel_sha256(image) for image in pixels]
        changed = {one.file: f"was {one.sha256[:12]}, is {key[:12]}" for one, key in zip(found, hashes, strict=True)
                   if one.sha256 not in ("", key)}
        if changed:
            raise FewshotError(f"{len(changed)} images are not those that were labelled: {shown(changed)}; label them "
                               "again, or give images='FOLDER', which they lie below")
        self._take(pixels, hashes, [f"{one.folder.absolute().name}/{one.file}" for one in found], names, moves=True)

    def decide_by(self, decisions: Decisions | None) -> None:
        """Keep decisions of `fewshot.choose_decisions` in the classifier and its file: answers come with their sets,
        calibrated probabilities and "unknown". None forgets them.

        Raises FewshotError for decisions that were chosen for another method, hyper-parameters, transforms or network; those
        of other ways or shots are warned about here, and noted with the answers.
        """
        self._contents = self._contents.deciding(decisions)

    def predict(self, images: str | Path, batch_size: int = 64, decisions: Decisions | float | None = None) -> Review:
        """Label an image, or all images of a folder and of those below it, as one episode.

        decisions   as `predict_folder` takes them, for this call; by default those that the classifier holds, and without
                    any sets from the support at the rate of 0.9

        An unreadable image is left out with a warning; fewer than two classes and no readable image raise FewshotError.
        """
        contents, where = self._contents, Path(images).expanduser()
        if len(self.class_names) < 2:
            raise FewshotError(f"the classifier has {len(self.class_names)} classes and needs at least 2; add them with "
                               "add_class")
        spec, (method, chain) = contents.spec, self._fitted
        held = decisions is None and contents.decisions is not None
        if decisions is None:
            decisions = contents.decisions or COVERAGE
        check_decisions(decisions, spec.method, spec.parameters, chain, self._network)
        tree, names = query_files(where)
        asked, unreadable = read_readable(tree, names, contents.image_size, self._network.transform.channels, where)
        hashes = tuple(pixel_sha256(image) for image in asked.images)
        features = self._embed(asked, batch_size)
        ways = len(self.class_names)
        episode = contents.features, contents.labels, features, ways, method, chain
        logits = logits_of(*episode)
        decided = decide(*episode, decisions, logits)
        nearest = tuple(tuple(contents.examples[row].file for row in rows) for rows in nearest_examples(*episode).tolist())
        usual = method_parameters(spec.method)
        named = {key: value for key, value in spec.parameters.items() if value != usual[key]}
        setting, description, notes = told(spec.method, named, method, chain, self._network, len(asked), ways)
        notes += decision_notes(spec.method, contents.labels, ways, decisions, decided)
        notes += ("These decisions are kept in the classifier.",) if held else ()
        files = asked.files or ()
        repeated = {file: contents.held[key].file for file, key in zip(files, hashes, strict=True) if key in contents.held}
        folder = where.parent if where.is_file() else where
        return Review(files, self.class_names, logits.softmax(-1), setting, description, notes, unreadable, repeated, None,
                      asked.images, folder.as_posix(), hashes, nearest=nearest, decided=decided)

    def _add_images(self, name: str, images: Images) -> None:
        files: list[tuple[Tree, str]] = []
        shown_as: list[str] = []
        for path in [images] if isinstance(images, (str, Path)) else images:
            tree, names = query_files(Path(path).expanduser())
            files += [(tree, file) for file in names]
            shown_as += [f"{tree.path.absolute().name}/{file}" for file in names]
        if not files:
            raise FewshotError(f"no images for class {name!r}; give files, or folders of images")
        self._add(files, shown_as, [name] * len(files), f"class {name!r}")

    def _add(self, files: list[tuple[Tree, str]], shown_as: list[str], names: list[str], of: str | Path) -> None:
        pixels = self._read(files, f"the support {of}" if isinstance(of, Path) else of)
        self._take(pixels, [pixel_sha256(image) for image in pixels], shown_as, names)

    def _read(self, files: list[tuple[Tree, str]], of: str) -> Tensor:
        return read_all(files, self._contents.image_size, self._network.transform.channels, of)

    def _take(self, pixels: Tensor, hashes: list[str], files: list[str], names: list[str], moves: bool = False) -> None:
        """Take over images [M, C, H, W] with their classes. moves: one that is held in another class changes over."""
        held, rows = self._contents.held, dict[str, int]()  # sha256 -> its first row
        again: dict[str, str] = {}
        for row, (key, file, name) in enumerate(zip(hashes, files, names, strict=True)):
            first = rows.setdefault(key, row)
            if names[first] != name:
                raise FewshotError(f"{files[first]} and {file} are the same image, and given two classes, {names[first]} "
                                   f"and {name}; decide for one")
            if first != row:
                again[file] = files[first]
            elif key in held and held[key].name == name:
                again[file] = held[key].file
            elif key in held and not moves:
                raise FewshotError(f"{file} is the same image as {held[key].file} of class {held[key].name!r}; correct() "
                                   "puts it into another class")
        if again and not moves:
            warnings.warn(f"{len(again)} images are there already and held once: {shown(again, '{} = {}')}", stacklevel=5)
        new = [row for key, row in rows.items() if key not in held]
        bank = ImageBank(pixels[new], torch.zeros(len(new), dtype=torch.int64), name="examples",
                         files=tuple(files[row] for row in new))
        features = dict(zip(new, self._embed(bank, 1), strict=True)) if new else {}
        examples = [Example(names[row], held[key].file, key, held[key].features) if key in held
                    else Example(names[row], files[row], key, features[row]) for key, row in rows.items()]
        self._contents = self._contents.having(examples)

    def _embed(self, bank: ImageBank, batch_size: int) -> Tensor:
        made = embed(bank, self._network, batch_size=batch_size, progress=self._progress, device=self._device)
        if made.provenance["weights_sha256"] != self._contents.backbone["weights_sha256"]:
            raise FewshotError(f"the weights of {self._network.name} have changed since the classifier was made; make a new "
                               "classifier on them")
        return made.features


def _described(network: Backbone) -> dict:
    return json.loads(json.dumps(network.describe()))  # as it is read from a file


def _network(described: dict, backbone: Backbone | None, weights: str | Path | None) -> Backbone:
    """The network of a classifier: the given one, or made anew."""
    name, (kind, _, seed) = described["backbone"], described["weights_id"].partition(":")
    if backbone is not None:
        return network_of(backbone, weights)
    if name not in BACKBONES and not name.startswith(FAMILIES):
        raise FewshotError(f"the classifier is on {name!r}, a network of your own; give it as backbone=")
    if weights is None and kind == "random":
        weights = "random"
    return create_backbone(name, weights=weights, seed=int(seed or 0), batch_norm=described["batch_norm"],
                           **described["options"])


def _check_network(path: str | Path, wanted: dict, found: dict) -> None:
    """Raise FewshotError where the features of a classifier were made by another network than the one there is."""
    if found["weights_sha256"] != wanted["weights_sha256"]:
        raise FewshotError(f"{path} was made on {wanted['backbone']} with weights of sha256 "
                           f"{wanted['weights_sha256'][:16]}, and those here have {found['weights_sha256'][:16]}; give "
                           "weights='FILE', the file of its weights")
    other = [name for name in ("backbone", "options", "transform", "batch_norm") if found[name] != wanted[name]]
    if other:
        raise FewshotError(f"{path} was made on another network: {other[0]} {wanted[other[0]]}, not {found[other[0]]}; give "
                           "that one (backbone=)")
