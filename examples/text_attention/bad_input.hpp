// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>

/// Something that the user can put right; what() is one line.
struct BadInput : std::runtime_error {
    using std::runtime_error::runtime_error;
};
