// SPDX-License-Identifier: Apache-2.0
#include <castle/castle.hpp>

using Views = castle::Qkv<castle::ConstMatrixView<float>>;

// An expression has no memory to look at.
Views head_of(const castle::Matrix<float>& a, const castle::Matrix<float>& b, const castle::Matrix<float>& sum) {
#ifdef CASTLE_COMPILE_FAIL
    const Views head{.q = a + b};  // error: ConstMatrixView<float>
#else
    const Views head{.q = sum};
#endif
    return head;
}
