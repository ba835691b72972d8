// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include <benchmark/benchmark.h>

#include "machine.hpp"

// Every benchmark program: says beside its results what a core can do at most.
int main(int argc, char** argv) {
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
    char peak[32];
    std::snprintf(peak, sizeof peak, "%.1f", castle_bench::peak() / 1e9);
    benchmark::AddCustomContext("peak of one core, GFLOP/s", peak);
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
}
