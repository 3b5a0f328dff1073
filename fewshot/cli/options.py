"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewshot.core.errors import FewshotError

if TYPE_CHECKING:
    from fewshot.data.banks import FeatureBank

# Where an option has another name than its parameter.
_FLAGS = {"data_set": "--data-option", "backbone_set": "--backbone-option", "set_": "--set"}


def method_names(incomplete: str) -> list[str]:
    """What the shell offers for a method, also behind a comma. Read from the text of their files: importing them would take
    seconds at every press of the key."""
    before, comma, start = incomplete.rpartition(",")
    files = Path(__file__).parents[1].joinpath("methods").glob("*.py")
    names = (name for file in files for name in re.findall(r'^@METHODS\.register\("(\w+)"\)', file.read_text("utf-8"), re.M))
    return sorted(f"{before}{comma}{name}" for name in names if name.startswith(start))


DataRoot = Annotated[Path | None, typer.Option("--data-root", envvar="FEWSHOT_DATA",
                                               help="folder that holds the data sets (default: data)")]
Dataset = Annotated[str, typer.Option(help="data set, see `fewshot data`; or the path of a folder of class folders")]
Split = Annotated[str | None, typer.Option(help="train, val, test or all (default: test; all for a folder without a "
                                           "split file)")]
Backbone = Annotated[str, typer.Option(help="backbone, see `fewshot list backbones`")]
Weights = Annotated[Path | None, typer.Option(help="weights file (.safetensors) or a name such as random; left out: those "
                                          "of ImageNet for efficientnet_lite0, else untrained")]
Features = Annotated[Path | None, typer.Option(help="feature bank from `fewshot embed`, not images")]
BaseFeatures = Annotated[Path | None, typer.Option(help="feature bank of the base classes")]
Method = Annotated[str, typer.Option(help="method, see `fewshot list methods`", autocompletion=method_names)]
Crops = Annotated[str, typer.Option(help="random crops of every image: mean(30) averages their features, keep(7) "
                                         "has them side by side")]
Transforms = Annotated[str, typer.Option(help="feature transforms, e.g. center_base,l2")]
Runs = Annotated[Path, typer.Option("--runs", help="folder of stored results")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE",
                                                    help="a hyper-parameter of the method; repeat for more")]
DataSettings = Annotated[list[str] | None, typer.Option("--data-option", metavar="NAME=VALUE", help="an option of the data "
                                                        "set, e.g. protocol=vinyals, splits=FILE; repeat for more")]
BackboneSettings = Annotated[list[str] | None, typer.Option("--backbone-option", metavar="NAME=VALUE", help="an option of "
                                                            "the backbone, e.g. width=32, reduce=flatten; repeat for more")]
QUERIES_HELP = "query images a class; 15 unless given, 7 on glyphs, whose classes have 12 images"
Queries = Annotated[int | None, typer.Option(help=QUERIES_HELP, show_default=False)]
Alpha = Annotated[float, typer.Option(help="concentration of the Dirichlet distribution")]
KEff = Annotated[int | None, typer.Option(help="classes present among the queries (k_eff only)")]
OpenClasses = Annotated[int, typer.Option(help="classes outside the episode that give further queries (open set)")]
OpenQueries = Annotated[int, typer.Option(help="queries of each of these classes")]
Seed = Annotated[int, typer.Option(help="seed of the episodes")]
Episodes = Annotated[int, typer.Option(help="number of episodes")]


def pairs(items: list[str] | None) -> dict:
    """`["temperature=10", "norm=l2n"]` -> {"temperature": 10, "norm": "l2n"}."""
    return {name: literal(text) for name, text in named(items)}


def value_lists(items: list[str] | None) -> dict[str, list]:
    """`["scale=5,10", "norm=l2n,un"]` -> {"scale": [5, 10], "norm": ["l2n", "un"]}; commas in brackets separate nothing."""
    return {name: [literal(part.strip()) for part in re.split(r",(?![^()\[\]]*[)\]])", text) if part.strip()]
            for name, text in named(items)}


def named(items: list[str] | None) -> list[tuple[str, str]]:
    """(name, text) of every NAME=TEXT; raises FewshotError for anything else and for a name that comes twice."""
    found: dict[str, str] = {}
    for item in items or []:
        name, separator, text = item.partition("=")
        if not separator or not name:
            raise FewshotError(f"{item!r} is not NAME=VALUE")
        if name in found:
            raise FewshotError(f"{name} is given twice: {found[name]} and {text}")
        found[name] = text
    return list(found.items())


def literal(text: str):
    """A Python literal, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def source(dataset: str, split: str | None, root: Path | None, options: dict) -> tuple[str, str, Path | None]:
    """(data set, split, root) that the user means: a path is the data set `folder` at that place."""
    from fewshot.datasets import DATASETS

    if dataset not in DATASETS and ("/" in dataset or Path(dataset).is_dir()):
        dataset, root = "folder", Path(dataset)
    return dataset, split or ("all" if dataset == "folder" and "splits" not in options else "test"), root


def described(bank: FeatureBank) -> dict[str, str | None]:
    """What a feature bank says about itself, as settings of a `Run`."""
    return {"dataset": bank.name, "split": bank.split, "backbone": bank.provenance.get("backbone", "features"),
            "weights": bank.provenance.get("weights_id")}


def words(text: str) -> list[str]:
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise FewshotError(f"{text!r} is an empty list; give one value, or several separated by commas")
    return found


def integers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in words(text)]
    except ValueError:
        raise FewshotError(f"{option}={text!r}; expected integers separated by commas, e.g. 1,5") from None


def numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in words(text)]
    except ValueError:
        raise FewshotError(f"{option}={text!r}; expected numbers separated by commas, e.g. 0.5,2") from None


def shard_of(text: str) -> tuple[int, int]:
    """`1/4` -> (1, 4)."""
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not int(parts[0]) < int(parts[1]):
        raise FewshotError(f"--shard={text!r}; expected I/N with I from 0 to N-1, e.g. 0/4")
    return int(parts[0]), int(parts[1])


def text_of(path: Path | None) -> str | None:
    return None if path is None else str(path)


def queries_of(dataset: str, queries=None):
    """`queries` or, where it was not given, a number that the classes of the data set have images for."""
    return queries if queries is not None else 7 if dataset == "glyphs" else 15


def given(context: typer.Context, name: str) -> bool:
    return context.get_parameter_source(name).name == "COMMANDLINE"


def refuse_given(context: typer.Context, names: tuple[str, ...], why: str) -> None:
    """Options that would have no effect are refused."""
    flags = [_FLAGS.get(name, f"--{name.replace('_', '-')}") for name in names if given(context, name)]
    if flags:
        raise FewshotError(f"{', '.join(flags)} {why}; leave it out")
