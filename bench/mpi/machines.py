# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of docs/machines.md and its plot: what was measured on two ranks of one machine, a model of the time
on many, held against it, and what the model says of machines that nobody here has.

Usage: machines.py <file with the lines of the program machines> <file with those of four ranks>
"""

import dataclasses
import math
import pathlib
import re
import sys

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "castle"  # the same numbers give the same file
import matplotlib.pyplot as plt  # noqa: E402

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
SPAN, GROUP, D = 512, 128, 64
LANES = 16  # of a packet of float with AVX-512
STATE_BYTES = 4 * (D + LANES + 1)
OUTPUT_BYTES = 4 * D
AGREEMENT_BYTES = 24


@dataclasses.dataclass
class Machine:
    """What one rank has, and the way to the others."""

    row_span: float  # seconds of a core for one row and head against one span of keys, in a prompt
    span_bytes: float  # of a span of one head that a token reads
    core_bandwidth: float  # bytes a second that one core reads
    bandwidth: float  # and all of them
    cores: int
    latency: float  # seconds of a message
    link: float  # bytes a second, each way

    def exchange(self, rows, spans, own_spans, ranks):
        """Seconds until the states of so many rows are merged and their outputs back, one message after the other."""
        if ranks == 1:
            return 0
        states = max(own_spans * rows * (1 - 1 / ranks), rows / ranks * (spans - own_spans)) * STATE_BYTES
        outputs = rows * (1 - 1 / ranks) * OUTPUT_BYTES
        return 2 * (ranks - 1) * self.latency + (states + outputs) / self.link

    def agreement(self, ranks):
        return 2 * math.ceil(math.log2(ranks)) * self.latency if ranks > 1 else 0

    def prompt(self, tokens, heads, ranks):
        """Seconds of a prompt onto an empty cache. Cores share spans and heads."""
        seconds = self.agreement(ranks)
        # All groups of a span cost about the same.
        for spans in range(1, tokens // SPAN + 1):
            own = -(-spans // ranks)
            sweep = -(-own * heads // self.cores) * GROUP * self.row_span
            seconds += SPAN // GROUP * (sweep + self.exchange(GROUP * heads, spans, own, ranks))
        return seconds

    def token(self, tokens, heads, ranks):
        """Seconds of one token onto a cache of so many."""
        spans = tokens // SPAN
        own = -(-spans // ranks)
        read = max(
            -(-own * heads // self.cores) * self.span_bytes / self.core_bandwidth,
            own * heads * self.span_bytes / self.bandwidth,
        )
        return read + self.agreement(ranks) + self.exchange(heads, spans, own, ranks)


class Results(dict):
    """Values by name and number of ranks, 0 without MPI."""

    def __init__(self, path):
        super().__init__()
        for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
            name, ranks, value = line.rsplit(",", 2)
            self[name, int(ranks)] = float(value)


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def time(seconds):
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def count(n):
    return f"{n:,}".replace(",", " ")


def size(n):
    return f"{n / 1e6:.3g} MB" if n >= 1e6 else f"{n / 1e3:.3g} kB"


WINDOWS = (("", "unlimited"), (" window 128", "128"))


def measured(results, four):
    rows = []
    for length in (2048, 4096, 8192, 16384):
        for suffix, words in WINDOWS:
            name = f"prefill L {length}{suffix}"
            rows.append((f"prompt of {count(length)} tokens, one head, window {words}", name))
    for suffix, words in WINDOWS:
        rows.append((f"token onto 65 536, 8 heads, window {words}", f"decode t 65536 heads 8{suffix}"))
    rows += [
        ("layer, prompt of 512 tokens", "layer prompt"),
        ("layer, token onto 512", "layer token"),
        ("layer, training with 512 tokens", "layer training"),
    ]
    times = table(
        ["", "no MPI", "1 rank", "2 ranks", "1 rank against none", "2 ranks against none"],
        [
            [words]
            + [time(results[name, n]) for n in (0, 1, 2)]
            + [f"{results[name, 0] / results[name, n]:.2f}" for n in (1, 2)]
            for words, name in rows
        ],
    )
    held = []
    for suffix, words in WINDOWS:
        name = f"bytes held decode t 65536 heads 8{suffix}"
        alone = four[name, 0]
        held.append(
            [f"window {words}", size(alone)] + [f"{size(four[name, n])}, {four[name, n] / alone:.3f}" for n in (2, 4)]
        )
    memory = table(["largest rank, of one machine's", "no MPI", "2 ranks", "4 ranks"], held)
    sent = []
    for ranks, source in ((2, results), (4, four)):
        name = "bytes sent decode t 65536 heads 8 window 128"
        spans = 65536 // SPAN + 1
        own = -(-spans // ranks)
        model = own * (8 - 8 // ranks) * STATE_BYTES + 8 // ranks * OUTPUT_BYTES * (ranks - 1)
        sent.append([str(ranks), count(int(source[name, ranks])), count(model)])
    counted = table(["ranks", "bytes a token, counted", "by the formula"], sent)
    return times, memory, counted


def here(results, suffix):
    length = 16384
    row_spans = sum(GROUP * -(-(first + GROUP) // SPAN) for first in range(0, length, GROUP))
    token = results[f"decode t 65536 heads 8{suffix}", 0]
    span_bytes = 3 * D * 4 * SPAN if suffix else 4 * D * 4 * SPAN
    bandwidth = 65536 // SPAN * 8 * span_bytes / token
    return Machine(
        row_span=results[f"prefill L {length}{suffix}", 0] / row_spans,
        span_bytes=span_bytes,
        core_bandwidth=bandwidth,
        bandwidth=2 * bandwidth,
        cores=1,
        latency=results["latency", 2],
        link=results["link", 2],
    )


def check(results):
    rows = []
    for suffix, words in WINDOWS:
        machine = here(results, suffix)
        for length in (2048, 4096, 8192, 16384):
            name = f"prefill L {length}{suffix}"
            rows.append((f"prompt of {count(length)}, window {words}", machine.prompt(length, 1, 2), results[name, 2]))
        name = f"decode t 65536 heads 8{suffix}"
        rows.append((f"token onto 65 536, 8 heads, window {words}", machine.token(65536, 8, 2), results[name, 2]))
    return table(
        ["2 ranks", "model", "measured", "model against measured"],
        [[words, time(a), time(b), f"{a / b:.2f}"] for words, a, b in rows],
    )


# Assumed, not measured: 64 cores like the one here, the memory of a server, latencies as vendors give them.
CORES, SERVER_BANDWIDTH = 64, 400e9
LINKS = ((10, 10e-6), (100, 2e-6), (400, 1.5e-6))
HEADS = 8
CONTEXTS = ((1 << 20, "1 M"), (1 << 24, "16 M"))
MACHINES = (1, 8, 64, 1024)


def server(results, gigabits, latency):
    machine = here(results, " window 128")
    return dataclasses.replace(
        machine, cores=CORES, bandwidth=SERVER_BANDWIDTH, latency=latency, link=gigabits / 8 * 1e9
    )


def best(seconds):
    """The smallest number of machines, a power of two, that takes at most a tenth longer than the best one."""
    times = {ranks: seconds(ranks) for ranks in (1 << i for i in range(15))}
    return min(ranks for ranks, each in times.items() if each <= 1.1 * min(times.values()))


def predicted(results):
    tables = []
    for what in ("prompt", "token"):
        rows = []
        for tokens, words in CONTEXTS:
            for gigabits, latency in LINKS:
                machine = server(results, gigabits, latency)
                run = lambda ranks: getattr(machine, what)(tokens, HEADS, ranks)  # noqa: E731, B023
                stop = best(run)
                rows.append(
                    [f"{words}, {gigabits} Gbit/s"]
                    + [time(run(ranks)) for ranks in MACHINES]
                    + [f"{count(stop)}: {time(run(stop))}"]
                )
        tables.append(
            table([what + " of 8 heads"] + [f"{count(n)} machine{'s' * (n > 1)}" for n in MACHINES] + ["until"], rows)
        )
    return tables


def plot(results):
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    ranks = [1 << i for i in range(13)]
    for axis, what in zip(axes, ("prompt", "token")):
        for (tokens, words), style in zip(CONTEXTS, ("-", "--")):
            for (gigabits, latency), colour in zip(LINKS, ("tab:red", "tab:blue", "tab:green")):
                machine = server(results, gigabits, latency)
                run = getattr(machine, what)
                axis.plot(
                    ranks,
                    [run(tokens, HEADS, n) for n in ranks],
                    style,
                    color=colour,
                    label=f"{words}, {gigabits} Gbit/s",
                )
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("machines")
        axis.set_ylabel("seconds")
        axis.set_title("a whole prompt" if what == "prompt" else "one token")
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7, loc="upper center")
    figure.savefig(DOCS / "machines.svg", metadata={"Date": None})


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__.strip())
    results, four = Results(sys.argv[1]), Results(sys.argv[2])
    times, memory, counted = measured(results, four)
    prompt, token = predicted(results)
    machine = here(results, " window 128")
    constants = table(
        ["here", ""],
        [
            ["a row and head against a span of keys, one core, window 128", time(machine.row_span)],
            ["bytes that one core reads from a cache", f"{machine.core_bandwidth / 1e9:.3g} GB/s"],
            ["latency of a message between ranks", time(machine.latency)],
            ["bytes between ranks, one way", f"{machine.link / 1e9:.3g} GB/s"],
        ],
    )
    parts = {
        "times": times,
        "memory": memory,
        "counted": counted,
        "constants": constants,
        "check": check(results),
        "prompt": prompt,
        "token": token,
    }
    path = DOCS / "machines.md"
    document = path.read_text(encoding="utf-8")
    for name, text in parts.items():
        pattern = re.compile(f"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        document, found = pattern.subn(lambda match: match[1] + "\n" + text + "\n\n" + match[2], document)  # noqa: B023
        if found != 1:
            sys.exit(f"machines.py: docs/machines.md has {found} places for the table {name}, not one")
    path.write_text(document, encoding="utf-8")
    plot(results)


if __name__ == "__main__":
    main()
