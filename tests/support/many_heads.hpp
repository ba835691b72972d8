// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/generators.hpp"
#include "support/gradient_oracle.hpp"
#include "support/gradients.hpp"
#include "support/runs.hpp"
#include "support/tolerances.hpp"

// Heads side by side, and the same heads one by one.
namespace support {

/// Shapes of every kind: a lone head, as many key-value heads as heads, groups of several sizes, one key-value head for
/// all, many heads; `d` and `dv` odd, even and different.
inline std::vector<castle::Shape> many_shapes() {
    return {{.d = 7, .dv = 5, .heads = 1, .kv_heads = 1},  {.d = 5, .dv = 9, .heads = 2, .kv_heads = 2},
            {.d = 16, .dv = 3, .heads = 4, .kv_heads = 2}, {.d = 3, .dv = 1, .heads = 6, .kv_heads = 3},
            {.d = 9, .dv = 17, .heads = 4, .kv_heads = 1}, {.d = 1, .dv = 8, .heads = 8, .kv_heads = 2},
            {.d = 2, .dv = 3, .heads = 40, .kv_heads = 1}};
}

/// Query heads on each key-value head.
inline Index group_of(const castle::Shape& shape) { return shape.heads / shape.kv_heads; }

/// The columns of input number m, of six, that query head h reads.
struct HeadColumns {
    Index first;
    Index count;

    bool contain(Index column) const { return column >= first && column < first + count; }
};
inline HeadColumns columns_of(const castle::Shape& shape, std::size_t m, Index h) {
    const Index width = m == 2 ? shape.dv : shape.d;
    return {.first = (m == 0 ? h : h / group_of(shape)) * width, .count = width};
}

/// The matrices of query head h alone.
template <class T>
Head<T> lone_head(Head<T> heads, const castle::Shape& shape, Index h) {
    Head<T> lone({heads.qc.rows(), shape.d, shape.dv});
    for (std::size_t m = 0; m < 6; ++m) {
        const HeadColumns columns = columns_of(shape, m, h);
        *lone.all()[m] = heads.all()[m]->middleCols(columns.first, columns.count);
    }
    return lone;
}

/// Of a matrix with the heads' outputs or their gradients side by side, `[L, heads dv]`, those of head h.
template <class T>
Matrix<T> output_of_head(const Matrix<T>& out, const castle::Shape& shape, Index h) {
    return out.middleCols(h * shape.dv, shape.dv);
}

/// Every query head computed alone, what it leaves behind side by side.
template <class T>
Outcome<T> run_head_by_head(const castle::Shape& shape, const castle::Input<T>& input,
                            const castle::Options& options = {}) {
    const Index rows = input.causal.q.rows();
    Outcome<T> all{.output = Matrix<T>(rows, shape.heads * shape.dv),
                   .lookahead_keys = Matrix<castle::Compute<T>>(rows, shape.kv_heads * shape.d)};
    for (Index h = 0; h < shape.heads; ++h) {
        const castle::Input<T> lone = input.head(shape, h);
        all.output.middleCols(h * shape.dv, shape.dv) = run_parallel(lone, options);
        if (h % group_of(shape) > 0) continue;
        all.lookahead_keys.middleCols(h / group_of(shape) * shape.d, shape.d) =
            run_at_once(lone, options).lookahead_keys;
    }
    return all;
}

template <class T>
void expect_same_outcome(const Outcome<T>& a, const Outcome<T>& b) {
    EXPECT_TRUE(same_bits(a.output, b.output)) << "of the outputs";
    EXPECT_TRUE(same_bits(a.lookahead_keys, b.lookahead_keys)) << "of the lookahead keys";
}

template <class T>
std::array<Matrix<T>*, 6> all_of(castle::Gradient<T>& g) {
    return {&g.causal.q, &g.causal.k, &g.causal.v, &g.lookahead.q, &g.lookahead.k, &g.lookahead.v};
}

/// The gradients of every query head alone: those of its queries side by side, those of what a group shares added up.
template <class T>
castle::Gradient<T> run_backward_head_by_head(const castle::Shape& shape, const castle::Input<T>& input,
                                              const Matrix<T>& d_out, const castle::Options& options = {}) {
    castle::Gradient<T> sum(d_out.rows(), shape, input.has_lookahead());
    for (Index h = 0; h < shape.heads; ++h) {
        const castle::Gradient<T> lone = run_backward(input.head(shape, h), output_of_head(d_out, shape, h), options);
        for (std::size_t m = 0; m < 6; ++m) {
            const Matrix<T>& part = *all_of(lone)[m];
            if (part.size() == 0) continue;
            const HeadColumns columns = columns_of(shape, m, h);
            auto to = all_of(sum)[m]->middleCols(columns.first, columns.count);
            if (m == 0 || h % group_of(shape) == 0) {
                to = part;
            } else {
                to += part;
            }
        }
    }
    return sum;
}

/// The same by the oracle, in S.
template <class S, class T>
oracle::Gradient<S> oracle_backward(const Head<T>& heads, const castle::Shape& shape, const Matrix<T>& d_out,
                                    const oracle::Settings& settings,
                                    oracle::Terms terms = oracle::Terms::as_they_are) {
    const Index length = d_out.rows(), keys = shape.kv_heads * shape.d;
    oracle::Gradient<S> sum{.qc = oracle::Rows<S>(length, shape.heads * shape.d),
                            .kc = oracle::Rows<S>(length, keys),
                            .vc = oracle::Rows<S>(length, shape.kv_heads * shape.dv),
                            .qu = oracle::Rows<S>(length, keys),
                            .ku = oracle::Rows<S>(length, keys),
                            .vu = oracle::Rows<S>(length, keys)};
    const std::array<oracle::Rows<S>*, 6> sums{&sum.qc, &sum.kc, &sum.vc, &sum.qu, &sum.ku, &sum.vu};
    for (Index h = 0; h < shape.heads; ++h) {
        const oracle::Gradient<S> lone =
            oracle::backward(oracle_head<S>(lone_head(heads, shape, h)),
                             oracle_rows<S>(output_of_head(d_out, shape, h)), settings, terms);
        for (std::size_t m = 0; m < 6; ++m) {
            const HeadColumns columns = columns_of(shape, m, h);
            for (Index t = 0; t < length; ++t) {
                for (Index k = 0; k < columns.count; ++k) {
                    (*sums[m])(t, columns.first + k) += (*all_of(lone)[m])(t, k);
                }
            }
        }
    }
    return sum;
}

}  // namespace support
