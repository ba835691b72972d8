// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include <castle/castle.hpp>

// A program of somebody who uses the library. Ends with 0 if what it computes is right.
int main() {
    constexpr castle::Index length = 3;
    const castle::Matrix<float> zeros = castle::Matrix<float>::Zero(length, 2);
    castle::Matrix<float> values(length, 2);
    values << 1, 2, 3, 4, 5, 6;
    const castle::Input<float> input{.causal = {.q = zeros, .k = zeros, .v = values},
                                     .lookahead = {.q = zeros, .k = zeros, .v = values}};

    // All queries are zero, hence all scores: each output is the mean of the values so far.
    castle::Matrix<float> means(length, 2);
    means << 1, 2, 2, 3, 3, 4;
    // All gates are 1/2: a lookahead key is half the sum of the values that follow.
    castle::Matrix<float> half_sums(length, 2);
    half_sums << 4, 5, 2.5F, 3, 0, 0;

    castle::UqKvCache<float> cache({.d = 2, .dv = 2});
    const castle::Matrix<float> outputs = castle::extend(cache, input);
    const bool right = outputs.isApprox(means) && cache.lookahead_keys().isApprox(half_sums) &&
                       castle::parallel(input).isApprox(means) && castle::recurrent(input).isApprox(means);
    std::printf("castle %d.%d.%d: %s\n", CASTLE_VERSION_MAJOR, CASTLE_VERSION_MINOR, CASTLE_VERSION_PATCH,
                right ? "right" : "wrong");
    return right ? 0 : 1;
}
