// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <vector>

#include "matrices.hpp"

namespace model {

/// Each token as the rows of one table that its embedding is the sum of: a word and a value, for example.
using TokenRows = std::vector<std::vector<Index>>;

inline Matrix embed(const TokenRows& tokens, const Matrix& table) {
    Matrix x = Matrix::Zero(Index(tokens.size()), table.cols());
    for (Index t = 0; t < x.rows(); ++t) {
        for (const Index row : tokens[std::size_t(t)]) x.row(t) += table.row(row);
    }
    return x;
}

/// Adds the gradient of the table, from that of the embedded tokens.
inline void add_gradient(const TokenRows& tokens, const Matrix& d_x, Matrix& d_table) {
    for (Index t = 0; t < d_x.rows(); ++t) {
        for (const Index row : tokens[std::size_t(t)]) d_table.row(row) += d_x.row(t);
    }
}

}  // namespace model
