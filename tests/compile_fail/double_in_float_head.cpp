// SPDX-License-Identifier: Apache-2.0
#include <castle/castle.hpp>

// A head has one scalar; nothing is converted silently.
castle::Qkv<float> head_of(const castle::Matrix<double>& doubles, const castle::Matrix<float>& floats) {
#ifdef CASTLE_COMPILE_FAIL
    const castle::Qkv<float> head{.q = doubles};  // error: ConstMatrixView<float>
#else
    const castle::Qkv<float> head{.q = floats};
#endif
    return head;
}
