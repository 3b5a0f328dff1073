"""What mkdocs does besides: pages that are made elsewhere in the repository, links between them, commands, notebooks.

The documents are written for the repository: links in them lead to files. Here the README becomes the first page, and a link
to a file of the repository becomes one to its page, or, for a file without a page, its path.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbconvert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
# [text](target#part), also of pictures and with one picture as the text.
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|!?\[[^\[\]]*\](?:\([^()]*\))?)*)\]"
                   r"\((?P<target>[^()\s:#]+)(?P<part>#[^()\s]*)?\)")
_FENCE = re.compile(r"^```.*?^```$", re.M | re.S)

# Paths of the repository whose pages have another place in the site.
PLACES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md",
          "data/README.md": "data.md"}


def places() -> dict[str, str]:
    """Path in the repository -> path in the site, of all pages that do not lie in docs/."""
    found = dict(PLACES)
    for path in sorted((ROOT / "experiments" / "results").glob("*.md")):
        found[f"experiments/results/{path.name}"] = f"results/{path.name}"
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        found[f"notebooks/{path.name}"] = f"notebooks/{path.stem}.md"
    for name in method_files():
        found[f"fewshot/methods/{name}.py"] = f"api/methods.md#fewshot.methods.{name}"
    return found | {"notebooks": "notebooks/01_first_steps.md"}


def method_files() -> list[str]:
    """The modules of fewshot.methods that hold methods, and not what these have in common."""
    return sorted(path.stem for path in (ROOT / "fewshot" / "methods").glob("*.py")
                  if re.search(r"^@METHODS\.register\(", path.read_text("utf-8"), re.M))


def on_files(files, config):
    for source, place in places().items():
        path = ROOT / source
        if path.suffix == ".md":
            files.append(File.generated(config, place, content=path.read_text("utf-8")))
        elif path.suffix == ".ipynb":
            text, _ = nbconvert.MarkdownExporter().from_filename(str(path))
            files.append(File.generated(config, place, content=text.replace("%matplotlib inline\n", "")))
    return files


def on_page_markdown(markdown, page, config, files):
    here = page.file.src_uri
    if here == "commands.md":
        markdown += "\n" + commands()
    if here == "api/methods.md":
        markdown += "\n" + "\n\n".join(f"::: fewshot.methods.{name}" for name in method_files())
    origin = next((source for source, place in places().items() if place == here), f"docs/{here}")
    return linked(markdown, origin, here)


def linked(markdown: str, origin: str, here: str) -> str:
    """`markdown` of the repository's file `origin` with links that hold on the site's page `here`."""
    known = places()

    def moved(match: re.Match) -> str:
        text = _LINK.sub(moved, match["text"])  # a picture that is a link
        target = os.path.normpath(os.path.join(os.path.dirname(origin), match["target"]))
        part = match["part"] or ""
        if target.startswith("docs/"):
            place = target.removeprefix("docs/")
        elif target in known:
            place = known[target]
        elif (ROOT / target).exists():
            return text if target in text else f"{text} (`{target}`)"
        else:
            return match[0]  # mkdocs complains
        return f"{match['image']}[{text}]({os.path.relpath(place, os.path.dirname(here) or '.')}{part})"

    pieces, at = [], 0
    for code in _FENCE.finditer(markdown):
        pieces += [_LINK.sub(moved, markdown[at : code.start()]), code[0]]
        at = code.end()
    return "".join([*pieces, _LINK.sub(moved, markdown[at:])])


def commands() -> str:
    """Every command with its arguments and options, from the command line itself."""
    import typer

    from fewshot.cli.app import app

    return "\n\n".join(_described("fewshot", typer.main.get_command(app)))


def _described(name: str, command):
    if hasattr(command, "commands"):
        for key, inner in command.commands.items():
            yield from _described(f"{name} {key}", inner)
        return
    yield f"## {name}"
    yield " ".join((command.help or "").split())
    rows = [_option(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
    yield "\n".join(["| argument or option | meaning | default |", "|---|---|---|", *rows])


def _option(parameter) -> str:
    flag = getattr(parameter, "is_flag", False)
    if parameter.param_type_name == "argument":
        name = parameter.name
    else:
        name = ", ".join([*parameter.opts, *parameter.secondary_opts])
        name += f" {parameter.metavar}" if parameter.metavar else ""
    default = "" if flag or parameter.default in (None, "", ()) else f"`{parameter.default}`"
    meaning = (getattr(parameter, "help", None) or "").replace("|", "\\|")
    return f"| `{name}` | {meaning} | {'required' if parameter.required else default} |"
