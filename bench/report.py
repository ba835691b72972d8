# SPDX-License-Identifier: Apache-2.0
"""Writes docs/performance.md, its plots and the README's three lines from the results of bench/run.

Usage: report.py <directory with the benchmarks' JSON files>
"""

import json
import pathlib
import platform
import re
import subprocess
import sys

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "castle"  # the same numbers give the same file
import matplotlib.pyplot as plt  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
CASTLE_HEADS, CAUSAL_HEADS = 8, 14


class Results:
    """The best of each benchmark of one program: times as their minimum, rates as their maximum."""

    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
        self.context = data["context"]
        self.best = {}
        for run in data["benchmarks"]:
            if run.get("error_occurred"):
                print(f"{path.name}: {run['name']}: {run.get('error_message', 'failed')}", file=sys.stderr)
                continue
            name = re.sub(r"(/iterations:\d+)?(/(real|manual)_time)?$", "", run["run_name"])
            entry = self.best.setdefault(name, {})
            if run.get("aggregate_name") == "min":
                entry["seconds"] = run["real_time"] * SECONDS[run["time_unit"]]
                entry["s/step"] = run.get("s/step")
            elif run.get("aggregate_name") == "max":
                for counter in ("of_peak", "bandwidth", "FLOP/s", "bytes/s", "numbers/(L d)", "tokens/s", "owned", "shared",
                                "output error", "U error"):
                    if counter in run:
                        entry[counter] = run[counter]

    def add(self, other):
        self.context.update({key: text for key, text in other.context.items() if key not in self.context})
        self.best.update(other.best)

    def __getitem__(self, name):
        return self.best[name]

    def __contains__(self, name):
        return name in self.best

    def seconds(self, name):
        return self.best[name]["seconds"]

    def of_bandwidth(self, name):
        """The best of the benchmark against the best of the bandwidths that were measured beside it."""
        return self.best[name]["bytes/s"] / self.best[name]["bandwidth"]


class Document:
    def __init__(self):
        self.lines = []

    def text(self, *lines):
        self.lines += [*lines, ""]

    def table(self, header, rows):
        self.lines.append("| " + " | ".join(header) + " |")
        self.lines.append("|" + "|".join("---" if i == 0 else "---:" for i in range(len(header))) + "|")
        self.lines += ["| " + " | ".join(row) + " |" for row in rows]
        self.lines.append("")


def percent(x):
    return f"{100 * x:.1f} %"


def milliseconds(x):
    return f"{1e3 * x:.2f}" if x < 0.1 else f"{1e3 * x:.0f}"


def processor():
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return re.search(r"model name\s*:\s*(.*)", text).group(1)
    except (OSError, AttributeError):
        return platform.processor() or platform.machine()


def compiler():
    cache = (ROOT / "build/bench/CMakeCache.txt").read_text(encoding="utf-8")
    path = re.search(r"CMAKE_CXX_COMPILER:\w+=(.*)", cache).group(1)
    return subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def bars(r):
    """The aims: (what, bar, measured, whether it holds)."""

    def at_least(what, bar, value):
        return (what, f"at least {percent(bar)}", percent(value), value >= bar)

    def at_most(what, bar, value, unit=""):
        return (what, f"at most {bar:.2f}{unit}", f"{value:.2f}{unit}", value <= bar)

    forward, equal, scaling = r["forward"], r["equal_parameters"], r["scaling"]
    rows = []
    for length, d, bar in ((2048, 64, 0.72), (2048, 128, 0.80), (512, 64, 0.62), (512, 128, 0.70)):
        name = f"parallel/no_window/L:{length}/d:{d}"
        rows.append(at_least(f"CASTLE, L = {length}, d = {d}, of peak", bar, forward[name]["of_peak"]))
    for d, bar in ((64, 0.72), (128, 0.80)):
        name = f"causal_attention/L:2048/d:{d}"
        rows.append(at_least(f"standard attention, L = 2048, d = {d}, of peak", bar, forward[name]["of_peak"]))
    rows.append(
        at_most(
            "CASTLE window 128 / unlimited, L = 4096, d = 64, time",
            0.66,
            forward.seconds("parallel/window_128/L:4096/d:64") / forward.seconds("parallel/no_window/L:4096/d:64"),
        )
    )
    for kind, words, length, limits in (
        ("window_128", "window 128", 8192, (1.00, 0.95)),
        ("no_window", "unlimited", 4096, (1.70, 1.58)),
    ):
        for d, bar in zip((64, 128), limits):
            ratio = equal.seconds(f"castle_forward/{kind}/L:{length}/d:{d}") / equal.seconds(
                f"causal_forward/L:{length}/d:{d}"
            )
            rows.append(at_most(f"equal parameters, CASTLE {words} / standard, L = {length}, d = {d}, time", bar, ratio))
    decoding = r["decoding"].of_bandwidth("castle_step/no_window/t:16384/d:64")
    rows.append(at_least("decoding, CASTLE, t = 16384, 8 heads, d = 64, of bandwidth", 0.85, decoding))
    rows.append(
        at_most(
            "decoding at equal parameters, CASTLE window 128 / standard, t = 16384, d = 64, time",
            0.92,
            equal.seconds("castle_decoding/window_128/t:16384/d:64") / equal.seconds("causal_decoding/t:16384/d:64"),
        )
    )
    for name, words in (("many_heads/L:2048", "8 heads, L = 2048"), ("one_head/L:8192", "1 head, L = 8192")) if "threads" in r else ():
        speedup = r["threads"].seconds(f"{name}/threads:1") / r["threads"].seconds(f"{name}/threads:2")
        rows.append((f"two threads against one, {words}", "at least 1.85 times", f"{speedup:.2f} times", speedup >= 1.85))
    rows.append(
        at_most(
            "CASTLE, L = 8192 against L = 2048, d = 64, time",
            16.8,
            scaling.seconds("parallel/no_window/L:8192") / scaling.seconds("parallel/no_window/L:2048"),
        )
    )
    rows.append(
        at_most("extra memory of `parallel`, L = 32768, d = 64", 5.0, scaling["parallel/no_window/L:32768"]["numbers/(L d)"], " L d")
    )
    if "forward_x86-64-v3" in r:
        value = r["forward_x86-64-v3"]["parallel/no_window/L:2048/d:64"]["of_peak"]
        rows.append(at_least("built for AVX2 (x86-64-v3), L = 2048, d = 64, of its peak", 0.68, value))
    if "peers_x86-64" in r:
        baseline = r["peers_x86-64"]
        ratio = baseline.seconds("castle/peer:castle/L:2048") / baseline.seconds("castle/peer:eigen/L:2048")
        rows.append(at_most("baseline x86-64 build / plain Eigen, blocked, L = 2048, d = 64, time", 1.0, ratio))
    training = r["training"]
    for d, bar in ((64, 0.66), (128, 0.74)):
        name = f"castle_backward/no_window/L:2048/d:{d}"
        rows.append(at_least(f"backward pass, L = 2048, d = {d}, of peak", bar, training[name]["of_peak"]))
    rows.append(
        at_most(
            "backward pass, window 128 / unlimited, L = 4096, d = 64, time",
            0.65,
            training.seconds("castle_backward/window_128/L:4096/d:64") / training.seconds("castle_backward/no_window/L:4096/d:64"),
        )
    )
    for t, words in ((64, "512 sequences of 64 tokens"), (131072, "511 sequences of 64 tokens and one of 131072")):
        together, one_by_one = (r["serving"].seconds(f"uneven/{how}/texts:512/t:{t}") for how in ("together", "one_by_one"))
        rows.append(at_most(f"a batch against a call for each, {words}, time", 1.0, together / one_by_one))
    for what, _, value, other, aim in ratios(r):
        rows.append(at_most(what, aim, value / other))
    for what, value, bar in half_the_bytes(r["precision"]):
        rows.append(at_most(f"bfloat16 / float, {what}", bar, value("bfloat16")))
    for mask, words in PEER_MASKS:
        name = f"masked_{mask}/peer:{{}}/L:4096"
        if name.format("torch") in r["peers"]:
            ratio = r["peers"].seconds(name.format("castle")) / r["peers"].seconds(name.format("torch"))
            rows.append(at_most(f"masks, castle / PyTorch's function, {words}, L = 4096, d = 64, time", 0.8, ratio))
    layer = r["multi_head"]
    for length, bar in ((16, 4.0), (1024, 3.0)):
        ratio = layer.seconds(f"training/backward/L:{length}") / layer.seconds(f"training/forward/L:{length}")
        rows.append(at_most(f"backward / forward pass of a layer, L = {length}, d_model = 768, 12 heads, time", bar, ratio))
    compile_time = r["compile_time"]
    seconds = compile_time.seconds("compile/castle") - compile_time.seconds("compile/Eigen_Core")
    rows.append(at_most("`#include <castle/castle.hpp>` beyond `<Eigen/Core>`, -O2", 1.5, seconds, " s"))
    return rows


# Ratios with an aim: (what, of which program, of which figure, the name of what is measured, that of what it is held
# against, the aim). Two threads are left out where there is no OpenMP.
RATIOS = (
    ("decoding, 8 query heads on 2 key-value heads / on 8, t = 16384, d = 64, time", "grouped_queries", "s/step",
     "decoding/kv_heads:2/t:16384", "decoding/kv_heads:8/t:16384", 0.40),
    ("the same, memory of the cache", "grouped_queries", "owned",
     "decoding/kv_heads:2/t:16384", "decoding/kv_heads:8/t:16384", 0.27),
    ("forward pass, 8 query heads on 2 key-value heads / on 8, L = 2048, d = 64, time", "grouped_queries", "seconds",
     "forward/kv_heads:2/L:2048", "forward/kv_heads:8/L:2048", 0.78),
    ("backward pass of the same, time", "grouped_queries", "seconds",
     "backward/kv_heads:2/L:2048", "backward/kv_heads:8/L:2048", 0.80),
    ("a layer's call, 4 tokens of each of 12 sequences / 48 tokens of one, t = 64, time", "ragged", "seconds",
     "call/sequences:12/t:64", "call/sequences:1/t:64", 1.15),
    ("forward and backward pass of a layer, 256 tokens in documents of 8 / in one document, time", "ragged", "seconds",
     "documents/tokens:8", "documents/tokens:256", 1.00),
    ("3 prompts of 128 tokens and 29 sequences that decode, 2 threads, one call / single calls, time", "ragged", "seconds",
     "mixed/one_call/threads:2", "mixed/single_calls/threads:2", 0.75),
    ("masks, standard attention, d = 64: sliding window 512 / causal, L = 8192, time", "masks", "seconds",
     "forward/window512/L:8192", "forward/causal/L:8192", 0.18),
    ("masks, standard attention, d = 64: 16 documents of 256 in one call / in 16 calls, time", "masks", "seconds",
     "forward/documents/L:4096", "forward/documents_alone/L:4096", 1.10),
    ("masks, standard attention, d = 64: half of all panels seen, at random / all, L = 4096, time", "masks", "seconds",
     "forward/half_of_panels/L:4096", "forward/all/L:4096", 0.56),
    ("masks, standard attention, d = 64: random bits in every panel / all, L = 4096, time", "masks", "seconds",
     "forward/random_bits/L:4096", "forward/all/L:4096", 1.20),
    ("masks, standard attention, d = 64: table over the distance / plain, time", "masks", "seconds",
     "forward/table/L:4096", "forward/causal/L:4096", 1.10),
    ("masks, standard attention, d = 64: soft cap / plain, time", "masks", "seconds",
     "forward/soft_cap/L:4096", "forward/causal/L:4096", 1.20),
    ("masks, standard attention, d = 64: sinks / plain, time", "masks", "seconds",
     "forward/sinks/L:4096", "forward/causal/L:4096", 1.02),
    ("masks, standard attention, d = 64: log-sum-exp and mass / plain, time", "masks", "seconds",
     "forward/by_products/L:4096", "forward/causal/L:4096", 1.06),
    ("masks, standard attention, d = 64: backward pass, 16 documents of 256 / 16 calls, time", "masks", "seconds",
     "backward/documents/L:4096", "backward/documents_alone/L:4096", 1.15),
    ("masks, standard attention, d = 64: backward pass, table / plain, time", "masks", "seconds",
     "backward/table/L:4096", "backward/causal/L:4096", 1.15),
    ("future-aware attention, light, the largest logit / causal, L = 2048, 3/4 visual, 8 heads of 64, time", "methods", "seconds",
     "prefill_light/max/L:2048", "prefill_causal/L:2048", 1.35),
    ("future-aware attention, light, the mean / causal, the same, time", "methods", "seconds",
     "prefill_light/mean/L:2048", "prefill_causal/L:2048", 1.35),
    ("future-aware attention, light, 32 generated tokens / causal, time", "methods", "seconds",
     "decode_light/L:2048", "decode_causal/L:2048", 1.02),
    ("future-aware attention, light, 32 generated tokens / the prompt once under the full mask, which every generated token needs, time", "methods", "seconds",
     "decode_light/L:2048", "prefill_full/L:2048", 1.0),
    ("dynamic windowed attention over time, window 32 / causal, L = 8192, 2 heads of 64, time", "methods", "seconds",
     "series_windowed/L:8192", "series_causal/L:8192", 0.05),
    ("the same, forward and backward pass with the gradient of the decay, time", "methods", "seconds",
     "series_step_windowed/L:8192", "series_step_causal/L:8192", 0.05),
)  # fmt: skip


PEER_MASKS = (
    ("window512", "the last 512 tokens"),
    ("documents", "16 documents"),
    ("half_of_panels", "half of all panels of 32 x 64, at random"),
    ("random_bits", "half of all keys, at random"),
)


def half_the_bytes(precision):
    """What 16-bit scalars take, of float: (what, its ratio for a scalar, the aim for bfloat16)."""

    def ratio(name, figure="seconds"):
        def of(scalar):
            return precision[name.format(scalar)][figure] / precision[name.format("float")][figure]

        return of

    return (
        ("decoding, t = 16384, 8 heads, d = 64, no window, time", ratio("decoding/{}/no_window/t:16384"), 0.70),
        ("the same, window 128", ratio("decoding/{}/window_128/t:16384"), 0.58),
        ("memory of the cache, no window", ratio("decoding/{}/no_window/t:16384", "owned"), 0.66),
        ("the same, window 128", ratio("decoding/{}/window_128/t:16384", "owned"), 0.55),
        ("decoding of a layer, t = 512, d_model = 2048, 16 heads of 64, window 128, time", ratio("layer_decoding/{}/t:512"), 0.60),
        ("forward pass, L = 2048, d = 64, time", ratio("forward/{}/L:2048/d:64"), 0.70),
        ("the same, d = 128", ratio("forward/{}/L:2048/d:128"), 0.66),
        ("backward pass, L = 2048, d = 64, time", ratio("backward/{}/L:2048/d:64"), 0.75),
        ("the same, d = 128", ratio("backward/{}/L:2048/d:128"), 0.70),
    )  # fmt: skip


def write_half_the_bytes(doc, r):
    doc.text("## Half the bytes")
    doc.text(
        "What 16-bit scalars take, of float. Decoding waits for memory and takes about half the time. A forward or backward",
        "pass computes: where the processor has dot products of bfloat16, twice as many products at a time, so that the",
        "rest, exponentials above all, counts for more; otherwise, and in half, elements are widened where they are read,",
        "and it takes as long as in float. The aims of the passes are for those dot products.",
    )
    doc.table(
        ("of float", "bfloat16", "half", "aim for bfloat16"),
        [
            (what, f"{value('bfloat16'):.2f}", f"{value('half'):.2f}", f"{bar:.2f}")
            for what, value, bar in half_the_bytes(r["precision"])
        ],
    )
    doc.text(
        "What they lose: errors against double of the same input, standard normal and rounded to the scalar, one head of",
        "64. Root mean square, of that of the exact outputs and of the exact lookahead keys. Outputs are rounded once,",
        "which costs 0.0017 in bfloat16 and 0.0002 in half; so are gates, and lookahead keys once a window has left them",
        "behind; and with dot products of bfloat16 queries, lookahead keys, and weights where they are multiplied. Without",
        "a window scores grow with the length, and float's own error with them.",
    )
    cases = [(words, text, scalar) for words, text in (("no_window", "no window"), ("window_128", "window 128"))
             for scalar in ("float", "bfloat16", "half")]
    doc.table(
        ("L", *(f"{scalar}, {text}: output" for _, text, scalar in cases), *(f"{scalar}, {text}: U" for _, text, scalar in cases)),
        [
            (str(length), *(f"{r['precision'][f'errors/{scalar}/{words}/L:{length}'][kind]:.1e}"
                            for kind in ("output error", "U error") for words, _, scalar in cases))
            for length in (512, 2048, 8192, 32768)
        ],
    )


def ratios(r):
    """(what, figure, measured, held against, aim) of every ratio that could be measured."""
    for what, program, figure, name, other, aim in RATIOS:
        if name in r[program] and other in r[program]:
            yield what, figure, r[program][name][figure], r[program][other][figure], aim


FORMS = (
    ("CASTLE", "parallel/no_window"),
    ("CASTLE, window 128", "parallel/window_128"),
    ("standard attention", "causal_attention"),
)


def plot(path, xlabel, ylabel, series, log_y=True):
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for label, points in series:
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=label)
    axes.set_xscale("log", base=2)
    if log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1)
    ticks = sorted({x for _, points in series for x, _ in points})
    axes.set_xticks(ticks, [str(x) for x in ticks])
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def points(results, prefix, sizes, value):
    return [(n, value(results[f"{prefix}{n}"])) for n in sizes if f"{prefix}{n}" in results]


def write_performance(r):
    doc = Document()
    forward, equal, decoding, scaling = r["forward"], r["equal_parameters"], r["decoding"], r["scaling"]
    context = forward.context

    doc.text("# Performance")
    doc.text("Written by `./bench/run` from what it measured; not to be edited. To repeat it: `./bench/run`, on a machine that does nothing else meanwhile.")
    doc.text("## The machine and the method")
    caches = ", ".join(f"L{c['level']} {c['type'].lower()} {c['size'] // 1024} KiB" for c in context["caches"])
    doc.text(
        f"- Processor: {processor()}, {context['num_cpus']} cores, {caches}.",
        f"- Peak of one core: {context['peak of one core, GFLOP/s']} GFLOP/s in float, by a loop of fused multiply-adds between registers. "
        f"Every program measures it for itself; fractions are of its own.",
        f"- Bandwidth of one core: {decoding['castle_step/no_window/t:16384/d:64']['bandwidth'] / 1e9:.1f} GB/s at best, reading an array of 512 MiB. It is measured beside every repetition of a benchmark that is held against it, and the best of the one is divided by the best of the other.",
        f"- Compiler: {compiler()}, -O3 -march=native, float, one thread unless it says otherwise.",
        "- Inputs are normally distributed, dv = d. Each figure is the best of 7 repetitions (21 where threads are compared) that ran in random order with those of the same program.",
        "- Useful work is what the method cannot avoid: per head `5 L^2 d` operations for CASTLE, `3 L^2 d + 2 (2 L W - W^2) d` with a window, `2 L^2 d` for standard attention; for the backward pass `14 L^2 d`, `8 L^2 d + 6 (2 L W - W^2) d` and `5 L^2 d`. Exponentials, packing, masks and the triangle are overhead.",
    )

    doc.text("## What was aimed at")
    rows = bars(r)
    doc.table(
        ["", "aim", "measured", ""],
        [[what, bar, value, "holds" if holds else "**missed**"] for what, bar, value, holds in rows],
    )

    doc.text("## A sequence, per head")
    table = []
    for words, name in FORMS:
        for d in (64, 128):
            for length in (512, 2048, 4096):
                best = forward[f"{name}/L:{length}/d:{d}"]
                table.append(
                    [words, str(d), str(length), f"{best['FLOP/s'] * best['seconds'] / 1e9:.2f}", milliseconds(best["seconds"]),
                     f"{best['FLOP/s'] / 1e9:.1f}", percent(best["of_peak"])]
                )  # fmt: skip
    doc.table(["", "d", "L", "GFLOP", "ms", "GFLOP/s", "of peak"], table)
    reference = [("`recurrent`, the definition", "recurrent"), ("`dense`, eqs. 11 and 12", "dense")]
    doc.text("The textbook forms, which are for reading, at L = 512, d = 64: " + ", ".join(
        f"{words} {milliseconds(forward.seconds(f'{name}/L:512/d:64'))} ms" for words, name in reference) + ".")

    doc.text("## A sequence at equal parameters")
    doc.text(f"{CASTLE_HEADS} heads of CASTLE have as many parameters as {CAUSAL_HEADS} of standard attention. Times in ms, one thread, without the projections.")
    table = []
    for d in (64, 128):
        for length in (2048, 4096, 8192):
            causal = equal.seconds(f"causal_forward/L:{length}/d:{d}")
            row = [str(d), str(length), milliseconds(causal)]
            for kind in ("no_window", "window_128"):
                seconds = equal.seconds(f"castle_forward/{kind}/L:{length}/d:{d}")
                row += [milliseconds(seconds), f"{seconds / causal:.2f}"]
            table.append(row)
    doc.table(["d", "L", "standard", "CASTLE", "ratio", "CASTLE, window 128", "ratio"], table)

    doc.text("## Training")
    doc.text("The backward pass of one head, one thread.")
    training = r["training"]
    kinds = (("CASTLE", "castle_{}/no_window"), ("CASTLE, window 128", "castle_{}/window_128"), ("standard attention", "causal_{}"))
    lengths = (512, 2048, 4096)
    table = []
    for words, name in kinds:
        for d in (64, 128):
            for length in lengths:
                best = training[f"{name.format('backward')}/L:{length}/d:{d}"]
                table.append([words, str(d), str(length), milliseconds(best["seconds"]), f"{best['FLOP/s'] / 1e9:.1f}", percent(best["of_peak"])])
    doc.table(["", "d", "L", "ms", "GFLOP/s", "of peak"], table)
    doc.text(f"Forward and backward, tokens a second: of one head, and of {CASTLE_HEADS} heads of CASTLE against {CAUSAL_HEADS} with as many parameters, without the projections.")
    table = []
    for d in (64, 128):
        for length in lengths:
            rates = [training[f"{name.format('training')}/L:{length}/d:{d}"]["tokens/s"] for _, name in kinds]
            heads = (CASTLE_HEADS, CASTLE_HEADS, CAUSAL_HEADS)
            table.append([str(d), str(length), *(f"{rate * n:.0f}" for rate, n in zip(rates, heads)), *(f"{rate:.0f}" for rate in rates)])
    doc.table(["d", "L", *(f"{words}, a head" for words, _ in kinds), *(f"{words}, {n} heads" for (words, _), n in zip(kinds, heads))], table)

    doc.text("## A token")
    doc.text("A step of decoding onto a cache of t tokens, 8 heads, in microseconds, and the fraction of the bandwidth that the bytes it has to touch come to.")
    table = []
    for words, name in (("CASTLE", "castle_step/no_window"), ("CASTLE, window 128", "castle_step/window_128"), ("standard attention", "causal_step")):
        for d in (64, 128):
            for t in (1024, 4096, 16384):
                best = decoding[f"{name}/t:{t}/d:{d}"]
                table.append([words, str(d), str(t), f"{1e6 * best['s/step']:.0f}", f"{best['bytes/s'] * best['s/step'] / 1e6:.1f}", percent(decoding.of_bandwidth(f"{name}/t:{t}/d:{d}"))])
    doc.table(["", "d", "t", "us", "MB touched", "of bandwidth"], table)
    doc.text("Where more than the memory's bandwidth comes out, the caches of the heads lie wholly or partly in the processor's.")
    doc.text(f"At equal parameters ({CASTLE_HEADS} heads against {CAUSAL_HEADS}), microseconds a step:")
    table = []
    for d in (64, 128):
        for t in (4096, 16384):
            causal = equal[f"causal_decoding/t:{t}/d:{d}"]["s/step"]
            row = [str(d), str(t), f"{1e6 * causal:.0f}"]
            for kind in ("no_window", "window_128"):
                step = equal[f"castle_decoding/{kind}/t:{t}/d:{d}"]["s/step"]
                row += [f"{1e6 * step:.0f}", f"{step / causal:.2f}"]
            table.append(row)
    doc.table(["d", "t", "standard", "CASTLE", "ratio", "CASTLE, window 128", "ratio"], table)

    doc.text("## Serving")
    doc.text("Calls on the cache of one head of t tokens, d = 64, in microseconds. After a fork its first token needs an open block of its own, and its first full block, where the window reaches, a `U` of its own: behind the times is what the fork then owns, of all that it holds.")
    serving = r["serving"]
    calls = (
        ("`rollback(8)` within the open block", "rollback/open_block_no_window"),
        ("`rollback(8)`, 4 of them of a finished block", "rollback/finished_block_no_window"),
        ("the same, window 128", "rollback/finished_block_window_128"),
        ("`fork()`", "fork/no_window"),
        ("`fork()`, window 128", "fork/window_128"),
        ("a fork's first token", "after_fork/a_token_no_window"),
        ("a fork's first token, window 128", "after_fork/a_token_window_128"),
        ("a fork's first 32 tokens", "after_fork/a_block_no_window"),
        ("a fork's first 32 tokens, window 128", "after_fork/a_block_window_128"),
        ("`save`", "save/no_window"),
        ("`load`", "load/no_window"),
    )

    def call_cell(best):
        cell = f"{1e6 * best['seconds']:.2f}" if best["seconds"] < 1e-5 else f"{1e6 * best['seconds']:.0f}"
        if "owned" in best:
            cell += f" ({best['owned'] / (best['owned'] + best['shared']):.0%} of {(best['owned'] + best['shared']) / 2**20:.1f} MiB)"
        return cell

    doc.table(["", "t = 1024", "t = 16384"], [[words, *(call_cell(serving[f"{name}/t:{t}"]) for t in (1024, 16384))] for words, name in calls])
    doc.text("Tokens a second of a layer (d_model = 896, 8 heads, d = 64, window 128) that goes on with several sequences of 512 tokens and more, one thread:")
    table = []
    for count in (1, 8, 32):
        together, one_by_one = (serving[f"texts/{how}/t:512/texts:{count}"]["tokens/s"] for how in ("together", "one_by_one"))
        table.append([str(count), f"{together:.0f}", f"{one_by_one:.0f}", f"{together / one_by_one:.2f}"])
    doc.table(["sequences", "one call for all", "a call for each", "times"], table)
    doc.text("A token onto each of 512 caches of one head, d = 64, of 64 tokens but for one that is longer, one thread, in microseconds:")
    table = []
    for t in (64, 131072):
        together, one_by_one = (serving.seconds(f"uneven/{how}/texts:512/t:{t}") for how in ("together", "one_by_one"))
        table.append([str(t), f"{1e6 * together:.0f}", f"{1e6 * one_by_one:.0f}", f"{together / one_by_one:.2f}"])
    doc.table(["tokens of the longest", "one call for all", "a call for each", "ratio"], table)

    write_ratios(doc, r)

    write_half_the_bytes(doc, r)
    doc.text("## Over the length")
    lengths = [256 << i for i in range(8)]
    doc.text("![Time over the length, d = 64](performance-time.svg)", "![Fraction of peak over the length, d = 64](performance-peak.svg)")
    doc.text("One head, d = 64. Memory is the most that is held at once beside the input and the output, in elements per token and dimension: four of them are the cache itself, two with standard attention.")
    table = []
    for length in lengths:
        row = [str(length)]
        for _, name in FORMS:
            best = scaling[f"{name}/L:{length}"]
            row += [milliseconds(best["seconds"]), percent(best["of_peak"]), f"{best['numbers/(L d)']:.2f}"]
        table.append(row)
    doc.table(["L", "CASTLE, ms", "of peak", "memory", "window 128, ms", "of peak", "memory", "standard, ms", "of peak", "memory"], table)
    plot(DOCS / "performance-time.svg", "L, tokens", "seconds", [(words, points(scaling, f"{name}/L:", lengths, lambda b: b["seconds"])) for words, name in FORMS])
    plot(DOCS / "performance-peak.svg", "L, tokens", "fraction of peak", [(words, points(scaling, f"{name}/L:", lengths, lambda b: b["of_peak"])) for words, name in FORMS], log_y=False)

    if "threads" in r:
        doc.text("## Threads")
        doc.text("On OpenMP, waiting threads asleep (OMP_WAIT_POLICY=passive).")
        table = []
        for name, words in (("many_heads/L:2048", "8 heads, L = 2048"), ("one_head/L:8192", "1 head, L = 8192")):
            one, two = (r["threads"].seconds(f"{name}/threads:{n}") for n in (1, 2))
            table.append([words, milliseconds(one), milliseconds(two), f"{one / two:.2f}"])
        doc.table(["d = 64", "1 thread, ms", "2 threads, ms", "times"], table)

    doc.text("## Instruction sets")
    table = []
    for key, words in (("forward", "this machine's"), ("forward_x86-64-v3", "x86-64-v3 (AVX2)"), ("forward_x86-64", "x86-64 (SSE2)")):
        if key not in r:
            continue
        for d in (64, 128):
            castle, causal = (r[key][f"{name}/L:2048/d:{d}"] for name in ("parallel/no_window", "causal_attention"))
            table.append([words, r[key].context["peak of one core, GFLOP/s"], str(d), milliseconds(castle["seconds"]), percent(castle["of_peak"]), milliseconds(causal["seconds"]), percent(causal["of_peak"])])
    doc.table(["built for", "peak, GFLOP/s", "d", "CASTLE, ms", "of peak", "standard, ms", "of peak"], table)
    doc.text("L = 2048; the peak is the build's own. Without fused multiply-adds (x86-64) a multiplication and an addition count as two operations as well, but take two instructions.")

    write_peers(doc, r)

    doc.text("## A layer")
    doc.text("The paper's small model, d_model 896, heads of 64, projections included: 8 heads of CASTLE against 14. Tokens a second.")
    layer = r["multi_head"]
    table = []
    for words, name in (("CASTLE", "castle_{}/no_window"), ("CASTLE, window 128", "castle_{}/window_128"), ("standard attention", "causal_{}")):
        row = [words]
        for threads in (1, 2):
            run = name.format("forward") + f"/L:2048/threads:{threads}"
            step = name.format("decoding") + f"/t:2048/threads:{threads}"
            row += [f"{2048 / layer.seconds(run):.0f}" if run in layer else "", f"{1 / layer.seconds(step):.0f}" if step in layer else ""]
        table.append(row)
    doc.table(["", "L = 2048, 1 thread", "decoding at 2048", "L = 2048, 2 threads", "decoding at 2048"], table)

    doc.text("In training, d_model 768, 12 heads of 64, both passes of one sequence in a workspace, in ms, one thread.")
    table = []
    for length in (16, 1024):
        forward, backward = (layer.seconds(f"training/{name}/L:{length}") for name in ("forward", "backward"))
        table.append([str(length), milliseconds(forward), milliseconds(backward), f"{backward / forward:.2f}"])
    doc.table(["L", "forward", "backward", "ratio"], table)

    doc.text("## Compile time")
    names = (("an empty file", "nothing"), ("`#include <Eigen/Core>`", "Eigen_Core"), ("`#include <castle/castle.hpp>`", "castle"), ("the same and `parallel` for float", "castle_parallel_float"))
    doc.table(["-O2, without -march", "seconds"], [[words, f"{r['compile_time'].seconds(f'compile/{name}'):.2f}"] for words, name in names])

    doc.lines.append((ROOT / "bench/history.md").read_text(encoding="utf-8").strip())
    (DOCS / "performance.md").write_text("\n".join(doc.lines).rstrip() + "\n", encoding="utf-8")


def write_ratios(doc, r):
    doc.text("## Grouped queries and ragged batches")
    doc.text(
        "What query heads that share a key-value head save, and what sequences of different lengths in one call of a layer cost. "
        "Each row is a ratio of two figures: times in ms, of a step in decoding; memory in MiB. One thread unless it says otherwise. "
        "The layers: d_model = 896, 8 heads of 64 and a window of 128 in serving; d_model = 768 and 12 heads of 64 in training."
    )

    def cell(figure, value):
        return f"{value / 2**20:.1f} MiB" if figure == "owned" else f"{milliseconds(value)} ms"

    doc.table(
        ["", "measured", "held against", "ratio", "aim", ""],
        [
            [what, cell(figure, value), cell(figure, other), f"{value / other:.2f}", f"at most {aim:.2f}", "holds" if value / other <= aim else "**missed**"]
            for what, figure, value, other, aim in ratios(r)
        ],
    )
    ragged = r["ragged"]
    few, many = (ragged.seconds(f"call/sequences:{n}/t:512") for n in (1, 12))
    doc.text(
        f"Onto caches of 512 tokens the call with 4 tokens of each of 12 sequences takes {many / few:.2f} times as long as that with 48 of one: it reads 12 caches."
    )


def write_peers(doc, r):
    peers = r["peers"]
    lengths = (256, 512, 1024, 2048)
    names = sorted({re.search(r"peer:(\w+)", n).group(1) for n in peers.best}, key=lambda n: (n != "castle", n))
    if "peers_onnxruntime" in r:
        peers.add(r["peers_onnxruntime"])
        names.append("onnxruntime")
    labels = {"castle": "castle", "torch": "PyTorch", "onnxruntime": "ONNX Runtime", "onednn": "oneDNN", "openblas": "OpenBLAS", "eigen": "Eigen, blocked"}
    doc.text("## Peers")
    doc.text(
        "What one would write today with other libraries: eqs. 11 and 12 as tensor operations, cubic in L, with PyTorch's C++ library, oneDNN and OpenBLAS; "
        "the blocked form in plain Eigen expressions; and standard attention as `softmax(Q K^T + mask) V`, for which PyTorch "
        "(scaled_dot_product_attention) and ONNX Runtime (Attention) have functions. One head, d = 64, one thread, the same "
        "inputs; the outputs are compared before anything is timed. Times in ms, and how many times castle's. "
        + "The libraries: "
        + ", ".join(text for key, text in sorted(peers.context.items()) if key.startswith("peer ") and text != "castle")
        + ".",
        "",
        "![Peers over the length, CASTLE, d = 64](performance-peers.svg)",
    )
    for form, words in (("castle", "CASTLE"), ("causal", "standard attention")):
        table = []
        for name in names:
            row = [labels.get(name, name)]
            for length in lengths:
                key = f"{form}/peer:{name}/L:{length}"
                if key not in peers:
                    row.append("")
                    continue
                ratio = peers.seconds(key) / peers.seconds(f"{form}/peer:castle/L:{length}")
                row.append(milliseconds(peers.seconds(key)) + ("" if name == "castle" else f" ({ratio:.1f})"))
            if any(row[1:]):
                table.append(row)
        doc.table([words] + [f"L = {length}" for length in lengths], table)
    if "masked_window512/peer:torch/L:4096" in peers:
        table = []
        for mask, words in PEER_MASKS:
            own, other = (peers.seconds(f"masked_{mask}/peer:{name}/L:4096") for name in ("castle", "torch"))
            table.append([words, milliseconds(own), milliseconds(other), f"{own / other:.2f}"])
        doc.text("Standard attention under a mask, L = 4096, beside PyTorch's function, which is given the mask as a matrix to add, made before.")
        doc.table(["a row sees", "castle", "PyTorch", "ratio"], table)
    plot(DOCS / "performance-peers.svg", "L, tokens", "seconds", [(labels.get(n, n), points(peers, f"castle/peer:{n}/L:", lengths, lambda b: b["seconds"])) for n in names])
    absent = [labels[n] for n in labels if n not in names]
    if absent:
        doc.text("Not installed, and so left out: " + ", ".join(absent) + ".")


def write_readme(r):
    forward, equal, peers = r["forward"], r["equal_parameters"], r["peers"]
    window = equal.seconds("castle_forward/window_128/L:8192/d:64") / equal.seconds("causal_forward/L:8192/d:64")
    step = equal.seconds("castle_decoding/window_128/t:16384/d:64") / equal.seconds("causal_decoding/t:16384/d:64")
    lines = [
        f"- One core reaches **{100 * forward['parallel/no_window/L:2048/d:64']['of_peak']:.0f} % of its peak** over a sequence at L = 2048, d = 64 "
        f"({100 * forward['parallel/no_window/L:2048/d:128']['of_peak']:.0f} % at d = 128), counting `5 L^2 d` operations.",
        f"- At equal parameters CASTLE with a window of 128 takes **{window:.2f} times** what standard attention by the same kernels takes for 8192 tokens, and **{step:.2f} times** for a token onto a cache of 16384.",
    ]
    if "castle/peer:torch/L:2048" in peers:
        ratio = peers.seconds("castle/peer:torch/L:2048") / peers.seconds("castle/peer:castle/L:2048")
        lines.append(f"- Eqs. 11 and 12 written with PyTorch's C++ library take **{ratio:.0f} times** as long at L = 2048 (one thread each).")
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    begin, end = "<!-- by bench/run -->\n", "<!-- end -->"
    first, last = text.index(begin) + len(begin), text.index(end)
    path.write_text(text[:first] + "\n".join(lines) + "\n" + text[last:], encoding="utf-8")


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: report.py <directory of results>")
    r = {path.stem: Results(path) for path in sorted(pathlib.Path(sys.argv[1]).glob("*.json")) if path.stat().st_size}
    write_performance(r)
    write_readme(r)
    print("Wrote docs/performance.md, its plots, and the README's figures.")


main()
