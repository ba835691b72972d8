# SPDX-License-Identifier: Apache-2.0
"""Trains the language model with each kind of attention at equal parameters, or in each precision, and writes what comes
out into docs/training.md (the part between its markers) and a plot beside it."""

import argparse
import csv
import hashlib
import math
import os
import pathlib
import statistics
import subprocess
import sys

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "castle"  # the same numbers give the same file
import matplotlib.pyplot as plt  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PROGRAM = ROOT / "build/examples/examples/language_model"
ATTENTION = {
    "standard": ["--attention", "causal"],
    "CASTLE": ["--attention", "castle"],
    "CASTLE, window 128": ["--attention", "castle-swl", "--window", "128"],
    "CASTLE, window 64": ["--attention", "castle-swl", "--window", "64"],
    "CASTLE, window 16": ["--attention", "castle-swl", "--window", "16"],
    "CASTLE without SiLU": ["--attention", "castle", "--no-silu"],
    "CASTLE without causal keys": ["--attention", "castle", "--no-causal_keys"],
}
PRECISION = {
    "float": ["--attention", "castle"],
    "bfloat16": ["--attention", "castle", "--precision", "bfloat16"],
}
# What is compared; the first is what the others are compared with.
COMPARISONS = {"attention": ATTENTION, "precision": PRECISION}
TIMED_STEPS, ROUNDS = 40, 3


class Run:
    """One training: its losses by step, and, of one that was not interrupted, time and memory."""

    def __init__(self, directory, kind, options, seed, steps):
        name = kind.replace(", ", "_").replace(" ", "_") + f"_{seed}"
        self.checkpoint = directory / f"{name}.safetensors"
        self.log = directory / f"{name}.csv"
        self.command = [PROGRAM, "train", "--checkpoint", self.checkpoint, "--log", self.log]
        self.new = [*options, "--seed", str(seed), "--steps", str(steps)]
        self.steps = steps
        self.mebibytes = math.nan

    def rows(self):
        if not self.log.exists():
            return {}
        with open(self.log, encoding="utf-8") as file:
            return {int(row["step"]): row for row in csv.DictReader(file)}  # of a step written twice, the second

    def is_done(self):
        return self.steps in self.rows()

    def do(self, text, quietly=False):
        how = ["--resume"] if self.checkpoint.exists() else self.new
        command = [*self.command, "--text", text, *how]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL if quietly else None)
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            sys.exit(2)  # the program has said why
        self.mebibytes = usage.ru_maxrss / 1024

    def forget(self):
        self.checkpoint.unlink(missing_ok=True)
        self.log.unlink(missing_ok=True)

    def validation(self):
        return {step: float(row["validation_loss"]) for step, row in self.rows().items() if row["validation_loss"]}

    def training_loss(self):
        """Over the last hundred steps."""
        rows, total, covered, before = self.rows(), 0.0, 0, 0
        for step in sorted(rows):
            if step > self.steps - 100:
                total += float(rows[step]["training_loss"]) * (step - before)
                covered += step - before
            before = step
        return total / covered

    def seconds_a_step(self):
        rows = self.rows()
        half = self.steps // 2
        return (float(rows[self.steps]["training_seconds"]) - float(rows[half]["training_seconds"])) / half


def train(directory, text, kinds, seeds, steps):
    # Seed by seed, so that what is there before the end can be compared.
    runs = {(kind, seed): Run(directory, kind, kinds[kind], seed, steps) for seed in seeds for kind in kinds}
    for i, ((kind, seed), run) in enumerate(runs.items()):
        print(f"\n=== {i + 1} of {len(runs)}: {kind}, seed {seed}", flush=True)
        if run.is_done():
            print("done already", flush=True)
        else:
            run.do(text)
    return runs


def measure(directory, text, kinds):
    """Seconds a step and mebibytes, each the least of several short trainings in turn, alone on the machine."""
    print("\n=== time and memory", flush=True)
    seconds, mebibytes = {}, {}
    for _ in range(ROUNDS):
        for kind, options in kinds.items():
            run = Run(directory, kind, options, "timed", TIMED_STEPS)
            run.new = [*options, "--steps", str(TIMED_STEPS)]
            run.forget()  # one that was interrupted
            run.do(text, quietly=True)
            seconds[kind] = min(seconds.get(kind, math.inf), run.seconds_a_step())
            mebibytes[kind] = min(mebibytes.get(kind, math.inf), run.mebibytes)
            run.forget()
    return seconds, mebibytes


def spread(values):
    values = list(values)
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}" if len(values) > 1 else f"{values[0]:.4f}"


def table(runs, what, kinds, baseline, seeds, steps, seconds, mebibytes):
    header = [what, "validation loss", "perplexity", f"against {baseline}", "least and most of that", "training loss",
              "ms a step", "peak memory, MiB"]  # fmt: skip
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(["---"] + ["---:"] * (len(header) - 1)) + "|"]
    for kind in kinds:
        losses = [runs[kind, seed].validation()[steps] for seed in seeds]
        differences = [loss - runs[baseline, seed].validation()[steps] for loss, seed in zip(losses, seeds)]
        row = [kind, spread(losses), f"{math.exp(statistics.mean(losses)):.3f}",
               "" if kind == baseline else f"{statistics.mean(differences):+.4f}",
               "" if kind == baseline else f"{min(differences):+.4f}, {max(differences):+.4f}",
               spread([runs[kind, seed].training_loss() for seed in seeds]),
               f"{1e3 * seconds[kind]:.0f}", f"{mebibytes[kind]:.0f}"]  # fmt: skip
        lines.append("| " + " | ".join(row) + " |")
    return lines


def plot(path, runs, kinds, baseline, seeds):
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    for i, kind in enumerate(kinds):
        curves = [runs[kind, seed].validation() for seed in seeds]
        steps = sorted(curves[0])
        left.plot(steps, [statistics.mean(c[s] for c in curves) for s in steps], color=f"C{i}", label=kind)
        if kind == baseline:
            right.axhline(0, color=f"C{i}")
            continue
        against = [runs[baseline, seed].validation() for seed in seeds]
        differences = {s: [c[s] - b[s] for c, b in zip(curves, against)] for s in steps}
        right.plot(steps, [statistics.mean(differences[s]) for s in steps], color=f"C{i}")
        right.fill_between(steps, [min(differences[s]) for s in steps], [max(differences[s]) for s in steps],
                           color=f"C{i}", alpha=0.15, linewidth=0)  # fmt: skip
    left.set(xlabel="step", ylabel="validation loss, nats a byte", title="Mean over the seeds")
    right.set(xlabel="step", ylabel="nats a byte", title=f"Difference to {baseline}, same seed")
    left.legend(fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def write(what, lines):
    path = ROOT / "docs/training.md"
    text = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {what}, by examples/language_model/compare -->\n", "<!-- end -->"
    first = text.index(begin) + len(begin)
    last = text.index(end, first)
    path.write_text(text[:first] + "\n".join(lines) + "\n" + text[last:], encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(prog="compare", description=__doc__)
    parser.add_argument("text", type=pathlib.Path, help="tiny-shakespeare, for the figures of docs/training.md")
    parser.add_argument("--of", choices=COMPARISONS, default="attention", help="what to compare (default %(default)s)")
    parser.add_argument("--steps", type=int, default=800, help="of each training (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default %(default)s)")
    arguments = parser.parse_args()
    if arguments.steps < 1 or arguments.seeds < 1:
        parser.error("--steps and --seeds have to be 1 or more")
    if not arguments.text.is_file():
        parser.error(f"cannot open {arguments.text}")
    seeds = range(1, arguments.seeds + 1)
    # Trainings are taken up again only by the same program on the same text.
    identity = hashlib.sha256(PROGRAM.read_bytes() + arguments.text.read_bytes()).hexdigest()[:12]
    directory = ROOT / f"build/examples/comparison/{identity}-{arguments.steps}"
    directory.mkdir(parents=True, exist_ok=True)
    what, kinds = arguments.of, COMPARISONS[arguments.of]
    baseline = next(iter(kinds))
    figure = "training.svg" if what == "attention" else f"training-{what}.svg"
    runs = train(directory, arguments.text, kinds, seeds, arguments.steps)
    seconds, mebibytes = measure(directory, arguments.text, kinds)
    lines = table(runs, what, kinds, baseline, seeds, arguments.steps, seconds, mebibytes)
    print("\n" + "\n".join(lines))
    if (arguments.steps, arguments.seeds) == (parser.get_default("steps"), parser.get_default("seeds")):
        plot(ROOT / "docs" / figure, runs, kinds, baseline, seeds)
        write(what, [*lines, "", f"![Validation losses, and their differences to {baseline}]({figure})"])
    else:
        plot(directory / figure, runs, kinds, baseline, seeds)
        print(f"The document is for other steps and seeds, and stays as it is; the plot is {directory / figure}")


if __name__ == "__main__":
    main()
