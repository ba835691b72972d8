// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include <castle/castle.hpp>

#include "outputs.hpp"

// What each translation unit of the program does, with internal linkage: all that the linker can merge is the library.
namespace {

castle::Matrix<float> projection(castle::Index length, castle::Index d, float phase) {
    castle::Matrix<float> m(length, d);
    for (castle::Index i = 0; i < m.size(); ++i) m.data()[i] = std::sin(phase + 0.7F * static_cast<float>(i));
    return m;
}

Outputs compute_outputs() {
    constexpr castle::Index length = 150, d = 19, dv = 21;
    const auto qc = projection(length, d, 0), kc = projection(length, d, 1), vc = projection(length, dv, 2);
    const auto qu = projection(length, d, 3), ku = projection(length, d, 4), vu = projection(length, d, 5);
    const castle::HeadInput<float> head{.causal = {.q = qc, .k = kc, .v = vc},
                                        .lookahead = {.q = qu, .k = ku, .v = vu}};

    castle::UqKvCache<float> cache({.d = d, .dv = dv});
    castle::extend(cache, head.tokens(0, 70));
    castle::extend(cache, head.tokens(70, length - 70));

    // The textbook forms are left out: they are expressions of Eigen's, whose functions have one name for all
    // instruction sets.
    Outputs outputs;
    for (const castle::Matrix<float>& m :
         {castle::parallel(head), castle::causal_attention(qc, kc, vc), cache.lookahead_keys()}) {
        outputs.insert(outputs.end(), m.data(), m.data() + m.size());
    }
    return outputs;
}

}  // namespace
