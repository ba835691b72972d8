// SPDX-License-Identifier: Apache-2.0
#include <means.hpp>

// Ends with 0 if what the library computes is right.
int main() {
    castle::Matrix<float> values(3, 2), means(3, 2);
    values << 1, 2, 3, 4, 5, 6;
    means << 1, 2, 2, 3, 3, 4;
    return means_so_far(values).isApprox(means) ? 0 : 1;
}
