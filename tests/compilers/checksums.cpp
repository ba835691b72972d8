// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <bit>
#include <concepts>
#include <cstdint>
#include <cstdio>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <castle/attention.hpp>
#include <castle/backward.hpp>
#include <castle/cache.hpp>
#include <castle/extend.hpp>
#include <castle/layer.hpp>
#include <castle/rotary.hpp>
#include <castle/workspace.hpp>

#include "random.hpp"

// A fixed computation, and a line `name checksum` for each of its results. For one instruction set the lines are the
// same, whatever compiler and options this is compiled with. So are they from one version of the library to the next,
// unless a change is meant to change them: compare what this prints before and after.
namespace {

using castle::Index;

// FNV-1a over the elements, each from its lowest byte.
class Checksum {
  public:
    template <class T>
    void add(const castle::Matrix<T>& m) {
        using Bits = std::conditional_t<std::same_as<T, float>, std::uint32_t, std::uint64_t>;
        for (Index i = 0; i < m.size(); ++i) {
            Bits bits = std::bit_cast<Bits>(m.data()[i]);
            for (std::size_t byte = 0; byte < sizeof(T); ++byte, bits >>= 8) {
                value_ = (value_ ^ std::uint64_t(bits & 0xff)) * 0x100000001b3u;
            }
        }
    }
    std::uint64_t value() const { return value_; }

  private:
    std::uint64_t value_ = 0xcbf29ce484222325u;
};

// Elements below `size`, which has few bits.
template <class T>
castle::Matrix<T> random_matrix(compilers::Random& random, Index rows, Index cols, double size) {
    castle::Matrix<T> m(rows, cols);
    for (Index i = 0; i < m.size(); ++i) m.data()[i] = static_cast<T>(size * random.uniform());
    return m;
}

template <class T>
class Run {
    using Matrix = castle::Matrix<T>;

    // What heads read, and a gradient of their output.
    struct Heads {
        castle::Shape shape;
        Matrix qc, kc, vc, qu, ku, vu, d_out;

        Heads(std::uint64_t seed, const castle::Shape& of_all) : shape(of_all) {
            compilers::Random random(seed);
            const Index queries = shape.heads * shape.d, keys = shape.kv_heads * shape.d;
            for (const auto& [m, cols] : {std::pair(&qc, queries), std::pair(&kc, keys), std::pair(&qu, keys),
                                          std::pair(&ku, keys), std::pair(&vu, keys)}) {
                *m = random_matrix<T>(random, length, cols, 2.0);
            }
            vc = random_matrix<T>(random, length, shape.kv_heads * shape.dv, 2.0);
            d_out = random_matrix<T>(random, length, shape.heads * shape.dv, 2.0);
        }
        castle::Input<T> input() const {
            return {.causal = {.q = qc, .k = kc, .v = vc}, .lookahead = {.q = qu, .k = ku, .v = vu}};
        }
    };

  public:
    explicit Run(std::string scalar) : scalar_(std::move(scalar)) {}

    // A lone head.
    void head(const std::string& name, const castle::Options& options) const { heads(name, 1, one, options); }

    // Heads side by side: grouped queries where key-value heads are fewer.
    void heads(const std::string& name, std::uint64_t seed, const castle::Shape& shape,
               const castle::Options& options) const {
        const Heads x(seed, shape);
        print(name + ".parallel", castle::parallel(shape, x.input(), options));
        extend(name + ".extend_in_chunks", x, options, 45);
        extend(name + ".extend_one_by_one", x, options, 1);
        const castle::Gradient<T> gradient = castle::backward(shape, x.input(), x.d_out, options);
        print(name + ".backward.causal", gradient.causal);
        print(name + ".backward.lookahead", gradient.lookahead);
    }

    // Under a mask, with every score term and by-product.
    void masked(const std::string& name, const castle::Shape& shape, castle::Options options,
                const castle::Mask& mask) const {
        const Heads x(6, shape);
        const std::array<double, 1> gamma{0.01};
        options.terms = {.factor = castle::tables::decay(gamma, length),
                         .bias = castle::tables::alibi(shape.heads, length),
                         .soft_cap = 20.0,
                         .sinks = std::vector<double>(std::size_t(shape.heads), 0.5)};
        const castle::Mask mass_over = castle::masks::sliding_window(9);
        Matrix out(length, shape.heads * shape.dv), sums(length, shape.heads), mass(length, shape.heads);
        castle::Workspace<T> workspace(shape, options);
        castle::forward(workspace, x.input(),
                        castle::Output<T>{.out = out, .log_sum_exp = sums, .mass = mass, .mass_over = mass_over}, mask);
        print(name + ".out", out);
        print(name + ".log_sum_exp", sums);
        print(name + ".mass", mass);
        castle::Gradient<T> gradient(length, shape);
        Matrix factor(1, length), bias(shape.heads, length), sinks(1, shape.heads);
        castle::backward(workspace, x.input(),
                         castle::OutputGradient<T>{.out = x.d_out, .log_sum_exp = sums, .mass = mass}, gradient.view(),
                         {.factor = factor, .bias = bias, .sinks = sinks});
        print(name + ".backward.causal", gradient.causal);
        print(name + ".backward.lookahead", gradient.lookahead);
        print(name + ".backward.factor", factor);
        print(name + ".backward.bias", bias);
        print(name + ".backward.sinks", sinks);
    }

    void causal() const {
        const Heads x(2, one);
        print("causal.attention", castle::causal_attention(x.qc, x.kc, x.vc));
        const castle::Gradient<T> gradient =
            castle::backward(castle::Input<T>{.causal = x.input().causal}, x.d_out, {.lookahead_window = 0});
        print("causal.backward", gradient.causal);
    }

    void layer() const {
        const Index d_model = 35, heads = 2, d_head = 14, width = heads * d_head, tokens = 150, prompt = 100;
        compilers::Random random(3);
        castle::LayerWeights<T> weights;
        for (auto* kind : {&weights.causal, &weights.lookahead}) {
            for (auto* w : {&kind->q, &kind->k, &kind->v}) *w = random_matrix<T>(random, d_model, width, 0.5);
        }
        weights.w_out = random_matrix<T>(random, width, d_model, 0.5);
        const Matrix x = random_matrix<T>(random, tokens, d_model, 2.0);
        const Matrix d_y = random_matrix<T>(random, tokens, d_model, 2.0);

        castle::Layer<T> layer({.d_model = d_model, .heads = heads, .d_head = d_head, .rotary = castle::Rotary{}});
        layer.set_weights(weights);
        print("layer.forward", layer.forward(x));

        castle::LayerCache<T> cache = layer.make_cache();
        Matrix y(tokens, d_model);
        layer.extend(cache, x.topRows(prompt), y.topRows(prompt));
        for (Index t = prompt; t < tokens; ++t) layer.extend(cache, x.row(t), y.row(t));
        print("layer.extend", y);

        castle::LayerWorkspace<T> workspace = layer.make_workspace();
        layer.forward(workspace, x, y);
        print("layer.backward", layer.backward(workspace, x, d_y));
    }

    void rotate() const {
        compilers::Random random(4);
        Matrix x = random_matrix<T>(random, 40, 22, 2.0);
        castle::rotate(x, 1000);
        print("rotate", x);
    }

    // Caches of different lengths, each of which takes prompts, steps of decoding and drafts, or nothing.
    void ragged(const std::string& name, const castle::Shape& shape, const castle::Options& options) const {
        const Heads x(6, shape);
        std::vector<castle::UqKvCache<T>> caches;
        std::vector<castle::UqKvCache<T>*> all;
        for (std::size_t i = 0; i < ragged_sequences; ++i) caches.emplace_back(shape, options);
        for (auto& cache : caches) all.push_back(&cache);
        Matrix out(length, shape.heads * shape.dv);
        for_ragged_calls([&](const auto& counts, Index first, Index rows) {
            castle::extend(all, counts, x.input().tokens(first, rows), out.middleRows(first, rows));
        });
        print(name + ".extend", out);
        for (std::size_t i = 0; i < caches.size(); ++i) {
            print_lookahead_keys(name + ".cache" + std::to_string(i), caches[i]);
        }
    }

    // Sequences one after the other.
    void packed(const std::string& name, const castle::Shape& shape, const castle::Options& options) const {
        const Heads x(7, shape);
        castle::Workspace<T> workspace(shape, options);
        Matrix out(length, shape.heads * shape.dv);
        castle::forward(workspace, packed_counts, x.input(), out);
        print(name + ".forward", out);
        const castle::Gradient<T> gradient = castle::backward(workspace, x.input(), x.d_out);
        print(name + ".backward.causal", gradient.causal);
        print(name + ".backward.lookahead", gradient.lookahead);
    }

    // The same of a layer. `window` may be 0, with three projections.
    void grouped_layer(const std::string& name, Index window) const {
        const Index d_model = 35, heads = 4, kv_heads = 2, d_head = 14;
        compilers::Random random(8);
        castle::LayerWeights<T> weights;
        for (auto* kind : {&weights.causal, &weights.lookahead}) {
            if (kind == &weights.lookahead && window == 0) continue;
            for (auto* w : {&kind->q, &kind->k, &kind->v}) {
                const Index width = (w == &weights.causal.q ? heads : kv_heads) * d_head;
                *w = random_matrix<T>(random, d_model, width, 0.5);
            }
        }
        weights.w_out = random_matrix<T>(random, heads * d_head, d_model, 0.5);
        const Matrix x = random_matrix<T>(random, length, d_model, 2.0);
        const Matrix d_y = random_matrix<T>(random, length, d_model, 2.0);
        const castle::Layer<T> layer(
            {.d_model = d_model, .heads = heads, .kv_heads = kv_heads, .d_head = d_head, .rotary = castle::Rotary{}},
            weights, {.lookahead_window = window});
        print(name + ".forward", layer.forward(x));

        std::vector<castle::LayerCache<T>> caches;
        std::vector<castle::LayerCache<T>*> all;
        for (std::size_t i = 0; i < ragged_sequences; ++i) caches.push_back(layer.make_cache());
        for (auto& cache : caches) all.push_back(&cache);
        Matrix y(length, d_model);
        for_ragged_calls([&](const auto& counts, Index first, Index rows) {
            layer.extend(all, counts, x.middleRows(first, rows), y.middleRows(first, rows));
        });
        print(name + ".ragged_extend", y);

        castle::LayerWorkspace<T> workspace = layer.make_workspace();
        layer.forward(workspace, packed_counts, x, y);
        print(name + ".packed_forward", y);
        print(name + ".packed_backward", layer.backward(workspace, packed_counts, x, d_y));
    }

  private:
    // More than one span of keys and a last block that is not full, in sizes that no packet divides.
    static constexpr Index length = 531;
    static constexpr castle::Shape one{.d = 19, .dv = 13};

    // Sequences that come to `length` tokens, one of them empty.
    static constexpr std::array<Index, 6> packed_counts{200, 1, 0, 33, 64, 233};

    // Calls f(counts, first row, rows) until all rows are used up.
    static constexpr std::size_t ragged_sequences = 3;
    template <class F>
    static void for_ragged_calls(const F& f) {
        constexpr std::array<std::array<Index, ragged_sequences>, 4> calls{
            {{70, 1, 0}, {1, 40, 5}, {1, 1, 1}, {0, 150, 33}}};
        Index first = 0;
        for (std::size_t call = 0; first < length; ++call) {
            std::array<Index, ragged_sequences> counts = calls[call % calls.size()];
            Index rows = 0;
            for (Index& count : counts) {
                count = std::min(count, length - first - rows);
                rows += count;
            }
            f(counts, first, rows);
            first += rows;
        }
    }

    // A cache that gets its tokens in calls of `rows`.
    void extend(const std::string& name, const Heads& x, const castle::Options& options, Index rows) const {
        castle::UqKvCache<T> cache(x.shape, options);
        Matrix out(length, x.shape.heads * x.shape.dv);
        for (Index first = 0; first < length; first += rows) {
            const Index count = std::min(rows, length - first);
            castle::extend(cache, x.input().tokens(first, count), out.middleRows(first, count));
        }
        print(name, out);
        print_lookahead_keys(name, cache);
    }

    // Of a lone head without its number.
    void print_lookahead_keys(const std::string& name, const castle::UqKvCache<T>& cache) const {
        for (Index h = 0; h < cache.shape().kv_heads; ++h) {
            const std::string number = cache.shape().kv_heads == 1 ? "" : std::to_string(h);
            print(name + ".lookahead_keys" + number, cache.lookahead_keys(h));
        }
    }

    void print(const std::string& name, const Matrix& m) const {
        Checksum checksum;
        checksum.add(m);
        std::printf("%s.%s %016llx\n", scalar_.c_str(), name.c_str(),
                    static_cast<unsigned long long>(checksum.value()));
    }
    void print(const std::string& name, const castle::Qkv<Matrix>& parts) const {
        print(name + ".q", parts.q);
        print(name + ".k", parts.k);
        print(name + ".v", parts.v);
    }
    void print(const std::string& name, const castle::LayerGradient<T>& gradient) const {
        print(name + ".x", gradient.x);
        print(name + ".causal", gradient.weights.causal);
        print(name + ".lookahead", gradient.weights.lookahead);
        print(name + ".w_out", gradient.weights.w_out);
    }

    std::string scalar_;
};

template <class T>
void run(const std::string& scalar) {
    const Run<T> run(scalar);
    run.head("head", {});
    run.head("windowed", {.lookahead_window = 50});
    run.head("without_silu", {.silu = false});
    run.head("without_causal_keys", {.causal_keys = false});
    run.causal();
    run.layer();
    run.rotate();

    constexpr castle::Shape shape{.d = 19, .dv = 13, .heads = 4, .kv_heads = 2};
    run.heads("grouped", 5, shape, {});
    run.heads("grouped_windowed", 5, shape, {.lookahead_window = 50});
    run.heads("grouped_standard", 5, shape, {.lookahead_window = 0});
    run.heads("one_key_value_head", 5, {.d = 19, .dv = 13, .heads = 4, .kv_heads = 1}, {});
    run.ragged("ragged", shape, {});
    run.ragged("ragged_windowed", shape, {.lookahead_window = 50});
    run.ragged("ragged_standard", shape, {.lookahead_window = 0});
    run.packed("packed", shape, {});
    run.packed("packed_windowed", shape, {.lookahead_window = 50});
    run.packed("packed_standard", shape, {.lookahead_window = 0});
    namespace masks = castle::masks;
    run.masked("sliding_window", shape, {}, masks::sliding_window(40, 3));
    run.masked("prefix", shape, {.lookahead_window = 50}, masks::prefix(90));
    run.masked("documents", shape, {.lookahead_window = 0}, masks::documents({50, 7, 474}));
    run.masked("predicate", shape, {},
               masks::predicate([](Index t, Index s) { return s <= t && t * s % 7 != 3; }) | masks::sliding_window(1));
    run.grouped_layer("grouped_layer", castle::unlimited);
    run.grouped_layer("grouped_standard_layer", 0);
}

}  // namespace

int main() {
    run<float>("float");
    run<double>("double");
}
