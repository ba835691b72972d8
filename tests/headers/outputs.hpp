// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

using Outputs = std::vector<float>;

Outputs baseline_outputs();
Outputs baseline_outputs_again();
Outputs native_outputs();
