// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sstream>
#include <string>

#include <castle/castle.hpp>

#include "outputs.hpp"

// What each translation unit of the program does, with internal linkage: all that the linker can merge is the library.
namespace {

castle::Matrix<float> projection(castle::Index cols, float phase) {
    castle::Matrix<float> m(Operands::length, cols);
    for (castle::Index i = 0; i < m.size(); ++i) m.data()[i] = Operands::element(phase, i);
    return m;
}

struct Head {
    castle::Matrix<float> qc = projection(Operands::d, 0), kc = projection(Operands::d, 1);
    castle::Matrix<float> vc = projection(Operands::dv, 2);
    castle::Matrix<float> qu = projection(Operands::d, 3), ku = projection(Operands::d, 4);
    castle::Matrix<float> vu = projection(Operands::d, 5);

    castle::Input<float> input() const {
        return {.causal = {.q = qc, .k = kc, .v = vc}, .lookahead = {.q = qu, .k = ku, .v = vu}};
    }
    castle::Input<float> before() const { return input().tokens(0, Operands::saved); }
    castle::Input<float> after() const { return input().tokens(Operands::saved, Operands::length - Operands::saved); }
};

castle::UqKvCache<float> cache_of(const castle::Input<float>& tokens) {
    castle::UqKvCache<float> cache({.d = Operands::d, .dv = Operands::dv});
    castle::extend(cache, tokens);
    return cache;
}

void append(Outputs& outputs, const castle::Matrix<float>& m) {
    outputs.insert(outputs.end(), m.data(), m.data() + m.size());
}

// The textbook forms are left out: they are expressions of Eigen's, whose functions have one name for all instruction
// sets.
[[maybe_unused]] Outputs compute_outputs() {
    const Head head;
    castle::UqKvCache<float> cache = cache_of(head.before());
    castle::extend(cache, head.after());
    Outputs outputs;
    append(outputs, castle::parallel(head.input()));
    append(outputs, castle::causal_attention(head.qc, head.kc, head.vc));
    append(outputs, cache.lookahead_keys());
    return outputs;
}

[[maybe_unused]] std::string saved_cache() {
    std::ostringstream file;
    cache_of(Head().before()).save(file);
    return file.str();
}

[[maybe_unused]] Outputs outputs_after(const std::string& saved) {
    std::istringstream file(saved);
    castle::UqKvCache<float> cache = castle::UqKvCache<float>::load(file);
    Outputs outputs;
    append(outputs, castle::extend(cache, Head().after()));
    append(outputs, cache.lookahead_keys());
    return outputs;
}

}  // namespace
