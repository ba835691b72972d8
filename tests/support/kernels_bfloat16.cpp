// SPDX-License-Identifier: Apache-2.0
#include "support/kernels.hpp"

CASTLE_TEST_KERNELS(, bfloat16, float)
CASTLE_TEST_MIXED_KERNELS(, bfloat16, float)
