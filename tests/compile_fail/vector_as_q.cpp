// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include <castle/castle.hpp>

using Views = castle::Qkv<castle::ConstMatrixView<float>>;

// A vector does not say how many rows it holds.
Views head_of(const std::vector<float>& elements, castle::Index rows, castle::Index d) {
#ifdef CASTLE_COMPILE_FAIL
    const Views head{.q = elements};  // error: ConstMatrixView<float>
#else
    const Views head{.q = {elements.data(), rows, d}};
#endif
    return head;
}
