// SPDX-License-Identifier: Apache-2.0
#include <castle/castle.hpp>

// message: row_major_matrix
void turn(Eigen::MatrixXf& columns, castle::Matrix<float>& rows) {
#ifdef CASTLE_COMPILE_FAIL
    castle::rotate(columns, 0);  // error: rotate
#else
    castle::rotate(rows, 0);
    static_cast<void>(columns);
#endif
}
