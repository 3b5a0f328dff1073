"""One self-contained HTML page of results: no network, no scripts from elsewhere, readable without JavaScript."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import string
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from fewshot.core.errors import FewshotError
from fewshot.core.files import write_atomically
from fewshot.evaluation.result import Result
from fewshot.features.source import FeatureSource
from fewshot.reporting.accuracy_figures import accuracy_dots, figure_bytes
from fewshot.reporting.accuracy_tables import comparison_table, results_table
from fewshot.reporting.measure_figures import (
    calibration_figure,
    confused_pairs,
    confusion_figure,
    drawn_episodes,
    evaluated_images,
)
from fewshot.reporting.metric_tables import metrics_table, pairs_table, ranks_table
from fewshot.reporting.naming import distinct_labels, in_protocol, natural, unique_results

_DOTS = ("Accuracy with 95 % intervals over episodes, sorted; the numbers are those of the table. Open dots are "
         "transductive methods.")
_DIFFERENCES = ("Accuracy of the row minus accuracy of the column on the same episodes, in percentage points ± half "
                "width of the 95 % interval (Student t, paired; it covers episode sampling). †: the interval includes "
                "zero (no correction for several comparisons).")
_PAIRED = ("Pairs: first minus second; the column over classes covers the choice of the novel classes, too (leaving out one "
           "class at a time). P(better): how often the first is better on an episode, in percent, ties counted half. p: "
           "paired t-test; p (Holm): corrected for the pairs of its table, where † means not told apart at the level 0.05.")
_CALIBRATION = ("Reliability: accuracy (bars and dots) against the confidence in 15 bins; on the dashed line a method is "
                "calibrated, and the vertical strokes are the gaps that the expected calibration error (ECE) averages. "
                "Below: how many queries each bin holds.")
_MATRIX = 25  # rows of a matrix that can still be read
_PAIRS = 10  # results whose pairs, 45 of them, can still be read
_MEASURED = 8  # results whose calibration and confusion are drawn
_DRAWN = 4  # results of which episodes are drawn
_PHOTOS = 250_000  # bytes of a PNG file above which it holds photographs, which JPEG writes in a fifth
_PNG = b"\x89PNG\r\n\x1a\n"


def write_report(path: str | Path, *, title: str, results: Iterable[Result],
                 figures: Mapping[str, tuple[str | Path | Figure, str]] | None = None, text: str = "",
                 commands: Sequence[str] = (), source: FeatureSource | None = None,
                 weights: Mapping[str, Path] | None = None) -> Path:
    """Write one HTML file with a sortable table, a dot plot, paired differences and ranks, what else was measured, figures
    and how to repeat the runs.

    figures    name -> (PNG file or matplotlib Figure, caption); the dot plot of the results is always there
    text       paragraphs above the results, separated by empty lines; plain text
    commands   the exact commands that made the results
    source     where images come from, to draw episodes and to name classes; None: neither
    weights    identity -> weights file, to answer the drawn episodes with

    The file is complete or absent. Raises FewshotError without results and for a figure that is not a readable PNG.
    """
    results = unique_results(results)
    table = results_table(results)
    sections = [
        "".join(f"<p>{escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip()),
        "<h2>Accuracy</h2>", table.to_html("sortable"), _download(table.to_csv()),
        _figure("accuracy", accuracy_dots(results), _DOTS),
        *_comparisons(results), *_measured(results, source), *_episodes(results, source, weights),
        *(["<h2>Figures</h2>"] if figures else []),
        *(_figure(name, image, caption) for name, (image, caption) in (figures or {}).items()),
        "<h2>How to repeat this</h2>", *_commands(commands), _runs(results), _versions(results)]
    template = string.Template(resources.files("fewshot.reporting").joinpath("templates/page.html").read_text("utf-8"))
    page = template.substitute(title=escape(title), subtitle=escape(_subtitle(results)), body="\n".join(sections))
    return write_atomically(path, page.encode())


def _subtitle(results: list[Result]) -> str:
    episodes = sum(len(r.correct) for r in results)
    sets = sorted({f"{r.data_name} ({r.record.split})" for r in results}, key=natural)
    written = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    counted = "1 result" if len(results) == 1 else f"{len(results)} results"
    return f"{counted} on {', '.join(sets)}, {episodes:,} episodes in all. Written {written}."


def _comparisons(results: list[Result]) -> list[str]:
    """A matrix for each group of results on the same episodes."""
    groups = defaultdict(list)
    for result in results:
        groups[result.fingerprint].append(result)
    parts = []
    several = len({(r.data_name, r.record.split) for r in results}) > 1
    unlike = len({r.record.queries for r in results}) > 1
    order = sorted(groups.values(), key=lambda g: natural(f"{g[0].data_name} {g[0].protocol} {g[0].record.queries}"))
    for group in order:
        if len(group) > 1:
            place = f"{group[0].data_name} ({group[0].record.split}), " if several else ""
            best = sorted(group, key=lambda r: -r.accuracy.mean)[:_MATRIX]
            queries = f", {group[0].record.queries} queries a class" if unlike else ""
            heading = f"{place}{group[0].protocol}{queries}, {len(group[0].correct)} episodes"
            heading += f", the best {_MATRIX} of {len(group)} results" if len(group) > _MATRIX else ""
            parts += [f"<h3>{escape(heading)}</h3>", comparison_table(best).to_html("sortable matrix", notes=False)]
            parts += _pairs_and_ranks(best[:_PAIRS])
    texts = [f'<p class="soft">{text}</p>' for text in (_DIFFERENCES, _PAIRED)]
    return ["<h2>Paired differences</h2>", *texts, *parts] if parts else []


def _pairs_and_ranks(results: list[Result]) -> list[str]:
    """The pairs with corrected p-values, and for three results or more their ranks."""
    pairs = pairs_table(results).to_html("sortable", notes=False)
    parts = [f"<h4>Pairs, Holm-corrected</h4>\n{pairs}"]
    # Not for results that differ only in a setting of the protocol without effect on the episodes, which share a label.
    with contextlib.suppress(FewshotError):
        if len(results) > 2:
            parts.append(f"<h4>Ranks</h4>\n{ranks_table(results).to_html('sortable')}")
    return parts


def _measured(results: list[Result], source: FeatureSource | None) -> list[str]:
    """Calibration and confusion of the results evaluated with metrics."""
    found = [r for r in results if "calibration" in r.measures or "confusion" in r.measures]
    if not found:
        return []
    label = dict(zip((r.record.key for r in results), distinct_labels(results, in_protocol()), strict=True))
    found.sort(key=lambda r: (natural(r.protocol), -r.accuracy.mean))
    parts = ["<h2>Probabilities and confusion</h2>", metrics_table(found).to_html("sortable")]
    if len(found) > _MEASURED:
        parts.append(f'<p class="soft">Drawn are the first {_MEASURED} of {len(found)} results, by protocol and accuracy; a '
                     "report of fewer results draws the others.</p>")
    for result in found[:_MEASURED]:
        measures, title = result.measures, f"{label[result.record.key]}, {result.protocol}"
        parts.append(f"<h3>{escape(title)}</h3>")
        if "calibration" in measures:
            histograms = {"as answered": measures["calibration"]}
            if "calibration_calibrated" in measures:
                fitted = f"with temperature {float(measures['temperature']):.3g}"
                histograms[fitted] = measures["calibration_calibrated"]
            parts.append(_figure(f"calibration of {title}", calibration_figure(histograms), _CALIBRATION))
        if "confusion" in measures:
            parts.append(_confusion(result, title, source))
    return parts


def _confusion(result: Result, title: str, source: FeatureSource | None) -> str:
    matrix, names, numbered = result.measures["confusion"], None, ""
    ids = result.measures.get("confusion_classes")
    classes = range(len(matrix)) if ids is None else ids.tolist()
    try:
        if source is not None:
            known = evaluated_images(result.record, source).class_names
            names = [known[label] for label in classes]
    except FewshotError as error:
        numbered = f" Classes have numbers: {error}."
    names = [f"class {label}" for label in classes] if names is None else names
    pairs = confused_pairs(matrix, names)
    caption = f"Most confused: {'; '.join(pairs)}." if pairs else "No query was given a wrong class."
    if len(matrix) > result.record.ways:
        caption += (f" Shares are of all queries of the class; an episode has {result.record.ways} of the {len(matrix)} "
                    "classes, and only these can be taken for each other.")
    return _figure(f"confusion of {title}", confusion_figure(matrix, names), caption + numbered)


def _episodes(results: list[Result], source: FeatureSource | None, weights: Mapping[str, Path] | None) -> list[str]:
    """Two episodes of the best result on each list of episodes."""
    if source is None:
        return []
    best: dict[str, Result] = {}
    for result in sorted(results, key=lambda r: -r.accuracy.mean):
        best.setdefault(result.fingerprint, result)
    labels = dict(zip((r.record.key for r in results), distinct_labels(results, in_protocol()), strict=True))
    parts = ["<h2>Episodes</h2>"]
    chosen = sorted(best.values(), key=lambda r: natural(f"{r.data_name} {r.protocol}"))
    for result in chosen[:_DRAWN]:
        parts.append(f"<h3>{escape(f'{labels[result.record.key]} on {result.data_name}, {result.protocol}')}</h3>")
        try:
            parts += [_figure(name, figure, caption) for name, figure, caption in drawn_episodes(result, source, weights)]
        except FewshotError as error:
            parts.append(f'<p class="soft">Not drawn: {escape(str(error))}.</p>')
    return parts


def _figure(name: str, image: str | Path | Figure, caption: str) -> str:
    if isinstance(image, Figure):
        data = _in_palette(figure_bytes(image))
    else:
        try:
            data = Path(image).read_bytes()
        except OSError as error:
            raise FewshotError(f"figure {name!r} cannot be read ({error}); pass a PNG file or a Figure") from None
    if not data.startswith(_PNG):
        raise FewshotError(f"figure {name!r}: {image} is not a PNG file; save it as PNG or pass the Figure")
    width, height = (int.from_bytes(data[at:at + 4], "big") for at in (16, 20))
    kind = "png"
    if len(data) > _PHOTOS:
        data, kind = _as_jpeg(data), "jpeg"
    source = base64.b64encode(data).decode()
    # Drawn at 200 dots an inch: half the pixels is the size on a page.
    return (f'<figure><img src="data:image/{kind};base64,{source}" width="{width // 2}" height="{height // 2}" '
            f'alt="{escape(f"{name}: {caption}")}">\n<figcaption>{escape(caption)}</figcaption></figure>')


def _in_palette(png: bytes) -> bytes:
    """The same picture with at most 256 colours, a third of the size, unless it holds photographs, which need more."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    few = picture.quantize(256, dither=Image.Dither.NONE)
    apart = np.abs(np.asarray(picture, np.int16) - np.asarray(few.convert("RGB"), np.int16)).mean()
    if apart > 0.5:
        return png
    return _encoded(few, "png", optimize=True)


def _as_jpeg(png: bytes) -> bytes:
    return _encoded(Image.open(io.BytesIO(png)).convert("RGB"), "jpeg", quality=85, optimize=True)


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _download(csv: str) -> str:
    source = base64.b64encode(csv.encode()).decode()
    return (f'<p class="screen"><a download="results.csv" href="data:text/csv;charset=utf-8;base64,{source}">'
            "All numbers with all settings (CSV)</a></p>")


def _commands(commands: Sequence[str]) -> list[str]:
    if not commands:
        return []
    lines = [line for command in commands for line in command.split("\n")]
    # A remark that holds for many commands stands above the first of them.
    kept = [line for i, line in enumerate(lines) if not line.startswith("#") or line not in lines[:i]]
    return ["<h3>Commands</h3>", f"<pre><code>{escape(chr(10).join(kept))}</code></pre>"]


def _runs(results: list[Result]) -> str:
    """What names a run and its episodes, then every setting."""
    head = ("run", "result", "protocol", "episodes", "seed", "fingerprint", "weights", "commit", "seconds")
    rows, settings = [], {}
    named = zip(distinct_labels(results, ("protocol",)), results, strict=True)
    for label, r in sorted(named, key=lambda pair: natural(f"{pair[0]} {pair[1].protocol}")):
        cells = [_code(r.record.key), escape(label), escape(r.protocol), str(len(r.correct)), str(r.record.seed),
                 _code(r.fingerprint, 12), _code(r.record.weights or "none", 12), _code(r.commit or "unknown"),
                 f"{r.seconds:.2f}"]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        settings[r.record.key] = r.record.to_dict()
    titles = "".join(f'<th scope="col">{name}</th>' for name in head)
    return ('<h3>Runs</h3>\n<p class="soft">Results with the same fingerprint are on the same episodes.</p>\n'
            '<div class="scroll" tabindex="0" role="region" aria-label="runs"><table class="sortable"><thead><tr>'
            f'{titles}</tr></thead>\n<tbody>{chr(10).join(rows)}</tbody></table></div>\n'
            "<details><summary>All settings of these runs</summary>\n"
            f"<pre><code>{escape(json.dumps(settings, indent=1, default=str))}</code></pre></details>")


def _versions(results: list[Result]) -> str:
    found: dict[str, set[str]] = defaultdict(set)
    for result in results:
        for package, version in result.versions.items():
            found[package].add(str(version))
    rows = "".join(f'<tr><th scope="row">{escape(package)}</th><td>{escape(", ".join(sorted(used, key=natural)))}'
                   "</td></tr>" for package, used in sorted(found.items()))
    return ('<h3>Versions</h3>\n<div class="scroll"><table><thead><tr><th scope="col">package</th>'
            f'<th scope="col">version</th></tr></thead><tbody>{rows}</tbody></table></div>')


def _code(text: str, length: int | None = None) -> str:
    """The start of an identifier; the whole of it shows on hovering."""
    return f'<span class="code" title="{escape(text)}">{escape(text[:length])}</span>'
