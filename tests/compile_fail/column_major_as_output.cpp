// SPDX-License-Identifier: Apache-2.0
#include <castle/castle.hpp>

// Nor is anything written into a column-major matrix.
// message: row_major_matrix
castle::MatrixView<float> output(Eigen::MatrixXf& columns, castle::Matrix<float>& rows) {
#ifdef CASTLE_COMPILE_FAIL
    return columns;  // error: MatrixView
#else
    return rows;
#endif
}
