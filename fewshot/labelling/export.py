"""A classifier of own images as a file for ONNX Runtime, and a program of one file that needs no torch: `export_onnx`."""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fewshot.backbones import Backbone
from fewshot.core.errors import FewshotError
from fewshot.core.files import write_together
from fewshot.core.provenance import versions
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.episodes.types import Episodes
from fewshot.evaluation.one_episode import answer, fitted_method
from fewshot.features.extract import embed, network_input
from fewshot.features.transforms import PointStep, TransformChain
from fewshot.labelling.predict import described, own_parameters
from fewshot.labelling.reading import examples, image_shape, network_of, support_listing
from fewshot.ops.point_classifier import PointClassifier

if TYPE_CHECKING:
    from fewshot.labelling.onnx_runner import Model

LIMIT = 1e-4  # of the difference between a probability of the file and that of the method
_BATCH = 64
_LARGEST = 2**31  # bytes of a file in the format of ONNX


@dataclass(frozen=True)
class Export:
    """What was written.

    model, runner   the files: model.onnx and classify.py
    description     method, hyper-parameters, transforms and backbone as one line
    difference      the largest one between a probability of the file and that of the method, over the images of the support
                    and mixtures of them
    """

    model: Path
    runner: Path
    description: str
    difference: float


def export_onnx(support: str | Path, out: str | Path, *, method: str = "protonet", parameters: dict | None = None,
                backbone: str | Backbone | None = None, weights: str | Path | None = None, transforms: str = "l2",
                base_bank: FeatureBank | None = None) -> Export:
    """Write what `predict_folder` would label images with, given the same arguments, to the folder `out`: model.onnx, from
    uint8 images [B, C, S, S] to probabilities [B, N] for any B, and classify.py, a program of one file that decodes images
    as `predict_folder` does and labels them, with onnxruntime, numpy and pillow.

    method       one that answers each image alone and reduces to rows of weights: protonet, simple_shot, ridge,
                 logistic_regression, nearest_neighbour, or one of your own with `point_classifier`
    transforms   those that treat every feature vector alone

    Model.onnx holds backbone, preparation of the pixels, transforms and classifier as one graph, and as metadata, in JSON
    under "fewshot", the class names and what it was made of. It is run on the images of the support, and mixtures of them,
    before it is written.
    Raises FewshotError, and writes nothing, where its probabilities differ from those of the method by more than 1e-4, for a
    transductive method, transform or backbone, for a network that the exporter does not take, and without the extra onnx.
    """
    runner = _runner_class()
    support = Path(support).expanduser()
    parameters = own_parameters(method, parameters)
    chosen, chain = fitted_method(method, parameters, transforms, base_bank)
    steps = _steps(chain)
    if chosen.setting == "transductive":
        raise FewshotError(f"{method} is transductive: its answers depend on the other images that are labelled with them, "
                           "so there is no classifier of one image to write; choose an inductive method, such as protonet")
    listing = support_listing(support)
    # A copy: the caller's may be on another device or in training.
    network = copy.deepcopy(network_of(backbone, weights)).cpu().eval()
    if network.batch_norm == "batch":
        raise FewshotError(f"batch_norm='batch' of {network.name} makes every answer depend on the batch; create it with "
                           "batch_norm='running'")
    size, channels = image_shape(network)
    known = examples(listing, support, size, channels)
    probes = _probes(known)
    examined, ways = embed(probes, network, batch_size=_BATCH, progress=False).features, len(known.class_names)
    features = examined[: len(known)]
    episode = Episodes(features[None], known.labels[None], examined[None], ways)
    classifier = chosen.point_classifier(chain(episode))
    description = described(method, parameters, chain, network)
    about = {"class_names": list(known.class_names), "image_size": size, "channels": channels, "description": description,
             "transform": network.transform.spec, "weights_id": network.weights_id,
             "pretrained_on": network.pretrained_on, "versions": versions()}
    made = _graph(_Deployed(network, steps, classifier), size, about)
    wanted, model = answer(features, known.labels, examined, ways, chosen, chain), runner(made)
    found = torch.cat([torch.from_numpy(model(part.numpy())) for part in probes.images.split(_BATCH)])
    difference = float((found - wanted).abs().max())
    if not difference <= LIMIT:
        raise FewshotError(f"probabilities of the exported {description} differ from those of the method by "
                           f"{difference:.1e}, more than {LIMIT:.0e}; normalise the features (transforms='l2'), or lower "
                           "the scale of the logits")
    out = Path(out).expanduser()
    model_file, runner_file = out / "model.onnx", out / "classify.py"
    write_together({model_file: made, runner_file: program().encode()})
    return Export(model_file, runner_file, description, difference)


def program() -> str:
    """The text of classify.py: `onnx_runner.py` with the file in place of the line that imports from this package."""
    runner = files("fewshot.labelling").joinpath("onnx_runner.py").read_text("utf-8").splitlines()
    decoding = files("fewshot.datasets").joinpath("decoding.py").read_text("utf-8").splitlines()
    at = next(number for number, line in enumerate(runner) if line.startswith("from fewshot."))
    body = decoding[decoding.index("from __future__ import annotations") + 2 :]
    body = [line for line in body if not (line.startswith("import ") and line in runner)]
    return "\n".join([*runner[:at], *body, *runner[at + 1 :], ""])


class _Deployed(nn.Module):
    """uint8 images [B, C, S, S] -> probabilities [B, N]."""

    def __init__(self, network: Backbone, steps: tuple[PointStep, ...], classifier: PointClassifier):
        super().__init__()
        self.network, self.steps, self.classifier = network, steps, classifier

    def forward(self, images: Tensor) -> Tensor:
        features = self.network(network_input(self.network, images)).to(torch.float32)  # [B, D]
        for step in self.steps:
            features = step.point(features)
        return self.classifier(features).softmax(-1).to(torch.float32)


def _runner_class() -> type[Model]:
    """The class of the runner that runs a file; raises FewshotError where what writes and runs files is absent."""
    try:
        import onnxscript  # noqa: F401 - torch's exporter needs it

        from fewshot.labelling.onnx_runner import Model
    except ImportError as error:
        raise FewshotError(f"export needs onnx, onnxscript and onnxruntime ({error}); install the extra: "
                           "pip install 'fewshot[onnx]'") from error
    return Model


def _probes(known: ImageBank) -> ImageBank:
    """The images of the support, whose own classes are beyond doubt, and mixtures of two, which lie between classes."""
    mixed = known.images // 2 + known.images.flip(0) // 2
    return ImageBank(torch.cat([known.images, mixed]), known.labels.repeat(2), known.class_names, "probes")


def _steps(chain: TransformChain) -> tuple[PointStep, ...]:
    steps = tuple(step for step in chain.steps if isinstance(step, PointStep))
    if len(steps) < len(chain.steps):
        other = next(step for step in chain.steps if not isinstance(step, PointStep))
        raise FewshotError(f"the transform {other} looks at all images of an episode together, so that no image could be "
                           "answered alone; leave it out, or choose one of single features, such as l2 or center_base")
    return steps


def _graph(deployed: _Deployed, size: int, about: dict) -> bytes:
    """The file: the graph of `deployed` for batches of any size, with `about` as metadata."""
    network = deployed.network
    weigh = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    if weigh >= _LARGEST:
        raise FewshotError(f"{network.name} has {weigh / 1e9:.1f} GB of weights, and one file of this format holds "
                           f"{_LARGEST / 1e9:.1f}; choose a smaller backbone")
    # Two images: a batch of one would be taken for a constant.
    images = torch.zeros(2, network.transform.channels, size, size, dtype=torch.uint8)
    try:
        with _quiet():
            made = torch.onnx.export(deployed, (images,), dynamo=True, verbose=False, input_names=["images"],
                                     output_names=["probabilities"],
                                     dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
    except torch.onnx.OnnxExporterError as error:
        cause = str(error.__cause__ or error).strip().splitlines()
        raise FewshotError(f"{about['description']} cannot be exported ({cause[0] if cause else type(error).__name__}): "
                           "a step depends on the values of an image, or has no counterpart in ONNX; choose another "
                           "backbone or other transforms") from error
    assert made is not None, "no path was given"
    proto = made.model_proto
    # The exporter notes from which line of which file each node comes: paths of this machine.
    graph = proto.graph
    for part in (proto, graph, *proto.functions, *graph.node, *graph.value_info, *graph.input, *graph.output,
                 *graph.initializer):
        del part.metadata_props[:]
    entry = proto.metadata_props.add()
    entry.key, entry.value = "fewshot", json.dumps(about)
    return proto.SerializeToString()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says of itself, and the whole graphs that it prints when it fails."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
