// SPDX-License-Identifier: Apache-2.0
#include <castle/castle.hpp>

using Views = castle::Qkv<castle::ConstMatrixView<float>>;

// A temporary that owns its elements takes them along when it dies.
castle::Index rows_of_zeros() {
    const castle::Matrix<float> zeros = castle::Matrix<float>::Zero(3, 4);
#ifdef CASTLE_COMPILE_FAIL
    const Views head{.q = castle::Matrix<float>(zeros)};  // error: ConstMatrixView<float>
#else
    const Views head{.q = zeros};
#endif
    return head.q.rows();
}
