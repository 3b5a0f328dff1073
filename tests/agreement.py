"""Write docs/agreement.md: every method beside the stored outputs of official implementations.

    python -m tests.agreement

Runs all entries of the AGREEMENT lists of the test modules (a few minutes); the tests assert the same comparisons.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import torch

from fewshot.features.transforms import parse_transforms
from fewshot.methods import METHODS
from tests.conftest import SHARED
from tests.methods.agreement import official_episodes, prepared
from tests.oracle import inputs_of, load_inputs, load_outputs

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "agreement.md"
# easyfsl scores with minus the distance; ours are squared, as in the paper.
MINUS_DISTANCES = ("easyfsl_protonet",)
ROUNDING = 1e-12  # smaller differences are not told apart: they change with the machine

INTRODUCTION = """# Agreement with official implementations

The official code of each method was run once on fixed episodes of real features, and its outputs were stored with the
repository, the commit and the exact settings. Every row below compares one method with one such set of outputs:

- *compared*: what is subtracted. Probabilities are divided by their sum over classes first (PT-MAP's official loop stops
  early and leaves sums up to 1e-3 off). "optimum" are the probabilities of the same logistic regression solved to a
  gradient of 1e-12: the official run stops up to 3e-3 before it. "labels" means that the official code returns no scores.
- *float64*: largest absolute difference between our float64 run and the official code run in float64, on the first four
  episodes of each input. *float32*: the same between float32 runs, on all episodes (distances and optimum: against the
  float64 values of the first four episodes).
- *labels*: predicted labels of the float32 runs (float64, where there are none) that differ, of those compared. Left out
  are ties: queries whose two largest official scores differ by less than twice the tolerance stored with the outputs
  (that is 20 times the difference between float32 and float64 of the official code itself, or 3 times where it exceeds
  1e-3).

The settings are those that reproduce the official program, quirks included; the defaults of a method may differ and
are described in its docstring. What remains above rounding in float64 has these reasons: TIM-GD, alpha-TIM, PT-MAP and
TIM-ADM amplify rounding over many steps; one matching network adds 1e-8 to norms; em_dirichlet leaps over most of the
iterations of its M-steps; the stored class probabilities of unem_dirichlet are float32 numbers, while the official program
was given the cosines before them; the stored optima of logistic regression were found by L-BFGS, which cannot see
differences of the objective below rounding; channel_importance_lr has no stored optimum, so that scikit-learn's early stop
shows. The scripts in `tests/official` ran the official code of the methods that the reference outputs do not cover. Where it
has weights, these are our initial ones; pmf, tsa and url adapt a small network to maps of the inputs. Those that train were
run in float64 only where they amplify rounding of float32 beyond comparison.

To re-create this page with the reference outputs in `$FEWSHOT_SHARED/oracles` (default: `../shared/oracles`):

    python -m tests.agreement
"""


def entries() -> list[tuple[str, str, object, str]]:
    """(transforms, registry name, parameters, official output) of every comparison that the tests make."""
    modules = [importlib.import_module(f"tests.methods.{path.stem}")
               for path in sorted((ROOT / "tests" / "methods").glob("test_*.py"))]
    found = [("", *entry) for module in modules for entry in getattr(module, "AGREEMENT", ())]
    return found + list(importlib.import_module("tests.features.test_transforms").TRANSFORM_AGREEMENT)


def name_cells(entry) -> str:
    """The first cells of an entry's row, which identify it."""
    transforms, name, params, official = entry
    settings = (f"{params.__name__.replace('_', ' ')} values" if callable(params) else
                ", ".join(f"{k}={v}" for k, v in params.items()))
    if transforms:
        settings = f"after {transforms}" + (f"; {settings}" if settings else "")
    return f"| {name} | {settings or 'defaults'} | {official} "


def compare(folder: Path, entry) -> dict:
    """Largest differences and label mismatches of one entry over all its inputs."""
    transforms, name, params, official = entry
    row = {"inputs": tuple(inputs_of(folder, official)), "episodes": 0, "float64": None, "float32": None, "mismatches": 0,
           "labels": 0}
    for inputs in row["inputs"]:
        outputs, description = load_outputs(folder, official, inputs)
        logits = {}
        for dtype in (torch.float64, torch.float32):
            episodes, raw = load_inputs(folder, inputs, dtype)
            method = prepared(name, params, raw, dtype)
            episodes = official_episodes(method, episodes, raw, outputs)
            logits[dtype] = method(parse_transforms(transforms)(episodes)).detach().double()
        row["compared"], expected = _official_values(official, outputs, description)
        for key, dtype in (("float64", torch.float64), ("float32", torch.float32)):
            if key in expected:
                found = _as_compared(row["compared"], logits[dtype])[: len(expected[key])]
                row[key] = max(row[key] or 0.0, float(np.abs(found - expected[key]).max()))
        clear = _clear(outputs, description, inputs)
        ran_in = torch.float32 if description["primary_output"] in outputs else torch.float64
        wrong = logits[ran_in].argmax(-1).numpy() != outputs["preds"]
        row["episodes"] += len(wrong)
        row["mismatches"] += int(wrong[clear].sum())
        row["labels"] += int(clear.sum())
    commit = description["commit"]  # of a package, the repository's name says the release
    row["repository"] = description["repository"] + ("" if commit.startswith("PyPI") else f" @ {commit[:10]}")
    return row


def _official_values(official: str, outputs: dict, description: dict) -> tuple[str, dict[str, np.ndarray]]:
    """What is compared, and the official values for either precision."""
    primary = description["primary_output"]
    if official == "hard_em_dirichlet":  # its probabilities are one-hot
        return "labels", {}
    if "probs_converged_lr" in outputs:
        return "optimum", dict.fromkeys(("float64", "float32"), outputs["probs_converged_lr"])
    if primary == "preds":
        if "distances_f64" not in outputs:
            return "labels", {}
        return "distances", dict.fromkeys(("float64", "float32"), outputs["distances_f64"])
    values = {"float64": outputs[f"{primary}_f64"], "float32": outputs.get(primary)}
    values = {key: value.astype(np.float64) for key, value in values.items() if value is not None}
    if official in MINUS_DISTANCES:
        return "distances", {key: -value for key, value in values.items()}
    if primary == "probs":
        return "probabilities", {key: value / value.sum(-1, keepdims=True) for key, value in values.items()}
    return {"logits": "logits", "logprobs": "log probabilities", "scores_k3": "scores"}[primary], values


def _as_compared(compared: str, logits: torch.Tensor) -> np.ndarray:
    if compared == "distances":
        return (-logits).sqrt().numpy()
    return (logits.softmax(-1) if compared in ("probabilities", "optimum") else logits).numpy()


def _clear(outputs: dict, description: dict, inputs: str) -> np.ndarray:
    """[E, Q] True where the official scores are no tie."""
    notes, primary = description["per_input"][inputs], description["primary_output"]
    tolerance = notes.get("tolerance_float32")
    if primary == "preds" or tolerance is None:
        return np.ones(outputs["preds"].shape, dtype=bool)
    if "probs_converged_lr" in outputs:
        tolerance += notes["max_abs_diff_vs_converged"]
    top = np.sort(outputs[primary], -1)
    return top[..., -1] - top[..., -2] > 2 * tolerance


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"< {ROUNDING:.0e}" if value < ROUNDING else f"{value:.0e}"


def page(folder: Path) -> str:
    rows = [(entry, compare(folder, entry)) for entry in entries()]
    groups = list(dict.fromkeys(row["inputs"] for _, row in rows))
    lines = [INTRODUCTION, "| method | settings | official output | repository and commit | inputs | episodes | compared | "
             "float64 | float32 | labels |", "|---|---|---|---|---|--:|---|--:|--:|--:|"]
    for entry, row in rows:
        letter = chr(ord("A") + groups.index(row["inputs"]))
        lines.append(f"{name_cells(entry)}| {row['repository']} | {letter} | {row['episodes']} | {row['compared']} | "
                     f"{_number(row['float64'])} | {_number(row['float32'])} | {row['mismatches']} of {row['labels']} |")
    lines += ["", "Inputs (ways, shots, distribution of the 75 queries; Caltech-101 features of 256 channels, or class "
              "probabilities; for dn4 25 queries and maps of 64 channels):", ""]
    lines += [f"- {chr(ord('A') + i)}: {', '.join(group)}" for i, group in enumerate(groups)]
    compared = {entry[1] for entry, _ in rows}
    rest = sorted(name for name in METHODS if METHODS[name].inputs == "features" and name not in compared)
    lines += ["", f"Without official outputs, tested against plain loops only: {', '.join(rest)}.", ""]
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)  # sums are then made in the same order on every machine
    folder = SHARED / "oracles"
    if not folder.is_dir():
        raise SystemExit(f"no reference outputs at {folder}; set FEWSHOT_SHARED to the folder that holds oracles/")
    with torch.no_grad():
        PAGE.write_text(page(folder))
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
