// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <string>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include <CLI/CLI.hpp>

#include "../model/matrices.hpp"

// What the programs that play the game have in common: settings, and figures over several seeds.
namespace spurious_tokens {

using model::Index;

struct Experiments {
    Index examples = 1600;
    Index epochs = 20;
    Index seeds = 8;
    Index seed = 1;
    Index threads = 0;

    void add_to(CLI::App& app) {
        const auto option = [&](const std::string& name, Index& value, const std::string& help, Index least,
                                Index most) {
            app.add_option(name, value, help)->capture_default_str()->check(CLI::Range(least, most));
        };
        option("--examples", examples, "To train on", 10, 1000000);
        option("--epochs", epochs, "Passes over them", 1, 10000);
        option("--seeds", seeds, "Runs of everything", 1, 1000);
        option("--seed", seed, "The first of them", 0, 4294967295);
        option("--threads", threads, "That train at the same time; 0 for all cores", 0, 1024);
    }

    void use_threads() const {
#ifdef _OPENMP
        if (threads > 0) omp_set_num_threads(int(threads));
#endif
    }
};

struct Statistics {
    double mean = 0;
    double deviation = 0;
};

/// Of one figure of all seeds' results.
template <class Result, class F>
Statistics statistics(const std::vector<Result>& results, const F& of) {
    const double n = double(results.size());
    Statistics s;
    for (const Result& r : results) s.mean += of(r) / n;
    for (const Result& r : results) s.deviation += (of(r) - s.mean) * (of(r) - s.mean);
    s.deviation = n > 1 ? std::sqrt(s.deviation / (n - 1)) : 0;
    return s;
}

}  // namespace spurious_tokens
