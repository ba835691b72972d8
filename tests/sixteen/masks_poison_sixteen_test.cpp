// SPDX-License-Identifier: Apache-2.0
#define CASTLE_TEST_SIXTEEN_BITS
#include "property/masks_poison_test.cpp"
