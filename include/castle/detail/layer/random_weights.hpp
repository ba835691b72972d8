// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <random>

#include <castle/input.hpp>
#include <castle/layer_weights.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Uniform with variance 1 / rows: outputs are about as large as inputs. Made from the generator's bits directly and row
// by row, since the standard's distributions differ between libraries and a seed should mean the same everywhere.
template <ComputeScalar T>
Matrix<T> random_matrix(Index rows, Index cols, std::mt19937_64& bits) {
    const double bound = std::sqrt(3.0 / static_cast<double>(rows));
    Matrix<T> m(rows, cols);
    for (Index i = 0; i < rows; ++i) {
        for (Index j = 0; j < cols; ++j) {
            const double unit = static_cast<double>(bits() >> 11) * 0x1p-53;
            m(i, j) = static_cast<T>(bound * (2 * unit - 1));
        }
    }
    return m;
}

// Of a layer whose config is complete.
template <ComputeScalar T>
LayerWeights<T> random_weights(const LayerConfig& config, bool has_lookahead) {
    std::mt19937_64 bits(config.seed);
    const Index queries = config.heads * config.d_head, keys = config.kv_heads * config.d_head;
    const auto qkv = [&](Index q_cols) {
        Qkv<Matrix<T>> w;
        w.q = random_matrix<T>(config.d_model, q_cols, bits);
        w.k = random_matrix<T>(config.d_model, keys, bits);
        w.v = random_matrix<T>(config.d_model, keys, bits);
        return w;
    };
    LayerWeights<T> weights;
    weights.causal = qkv(queries);
    if (has_lookahead) weights.lookahead = qkv(keys);
    weights.w_out = random_matrix<T>(queries, config.d_model, bits);
    return weights;
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
