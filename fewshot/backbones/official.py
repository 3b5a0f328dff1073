"""Published weight files of other projects, brought into our backbones."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import inspect
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewshot.backbones.base import BACKBONES, Backbone
from fewshot.backbones.create import FAMILIES, create_backbone
from fewshot.backbones.layouts import LAYOUTS, Layout
from fewshot.backbones.open_clip_models import pairs_behind
from fewshot.backbones.weights import mismatches, save_weights
from fewshot.core.errors import FewshotError
from fewshot.core.files import read_safetensors
from fewshot.core.registry import unknown_message

# What projects put beside the tensors: settings, and NumPy numbers such as the best accuracy. All of it is plain data.
_SCALAR = np.float64(0).__reduce__()[0]
_PLAIN: list[Any] = [argparse.Namespace, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")),
          (_SCALAR, "numpy.core.multiarray.scalar"), (_SCALAR, "numpy._core.multiarray.scalar")]
_CONTAINERS = ("params", "embedding", "model", "state", "state_dict")
# Of DataParallel, FEAT and SimpleShot's ProtoNet, S2M2's baseline, torch.compile, and customary ones in Lightning modules.
_WRAPPERS = re.compile(r"^((module|encoder|feature|_orig_mod|model|net|network|backbone)\.)+")
_COUNTER = ".num_batches_tracked"


def load_official(path: str | Path, backbone: str | None = None, layout: str = "auto", *, dataset: str | None = None,
                  image_size: int | None = None, **options: Any) -> Backbone:
    """The network in a weight file that another project published, as one of our backbones in eval mode.

    backbone     "resnet12", "wrn28_10", "resnet18" or "conv4"; None: the one whose names the file has. Or "timm/<model>" for
                 a checkpoint of timm, also a .safetensors file, whose layout is timm's own; "open_clip/<architecture>:<tag>"
                 for one of open_clip, the tag saying how its images are prepared and what it has seen
    layout       "feat", "metaopt", "rfs", "easy", "s2m2" or "simple_shot" (also for files of LaplacianShot and TIM; "s2m2"
                 for those of PT-MAP), or "fewshot" for the networks of this package trained elsewhere (torch.compile,
                 Lightning); "auto": the one whose names the file has
    dataset      what the network was trained on, e.g. "mini_imagenet"; "cifar_fs" and "fc100" have other image sizes and
                 means. A name that is no data set here, e.g. "ImageNet-1k", is taken for the data of a pre-training
    image_size   side of the images, else the project's own (84; 80 for S2M2; 32 for the data sets of CIFAR-100's images)
    options      further keywords of `create_backbone`, e.g. reduce="flatten" for the whole map

    Every tensor of the backbone comes from the file, and what is left over must be known to belong to no backbone (a
    classifier, attention over prototypes). Two kinds are filled with zeros where the file lacks them: counters of batches,
    which old versions of PyTorch did not store, and biases that the published network does without. Mean and deviation of
    the images are the project's; its resizing is not imitated (FEAT and SimpleShot reduce to 92 or 96 and crop 84).

    The file is read without executing anything in it. Raises FewshotError for a file that is missing, damaged or holds
    other things than tensors and plain values, and where names or shapes do not fit, naming the first of them.
    """
    return read_official(path, backbone, layout, dataset=dataset, image_size=image_size, **options)[0]


def convert_official(path: str | Path, out: str | Path, backbone: str | None = None, layout: str = "auto", *,
                     dataset: str | None = None, image_size: int | None = None, **options: Any) -> dict:
    """`load_official`, written to the file `out` by `save_weights`; returns the provenance kept there."""
    made, provenance = read_official(path, backbone, layout, dataset=dataset, image_size=image_size, **options)
    save_weights(made, out, provenance)
    return provenance


def read_official(path: str | Path, backbone: str | None = None, layout: str = "auto", *, dataset: str | None = None,
                  image_size: int | None = None, **options: Any) -> tuple[Backbone, dict]:
    """(backbone, where its weights come from) of `load_official`."""
    if backbone is not None and backbone.startswith(FAMILIES):
        if layout != "auto":
            raise FewshotError(f"layout={layout!r} with {backbone!r}, whose files have that library's; leave layout out")
        read = _read_timm if backbone.startswith("timm/") else _read_open_clip
        return read(Path(path), backbone, dataset, image_size=image_size, **options)
    candidates = _candidates(backbone, layout)
    content, digest = _read(Path(path))
    container, state = _tensors(path, content)
    found, inferred = _recognised(path, candidates, container, state)
    size = found.of(dataset, found.image_size) if image_size is None else image_size
    made = create_backbone(found.backbone, image_size=size, weights="random", **{**found.options, **inferred, **options})
    own = made.state_dict()
    filled = [name for name in own if _may_lack(found, name) and found.published(name) not in state]
    values = {name: torch.zeros_like(own[name]) if name in filled else state[found.published(name)] for name in own}
    made.load_state_dict(values)
    if made.transform.channels == 3:
        mean, std = found.of(dataset, found.normalisation)
        made.transform = dataclasses.replace(made.transform, mean=mean, std=std)
    made.pretrained_on = _pretraining(dataset)
    used = {found.published(name) for name in own}
    heads = sorted({name.split(".")[0] for name in state if name not in used})
    return made, {"source": "published weight file", "backbone": found.backbone, "layout": found.name,
                  "repository": found.repository,
                  "file": Path(path).name, "file_sha256": digest, "dataset": dataset, "left_out": heads,
                  "filled_with_zeros": len(filled)}


def _read_timm(path: Path, backbone: str, dataset: str | None, **options: Any) -> tuple[Backbone, dict]:
    """As `read_official`. timm itself passes over what does not fit once the classifier is another one; here only the
    classifier may be left over."""
    content, digest = _read(path)
    state = _tensors(path, content, re.compile(r"^((module|_orig_mod)\.)+"))[1]
    made: Any = create_backbone(backbone, weights="random", **options)
    own, heads = made.net.state_dict(), made.net.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{name}." for name in ((heads,) if isinstance(heads, str) else heads))
    filled = [name for name in own if name.endswith(_COUNTER) and name not in state]
    wanted = {name: value for name, value in own.items() if name not in filled}
    problems = mismatches(wanted, {name: x for name, x in state.items() if name in own or not name.startswith(heads)})
    if problems:
        raise FewshotError(f"{path} does not fit {backbone}: {'; '.join(problems)}. The file begins with "
                           f"{', '.join(list(state)[:3])}; name the model that it was saved from")
    made.net.load_state_dict({name: state[name] if name in wanted else torch.zeros_like(own[name]) for name in own})
    made.pretrained_on = _pretraining(dataset)
    return made, {"source": "published weight file", "backbone": backbone, "layout": "timm", "repository": "timm",
                  "file": path.name, "file_sha256": digest, "dataset": dataset,
                  "left_out": sorted({name.split(".")[0] for name in state if name not in own}),
                  "filled_with_zeros": len(filled)}


def _read_open_clip(path: Path, backbone: str, dataset: str | None, **options: Any) -> tuple[Backbone, dict]:
    """As `read_official`, of both towers; open_clip translates names of other projects itself, and every tensor must fit."""
    digest = _read(path)[1]
    made: Any = create_backbone(backbone, weights="random", **options)
    try:
        made.load_published(path)
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        shown = reason if len(reason) <= 300 else f"{reason[:300]} ..."
        raise FewshotError(f"{path} does not fit {backbone}: {shown} Name the model that it was saved from") from None
    made.pretrained_on = _pretraining(dataset) if dataset else pairs_behind(backbone.removeprefix("open_clip/"))
    return made, {"source": "published weight file", "backbone": backbone, "layout": "open_clip",
                  "repository": "mlfoundations/open_clip", "file": path.name, "file_sha256": digest, "dataset": dataset,
                  "left_out": [], "filled_with_zeros": 0}


def _pretraining(dataset: str | None) -> str | None:
    """What `Backbone.pretrained_on` says of a file that was trained on `dataset`: a data set here is in `seen`."""
    return None if dataset is None or _is_known(dataset) else dataset


def _candidates(backbone: str | None, layout: str) -> list[Layout]:
    known = sorted({one.backbone for one in LAYOUTS})
    if backbone is not None and backbone not in known:
        raise FewshotError(unknown_message("backbone of published weight files", backbone, known))
    chosen = [one for one in LAYOUTS if backbone in (None, one.backbone)]
    names = list(dict.fromkeys(one.name for one in chosen))
    if layout != "auto" and layout not in names:
        raise FewshotError(unknown_message(f"layout of {backbone or 'published weight files'}", layout, ["auto", *names]))
    return [one for one in chosen if layout in ("auto", one.name)]


def _read(path: Path) -> tuple[object, str]:
    """(content, sha256) of a file written by torch.save, or a safetensors file."""
    if path.suffix == ".safetensors":
        content = read_safetensors(path, "weights", "a readable weights file", "download it", "download it again")[0]
        return content, hashlib.sha256(path.read_bytes()).hexdigest()
    if not path.is_file():
        raise FewshotError(f"no weight file at {path}; download it from the page of the project that published it")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums in it
                if broken := archive.testzip():
                    raise zipfile.BadZipFile(f"checksum of {broken}")
        with torch.serialization.safe_globals(_PLAIN):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            raise FewshotError(f"{path} is not a weight file of PyTorch, or is damaged; download it again") from None
        raise FewshotError(f"{path} holds a Python object ({wanted[1].rstrip('.')}), which is code and is not loaded; save "
                           "its state_dict() alone, with the project that made it: torch.save({'state_dict': "
                           "model.state_dict()}, FILE)") from None
    except (RuntimeError, OSError, EOFError, KeyError, IndexError, ValueError, AttributeError, TypeError,
            zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FewshotError(f"{path} is not a weight file of PyTorch, or is damaged ({reason}); download it again") from None
    return content, hashlib.sha256(path.read_bytes()).hexdigest()


def _tensors(path: str | Path, content: object, wrappers: re.Pattern[str] = _WRAPPERS) -> tuple[str, dict[str, Tensor]]:
    """(container, name without wrappers -> tensor) of the network in a file."""
    where, inner = "", content
    if isinstance(content, Mapping):
        where = next((key for key in _CONTAINERS if isinstance(content.get(key), Mapping)), "")
        inner = content[where] if where else content
    named = {name: x for name, x in inner.items() if isinstance(x, Tensor)} if isinstance(inner, Mapping) else {}
    if not named:
        held = f"a dictionary of {', '.join(map(str, list(content)[:5]))}" if isinstance(content, Mapping) else \
            f"a {type(content).__name__}"
        raise FewshotError(f"{path} holds {held}, without tensors by name; expected a state dict, or one below "
                           f"{', '.join(_CONTAINERS)}")
    state = {wrappers.sub("", name): x for name, x in named.items()}
    if len(state) < len(named):
        raise FewshotError(f"{path} holds {len(named) - len(state)} tensors twice, with and without a wrapper's prefix "
                           "(module., encoder., model., ...); it may hold two networks: save the one that is wanted alone")
    broken = [name for name, x in state.items() if x.is_floating_point() and not x.isfinite().all()]
    if broken:
        raise FewshotError(f"{path} holds NaN or infinity in {', '.join(broken[:3])}; download it again")
    return where, state


def _recognised(path: str | Path, candidates: list[Layout], container: str, state: dict[str, Tensor]) -> tuple[Layout, dict]:
    """The layout that fits, those of the file's container first, and what the shapes say about the architecture."""
    nearest, fewest = "", None
    for one in sorted(candidates, key=lambda one: one.container != container):
        inferred = _inferred(one, state)
        expected = _expected(one, inferred)
        network = {name: x for name, x in state.items() if not re.match(one.heads, name)}
        lacking = {one.published(name) for name in expected if _may_lack(one, name)} - set(network)
        wanted = {one.published(name): x for name, x in expected.items()}
        problems = mismatches({name: x for name, x in wanted.items() if name not in lacking}, network)
        if not problems:
            return one, inferred
        distance = len(wanted.keys() - lacking ^ network.keys())
        if fewest is None or distance < fewest:
            nearest, fewest = f"{one.backbone} as {one.name} names it ({one.repository}): {'; '.join(problems)}", distance
    raise FewshotError(f"{path} does not fit {'the nearest layout, ' if len(candidates) > 1 else ''}{nearest}. The "
                       f"file begins with {', '.join(list(state)[:3])}")


def _expected(layout: Layout, inferred: dict) -> dict[str, Tensor]:
    """Our tensors without values: no memory, no random numbers."""
    options = {**layout.options, **inferred}
    options.pop("reduce", None)
    make: Callable[..., Backbone] = BACKBONES[layout.backbone]
    with torch.device("meta"):
        return make(options.pop("channels"), layout.image_size[""], **options).state_dict()


def _inferred(layout: Layout, state: dict[str, Tensor]) -> dict:
    """Channels, width and stem from the first convolution, and whether there is squeeze-and-excitation."""
    kinds = {"resnet12": "blocks.0.conv1.weight", "conv4": "blocks.0.0.weight", "wrn28_10": "conv.weight",
             "resnet18": "stem.0.weight"}
    first = state.get(layout.published(kinds[layout.backbone]))
    found: dict[str, Any] = {"channels": 3}
    if first is None or first.ndim != 4:
        return found
    known = inspect.signature(BACKBONES[layout.backbone]).parameters
    if first.shape[1] == 1:
        found["channels"] = 1
    if "width" in known:
        found["width"] = max(2, first.shape[0])
    if "stem" in known and first.shape[-1] == 7:
        found["stem"] = "imagenet"
    if "squeeze" in known and any(".se." in name for name in state):
        found["squeeze"] = True
    return found


def _may_lack(layout: Layout, name: str) -> bool:
    return name.endswith(_COUNTER) or bool(layout.absent and re.fullmatch(layout.absent, name))


def _is_known(dataset: str) -> bool:
    from fewshot.datasets import DATASETS  # the data sets need nothing of the backbones; only this name check needs them

    return dataset in DATASETS
