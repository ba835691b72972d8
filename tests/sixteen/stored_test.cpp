// SPDX-License-Identifier: Apache-2.0
#define CASTLE_TEST_SIXTEEN_BITS

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/generators.hpp"
#include "support/message.hpp"
#include "support/runs.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// 16-bit scalars: how they are read and written, and what caches, workspaces and layers of them come to. The
// promises about bits are those of other tests, which are compiled once more for them.
namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

template <class T>
class Stored : public ::testing::Test {};
TYPED_TEST_SUITE(Stored, support::Scalars);

template <class T>
T of_bits(std::uint16_t bits) {
    return std::bit_cast<T>(bits);
}
template <class T>
std::uint16_t bits_of(T x) {
    return std::bit_cast<std::uint16_t>(x);
}

// What the bits say: sign, exponent and fraction.
template <class T>
double value_of(std::uint16_t bits) {
    constexpr int fraction_bits = std::is_same_v<T, castle::half> ? 10 : 7;
    constexpr int bias = std::is_same_v<T, castle::half> ? 15 : 127;
    const int exponent = (bits & 0x7fff) >> fraction_bits, fraction = bits & ((1 << fraction_bits) - 1);
    const double sign = (bits & 0x8000) != 0 ? -1 : 1;
    if (exponent == 2 * bias + 1) {
        return fraction != 0 ? std::numeric_limits<double>::quiet_NaN()
                             : sign * std::numeric_limits<double>::infinity();
    }
    return exponent == 0 ? sign * std::ldexp(fraction, 1 - bias - fraction_bits)
                         : sign * std::ldexp((1 << fraction_bits) + fraction, exponent - bias - fraction_bits);
}

using S = castle::detail::Simd<float>;

TYPED_TEST(Stored, NumbersAreWidenedExactly) {
    using T = TypeParam;
    std::array<T, std::size_t(S::width)> some{};
    std::array<float, std::size_t(S::width)> wide{}, spread{};
    for (std::uint32_t first = 0; first <= 0xffff; first += std::uint32_t(S::width)) {
        for (std::size_t i = 0; i < some.size(); ++i) some[i] = of_bits<T>(std::uint16_t(first + i));
        S::store(wide.data(), S::load(some.data()));
        for (std::size_t i = 0; i < some.size(); ++i) {
            const double expected = value_of<T>(std::uint16_t(first + i));
            S::store(spread.data(), S::broadcast(some.data() + i));
            for (const float x : {wide[i], spread[i], spread.back(), castle::detail::widened(some[i])}) {
                if (std::isnan(expected)) {
                    ASSERT_TRUE(std::isnan(x)) << first + i;
                } else {
                    ASSERT_TRUE(same_bits(x, static_cast<float>(expected))) << first + i;
                }
            }
        }
    }
}

// To the nearest, and to the even one of two: numbers that are stored, those half-way between two, and their neighbours
// on both sides.
TYPED_TEST(Stored, NumbersAreRoundedToTheNearest) {
    using T = TypeParam;
    const auto rounded = [](float x) {
        std::array<float, std::size_t(S::width)> wide{};
        std::array<T, std::size_t(S::width)> some{};
        wide.fill(x);
        S::store(some.data(), S::load(wide.data()));
        const T alone = castle::detail::narrowed<T>(x);
        for (const T y : some) EXPECT_EQ(bits_of(y), bits_of(alone)) << x;
        return bits_of(alone);
    };
    const std::uint16_t infinity = std::is_same_v<T, castle::half> ? 0x7c00 : 0x7f80;
    for (std::uint16_t bits = 0; bits < infinity; ++bits) {
        const double here = value_of<T>(bits);
        // Beyond the largest number there would be one as far away as the last but one.
        const double next = bits + 1 < infinity ? value_of<T>(std::uint16_t(bits + 1))
                                                : 2 * here - value_of<T>(std::uint16_t(bits - 1));
        const float half_way = static_cast<float>((here + next) / 2);
        ASSERT_EQ(static_cast<double>(half_way), (here + next) / 2);
        const auto even = std::uint16_t(bits % 2 == 0 ? bits : bits + 1);
        for (const float sign : {1.0f, -1.0f}) {
            const std::uint16_t sign_bit = sign < 0 ? 0x8000 : 0;
            ASSERT_EQ(rounded(sign * static_cast<float>(here)), bits | sign_bit);
            ASSERT_EQ(rounded(sign * half_way), even | sign_bit);
            ASSERT_EQ(rounded(sign * std::nextafter(half_way, 0.0f)), bits | sign_bit);
            ASSERT_EQ(rounded(sign * std::nextafter(half_way, INFINITY)), std::uint16_t(bits + 1) | sign_bit);
        }
    }
    EXPECT_EQ(rounded(INFINITY), infinity);
    EXPECT_EQ(rounded(-INFINITY), infinity | 0x8000);
    EXPECT_TRUE(std::isnan(value_of<T>(rounded(std::numeric_limits<float>::quiet_NaN()))));
    EXPECT_EQ(rounded(std::numeric_limits<float>::max()), infinity);
}

// Every quantity within the bound that is derived for it, and the bounds are tight enough to tell the scalar by.
TYPED_TEST(Stored, FormsMatchOracle) {
    using T = TypeParam;
    std::uint64_t seed = 18000;
    for (const Sizes sizes : {Sizes{1, 1, 1}, Sizes{33, 3, 4}, Sizes{70, 20, 9}, Sizes{260, 16, 8}}) {
        for (const Index window : {Index(0), Index(1), Index(40), Index(100), castle::unlimited}) {
            Random random(++seed);
            SCOPED_TRACE(describe("seed ", seed, ", ", sizes, ", window ", window));
            const Head<T> head = random_head<T>(random, sizes, 0.3);
            const castle::Options options{.lookahead_window = window};
            const oracle::Head<double> in_double = oracle_head(head);
            const oracle::Settings settings = oracle_settings(sizes.d, options);
            const auto exact = oracle::evaluate(in_double, settings);
            const auto bounds = error_bounds<T>(in_double, settings, exact);
            const Outcome<T> outcome = run_at_once(head.input(), options);
            EXPECT_TRUE(within(outcome.output, exact.output, bounds.output));
            EXPECT_TRUE(within(run_recurrent(head.input(), options), exact.output, bounds.output));
            if (window > 0) {
                EXPECT_TRUE(within(outcome.lookahead_keys, exact.lookahead_keys, bounds.lookahead_keys));
            }
            // The bounds say something: no more than some roundings of an output, which is of size 1. That of the
            // roundings of factors is for the worst of all signs, and grows with the sums.
            if (!castle::detail::multiplies_pairs<T> || sizes.length < 50) {
                EXPECT_LE(largest(bounds.output), 300 * unit_roundoff<T>);
            }
            if (this->HasFailure()) return;
        }
    }
}

// A cache that is fed with float: what it stores is rounded, gates included; queries, K^U and V^U are where products
// are of pairs, and outputs are not.
TYPED_TEST(Stored, CachesTakeFloat) {
    using T = TypeParam;
    Random random(18100);
    const castle::Shape shape{.d = 12, .dv = 9, .heads = 4, .kv_heads = 2};
    const Index length = 300;
    const Head<float> head = random_heads<float>(random, length, shape, 0.3);
    Head<float> stored = head;
    for (Matrix<float>* m : {&stored.kc, &stored.vc, &stored.qu}) {
        for (Index i = 0; i < m->size(); ++i) {
            m->data()[i] = castle::detail::widened(castle::detail::narrowed<T>(m->data()[i]));
        }
    }
    for (const Index window : {Index(0), Index(70), castle::unlimited}) {
        SCOPED_TRACE(describe("window ", window));
        const castle::Options options{.lookahead_window = window};
        const auto run = [&](const Head<float>& x, const std::vector<Index>& chunks) {
            castle::UqKvCache<T> cache(shape, options);
            return written<float>(length, shape.heads * shape.dv, [&](castle::MatrixView<float> out) {
                Index first = 0;
                for (const Index chunk : chunks) {
                    castle::extend(cache, x.input().tokens(first, chunk), out.middle_rows(first, chunk));
                    first += chunk;
                }
            });
        };
        const Matrix<float> whole = run(head, {length});
        EXPECT_TRUE(same_bits(whole, run(stored, {length})));
        EXPECT_TRUE(same_bits(whole, run(head, random_split(random, length))));
        const Matrix<float> in_float = run_parallel(shape, stored.input(), options);
        // Without lookahead nothing else is rounded.
        const bool is_exact = window == 0 && !castle::detail::multiplies_pairs<T>;
        EXPECT_EQ(bool(same_bits(whole, in_float)), is_exact);
        EXPECT_LE(double((whole - in_float).norm() / in_float.norm()), 4 * unit_roundoff<T>);

        // Of numbers that need no rounding outputs are those of 16 bits, but for their own rounding.
        Head<T> narrow(length, shape);
        Head<float> wide(length, shape);
        for (std::size_t i = 0; i < narrow.all().size(); ++i) {
            fill_normal(random, *narrow.all()[i], 0.5);
            *wide.all()[i] = narrow.all()[i]->template cast<float>();
        }
        const Matrix<float> of_wide = run(wide, random_split(random, length));
        const Matrix<T> of_narrow = run_parallel(shape, narrow.input(), options);
        for (Index i = 0; i < of_wide.size(); ++i) {
            ASSERT_EQ(bits_of(castle::detail::narrowed<T>(of_wide.data()[i])), bits_of(of_narrow.data()[i]));
        }
        // Several caches at once.
        castle::UqKvCache<T> one(shape, options), two(shape, options);
        const std::vector<castle::UqKvCache<T>*> both = {&one, &two};
        const Matrix<float> ragged = written<float>(length, shape.heads * shape.dv, [&](castle::MatrixView<float> out) {
            castle::extend<T>(both, std::vector<Index>{length - 40, 40}, wide.input(),
                              castle::Output<float>{.out = out});
        });
        EXPECT_TRUE(same_bits(Matrix<float>(ragged.topRows(length - 40)), Matrix<float>(of_wide.topRows(length - 40))));
    }
}

// Half the bytes of what is stored; U that may change and the open block are in float.
TYPED_TEST(Stored, CachesTakeTheBytesThatTheySay) {
    using T = TypeParam;
    for (const Index d : {Index(64), Index(128)}) {
        const castle::Shape shape{.d = d, .dv = d, .heads = 8, .kv_heads = 8};
        const Index tokens = 4096;
        const auto ratio = [&](Index window, Index rollback) {
            const castle::Options options{.lookahead_window = window};
            return double(castle::UqKvCache<T>(shape, options, rollback).bytes_for(tokens)) /
                   double(castle::UqKvCache<float>(shape, options, rollback).bytes_for(tokens));
        };
        EXPECT_LE(ratio(0, 0), 0.51);
        EXPECT_LE(ratio(128, 0), 0.55);
        EXPECT_LE(ratio(castle::unlimited, 0), 0.63);
    }

    Random random(18200);
    const castle::Shape small{.d = 12, .dv = 9, .heads = 2, .kv_heads = 2};
    const Head<T> head = random_heads<T>(random, 500, small);
    for (const Index window : {Index(0), Index(70), castle::unlimited}) {
        castle::UqKvCache<T> cache(small, {.lookahead_window = window}, 40);
        const Index expected = cache.bytes_for(500);
        cache.reserve(500);
        EXPECT_EQ(cache.bytes().total(), expected);
        castle::extend(cache, head.input());
        EXPECT_EQ(cache.bytes().total(), expected);
    }
}

TYPED_TEST(Stored, FilesOfOtherScalarsAreRejected) {
    using T = TypeParam;
    Random random(18300);
    const Head<T> head = random_head<T>(random, {.length = 40, .d = 4, .dv = 3});
    castle::UqKvCache<T> cache(shape_of(head));
    castle::extend(cache, head.input());
    std::stringstream file;
    cache.save(file);
    const bool is_half = std::is_same_v<T, castle::half>;
    const std::string own = is_half ? "half" : "bfloat16";
    const auto load = [&]<class Other>(const Other&) {
        file.clear();
        file.seekg(0);
        return message<std::runtime_error>([&] { castle::UqKvCache<Other>::load(file); });
    };
    EXPECT_EQ(load(float()), "castle::load: the saved cache has elements of " + own + ", not of float");
    EXPECT_EQ(load(double()), "castle::load: the saved cache has elements of " + own + ", not of double");
    if (is_half) {
        EXPECT_EQ(load(castle::bfloat16()), "castle::load: the saved cache has elements of half, not of bfloat16");
    } else {
        EXPECT_EQ(load(castle::half()), "castle::load: the saved cache has elements of bfloat16, not of half");
    }
}

// What a token holds, infinities and NaN among it, is nothing to the rows before it, whichever of a pair it is.
TYPED_TEST(Stored, PoisonReachesNoEarlierRow) {
    using T = TypeParam;
    Random random(18350);
    for (const Index length : {Index(40), Index(150)}) {
        for (const Index window : {Index(0), Index(1), Index(37), castle::unlimited}) {
            const castle::Options options{.lookahead_window = window};
            Head<T> head = random_head<T>(random, {length, 5, 4});
            const Matrix<T> clean = run_parallel(head.input(), options);
            for (int trial = 0; trial < 40; ++trial) {
                Matrix<T>& x = *head.all()[std::size_t(random.integer(0, 5))];
                const Index t = random.integer(0, length - 1);
                const Matrix<T> before = x;
                const float bad = random.integer(0, 1) == 0 ? std::numeric_limits<float>::quiet_NaN()
                                                            : std::numeric_limits<float>::infinity();
                x(t, random.integer(0, x.cols() - 1)) = static_cast<T>(bad);
                const Matrix<T> poisoned = run_parallel(head.input(), options);
                x = before;
                ASSERT_TRUE(same_bits(Matrix<T>(clean.topRows(t)), Matrix<T>(poisoned.topRows(t))))
                    << "length " << length << ", window " << window << ", token " << t;
            }
        }
    }
}

// Gradients in float of inputs in 16 bits. What is rounded on the way, gates, lookahead keys and, where products are of
// pairs, their factors, passes its gradient on as if it were not: they are those of float but for these roundings, each
// of which shifts an element by at most a unit, and the norm of a gradient by as much of its own.
TYPED_TEST(Stored, GradientsMatchThoseOfFloat) {
    using T = TypeParam;
    std::uint64_t seed = 18400;
    for (const Sizes sizes : {Sizes{3, 1, 1}, Sizes{210, 5, 4}, Sizes{333, 32, 17}}) {
        for (const Index window : {Index(0), Index(20), Index(100), castle::unlimited}) {
            Random random(++seed);
            SCOPED_TRACE(describe("seed ", seed, ", ", sizes, ", window ", window));
            Head<T> head = random_head<T>(random, sizes, 0.3);
            Head<float> wide(sizes.length, shape_of(head));
            for (std::size_t i = 0; i < wide.all().size(); ++i) {
                *wide.all()[i] = head.all()[i]->template cast<float>();
            }
            const castle::Options options{.lookahead_window = window};
            Matrix<float> d_out(sizes.length, sizes.dv);
            fill_normal(random, d_out);

            castle::Workspace<T> workspace(shape_of(head), options);
            const Matrix<T> out = written<T>(sizes.length, sizes.dv, [&](castle::MatrixView<T> to) {
                castle::forward(workspace, head.input(), to);
            });
            EXPECT_TRUE(same_bits(out, run_parallel(head.input(), options)));
            const castle::Gradient<float> g = castle::backward(workspace, head.input(), d_out);

            castle::Workspace<float> wide_workspace(shape_of(head), options);
            written<float>(sizes.length, sizes.dv,
                           [&](castle::MatrixView<float> to) { castle::forward(wide_workspace, wide.input(), to); });
            const castle::Gradient<float> expected = castle::backward(wide_workspace, wide.input(), d_out);
            const auto parts = [](const castle::Gradient<float>& x) {
                return std::array<const Matrix<float>*, 6>{&x.causal.q,    &x.causal.k,    &x.causal.v,
                                                           &x.lookahead.q, &x.lookahead.k, &x.lookahead.v};
            };
            for (std::size_t i = 0; i < input_names.size(); ++i) {
                const Matrix<float>&own = *parts(g)[i], &other = *parts(expected)[i];
                EXPECT_LE(double((own - other).norm()), 8 * unit_roundoff<T> * double(other.norm())) << input_names[i];
            }
        }
    }
}

// A layer of 16-bit weights is one of float with these weights, but for the rounding of what it stores and puts out.
TYPED_TEST(Stored, LayersMatchThoseOfFloat) {
    using T = TypeParam;
    const castle::LayerConfig config{
        .d_model = 40, .heads = 4, .kv_heads = 2, .d_head = 12, .rotary = castle::Rotary{}, .seed = 7};
    const Index length = 200;
    Random random(18500);
    Matrix<T> x(length, config.d_model);
    fill_normal(random, x);
    const Matrix<float> wide_x = x.template cast<float>();
    Matrix<float> d_y(length, config.d_model);
    fill_normal(random, d_y);
    for (const Index window : {Index(0), Index(40), castle::unlimited}) {
        SCOPED_TRACE(describe("window ", window));
        const castle::Options options{.lookahead_window = window};
        castle::Layer<T> layer(config, options);
        // Masters of float, rounded.
        const castle::Layer<float> masters(config, options);
        layer.set_weights(masters.weights());
        const castle::LayerWeights<T> weights = layer.weights();
        castle::LayerWeights<float> rounded = masters.weights();
        const auto from = castle::detail::projections_of(weights);
        const auto to = castle::detail::projections_of(rounded);
        for (std::size_t i = 0; i < to.size(); ++i) *to[i] = from[i]->template cast<float>();
        rounded.w_out = weights.w_out.template cast<float>();
        const castle::Layer<float> in_float(config, rounded, options);

        // Keys, values, queries of the gates and the output are rounded once each.
        const double bound = 4 * unit_roundoff<T>;
        const auto off = [](const Matrix<float>& a, const Matrix<float>& b) {
            return double((a - b).norm()) / double(b.norm());
        };
        const Matrix<T> y = layer.forward(x);
        EXPECT_LE(off(y.template cast<float>(), in_float.forward(wide_x)), bound);

        castle::LayerCache<T> cache = layer.make_cache();
        Matrix<T> in_pieces(length, config.d_model);
        Index first = 0;
        for (const Index count : random_split(random, length)) {
            layer.extend(cache, castle::ConstMatrixView<T>(x).middle_rows(first, count),
                         castle::MatrixView<T>(in_pieces).middle_rows(first, count));
            first += count;
        }
        EXPECT_TRUE(same_bits(in_pieces, y));
        std::stringstream file;
        cache.save(file);
        castle::LayerCache<T> loaded = layer.load_cache(file), fork = cache.fork();
        const Matrix<T> next = x.topRows(3), more = layer.extend(cache, next);
        EXPECT_TRUE(same_bits(layer.extend(loaded, next), more));
        EXPECT_TRUE(same_bits(layer.extend(fork, next), more));

        castle::LayerWorkspace<T> workspace = layer.make_workspace();
        Matrix<T> trained(length, config.d_model);
        layer.forward(workspace, x, trained);
        EXPECT_TRUE(same_bits(trained, y));
        const castle::LayerGradient<float> g = layer.backward(workspace, x, d_y);
        castle::LayerWorkspace<float> wide_workspace = in_float.make_workspace();
        Matrix<float> wide_y(length, config.d_model);
        in_float.forward(wide_workspace, wide_x, wide_y);
        const castle::LayerGradient<float> expected = in_float.backward(wide_workspace, wide_x, d_y);
        EXPECT_LE(off(g.x, expected.x), bound);
        std::vector<const Matrix<float>*> own, others;
        g.weights.for_each([&](std::string_view, const Matrix<float>& m) { own.push_back(&m); });
        expected.weights.for_each([&](std::string_view, const Matrix<float>& m) { others.push_back(&m); });
        for (std::size_t i = 0; i < own.size(); ++i) EXPECT_LE(off(*own[i], *others[i]), bound) << i;
    }
}

}  // namespace
