// SPDX-License-Identifier: Apache-2.0
#include <castle/castle.hpp>

using Views = castle::Qkv<castle::ConstMatrixView<float>>;

// A view cannot look at a column-major matrix, and does not copy it. The first mistake of every newcomer, so the
// compiler's message has the words:
// message: row_major_matrix
Views head_of(const Eigen::MatrixXf& columns, const castle::Matrix<float>& rows) {
#ifdef CASTLE_COMPILE_FAIL
    const Views head{.q = columns};  // error: ConstMatrixView
#else
    const Views head{.q = rows};
#endif
    return head;
}
