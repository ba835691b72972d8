// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

// What passes between the unit that is compiled with reassociation and the one that is not. The second must not include
// Eigen or castle: the linker would keep one copy of their functions for both.
namespace compilers {

// The input of a head or its gradient, row-major.
struct Head {
    int length, d, dv;
    std::vector<double> qc, kc, vc, qu, ku, vu;
};

struct Result {
    std::vector<double> out;
    Head gradient;  // of the sum of all products of out and d_out
};

// Computed by castle, in float or in double.
Result attend_in_float(const Head& head, const std::vector<double>& d_out);
Result attend_in_double(const Head& head, const std::vector<double>& d_out);

}  // namespace compilers
