// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include <castle/castle.hpp>

// A vector does not say how many rows it holds.
castle::Qkv<float> head_of(const std::vector<float>& numbers, castle::Index rows, castle::Index d) {
#ifdef CASTLE_COMPILE_FAIL
    const castle::Qkv<float> head{.q = numbers};  // error: ConstMatrixView<float>
#else
    const castle::Qkv<float> head{.q = {numbers.data(), rows, d}};
#endif
    return head;
}
