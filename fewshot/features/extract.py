"""From images to features: a whole bank once, or the images of episodes while training."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from fewshot.backbones.base import PRECISIONS, Backbone
from fewshot.backbones.wrapped import as_backbone
from fewshot.core.bars import tqdm
from fewshot.core.checked import check_at_least
from fewshot.core.errors import FewshotError
from fewshot.core.provenance import versions
from fewshot.core.registry import unknown_message
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.episodes.types import Episodes
from fewshot.features.crops import Crops, by_likeness, parse_crops

_PIECE_SECONDS = 5.0
_PIECE = "{:09d}.safetensors"  # its first image


def embed(bank: ImageBank, backbone: Backbone | nn.Module | Callable[[Tensor], Tensor], *, batch_size: int = 64,
          device: torch.device | str | None = None, cache: str | Path | None = None, progress: bool = True,
          shard_batches: int = 50, crops: str = "", precision: str = "float32") -> FeatureBank:
    """Features of every image of `bank`, in its order: FeatureBank [M, D] with the provenance of `describe`.

    The backbone works in eval mode without gradients and is put back into its mode. With BatchNorm on running
    statistics the features do not depend on `batch_size` beyond rounding; with `batch_norm="batch"` they do, and the
    batch size becomes part of the provenance.

    backbone        made by `create_backbone` or `wrap_backbone`; or any nn.Module, or callable, from images [B, C, H, W] in
                    [0, 1], channels and side as in the bank, to vectors [B, D]. A callable has no weights to know it by,
                    so that its features cannot be cached
    device          where to compute; the backbone is moved there. None: where the backbone is
    cache           folder in which the result is kept as <key>.safetensors, the key being a hash of the provenance; a
                    bank found there is loaded. While an extraction runs, pieces of a few seconds, of `shard_batches` batches
                    at most, gather in <key>.partial/; an interrupted one keeps what it has and continues there, bit for bit
                    as if it had not been. Features pass through memory piece by piece, and a large bank is returned mapped
                    from its file
    progress        show a progress bar
    crops           random crops of every image, "mean(30)" to average their features, "weighted(60)" to do so by their
                    likeness to the whole image, or "keep(7)" to have them side by side (then D is `feature_dim` times their
                    number), see `fewshot.features.crops.Crops`; "": the whole images
    precision       of the arithmetic in the backbone: "bfloat16" is faster on processors that have it and costs accuracy
                    (docs/scaling.md has both); the features are float32 in any case, and other ones

    Raises FewshotError for an empty bank, for a network that makes maps or tokens, and naming the image where features are
    NaN or infinite. Damaged cache files are extracted again, and a cache that cannot be written is done without, both with a
    warning.
    """
    check_at_least(1, batch_size=batch_size, shard_batches=shard_batches)
    if not isinstance(bank, ImageBank):
        raise FewshotError(f"{type(bank).__name__} given; embed takes an ImageBank (load_dataset makes one)")
    if not len(bank):
        raise FewshotError(f"{bank.name}/{bank.split} holds no images to embed")
    if precision not in PRECISIONS:
        raise FewshotError(unknown_message("precision", str(precision), list(PRECISIONS)))
    if cache is not None and not isinstance(backbone, nn.Module):
        raise FewshotError("cache= with a plain callable, which nothing tells from another one; leave cache= out, or pass "
                           "an nn.Module")
    backbone = as_backbone(backbone, bank.images.shape[1], bank.images.shape[-1])
    cut = parse_crops(crops)
    provenance = describe(bank, backbone, batch_size) | ({} if cut is None else {"crops": str(cut)})
    if precision != "float32":
        provenance["precision"] = precision
    target, shards = None, None
    if cache is not None:
        key = hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()[:16]
        target, shards = Path(cache) / f"{key}.safetensors", Path(cache) / f"{key}.partial"
        found = _load(target, provenance)
        if found is not None:
            shutil.rmtree(shards, ignore_errors=True)
            return _titled(found, bank)
    dim = backbone.feature_dim * (cut.count if cut is not None and cut.kind == "keep" else 1)
    extract = functools.partial(_extract, bank, backbone, provenance, batch_size, device, shards, shard_batches, progress,
                                cut, dim)
    if target is not None and shards is not None:
        try:
            FeatureBank.save_pieces(target, extract(), dim, labels=bank.labels, class_names=bank.class_names,
                                    name=bank.name, split=bank.split, provenance=provenance, parts=bank.parts)
        except OSError as error:
            _warn_unkept(target, error)
        else:
            shutil.rmtree(shards, ignore_errors=True)
            return _titled(FeatureBank.load(target), bank)
    features, at = torch.empty(len(bank), dim), 0
    for piece in extract():
        features[at : at + len(piece)] = piece
        at += len(piece)
    return FeatureBank(features, bank.labels, bank.class_names, bank.name, bank.split, provenance, bank.title,
                       parts=bank.parts)


def embed_episodes(episodes: Episodes, backbone: Backbone) -> Episodes:
    """Episodes of images [E, ., C, H, W] -> episodes of features [E, ., D], differentiable, for training.

    Support, query and unlabelled images of all episodes go through `backbone.transform` and the backbone in one
    forward pass, in the mode the backbone is in. In train mode (and with `batch_norm="batch"`) BatchNorm therefore
    takes its statistics over all of them together: every feature then depends on the other queries and on the other
    episodes, which is how episodic training is usually done, but makes any method transductive. In eval mode with
    running statistics every image is embedded on its own.

    Raises FewshotError if the episodes hold features already. The result is not checked again.
    """
    if episodes.support.ndim != 5:
        raise FewshotError(f"support has shape {tuple(episodes.support.shape)}; embed_episodes takes images "
                           "[E, S, C, H, W]")
    parts = [x for x in (episodes.support, episodes.query, episodes.unlabelled) if x is not None]
    sizes = [x.shape[1] for x in parts]
    images = torch.cat(parts, dim=1).flatten(0, 1)  # [E (S + Q + U), C, H, W]
    features = backbone(network_input(backbone, images)).unflatten(0, (len(episodes), -1))  # [E, S + Q + U, D]
    support, query, *rest = features.split(sizes, dim=1)
    return episodes.replace(support=support, query=query, unlabelled=rest[0] if rest else None)


def describe(bank: ImageBank, backbone: Backbone, batch_size: int) -> dict:
    """Everything the features depend on, as plain JSON values: images, backbone, weights, transform, versions."""
    provenance = {"dataset": bank.name, "split": bank.split, "images_sha256": bank.content_hash, **backbone.describe(),
                  "torch": torch.__version__, "timm": versions()["timm"]}
    if backbone.seen:
        provenance["seen"] = backbone.seen
    if backbone.batch_norm == "batch":
        provenance["batch_size"] = batch_size
    return json.loads(json.dumps(provenance))


def _extract(bank: ImageBank, backbone: Backbone, provenance: dict, batch_size: int, device: torch.device | str | None,
             shards: Path | None, shard_batches: int, progress: bool, crops: Crops | None, dim: int) -> Iterator[Tensor]:
    """Features of up to `shard_batches` batches at a time, [m, D] in the order of the images."""
    if device is not None:
        backbone.to(device)
    where = next((value.device for value in backbone.state_dict().values()), torch.device(device or "cpu"))
    training, name, half = backbone.training, f"{bank.name}/{bank.split}", provenance.get("precision") == "bfloat16"
    backbone.eval()
    try:
        with tqdm(total=len(bank), disable=not progress, unit="image", desc=f"{backbone.name} {bank.split}") as bar:
            start = 0
            while start < len(bank):
                # The batch size is recorded: other batch boundaries would differ in the last bits.
                made_by = {**provenance, "batch_size": batch_size, "start": start}
                path = None if shards is None else shards / _PIECE.format(start)
                found = None if path is None else _load(path, made_by)
                if found is not None:
                    bar.update(len(found))
                    start += len(found)
                    yield found.features
                    continue
                last = min(start + batch_size * shard_batches, _next_piece(shards, start, batch_size, len(bank)))
                features, done = torch.empty(last - start, dim, dtype=torch.float32), start
                keep = functools.partial(_keep_piece, path, features, bank, made_by)
                begun = time.monotonic()
                try:
                    while done < last and (path is None or done == start or time.monotonic() - begun < _PIECE_SECONDS):
                        high = min(done + batch_size, last)
                        with torch.inference_mode(), torch.autocast(where.type, torch.bfloat16, enabled=half):
                            # Copied into an ordinary tensor: inference tensors cannot take part in autograd later.
                            images = bank.images[done:high].to(where)
                            features[done - start : high - start] = _forward(backbone, images, crops, name, done, half)
                        _check_finite(features[done - start : high - start], bank, done, backbone)
                        done, before = high, done  # first: a cell is most likely interrupted while a bar is shown
                        bar.update(done - before)
                except BaseException:  # Ctrl-C, too
                    keep(done)
                    raise
                if done - start < len(bank):
                    keep(done)
                yield features[: done - start]
                start = done
    finally:
        backbone.train(training)


def network_input(backbone: Backbone, images: Tensor) -> Tensor:
    """Transformed images in the dtype of the weights."""
    weight = next((value for value in backbone.parameters() if value.is_floating_point()), None)
    images = backbone.transform(images)
    return images if weight is None else images.to(weight.dtype)


def _next_piece(shards: Path | None, start: int, batch_size: int, end: int) -> int:
    """Where the next piece begins that an interrupted extraction left; `end` where there is none."""
    kept = () if shards is None or not shards.is_dir() else shards.glob("*.safetensors")
    after = (int(path.stem) for path in kept if path.stem.isdecimal())
    return min((at for at in after if at > start and at % batch_size == 0), default=end)


def _keep_piece(path: Path | None, features: Tensor, bank: ImageBank, made_by: dict, stop: int) -> None:
    """Keep the features of the images up to `stop`."""
    start = made_by["start"]
    if path is not None and stop > start:
        _keep(FeatureBank(features[: stop - start], bank.labels[start:stop], bank.class_names, bank.name, bank.split,
                          made_by), path)


def _forward(backbone: Backbone, images: Tensor, crops: Crops | None, name: str, start: int, half: bool) -> Tensor:
    # Convolutions of 16 bits are fastest with the channels last, also on CPUs.
    layout = torch.channels_last if half else torch.preserve_format

    def features(images: Tensor) -> Tensor:
        return backbone(network_input(backbone, images).to(memory_format=layout)).to(torch.float32)

    if crops is None:
        return features(images)
    every = (features(crops.cut(images, number, name, start)) for number in range(crops.count))
    if crops.kind == "weighted":
        return by_likeness(torch.stack(list(every)), features(images))
    return torch.cat(list(every), 1) if crops.kind == "keep" else sum(every, torch.zeros(())) / crops.count


def _load(path: Path, provenance: dict) -> FeatureBank | None:
    """The bank at `path` if it is whole and of this provenance (which identifies the images and their labels)."""
    if not path.exists():
        return None
    try:
        found = FeatureBank.load(path)
    except FewshotError as error:
        warnings.warn(f"{error}; extracting it again", stacklevel=3)
        return None
    return found if found.provenance == provenance else None


def _titled(found: FeatureBank, bank: ImageBank) -> FeatureBank:
    """`found`, just read, under the title of these images: they may have been embedded in a folder of another name."""
    object.__setattr__(found, "title", bank.title)
    return found


def _keep(bank: FeatureBank, path: Path) -> None:
    """A cache that cannot be written costs time, not correctness: that is a warning."""
    try:
        bank.save(path)
    except OSError as error:
        _warn_unkept(path, error)


def _warn_unkept(path: Path, error: OSError) -> None:
    warnings.warn(f"cannot keep features in {path.parent} ({error}); they will be extracted again next time", stacklevel=3)


def _check_finite(features: Tensor, bank: ImageBank, start: int, backbone: Backbone) -> None:
    finite = features.isfinite().all(dim=1)
    if not finite.all():
        row = start + int((~finite).nonzero()[0])
        name = f" ({bank.files[row]})" if bank.files is not None else ""
        raise FewshotError(f"{backbone.name} (weights {backbone.weights_id[:16]}) gives NaN or infinite features for "
                           f"image {row}{name}; look at that image, or at the weights if it happens to all")
