// SPDX-License-Identifier: Apache-2.0
#include <castle/castle.hpp>

// message: row_major_matrix
castle::Matrix<float> outputs_of(const Eigen::MatrixXf& columns, const castle::Matrix<float>& rows) {
#ifdef CASTLE_COMPILE_FAIL
    return castle::causal_attention(rows, columns, rows);  // error: causal_attention
#else
    return castle::causal_attention(rows, rows, rows);
#endif
}
