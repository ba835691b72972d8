// SPDX-License-Identifier: Apache-2.0
#include "attention.hpp"

Outputs native_outputs() { return compute_outputs(); }
Outputs native_outputs_after(const std::string& saved) { return outputs_after(saved); }
