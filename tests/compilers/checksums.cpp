// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>
#include <concepts>
#include <cstdint>
#include <cstdio>
#include <string>
#include <type_traits>

#include <castle/backward.hpp>
#include <castle/causal.hpp>
#include <castle/extend.hpp>
#include <castle/multi_head.hpp>
#include <castle/parallel.hpp>
#include <castle/rotary.hpp>

#include "random.hpp"

// A fixed computation, and a line `name checksum` for each of its results. For one instruction set the lines are the
// same, whatever compiler and options this is compiled with.
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

    // What one head reads, and a gradient of its output.
    struct Head {
        Matrix qc, kc, vc, qu, ku, vu, d_out;

        explicit Head(std::uint64_t seed) {
            compilers::Random random(seed);
            for (auto* m : {&qc, &kc, &qu, &ku, &vu}) *m = random_matrix<T>(random, length, d, 2.0);
            for (auto* m : {&vc, &d_out}) *m = random_matrix<T>(random, length, dv, 2.0);
        }
        castle::HeadInput<T> input() const {
            return {.causal = {.q = qc, .k = kc, .v = vc}, .lookahead = {.q = qu, .k = ku, .v = vu}};
        }
    };

  public:
    explicit Run(std::string scalar) : scalar_(std::move(scalar)) {}

    void head(const std::string& name, const castle::Options& options) const {
        const Head x(1);
        print(name + ".parallel", castle::parallel(x.input(), options));
        extend(name + ".extend_in_chunks", x, options, 45);
        extend(name + ".extend_one_by_one", x, options, 1);
        const castle::HeadGradient<T> gradient = castle::backward(x.input(), x.d_out, options);
        print(name + ".backward.causal", gradient.causal);
        print(name + ".backward.lookahead", gradient.lookahead);
    }

    void causal() const {
        const Head x(2);
        print("causal.attention", castle::causal_attention(x.input().causal));
        print("causal.backward", castle::backward(x.input().causal, x.d_out));
    }

    void layer() const {
        const Index d_model = 35, heads = 2, d_head = 14, width = heads * d_head, tokens = 150, prompt = 100;
        compilers::Random random(3);
        castle::MultiHeadWeights<T> weights;
        for (auto* kind : {&weights.causal, &weights.lookahead}) {
            for (auto* w : {&kind->q, &kind->k, &kind->v}) *w = random_matrix<T>(random, d_model, width, 0.5);
        }
        weights.w_out = random_matrix<T>(random, width, d_model, 0.5);
        const Matrix x = random_matrix<T>(random, tokens, d_model, 2.0);
        const Matrix d_y = random_matrix<T>(random, tokens, d_model, 2.0);

        castle::MultiHeadCastle<T> layer(
            {.d_model = d_model, .heads = heads, .d_head = d_head, .rotary = castle::Rotary{}});
        layer.set_weights(weights);
        print("layer.forward", layer.forward(x));

        castle::MultiHeadCache<T> cache = layer.make_cache();
        Matrix y(tokens, d_model);
        layer.extend(cache, x.topRows(prompt), y.topRows(prompt));
        for (Index t = prompt; t < tokens; ++t) layer.extend(cache, x.row(t), y.row(t));
        print("layer.extend", y);

        castle::MultiHeadWorkspace<T> workspace = layer.make_workspace();
        layer.forward(workspace, x, y);
        const castle::MultiHeadGradient<T> gradient = layer.backward(workspace, x, d_y);
        print("layer.backward.x", gradient.x);
        print("layer.backward.causal", gradient.weights.causal);
        print("layer.backward.lookahead", gradient.weights.lookahead);
        print("layer.backward.w_out", gradient.weights.w_out);
    }

    void rotate() const {
        compilers::Random random(4);
        Matrix x = random_matrix<T>(random, 40, 22, 2.0);
        castle::rotate(x, 1000);
        print("rotate", x);
    }

  private:
    // More than one span of keys and a last block that is not full, in sizes that no packet divides.
    static constexpr Index length = 531, d = 19, dv = 13;

    // A cache that gets its tokens in calls of `rows`.
    void extend(const std::string& name, const Head& x, const castle::Options& options, Index rows) const {
        castle::UqKvCache<T> cache({.d = d, .dv = dv}, options);
        Matrix out(length, dv);
        for (Index first = 0; first < length; first += rows) {
            const Index count = std::min(rows, length - first);
            castle::extend(cache, x.input().tokens(first, count), out.middleRows(first, count));
        }
        print(name, out);
        print(name + ".lookahead_keys", cache.lookahead_keys());
    }

    void print(const std::string& name, const Matrix& m) const {
        Checksum checksum;
        checksum.add(m);
        std::printf("%s.%s %016llx\n", scalar_.c_str(), name.c_str(),
                    static_cast<unsigned long long>(checksum.value()));
    }
    template <class Three>
    void print(const std::string& name, const Three& parts) const {
        print(name + ".q", parts.q);
        print(name + ".k", parts.k);
        print(name + ".v", parts.v);
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
}

}  // namespace

int main() {
    run<float>("float");
    run<double>("double");
}
