// SPDX-License-Identifier: Apache-2.0
#include <castle/castle.hpp>

// A temporary that owns its numbers takes them along when it dies.
castle::Index rows_of_zeros() {
    const castle::Matrix<float> zeros = castle::Matrix<float>::Zero(3, 4);
#ifdef CASTLE_COMPILE_FAIL
    const castle::Qkv<float> head{.q = castle::Matrix<float>(zeros)};  // error: ConstMatrixView<float>
#else
    const castle::Qkv<float> head{.q = zeros};
#endif
    return head.q.rows();
}
