// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include <fmt/core.h>
#include <CLI/CLI.hpp>
#include <castle/types.hpp>

// What programs have in common that run experiments with several seeds.

/// Settings of all of them.
struct Experiments {
    castle::Index seeds = 8;
    castle::Index seed = 1;
    castle::Index threads = 0;

    void add_to(CLI::App& app) {
        add_count(app, "--seeds", seeds, "Runs of everything", 1, 1000);
        add_count(app, "--seed", seed, "The first of them", 0, 4294967295);
        add_count(app, "--threads", threads, "That train at the same time; 0 for all cores", 0, 1024);
    }
    static void add_count(CLI::App& app, const std::string& name, castle::Index& value, const std::string& help,
                          castle::Index least, castle::Index most) {
        app.add_option(name, value, help)->capture_default_str()->check(CLI::Range(least, most));
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

/// The same in percent, as a table has it.
template <class Result, class F>
std::string percent(const std::vector<Result>& results, const F& of) {
    const Statistics s = statistics(results, of);
    return results.size() > 1 ? fmt::format("{:.1f} ± {:.1f}", 100 * s.mean, 100 * s.deviation)
                              : fmt::format("{:.1f}", 100 * s.mean);
}

class Stopwatch {
  public:
    double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

  private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};
