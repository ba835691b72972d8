// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include <castle/types.hpp>

// What comes between the products, for the peers whose library has nothing but products: Eigen's vectorised arrays over
// the rows, and of each row only the keys that its token sees. Rows are the tokens from `first` on, columns are keys.
namespace castle_bench::peers {

using castle::Index;
using Matrix = castle::Matrix<float>;
using Rows = Eigen::Ref<Matrix>;

inline float scale_of(const castle::ConstMatrixView<float>& q) {
    return 1.0F / std::sqrt(static_cast<float>(q.cols()));
}

/// `scale K^U Q^U^T` becomes the gates of eq. 11, transposed: row `t` holds how far each earlier token absorbs `t`, and
/// 0 for the others.
inline void to_gates(Rows rows, Index first) {
    for (Index i = 0; i < rows.rows(); ++i) {
        const Index earlier = first + i;
        rows.row(i).head(earlier) = rows.row(i).head(earlier).array().logistic();
        rows.row(i).tail(rows.cols() - earlier).setZero();
    }
}

/// `S^C` becomes `S^C - SiLU(S^U)`.
inline void subtract_silu(Rows causal_scores, const Rows& lookahead_scores, Index first) {
    for (Index i = 0; i < causal_scores.rows(); ++i) {
        const auto x = lookahead_scores.row(i).head(first + i + 1).array();
        causal_scores.row(i).head(first + i + 1).array() -= x * x.logistic();
    }
}

/// Scores become weights; those of later tokens are left as they are.
inline void softmax(Rows rows, Index first) {
    for (Index i = 0; i < rows.rows(); ++i) {
        auto row = rows.row(i).head(first + i + 1);
        row = (row.array() - row.maxCoeff()).exp();
        row /= row.sum();
    }
}

/// The weights of later tokens, which a product would add.
inline void zero_later(Rows rows, Index first) {
    for (Index i = 0; i < rows.rows(); ++i) {
        rows.row(i).tail(rows.cols() - (first + i + 1)).setZero();
    }
}

}  // namespace castle_bench::peers
