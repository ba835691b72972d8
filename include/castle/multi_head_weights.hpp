// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <random>

#include <castle/rope.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// The sizes of a multi-head layer, and how it begins.
struct MultiHeadConfig {
    Index d_model = 0;                            ///< of the layer's input and output
    Index heads = 0;                              ///< `n` of eq. 14
    Index d_head = 0;                             ///< `d` of every head, of its values as well
    std::optional<Rotary> rotary = std::nullopt;  ///< rotary position embedding; none unless given
    std::uint64_t seed = 0;                       ///< of the weights that the layer has until others are set
};

/// The projections of one kind, causal or lookahead; head `h` owns the columns from `h d_head` on.
template <Scalar T>
struct ProjectionWeights {
    Matrix<T> q = {};  ///< `[d_model, heads * d_head]`
    Matrix<T> k = {};  ///< `[d_model, heads * d_head]`
    Matrix<T> v = {};  ///< `[d_model, heads * d_head]`
};

/// The weights of a multi-head layer by name; no biases (eq. 14).
template <Scalar T>
struct MultiHeadWeights {
    ProjectionWeights<T> causal = {};
    ProjectionWeights<T> lookahead = {};  ///< left empty for standard attention
    Matrix<T> w_out = {};                 ///< `W_O`, `[heads * d_head, d_model]`
};

namespace detail {

// Uniform with variance 1 / rows: outputs are about as large as inputs. Made from the generator's bits directly, since
// the standard's distributions differ between libraries and a seed should mean the same everywhere.
template <Scalar T>
Matrix<T> random_matrix(Index rows, Index cols, std::mt19937_64& bits) {
    const double bound = std::sqrt(3.0 / static_cast<double>(rows));
    return Matrix<T>::NullaryExpr(rows, cols, [&](Index, Index) {
        const double unit = static_cast<double>(bits() >> 11) * 0x1p-53;
        return static_cast<T>(bound * (2 * unit - 1));
    });
}

template <Scalar T>
MultiHeadWeights<T> random_weights(const MultiHeadConfig& config, Index projections) {
    std::mt19937_64 bits(config.seed);
    const Index width = config.heads * config.d_head;
    const auto qkv = [&] {
        ProjectionWeights<T> w;
        w.q = random_matrix<T>(config.d_model, width, bits);
        w.k = random_matrix<T>(config.d_model, width, bits);
        w.v = random_matrix<T>(config.d_model, width, bits);
        return w;
    };
    MultiHeadWeights<T> weights;
    weights.causal = qkv();
    if (projections == 6) weights.lookahead = qkv();
    weights.w_out = random_matrix<T>(width, config.d_model, bits);
    return weights;
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
