# SPDX-License-Identifier: Apache-2.0
"""Standard attention by ONNX Runtime, for the table of peers: python onnxruntime_benchmark.py <result>.

The operator Attention of ONNX, causal, of one head of size 64 on one thread, as peers_benchmark measures the others.
Writes what Google Benchmark would.
"""

import json
import sys
import time

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

D = 64
LENGTHS = (256, 512, 1024, 2048)
REPETITIONS = 7


def session(length):
    """softmax(Q K^T / sqrt(d) + mask) V over [batch, heads, L, d]."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, length, D]) for name in ("q", "k", "v", "y")]
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], is_causal=1)
    graph = helper.make_graph([node], "attention", tensors[:3], tensors[3:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def by_definition(q, k, v):
    scores = q.astype(np.float64) @ k.astype(np.float64).T / np.sqrt(D)
    scores[np.triu_indices(len(q), 1)] = -np.inf
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights @ v / weights.sum(axis=1, keepdims=True)


def best_seconds(run):
    run()
    best = float("inf")
    for _ in range(REPETITIONS):
        calls, start = 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - start < 0.1:
            run()
            calls += 1
        best = min(best, (time.perf_counter() - start) / calls)
    return best


def main():
    if len(sys.argv) != 2:
        print("usage: onnxruntime_benchmark.py <result>", file=sys.stderr)
        return 2
    random = np.random.default_rng(1)
    runs = []
    for length in LENGTHS:
        inputs = {name: random.standard_normal((1, 1, length, D), dtype=np.float32) for name in ("q", "k", "v")}
        attention = session(length)
        out = attention.run(["y"], inputs)[0][0, 0]
        expected = by_definition(*(inputs[name][0, 0] for name in ("q", "k", "v")))
        difference = np.abs(out - expected).max() / np.abs(expected).max()
        if not difference < 1e-4:
            print(f"ONNX Runtime is left out: at L = {length} it differs by {difference:.1e} of the largest output")
            return 0
        seconds = best_seconds(lambda: attention.run(["y"], inputs))
        name = f"causal/peer:onnxruntime/L:{length}"
        print(f"{name}  {1e3 * seconds:.3f} ms", flush=True)
        runs.append({"name": f"{name}_min", "run_name": name, "aggregate_name": "min", "real_time": 1e3 * seconds, "time_unit": "ms"})
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump({"context": {"peer onnxruntime": f"ONNX Runtime {onnxruntime.__version__}"}, "benchmarks": runs}, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
