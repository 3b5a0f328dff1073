"""Put what is made elsewhere into the documents, between a marker and `<!-- end -->`:

    <!-- table: NAME -->            experiments/results/NAME.csv as a table
    <!-- published: NAME NAME -->   the rows of NAME_published.md, measured beside published
    <!-- rows: NAME -->             the table of experiments/results/NAME.md as it is
    <!-- list: experiments -->      the files of experiments/ with their first sentence and their tables

    python docs/update_readme.py
    python docs/update_readme.py --demo runs/demo    # after `make demo`: its table and report become the committed ones
    python docs/update_readme.py --review labelled/review.html    # after the Python of docs/classifier.md: its picture

The second form copies table.csv and table.md to experiments/results and report.html to docs/. It and the third take the
screenshots docs/images/report.png and review.png where a chromium is on the PATH.
"""

from __future__ import annotations

import argparse
import ast
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pandas as pd
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("results", "reproducing", "adapting",
                                                                              "class_names", "texts_and_shots")))


def table(name: str) -> str:
    """Rows: backbone and method; columns: protocols in the order of the file."""
    path = ROOT / "experiments" / "results" / f"{name}.csv"
    if not path.is_file():
        return f"*experiments/results/{name}.csv has not been made yet.*"
    found = pd.read_csv(path, comment="#")
    found["cell"] = [f"{a:.2f} ± {h:.2f}" for a, h in zip(found.accuracy_percent, found.half_width_percent, strict=True)]
    trained = found.weights.astype(str).str.fullmatch(r"[0-9a-f]{64}(\+\w+)?")
    found["backbone"] += [" (trained)" if t and d in ("omniglot", "glyphs") else "" if t or b == "pixels" else " (untrained)"
                          for t, d, b in zip(trained, found.dataset, found.backbone, strict=True)]
    protocols = list(dict.fromkeys(found.sort_values(["ways", "shots", "query_distribution"]).protocol))
    wide = found.pivot(index=["backbone", "method", "setting"], columns="protocol", values="cell")[protocols].fillna("")
    order = found.drop_duplicates(["backbone", "method"])
    keys = sorted(zip(order.backbone, order.method, order.setting, strict=True),
                  key=lambda key: (key[0].endswith("(trained)"), key[0], key[2], key[1]))
    lines = [f"| backbone | method | setting | {' | '.join(protocols)} |", f"|---|---|---|{'---:|' * len(protocols)}"]
    lines += [f"| {' | '.join(key)} | {' | '.join(map(str, wide.loc[key]))} |" for key in keys]
    return "\n".join(lines)


def published(names: str) -> str:
    """The rows of several tables of the same headings; what is not there yet is named."""
    lines: list[str] = []
    for name in names.split():
        path = ROOT / "experiments" / "results" / f"{name}_published.md"
        if not path.is_file():
            return f"*experiments/results/{name}_published.md has not been made yet.*"
        rows = [line for line in path.read_text().splitlines() if line.startswith("|")]
        lines += rows[2:] if lines else rows
    return "\n".join(re.sub(" +", " ", line) for line in lines)


def rows(name: str) -> str:
    path = ROOT / "experiments" / "results" / f"{name}.md"
    return "\n".join(line for line in path.read_text().splitlines() if line.startswith("|"))


def listed(folder: str) -> str:
    """Its Python files: the first sentence of each, and links to the tables it has made."""
    lines = ["| file | what it measures | tables |", "|---|---|---|"]
    for path in sorted((ROOT / folder).glob("*.py")):
        sentence = first_sentence(ast.get_docstring(ast.parse(path.read_text("utf-8"))))
        names = {"measured": path.stem, "beside published": f"{path.stem}_published"}
        tables = [f"[{text}](../{folder}/results/{name}.md)" for text, name in names.items()
                  if (ROOT / folder / "results" / f"{name}.md").is_file()]
        lines.append(f"| `{path.name}` | {sentence} | {', '.join(tables)} |")
    return "\n".join(lines)


def first_sentence(docstring: str) -> str:
    """Of the first paragraph, on one line; a full stop within a name ("et al. 2022") does not end it."""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[.?])(?<!al\.) (?=[A-Z])", paragraph)[0]


def filled(text: str) -> str:
    made = {"table": table, "published": published, "rows": rows, "list": listed}
    return re.sub(r"(<!-- (table|published|rows|list): ([\w ]+) -->\n).*?(<!-- end -->)",
                  lambda m: f"{m[1]}{made[m[2]](m[3])}\n{m[4]}", text, flags=re.S)


def take(demo: Path) -> None:
    """The table and the report of a finished demo become the committed ones."""
    for suffix in ("csv", "md"):
        shutil.copy(demo / f"table.{suffix}", ROOT / "experiments" / "results" / f"demo.{suffix}")
    shutil.copy(demo / "report.html", ROOT / "docs" / "report.html")
    screenshot(ROOT / "docs" / "report.html", "report.png", 1250)


def screenshot(page: Path, name: str, height: int) -> None:
    """docs/images/NAME: the top of a page of 1000 pixels width."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        print(f"no chromium on the PATH: docs/images/{name} stays as it is")
        return
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder, name)
        subprocess.run([chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                        f"--user-data-dir={folder}/profile", f"--window-size=1000,{height}", f"--screenshot={shot}",
                        page.resolve().as_uri()], check=True, capture_output=True, timeout=300)
        # Text and lines on white: 64 colours look the same and take a third of the bytes.
        Image.open(shot).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(
            ROOT / "docs" / "images" / name, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, help="folder of a finished demo")
    parser.add_argument("--review", type=Path, help="review page of a classifier")
    given = parser.parse_args()
    if given.demo:
        take(given.demo)
    if given.review:
        screenshot(given.review, "review.png", 830)
    for document in DOCUMENTS:
        document.write_text(filled(document.read_text("utf-8")), "utf-8")
        print(f"updated {document.relative_to(ROOT)}")
