// SPDX-License-Identifier: Apache-2.0
#include <castle/castle.hpp>

using Views = castle::Qkv<castle::ConstMatrixView<float>>;

// A temporary Eigen::Ref to const may hold the only copy of what it refers to.
castle::Index rows_of(const castle::Matrix<float>& m) {
    using Ref = Eigen::Ref<const castle::Matrix<float>>;
    const Ref ref = m;
#ifdef CASTLE_COMPILE_FAIL
    const Views head{.q = Ref(ref)};  // error: ConstMatrixView<float>
#else
    const Views head{.q = ref};
#endif
    return head.q.rows();
}
