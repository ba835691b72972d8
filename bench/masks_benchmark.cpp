// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include <castle/castle.hpp>

#include "masks.hpp"
#include "training.hpp"

// What masks and score terms cost, and what they save: standard attention of one head, one thread, both passes. Every
// case is a ratio to the plain causal one, which runs beside it.
namespace {

using castle::Index;
using castle::Mask;
using castle_bench::Matrix;
namespace masks = castle::masks;

constexpr Index d = 64;

struct Case {
    std::string name = {};
    Index length = 0;
    Index window = 0;  // of the lookahead keys
    Mask mask = {};
    castle::ScoreTerms terms = {};
    bool by_products = false;
    std::vector<Index> documents = {};  // run one by one instead
};

// Of sequences of n tokens, and of 2 n for the window.
std::vector<Case> cases(Index n) {
    std::vector<Case> all;
    const auto add = [&](std::string name, Case one) {
        one.name = std::move(name);
        if (one.length == 0) one.length = n;
        all.push_back(std::move(one));
    };
    const std::vector<Index> documents = castle_bench::sixteen_documents(n);
    add("causal", {.length = 2 * n});
    add("window512", {.length = 2 * n, .mask = masks::sliding_window(512)});
    add("causal", {});
    add("documents", {.mask = masks::documents(documents)});
    add("documents_as_mask", {.mask = masks::documents(documents) & masks::full()});
    add("documents_alone", {.documents = documents});
    add("all", {.mask = masks::full()});
    add("half_of_panels", {.mask = castle_bench::half_of_panels(n)});
    add("random_bits", {.mask = castle_bench::random_bits(n)});
    add("table",
        {.terms = {.factor = castle::tables::decay(std::array{0.001}, n), .bias = castle::tables::alibi(1, n)}});
    add("soft_cap", {.terms = {.soft_cap = 30.0}});
    add("sinks", {.terms = {.sinks = {0.5}}});
    add("by_products", {.by_products = true});
    add("castle", {.window = castle::unlimited});
    add("castle_window512", {.window = castle::unlimited, .mask = masks::sliding_window(512)});
    return all;
}

class Setting {
  public:
    explicit Setting(Case c)
        : one_(std::move(c)),
          options_{.lookahead_window = one_.window, .terms = one_.terms},
          input_(one_.length, shape()),
          out_(Matrix::Random(one_.length, d)),
          sums_(Matrix::Random(one_.length, 1)),
          mass_(sums_),
          d_out_(out_),
          gradient_(one_.length, shape()) {
        for (std::size_t i = 0; i < std::max<std::size_t>(one_.documents.size(), 1); ++i) {
            workspaces_.emplace_back(shape(), options_);
        }
        if (one_.by_products) {
            mass_over_ = masks::packed(one_.length, one_.length, [](Index, Index s) { return s % 3 == 0; });
        }
    }

    void parallel() {
        for_parts([&](std::size_t, Index first, Index count) {
            castle::parallel(shape(), input(first, count), output(first, count), options_, one_.mask);
        });
    }
    void forward() {
        for_parts([&](std::size_t i, Index first, Index count) {
            castle::forward(workspaces_[i], input(first, count), output(first, count), one_.mask);
        });
    }
    void backward() {
        for_parts([&](std::size_t i, Index first, Index count) {
            castle::GradientView<float> rows = gradient_.view();
            for (auto* x : {&rows.causal, &rows.lookahead}) {
                for (auto* m : {&x->q, &x->k, &x->v}) *m = m->middle_rows(first, count);
            }
            castle::OutputGradient<float> d_output{
                .out = castle::ConstMatrixView<float>(d_out_).middle_rows(first, count)};
            if (one_.by_products) {
                d_output.log_sum_exp = sums_;
                d_output.mass = mass_;
            }
            castle::backward(workspaces_[i], input(first, count), d_output, rows);
        });
    }

  private:
    static castle::Shape shape() { return castle_bench::heads_of(d); }
    castle::Input<float> input(Index first, Index count) const { return input_.input().tokens(first, count); }
    castle::Output<float> output(Index first, Index count) {
        castle::Output<float> output{.out = castle::MatrixView<float>(out_).middle_rows(first, count)};
        if (one_.by_products) {
            output.log_sum_exp = sums_;
            output.mass = mass_;
            output.mass_over = mass_over_;
        }
        return output;
    }
    // f(i, first, count): the whole, or the documents one by one.
    template <class F>
    void for_parts(const F& f) const {
        if (one_.documents.empty()) {
            f(std::size_t(0), Index(0), one_.length);
            return;
        }
        Index first = 0;
        for (std::size_t i = 0; i < one_.documents.size(); ++i) {
            f(i, first, one_.documents[i]);
            first += one_.documents[i];
        }
    }

    Case one_;
    castle::Options options_;
    castle_bench::RandomInput input_;
    Matrix out_, sums_, mass_, d_out_;
    castle::Gradient<float> gradient_;
    std::vector<castle::Workspace<float>> workspaces_;
    Mask mass_over_;
};

void forward(benchmark::State& state, const Case& one) {
    Setting setting(one);
    for (auto _ : state) {
        const auto start = std::chrono::steady_clock::now();
        setting.parallel();
        benchmark::ClobberMemory();
        state.SetIterationTime(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
}

void backward(benchmark::State& state, const Case& one) {
    Setting setting(one);
    castle_bench::measure_pass(
        state, castle_bench::Pass::backward, [&] { setting.forward(); }, [&] { setting.backward(); });
}

[[maybe_unused]] const bool registered = [] {
    std::vector<Case> all = cases(4096);
    for (const Case& small : cases(512)) all.push_back(small);
    for (const Case& one : all) {
        const auto add = [&](const std::string& pass, void (*run)(benchmark::State&, const Case&)) {
            const std::string name = pass + "/" + one.name + "/L:" + std::to_string(one.length);
            castle_bench::report_extremes(
                benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) { run(state, one); })
                    ->Unit(benchmark::kMillisecond))
                ->UseManualTime();
        };
        add("forward", forward);
        add("backward", backward);
    }
    return true;
}();

}  // namespace
