"""In a kernel: values show themselves, bars are quiet about missing widgets, and an interrupted cell leaves a run that goes
on where it stopped."""

from __future__ import annotations

import os
import queue
import re
import time
from pathlib import Path

import pytest

jupyter_client = pytest.importorskip("jupyter_client", reason="needs the extra: pip install fewshot[notebooks]")
pytest.importorskip("ipykernel", reason="needs the extra: pip install fewshot[notebooks]")
pytestmark = pytest.mark.slow

START = """
import json, torch
import fewshot
from pathlib import Path
torch.set_num_threads(1)
images = fewshot.load_dataset("glyphs", "test", cache=False)
features = fewshot.embed(images, fewshot.create_backbone("pixels"), progress=True)
"""


ROOT = Path(__file__).resolve().parents[2]


class Kernel:
    """One kernel, in `folder`, with the sources beside this test."""

    def __init__(self, folder):
        self.manager = jupyter_client.KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(folder), env={**os.environ, "PYTHONPATH": str(ROOT)})
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def run(self, code, until=None, wait=120):
        """(output messages, name of the error or None) of a cell; it is interrupted as soon as `until`, a function of what
        it printed, is true."""
        sent, outputs, error, end = self.client.execute(code), [], None, time.monotonic() + wait
        while time.monotonic() < end:
            if until is not None and until("".join(content.get("text", "") for content in outputs)):
                self.manager.interrupt_kernel()
                until = None
            try:
                message = self.client.get_iopub_msg(timeout=0.1)
            except queue.Empty:
                continue
            if message["parent_header"].get("msg_id") != sent:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "error":
                error = content["ename"]
            elif kind == "status" and content["execution_state"] == "idle":
                assert until is None, "the cell ended before it could be interrupted"
                return outputs, error
            else:
                outputs.append(content)
        raise AssertionError(f"a cell took more than {wait} s: {code}")

    def text(self, code):
        """What a cell prints on its standard output; it must not fail."""
        outputs, error = self.run(code)
        assert error is None, (error, outputs)
        return "".join(content.get("text", "") for content in outputs if content.get("name") == "stdout")


@pytest.fixture
def kernel(tmp_path):
    made = Kernel(tmp_path)
    yield made
    made.close()


def test_values_show_themselves_and_bars_are_quiet(kernel):
    outputs, error = kernel.run(START)
    said = "".join(content.get("text", "") for content in outputs)
    assert error is None and "pixels test" in said and "Warning" not in said, said
    kernel.text("a, b = (fewshot.evaluate(method=name, queries=7, episodes=100, bank=features, metrics=True) for name in "
                "('protonet', 'soft_kmeans'))\n"
                "from fewshot.reporting.measure_figures import confusion_figure\n"
                "from fewshot.reporting.feature_space import projection_figure\n"
                "one, _ = fewshot.EpisodeSampler(features, ways=5, queries=7).sample(features, start=0, count=1)\n"
                "drawn, _ = fewshot.EpisodeSampler(images, ways=5, queries=7).sample(images, start=0, count=1)")
    for cell, kind in {"a": "text/html", "fewshot.compare(a, b)": "text/html", "fewshot.results_table([a, b])": "text/html",
                       "drawn": "text/html", "images": "text/html", "features": "text/html",
                       "confusion_figure(a.measures['confusion'], features.class_names)": "image/png",
                       "projection_figure(one, fewshot.create_method('soft_kmeans'))": "image/png"}.items():
        outputs, error = kernel.run(cell)
        (shown,) = (content["data"] for content in outputs if "data" in content)
        assert error is None and kind in shown, cell
        assert len(shown["text/plain"]) < 20_000, "what is shown where there is no HTML is not all that there is"


def bar_has_moved(printed):
    """Whether a progress bar shows more than nothing."""
    return re.search(r" [1-9]\d*/\d+ \[", printed) is not None


def test_an_interrupted_evaluation_goes_on(kernel, tmp_path):
    kernel.text(START)
    cell = ("found = fewshot.evaluate(method='tim_adm', queries=7, episodes=6000, bank=features, progress=True, "
            "store=fewshot.Store('runs'))")
    _, error = kernel.run(cell, until=bar_has_moved)
    (part,) = (tmp_path / "runs").glob(".*.parts/*.safetensors")
    done = int(part.stem.partition("-")[2])
    assert error == "KeyboardInterrupt" and 0 < done < 6000
    outputs, error = kernel.run(cell)
    bars = re.findall(r" (\d+)/6000 \[", "".join(content.get("text", "") for content in outputs))
    assert error is None and int(bars[0]) == done, "the bar starts where the run goes on"
    assert kernel.text("whole = fewshot.evaluate(method='tim_adm', queries=7, episodes=6000, bank=features)\n"
                       "print(torch.equal(found.correct, whole.correct), found.fingerprint == whole.fingerprint)"
                       ) == "True True\n"


def test_an_interrupted_training_goes_on(kernel, tmp_path):
    kernel.text(START + "base = fewshot.load_dataset('glyphs', 'train', cache=False)\n"
                "config = fewshot.TrainConfig(steps=200, ways=5, queries=2, validate_every=0, checkpoint_every=200)\n"
                "def trained(out):\n"
                "    network = fewshot.create_backbone('conv4', channels=1, image_size=28, width=8, seed=0)\n"
                "    return fewshot.train(config, base, None, network, out=out)")
    _, error = kernel.run("trained('cut')", until=bar_has_moved)
    *_, checkpoint = sorted((tmp_path / "cut").rglob("step-*.pt"))
    assert error == "TrainingInterrupted" and 0 < int(checkpoint.name[5:14]) < 200
    assert kernel.text("a, b = trained('cut'), trained('whole')\n"
                       "print(all(torch.equal(x, y) for x, y in zip(a.backbone.parameters(), b.backbone.parameters())), "
                       "a.steps)").endswith("True 200\n")


def test_an_interrupted_extraction_goes_on(kernel, tmp_path):
    kernel.text(START + "few = fewshot.ImageBank(images.images[:240], images.labels[:240])\n"
                "network = fewshot.create_backbone('resnet12', channels=1, image_size=84, seed=0)")
    cell = "found = fewshot.embed(few, network, cache='cache', batch_size=8)"
    _, error = kernel.run(cell, until=bar_has_moved)
    (piece,) = (tmp_path / "cache").glob("*.partial/*.safetensors")
    kernel.text("network.forward_images, forward = [], network.forward\n"
                "network.forward = lambda images: (network.forward_images.append(len(images)), forward(images))[1]")
    assert error == "KeyboardInterrupt" and piece.stem == f"{0:09d}"
    kernel.text(cell)
    assert int(kernel.text("print(sum(network.forward_images))")) < 240, "what was kept is not computed again"
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".safetensors"]
    assert kernel.text("print(torch.equal(found.features, fewshot.embed(few, network, batch_size=8).features))"
                       ) == "True\n"


def test_an_interrupted_search_goes_on(kernel, tmp_path):
    kernel.text(START + "val = fewshot.embed(fewshot.load_dataset('glyphs', 'val', cache=False), "
                "fewshot.create_backbone('pixels'), progress=False)\n"
                "run = fewshot.Run(method='protonet', split='val', queries=7, episodes=3000)")
    cell = "fewshot.tune(run, {'temperature': [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}, bank=val, store=fewshot.Store('tune')).chosen"

    def results():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "tune").glob("*/result.json")}

    _, error = kernel.run(cell, until=lambda printed: len(results()) >= 2)
    kept = results()
    assert error == "KeyboardInterrupt" and 2 <= len(kept) < 6
    kernel.text(cell)
    assert len(results()) == 6 and results().items() > kept.items(), "what was finished is not evaluated again"
