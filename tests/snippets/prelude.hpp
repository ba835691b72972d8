// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/castle.hpp>

// The names that a code block in the documents may use without declaring them.
namespace snippets {

using Matrix = castle::Matrix<float>;

inline constexpr castle::Index length = 80, d = 64, dv = 64, d_model = 512;

// `[L, d]` or `[L, dv]` each
inline const Matrix qc = Matrix::Random(length, d), kc = Matrix::Random(length, d), vc = Matrix::Random(length, dv);
inline const Matrix qu = Matrix::Random(length, d), ku = Matrix::Random(length, d), vu = Matrix::Random(length, d);

inline const castle::Input<float> input{.causal = {.q = qc, .k = kc, .v = vc},
                                        .lookahead = {.q = qu, .k = ku, .v = vu}};
inline const castle::Input<float> prompt = input.tokens(0, length - 1);
inline const castle::Input<float> token = input.tokens(length - 1, 1);
inline Matrix y_row(1, dv);

inline castle::UqKvCache<float> cache({.d = d, .dv = dv});

// What a layer reads, `[L, d_model]`.
inline const Matrix x = Matrix::Random(length, d_model);

}  // namespace snippets

using namespace snippets;
