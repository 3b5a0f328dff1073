"""Has anything that users rely on become slower? Two checkouts beside each other, A B A B ...

    python benchmarks/progress.py BEFORE AFTER [--only list "pt_map 5w1s" ...] [--rounds 7] [--seconds 0.3] [--write FILE]

BEFORE and AFTER are folders that hold the package. Every measurement is a process of its own, which uses public names and
the command line only, so that the two may be laid out differently: the start of commands as a whole, and evaluations of
cached features (12,000 rows of 640, clusters, 15 queries a class), without start and imports: the least of seven after a
first. An evaluation has as many episodes as take BEFORE about --seconds, the same for both. A first round is thrown away:
it writes bytecode and brings files into memory. The clock is that of the processor, with one thread. `import torch` has no
line of either checkout in it: its ratios show what means nothing on this machine. With the defaults about half an hour.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import conditions, feature_methods, markdown
from processes import run

from fewshot.methods import METHODS

LEAST = 0.97  # ratio of speeds below which something is slower
FREQUENT = ("protonet", "simple_shot", "pt_map", "soft_kmeans")
BANK = """
import sys, time, torch, fewshot
def bank(seed, items, split):
    generator = torch.Generator().manual_seed(seed)
    centres, noise = (torch.randn(20, n, 640, generator=generator) for n in (1, items))
    labels = torch.arange(20).repeat_interleave(items)
    return fewshot.FeatureBank((0.3 * centres + noise).relu().flatten(0, 1), labels, name="glyphs", split=split)
"""
SAVE = BANK + "bank(0, 600, 'test').save(sys.argv[1])"
EVALUATE = BANK + """
torch.set_num_threads(1)
method, shots, episodes, repeats = sys.argv[1], *map(int, sys.argv[2:])
rows, base = bank(0, 600, "test"), bank(1, 100, "train")
run, seconds = fewshot.Run(dataset="glyphs", backbone="none", method=method, shots=shots, episodes=episodes), []
for _ in range(1 + repeats):
    start = time.process_time()
    fewshot.evaluate(run, rows, base_bank=base)
    seconds.append(time.process_time() - start)
print(min(seconds[1:]))
"""


class Checkout:
    """A folder that holds the package, and a folder of its own for what is written."""

    def __init__(self, root: Path, folder: Path):
        self.folder, self.bank, self.number = folder, folder / "bank.safetensors", 0
        folder.mkdir()
        # Elsewhere, because Python looks for packages in the folder where it is started before it looks in PYTHONPATH.
        self.python = partial(run, cwd=folder, PYTHONPATH=str(root), PYTHONDONTWRITEBYTECODE="", OMP_NUM_THREADS="1")
        found = Path(self.python(["-c", "import fewshot; print(fewshot.__file__)"]).output.strip())
        if root not in found.parents:
            raise SystemExit(f"{root} does not hold the package: {found} was imported instead")

    def start(self, arguments: list) -> float:
        """Processor's seconds of a process."""
        return self.python(arguments).processor

    def evaluate_stored(self) -> float:
        """Processor's seconds of `fewshot eval` on a stored bank; a new run every time."""
        if not self.bank.exists():
            self.python(["-c", SAVE, self.bank])
        self.number += 1
        return self.start(["-m", "fewshot", "eval", "--features", self.bank, "--runs", self.folder / "runs", "--shots", 1,
                           "--seed", self.number])

    def evaluate(self, method: str, shots: int, episodes: int, repeats: int = 7) -> float:
        """Processor's seconds of an evaluation: the least of several, as what else the machine does only adds to them."""
        return float(self.python(["-c", EVALUATE, method, shots, episodes, repeats]).output)

    def methods(self) -> set[str]:
        return set(self.python(["-c", "import fewshot; print(*fewshot.list_methods())"]).output.split())


Case = Callable[[Checkout], float]
Times = dict[str, list[tuple[float, float]]]  # label -> seconds before and after, of every round


def cases(before: Checkout, after: Checkout, seconds: float, wanted: Callable[[str], bool]) -> dict[str, Case]:
    """{label: seconds of it in a checkout}"""
    commands = {"import torch": ["-c", "import torch"],
                "import fewshot.evaluate": ["-c", "import fewshot; fewshot.evaluate, fewshot.Run, fewshot.FeatureBank"],
                "fewshot --help": ["-m", "fewshot", "--help"], "fewshot list": ["-m", "fewshot", "list"]}
    found: dict[str, Case] = {label: partial(Checkout.start, arguments=arguments) for label, arguments in commands.items()}
    found["fewshot eval --features"] = Checkout.evaluate_stored
    evaluations = {f"{name} 5w{shots}s": (name, shots) for name in FREQUENT for shots in (1, 5)}
    others = [name for name in feature_methods() if METHODS[name].setting == "transductive" and name not in FREQUENT]
    evaluations |= {f"{name} 5w1s": (name, 1) for name in others}
    evaluations = {label: case for label, case in evaluations.items() if wanted(label)}
    known = before.methods() & after.methods() if evaluations else set()
    for label, (name, shots) in evaluations.items():
        if name in known:
            episodes = 2
            while (taken := before.evaluate(name, shots, episodes, 1)) < seconds / 10:
                episodes *= 32
            episodes = max(2, int(episodes * seconds / taken))
            found[label] = partial(Checkout.evaluate, method=name, shots=shots, episodes=episodes)
    return {label: case for label, case in found.items() if wanted(label)}


def measure(before: Checkout, after: Checkout, wanted: dict[str, Case], rounds: int) -> Times:
    found = {label: [] for label in wanted}
    for number in range(rounds + 1):
        for label, case in wanted.items():
            both = case(before), case(after)
            if number > 0:
                found[label].append(both)
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    return found


def page(found: Times, rounds: int, loads: tuple[float, float]) -> str:
    rows, slower = [], []
    for label, both in found.items():
        ratios = [before / after for before, after in both]
        ratio = statistics.median(ratios)
        times = [f"{statistics.median(values):.3f}" for values in zip(*both, strict=True)]
        rows.append([label, *times, f"{ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f})"])
        if ratio < LEAST:
            slower.append(f"{label} {ratio:.3f}")
    verdict = f"No ratio of speed is below {LEAST}." if not slower else f"Ratios below {LEAST}: {', '.join(slower)}."
    return "\n".join([
        "# Speed after / before", "", "Written by `python benchmarks/progress.py`; its first lines say how. Medians (and "
        f"ranges of the ratios) of {rounds} interleaved rounds.", "",
        f"{conditions()}; load average {loads[0]:.1f} at the start, {loads[1]:.1f} at the end.", "",
        *markdown(["", "seconds before", "seconds after", "speed after / before"], rows), "", verdict, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--only", nargs="+", default=[""], help="measurements whose names contain one of these")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="aimed at for an evaluation")
    parser.add_argument("--write", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    torch.set_num_threads(1)  # as in the processes; the head of the page says so
    with tempfile.TemporaryDirectory() as folder:
        before, after = (Checkout(getattr(arguments, name).resolve(), Path(folder, name)) for name in ("before", "after"))
        chosen = cases(before, after, arguments.seconds, lambda label: any(part in label for part in arguments.only))
        if not chosen:
            parser.error(f"no measurement is called like {' or '.join(arguments.only)}")
        found = measure(before, after, chosen, arguments.rounds)
    text = page(found, arguments.rounds, (load, os.getloadavg()[0]))
    print(text)
    if arguments.write:
        arguments.write.write_text(text)


if __name__ == "__main__":
    main()
