// SPDX-License-Identifier: Apache-2.0
#include "support/kernels.hpp"

CASTLE_TEST_KERNELS(, float, float)
CASTLE_TEST_DENSE_FORMS(, float)
