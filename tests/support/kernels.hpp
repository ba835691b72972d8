// SPDX-License-Identifier: Apache-2.0
#pragma once

// This header is precompiled and comes first in all tests.
#include "support/eigen_allocations.hpp"

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/kernel_list.hpp"
