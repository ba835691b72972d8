// SPDX-License-Identifier: Apache-2.0

// What does including the library cost to compile, at -O2? With Eigen/Core beside it, which it includes.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "support.hpp"

namespace {

void compile(benchmark::State& state, const std::string& source) {
    const std::filesystem::path file = std::filesystem::path(CASTLE_BUILD) / "compile_time.cpp";
    std::ofstream(file) << source;
    const std::string command = std::string("CPATH=\"") + CASTLE_INCLUDE_PATH + "\" \"" + CASTLE_COMPILER +
                                "\" -std=c++20 -O2 -c -o /dev/null \"" + file.string() + "\"";
    for (auto _ : state) {
        if (std::system(command.c_str()) != 0) {
            state.SkipWithError("the compiler failed");
            break;
        }
    }
    std::filesystem::remove(file);
}

void once(benchmark::internal::Benchmark* benchmark) {
    benchmark->Iterations(1)->Unit(benchmark::kMillisecond);
    castle_bench::report_best(benchmark);
}

BENCHMARK_CAPTURE(compile, nothing, "")->Apply(once);
BENCHMARK_CAPTURE(compile, Eigen_Core, "#include <Eigen/Core>\n")->Apply(once);
BENCHMARK_CAPTURE(compile, castle, "#include <castle/castle.hpp>\n")->Apply(once);
BENCHMARK_CAPTURE(compile, castle_parallel_float,
                  "#include <castle/castle.hpp>\n"
                  "void f(const castle::Input<float>& input, castle::MatrixView<float> out) {\n"
                  "    castle::parallel(input, out);\n"
                  "}\n")
    ->Apply(once);

}  // namespace
