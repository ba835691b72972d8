// SPDX-License-Identifier: Apache-2.0
#include <castle/castle.hpp>

// Nothing is written into a const matrix.
castle::MatrixView<float> output(const castle::Matrix<float>& constant, castle::Matrix<float>& writable) {
#ifdef CASTLE_COMPILE_FAIL
    return constant;  // error: MatrixView<float>
#else
    return writable;
#endif
}
