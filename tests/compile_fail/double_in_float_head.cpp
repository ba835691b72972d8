// SPDX-License-Identifier: Apache-2.0
#include <castle/castle.hpp>

using Views = castle::Qkv<castle::ConstMatrixView<float>>;

// A head has one scalar; nothing is converted silently.
Views head_of(const castle::Matrix<double>& doubles, const castle::Matrix<float>& floats) {
#ifdef CASTLE_COMPILE_FAIL
    const Views head{.q = doubles};  // error: ConstMatrixView<float>
#else
    const Views head{.q = floats};
#endif
    return head;
}
