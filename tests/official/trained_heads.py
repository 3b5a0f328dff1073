"""Run official code of methods that train something on features with texts, and keep what it returns beside this file.

    cd FOLDER
    git clone https://github.com/TJU-sjyj/AMU-Tuning && git clone https://github.com/astra-vision/ProLIP
    git clone https://github.com/gaopengcuhk/CLIP-Adapter && git clone https://github.com/idstcv/TeS
    git clone https://github.com/linzhiqiu/cross_modal_adaptation && git clone https://github.com/mlfoundations/wise-ft
    python -m tests.official.trained_heads FOLDER

The support is one batch, all of it in each of 30 steps. Where a program draws initial weights at random, it gets those of
the registered method. The loops around CLIP-Adapter, AMU-Tuning and the loss of TeS are written here: theirs read images. In
float64; the first 100 queries.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from fewshot.methods.contract import create_method
from fewshot.ops.heads import uniform
from tests.conftest import SHARED
from tests.official.runs import checkout_argument, describe, keep, official_module
from tests.oracle import load_inputs, with_auxiliary, with_projection

INPUTS = ("caltech_vlm_20c1s", "caltech_vlm_20c4s")
QUERIES, STEPS, WAYS = 100, 30, 20


class Task:
    """One input: support [S, D], labels [S], query [Q, D], text [N, D], and the projection [P + 1, D] where it is used."""

    def __init__(self, name: str, prepare: Callable = lambda episodes: episodes):
        self.episodes = prepare(load_inputs(SHARED / "oracles", name)[0])
        self.support, self.labels, self.query = (getattr(self.episodes, part)[0] for part in ("support", "support_labels",
                                                                                             "query"))
        self.query, self.text = self.query[:QUERIES], normalize(self.episodes.text[0], dim=-1)


class Given(nn.Module):
    """A part of a program that always answers the same."""

    def __init__(self, answer: object):
        super().__init__()
        self.answer = answer

    def forward(self, *_: object) -> object:
        return self.answer


@contextlib.contextmanager
def on_the_cpu(checkout: Path, *absent: str, packages: tuple[str, ...] = ()) -> Iterator[None]:
    """Imports from a checkout, in float64 and without a GPU. Modules that are `absent` are empty, `packages` are imported
    without their __init__."""
    sys.modules.update({name: mock.MagicMock() for name in absent})
    for name in packages:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(checkout / name)]
    same, threads = {"cuda": lambda x, *_: x}, torch.get_num_threads()
    with (mock.patch.object(sys, "path", [str(checkout), *sys.path]),
          mock.patch.multiple(torch.Tensor, float=torch.Tensor.double, **same), mock.patch.multiple(nn.Module, **same),
          mock.patch.object(torch, "FloatTensor", torch.DoubleTensor), contextlib.redirect_stdout(io.StringIO()),
          contextlib.redirect_stderr(io.StringIO())):
        yield
    torch.set_num_threads(threads)  # one of the programs sets their number when it is imported


def descend(optimiser: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    """STEPS steps with the schedule of all these programs."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
        schedule.step()


def amu(checkout: Path, name: str, uncertainty: str) -> Tensor:
    task, method = Task(name, with_auxiliary), create_method("amu")
    with on_the_cpu(checkout):
        official = official_module(checkout, "clip/amu.py")
        dim = task.text.shape[1]

        def parts(x: Tensor) -> dict[str, Tensor]:  # copies: it normalises them in place
            return {"clip_features": x[:, :dim].clone(), "aux_features": x[:, dim:].clone()}

        samples = [normalize(task.support[:, dim:], dim=-1), task.labels]
        model = official.AMU_Model(None, None, samples, task.text.T, dim, WAYS, method.fusion, method.bias, uncertainty,
                                   method.power)
        optimiser = torch.optim.AdamW(model.aux_adapter.parameters(), weight_decay=0.01, lr=1e-3, eps=1e-4)
        descend(optimiser, lambda: model(**parts(task.support), labels=task.labels)["loss"])
        return model(**parts(task.query))["logits"]


def prolip(checkout: Path, name: str) -> Tensor:
    task = Task(name, with_projection)
    projection = task.episodes.projection[0]
    linear = SimpleNamespace(weight=nn.Parameter(projection[:-1].T.contiguous()), bias=nn.Parameter(projection[-1].clone()))
    model = SimpleNamespace(visual=SimpleNamespace(attnpool=SimpleNamespace(c_proj=linear)))
    settings = {"backbone": "RN50", "train_epoch": STEPS, "aug_views": 1}
    with on_the_cpu(checkout, packages=("methods",)):
        program = import_module("methods.ProLIP").ProLIP(settings)
        learned = program.search_init_hp(nn.MSELoss(reduction="sum"), settings, 1e-3, WAYS / len(task.labels), model, None,
                                         task.text.T, [task.support], task.labels)
        return 100 * normalize(learned(task.query), dim=-1) @ task.text.T


def clip_adapter(checkout: Path, name: str) -> Tensor:
    task = Task(name)
    dim = task.text.shape[1]
    with on_the_cpu(checkout, "clip", "clip.simple_tokenizer", "dassl", "dassl.engine", "dassl.metrics", "dassl.utils",
                    "dassl.optim"):
        sys.modules["dassl.engine"].TrainerX = object
        official = official_module(checkout, "clip_adapter.py")
        official.TextEncoder = lambda *_: Given(task.text)
        model = official.CustomCLIP(None, None, SimpleNamespace(visual=nn.Identity(), dtype=torch.float64,
                                                                logit_scale=torch.tensor(math.log(100))))
        model.adapter = official.Adapter(dim, 4)  # it makes one for 1,024 features
        for layer, part, shape in ((0, "down", (dim, dim // 4)), (2, "up", (dim // 4, dim))):
            model.adapter.fc[layer].weight.data = uniform(shape, shape[0] ** -0.5, 0, part).T.contiguous()
        optimiser = torch.optim.AdamW(model.adapter.parameters(), lr=1e-2, eps=1e-4, weight_decay=0)
        descend(optimiser, lambda: cross_entropy(model(task.support), task.labels))
        return model(task.query)


def cross_modal(checkout: Path, name: str, head: str) -> Tensor:
    task = Task(name)
    shots = len(task.labels) // WAYS
    with on_the_cpu(checkout, "engine.config", "engine.tools.utils", "engine.datasets.utils", "features"):
        program = import_module("train")
        sentences = [(text, label, torch.tensor(0)) for label, text in enumerate(task.text)]
        read = nn.Module()
        read.forward = lambda text, _: text
        zero_shot = program.get_zero_shot_weights(sentences, WAYS, task.text.shape[1], read, device="cpu")
        linear = nn.Linear(task.text.shape[1], WAYS, bias=False)
        linear.weight.data = zero_shot.clone()
        model = program.LogitHead(linear, logit_scale=math.log(100))
        optimiser = program.build_optimizer([{"params": model.parameters()}], "adamw", 1e-3, 1e-2)
        schedule = program.build_lr_scheduler(optimiser, "cosine", 0, STEPS)
        better = itertools.count()
        program.validate = lambda *_, **__: next(better)  # the last step is the best one
        # Half of each batch are texts: as many as images.
        texts = [(task.text.repeat(shots, 1), torch.arange(WAYS).repeat(shots), torch.zeros(len(task.labels)))]
        program.train(model, nn.Identity(), read, [(task.support, task.labels)], None, texts, optimiser, schedule,
                      nn.CrossEntropyLoss(), STEPS, eval_freq=STEPS - 1, device="cpu")
        return program.get_eval_heads(model.head, zero_shot, logit=math.log(100))[head](task.query)


def wise_ft(checkout: Path, name: str, alpha: float) -> Tensor:
    task, found = Task(name), []
    with on_the_cpu(checkout, "clip", "clip.clip", "src.args", "src.datasets", "src.datasets.common", "src.models.eval",
                    "src.models.zeroshot"):
        program, modeling = import_module("src.models.finetune"), import_module("src.models.modeling")
        program.datasets.Support = lambda *_, **__: SimpleNamespace(train_loader=[None])
        program.get_dataloader = lambda *_, **__: [{"features": task.support, "labels": task.labels}]
        program.maybe_dictionarize = lambda batch: batch
        program.evaluate = lambda classifier, _: found.append(classifier.classification_head)
        head = modeling.ClassificationHead(normalize=True, weights=100 * task.text)
        start = {part: values.clone() for part, values in head.state_dict().items()}
        encoder = SimpleNamespace(train_preprocess=None, val_preprocess=None)
        classifier = SimpleNamespace(classification_head=head, image_encoder=encoder, val_preprocess=None)
        program.ImageClassifier = lambda _, trained: SimpleNamespace(classification_head=trained, image_encoder=encoder)
        program.ImageClassifier.load = lambda _: classifier
        program.finetune(SimpleNamespace(load="", train_dataset="Support", freeze_encoder=True, data_location="",
                                         batch_size=0, ls=0, lr=0.1, wd=0.1, warmup_length=0, epochs=STEPS, save=None))
        merged = import_module("src.wise_ft")._merge(alpha, start, found[-1].state_dict(), None, 0)
        head.load_state_dict(merged)
        return head(task.query)


def tes(checkout: Path, name: str) -> Tensor:
    task = Task(name)
    dim = task.text.shape[1]
    support, query = (torch.cat([normalize(x, dim=-1), torch.ones(len(x), 1)], 1) for x in (task.support, task.query))
    loss = official_module(checkout, "TeS_loss.py").TeS_loss
    head = torch.zeros(dim + 1, WAYS, requires_grad=True)
    projection = uniform((dim + 1, dim), 1.0, 0, "projection").requires_grad_()

    def model() -> dict[str, Tensor]:
        return {"x": support @ head, "x_proj": normalize(support @ projection, dim=1)}

    optimiser = torch.optim.AdamW([head, projection], lr=0.1, eps=1e-6, weight_decay=0)
    descend(optimiser, lambda: loss(task.text, model(), task.labels, nn.CrossEntropyLoss(), 0.03, 0.2, 0.4))
    return query @ head


# output -> (method, folder and repository, entry point, what is run, its settings, how the inputs are prepared)
RUNS: dict[str, tuple] = {
    "amu_none": ("amu", "AMU-Tuning", "TJU-sjyj/AMU-Tuning", "clip/amu.py AMU_Model", amu, {"uncertainty": "none"},
                 "auxiliary"),
    "amu_moment": ("amu", "AMU-Tuning", "TJU-sjyj/AMU-Tuning", "clip/amu.py AMU_Model", amu, {"uncertainty": "moment"},
                   "auxiliary"),
    "prolip": ("prolip", "ProLIP", "astra-vision/ProLIP", "methods/ProLIP.py ProLIP.search_init_hp", prolip, {},
               "projection"),
    "clip_adapter": ("clip_adapter", "CLIP-Adapter", "gaopengcuhk/CLIP-Adapter", "clip_adapter.py CustomCLIP", clip_adapter,
                     {}, None),
    "cross_modal": ("cross_modal", "cross_modal_adaptation", "linzhiqiu/cross_modal_adaptation", "train.py train",
                    cross_modal, {"head": "head"}, None),
    "cross_modal_wise_ft": ("cross_modal", "cross_modal_adaptation", "linzhiqiu/cross_modal_adaptation",
                            "train.py train, get_eval_heads", cross_modal, {"head": "head_wiseft_0.5"}, None),
    "wise_ft_0.5": ("wise_ft", "wise-ft", "mlfoundations/wise-ft", "src/models/finetune.py finetune, src/wise_ft.py _merge",
                    wise_ft, {"alpha": 0.5}, None),
    "wise_ft_1": ("wise_ft", "wise-ft", "mlfoundations/wise-ft", "src/models/finetune.py finetune, src/wise_ft.py _merge",
                  wise_ft, {"alpha": 1.0}, None),
    "tes": ("tes", "TeS", "idstcv/TeS", "TeS_loss.py TeS_loss", tes, {}, None),
}


def main() -> None:
    folder = checkout_argument(__doc__.splitlines()[0]).resolve()
    torch.set_default_dtype(torch.float64)
    for official, (method, place, repository, entry_point, run, settings, prepared) in RUNS.items():
        for name in INPUTS:
            logits = run(folder / place, name, **settings).detach().numpy()
            keep(official, name, logits_f64=logits, **({"prepared": prepared} if prepared else {}))
        describe(official, folder / place, method=method, repository=repository, entry_point=entry_point,
                 primary_output="logits", per_input={name: {} for name in INPUTS},
                 hyperparameters={"steps": STEPS, **settings}, expected_agreement={"float64": 1e-9})


if __name__ == "__main__":
    main()
