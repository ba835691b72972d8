// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/types.hpp>

// Row t of the result is the mean of the rows up to t of `values`.
castle::Matrix<float> means_so_far(castle::ConstMatrixView<float> values);
