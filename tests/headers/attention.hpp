// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/castle.hpp>

#include "outputs.hpp"

// What each translation unit of the program does, with internal linkage: all that the linker can merge is the library.
namespace {

castle::Matrix<float> projection(castle::Index cols, float phase) {
    castle::Matrix<float> m(Operands::length, cols);
    for (castle::Index i = 0; i < m.size(); ++i) m.data()[i] = Operands::number(phase, i);
    return m;
}

Outputs compute_outputs() {
    constexpr castle::Index length = Operands::length, d = Operands::d, dv = Operands::dv;
    const auto qc = projection(d, 0), kc = projection(d, 1), vc = projection(dv, 2);
    const auto qu = projection(d, 3), ku = projection(d, 4), vu = projection(d, 5);
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
