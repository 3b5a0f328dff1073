"""One page on the device at hand: methods, embedding and training on it, beside the CPU of the same machine.

    python benchmarks/device.py [--device cuda] [--only methods embedding training] [--methods protonet ...]
                                [--backbones conv4 ...] [--seconds 1] [--write FILE]

Without --device the accelerator is taken that PyTorch finds; where there is none, the page has the column of the CPU only.
Of every row more and more is done in a call, 1, 8, 64 ... episodes, images or steps, until it takes a quarter of --seconds
and gains little, or the memory is full; the best rate counts, after a first call at each size. A call of training trains a
network for so many steps, of which those after the first one count. Clocks are on the wall, and stop when the device has
finished; peaks are `torch.cuda.max_memory_allocated` up to the best size. On the CPU all threads work inside operators; an
evaluation gives each thread episodes of its own instead, which is faster (benchmarks/suite.py measures that).
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from common import clusters, feature_methods, machine, markdown, rate

import fewshot
from fewshot.core import provenance
from fewshot.methods import METHODS

# name -> (pixels, options); weights are random, which does not change how long they take
BACKBONES = {"conv4": (84, {}), "resnet12": (84, {}), "resnet18": (84, {}),
             "efficientnet_lite0": (224, {"weights": "random"})}
LEARNERS = {"protonet": {}, "maml": {"inner_steps": 5}}
TITLES = {"methods": ("episode", "Methods: 640 features, 5-way 1-shot, 75 queries"), "embedding": ("image", "Embedding"),
          "training": ("step", "Training: Conv-4, 28x28, 4 episodes a step, 5-way 1-shot, 75 queries")}
SIZES = tuple(8**power for power in range(5))
BATCH = 512  # images in the backbone at once, at most
Work = Callable[[], object]
Maker = Callable[[int], Work]  # of the work of a size


class Cell(NamedTuple):
    """The best rate of a row on a device: how many a second, how many of them in a call, the device's peak so far in MiB."""

    rate: float = 0.0
    size: int = 0
    peak: float | None = None
    error: str = ""


def seconds_of(work: Work, device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type != "cpu":  # work that was handed over is not yet done
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start


def best(make: Maker, device: torch.device, seconds: float, marginal: bool = False) -> Cell:
    """What cannot be computed on the device is told in the cell.

    marginal   leave out what the smallest size takes, which is the start and the end of the larger ones, too
    """
    found, counts, first, speed = Cell(), device.type == "cuda", 0.0, 0.0
    if counts:
        torch.cuda.reset_peak_memory_stats(device)
    for size in SIZES:
        try:
            work = make(size)
            taken = seconds_of(work, device)
            if taken < 10 * seconds:  # else the first call, which sets up caches, does not matter
                taken = statistics.median(seconds_of(work, device) for _ in range(3))
        except torch.OutOfMemoryError:
            break
        except (RuntimeError, NotImplementedError, TypeError) as error:
            return Cell(error=f"{type(error).__name__}: {str(error).splitlines()[0][:60]}")
        if marginal and size == 1:
            first, speed = taken, 1 / taken
            continue
        last, speed = speed, (size - 1) / max(taken - first, 1e-9) if marginal else size / taken
        if speed > found.rate:
            found = Cell(speed, size, torch.cuda.max_memory_allocated(device) / (1 << 20) if counts else None)
        # Where a larger call hardly takes longer, as on a device that is not yet busy, the next one is tried, too.
        if taken > seconds / 4 and speed < 2 * last:
            break
    return found


def method_work(name: str, device: torch.device, bank: fewshot.FeatureBank, base: fewshot.FeatureBank) -> Maker:
    """Answers to episodes that lie on the device, 5-way 1-shot, 15 queries a class."""
    method = fewshot.create_method(name).fit(base)
    sampler = fewshot.EpisodeSampler(bank)

    def make(size: int) -> Work:
        episodes = sampler.indices(0, size).gather(bank).to(device)

        def work():
            with torch.inference_mode():
                method(episodes)
        return work

    return make


def embedding_work(name: str, device: torch.device) -> Maker:
    """`fewshot.embed` of images in memory, their way to the device and back included."""
    pixels, options = BACKBONES[name]
    backbone = fewshot.create_backbone(name, channels=3, image_size=pixels, **options)

    def make(size: int) -> Work:
        images = torch.randint(0, 256, (size, 3, pixels, pixels), dtype=torch.uint8)
        bank = fewshot.ImageBank(images, torch.zeros(size, dtype=torch.int64))
        return lambda: fewshot.embed(bank, backbone, device=device, batch_size=BATCH, progress=False)

    return make


def training_work(name: str, device: torch.device) -> Maker:
    """`fewshot.train`: Conv-4, 28x28, 4 episodes a step, 5-way 1-shot, 15 queries a class."""
    images = torch.randint(0, 256, (400, 1, 28, 28), dtype=torch.uint8)
    bank = fewshot.ImageBank(images, torch.arange(400) % 20, split="train")
    backbone = fewshot.create_backbone("conv4", channels=1, image_size=28).to(device)

    def make(size: int) -> Work:
        config = fewshot.TrainConfig(method=name, parameters=LEARNERS[name], ways=5, queries=15, episodes_per_step=4,
                                     steps=size, validate_every=0, checkpoint_every=10_000)

        def work():
            with tempfile.TemporaryDirectory() as out:
                fewshot.train(config, bank, None, backbone, out=out, progress=False)
        return work

    return make


def measure(devices: list[torch.device], sections: list[str], methods: list[str], backbones: list[str],
            seconds: float) -> dict[str, dict[str, list[Cell]]]:
    """{section: {row: [cell of every device]}}"""
    bank, base = clusters(0), clusters(1)
    rows = {"methods": {name: lambda device, name=name: method_work(name, device, bank, base) for name in methods},
            "embedding": {name: lambda device, name=name: embedding_work(name, device) for name in backbones},
            "training": {name: lambda device, name=name: training_work(name, device) for name in LEARNERS}}
    return {section: {name: [best(made(device), device, seconds, marginal=section == "training") for device in devices]
                      for name, made in rows[section].items()} for section in sections}


def page(found: dict, devices: list[torch.device], load: float) -> str:
    versions = provenance.versions()
    lines = ["# Speed by device", "", "Written by `python benchmarks/device.py --write FILE`; its first lines say how.", "",
             f"{datetime.date.today()}; {'; '.join(map(named, devices))}; {torch.get_num_threads()} thread(s); Python "
             f"{versions['python']}, torch {versions['torch']}; load average {load:.1f} at the start.", ""]
    if len(devices) == 1:
        lines += ["Measured on the CPU only.", ""]
    for section, cells_of in found.items():
        unit, title = TITLES[section]
        header = [""]
        for device in devices:
            header += [f"{device}: ms/{unit}", f"{unit}s/s", f"{unit}s a call"]
            header += ["peak, MiB"] if device.type == "cuda" else []
        header += [f"{devices[0]} / {devices[1]}"] if len(devices) > 1 else []
        rows = []
        for name, cells in cells_of.items():
            label = f"{name} {BACKBONES[name][0]}x{BACKBONES[name][0]}" if section == "embedding" else name
            row = [f"{label} ({METHODS[name].setting})" if section == "methods" else label]
            for device, cell in zip(devices, cells, strict=True):
                row += shown(cell) + ([f"{cell.peak or 0:,.0f}"] if device.type == "cuda" else [])
            if len(devices) > 1:
                row.append(f"{cells[0].rate / cells[1].rate:.1f}" if cells[0].rate and cells[1].rate else "")
            rows.append(row)
        lines += [f"## {title}", "", *markdown(header, rows), ""]
    return "\n".join(lines)


def shown(cell: Cell) -> list[str]:
    if not cell.rate:
        return [cell.error or "memory is full", "", ""]
    milliseconds = 1000 / cell.rate
    return [f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}", rate(cell.rate), str(cell.size)]


def named(device: torch.device) -> str:
    return f"{device}: {torch.cuda.get_device_name(device) if device.type == 'cuda' else machine()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=torch.accelerator.current_accelerator(check_available=True))
    parser.add_argument("--only", nargs="+", choices=TITLES, default=list(TITLES), help="sections to measure")
    # COSOC needs the features of several crops.
    parser.add_argument("--methods", nargs="+", default=[name for name in feature_methods() if name != "cosoc"])
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--seconds", type=float, default=1.0, help="of the largest calls, about")
    parser.add_argument("--write", type=Path, help="write the page to this file too")
    arguments = parser.parse_args()
    cpu, load = torch.device("cpu"), os.getloadavg()[0]
    devices = [cpu] if arguments.device in (None, cpu) else [arguments.device, cpu]
    text = page(measure(devices, arguments.only, arguments.methods, arguments.backbones, arguments.seconds), devices, load)
    print(text)
    if arguments.write:
        arguments.write.write_text(text)


if __name__ == "__main__":
    main()
