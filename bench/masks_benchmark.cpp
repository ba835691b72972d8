// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include <castle/castle.hpp>

#include "support.hpp"

// What masks and score terms cost, and what they save: standard attention of one head, one thread, both passes. Every
// case is a ratio to the plain causal one, which runs beside it.
namespace {

using castle::Index;
using castle::Mask;
using castle::Matrix;
namespace masks = castle::masks;

constexpr Index d = 64;

std::uint64_t mix(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

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
    const std::vector<Index> documents(16, n / 16);
    const auto panels = [](Index t, Index s) {
        return t / 32 == s / 32 || mix(std::uint64_t(t / 32 * 1000 + s / 64)) % 2 == 0;
    };
    const auto bits = [n](Index t, Index s) { return t == s || mix(std::uint64_t(t * n + s)) % 2 == 0; };
    add("causal", {.length = 2 * n});
    add("window512", {.length = 2 * n, .mask = masks::sliding_window(512)});
    add("causal", {});
    add("documents", {.mask = masks::documents(documents)});
    add("documents_as_mask", {.mask = masks::documents(documents) & masks::full()});
    add("documents_alone", {.documents = documents});
    add("all", {.mask = masks::full()});
    add("half_of_panels", {.mask = masks::packed(n, n, panels)});
    add("random_bits", {.mask = masks::packed(n, n, bits)});
    add("table",
        {.terms = {.factor = castle::tables::decay(std::array{0.001}, n), .bias = castle::tables::alibi(1, n)}});
    add("soft_cap", {.terms = {.soft_cap = 30.0}});
    add("sinks", {.terms = {.sinks = {0.5}}});
    add("by_products", {.by_products = true});
    add("castle", {.window = castle::unlimited});
    add("castle_window512", {.window = castle::unlimited, .mask = masks::sliding_window(512)});
    return all;
}

struct Setting {
    Case one;
    castle::Options options;
    castle::Workspace<float> workspace;
    Matrix<float> q, k, v, qu, ku, vu, out, sums, mass;
    castle::Gradient<float> gradient;
    Mask mass_over;

    explicit Setting(Case c)
        : one(std::move(c)),
          options{.lookahead_window = one.window, .terms = one.terms},
          workspace({.d = d, .dv = d}, options),
          gradient(one.length, {.d = d, .dv = d}) {
        for (Matrix<float>* m : {&q, &k, &v, &qu, &ku, &vu, &out}) *m = Matrix<float>::Random(one.length, d);
        sums = mass = Matrix<float>::Random(one.length, 1);
        mass_over = masks::packed(one.length, one.length, [](Index, Index s) { return s % 3 == 0; });
    }

    castle::Input<float> input() const {
        return {.causal = {.q = q, .k = k, .v = v}, .lookahead = {.q = qu, .k = ku, .v = vu}};
    }
    castle::Output<float> output() {
        if (!one.by_products) return {.out = out};
        return {.out = out, .log_sum_exp = sums, .mass = mass, .mass_over = mass_over};
    }

    void parallel() {
        if (one.documents.empty()) {
            castle::parallel({.d = d, .dv = d}, input(), output(), options, one.mask);
            return;
        }
        Index first = 0;
        for (const Index length : one.documents) {
            castle::parallel({.d = d, .dv = d}, input().tokens(first, length),
                             castle::MatrixView<float>(out).middle_rows(first, length), options);
            first += length;
        }
    }
    void forward(Index first, Index count) {
        if (one.documents.empty()) {
            castle::forward(workspace, input(), output(), one.mask);
        } else {
            castle::forward(workspace, input().tokens(first, count),
                            castle::MatrixView<float>(out).middle_rows(first, count));
        }
    }
    void backward(Index first, Index count) {
        castle::GradientView<float> all = gradient.view();
        const auto rows = [&](castle::MatrixView<float>& m) { m = m.middle_rows(first, count); };
        for (auto* x : {&all.causal, &all.lookahead}) {
            for (auto* m : {&x->q, &x->k, &x->v}) rows(*m);
        }
        castle::OutputGradient<float> d_out{.out = castle::ConstMatrixView<float>(v).middle_rows(first, count)};
        if (one.by_products) {
            d_out.log_sum_exp = sums;
            d_out.mass = mass;
        }
        castle::backward(workspace, input().tokens(first, count), d_out, all);
    }
    template <class F>
    void for_parts(const F& f) {
        if (one.documents.empty()) {
            f(Index(0), one.length);
            return;
        }
        Index first = 0;
        for (const Index length : one.documents) {
            f(first, length);
            first += length;
        }
    }
};

void forward(benchmark::State& state, const Case& one) {
    Setting setting(one);
    for (auto _ : state) setting.parallel();
}

void backward(benchmark::State& state, const Case& one) {
    Setting setting(one);
    for (auto _ : state) {
        setting.for_parts([&](Index first, Index count) {
            state.PauseTiming();
            setting.forward(first, count);
            state.ResumeTiming();
            setting.backward(first, count);
        });
    }
}

[[maybe_unused]] const bool registered = [] {
    std::vector<Case> all = cases(4096);
    for (const Case& small : cases(512)) all.push_back(small);
    for (const Case& one : all) {
        const std::string size = "/L:" + std::to_string(one.length);
        const auto add = [&](const std::string& name, void (*run)(benchmark::State&, const Case&)) {
            benchmark::RegisterBenchmark((name + "/" + one.name + size).c_str(),
                                         [=](benchmark::State& state) { run(state, one); })
                ->Unit(benchmark::kMillisecond)
                ->MinTime(0.3);
        };
        add("forward", forward);
        add("backward", backward);
    }
    return true;
}();

}  // namespace
