// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// The projections of one kind, causal or lookahead; head `h` owns the columns from `h d_head` on. A row is an input, a
/// column an output: tokens are rows, `x q`.
template <Scalar T>
struct ProjectionWeights {
    Matrix<T> q = {};  ///< `[d_model, heads * d_head]`
    Matrix<T> k = {};  ///< `[d_model, heads * d_head]`
    Matrix<T> v = {};  ///< `[d_model, heads * d_head]`
};

/// The weights of a multi-head layer by name; no biases (eq. 14). Each is `[in, out]`, the transpose of a PyTorch
/// `Linear.weight`, which is `[out, in]`. Where `heads * d_head` is `d_model` both are square, so that no shape tells
/// them apart: transpose what comes from there.
template <Scalar T>
struct MultiHeadWeights {
    ProjectionWeights<T> causal = {};
    ProjectionWeights<T> lookahead = {};  ///< left empty for standard attention
    Matrix<T> w_out = {};                 ///< `W_O`, `[heads * d_head, d_model]`
};

}  // namespace CASTLE_ABI
}  // namespace castle
