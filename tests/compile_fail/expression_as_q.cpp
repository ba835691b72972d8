// SPDX-License-Identifier: Apache-2.0
#include <castle/castle.hpp>

// An expression has no memory to look at.
castle::Qkv<float> head_of(const castle::Matrix<float>& a, const castle::Matrix<float>& b,
                           const castle::Matrix<float>& sum) {
#ifdef CASTLE_COMPILE_FAIL
    const castle::Qkv<float> head{.q = a + b};  // error: ConstMatrixView<float>
#else
    const castle::Qkv<float> head{.q = sum};
#endif
    return head;
}
