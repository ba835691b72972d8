// SPDX-License-Identifier: Apache-2.0
#include "attention.hpp"

Outputs baseline_outputs() { return compute_outputs(); }
std::string baseline_saved() { return saved_cache(); }
