// SPDX-License-Identifier: Apache-2.0
#include "support/kernels.hpp"

#ifndef CASTLE_TEST_FLOAT_ONLY
CASTLE_TEST_KERNELS(, half, float)
CASTLE_TEST_MIXED_KERNELS(, half, float)
#endif
