// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <string>

#include <benchmark/benchmark.h>

#include "machine.hpp"

// Every benchmark program: says beside its results what the machine can do at most.
int main(int argc, char** argv) {
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
    const auto giga = [](double rate) {
        char text[32];
        std::snprintf(text, sizeof text, "%.1f", rate / 1e9);
        return std::string(text);
    };
    benchmark::AddCustomContext("peak of one core, GFLOP/s", giga(castle_bench::peak()));
    benchmark::AddCustomContext("bandwidth of one core, GB/s", giga(castle_bench::bandwidth()));
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
}
