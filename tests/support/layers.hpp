// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <string>
#include <vector>

#include <castle/layer.hpp>

#include "support/generators.hpp"
#include "support/layer_oracle.hpp"

// The library's layers in the oracle's terms.
namespace support {

/// The six projections of weights or of their gradients, in the oracle's order.
template <class Weights>
auto projections_of(Weights& w) {
    return std::array{&w.causal.q, &w.causal.k, &w.causal.v, &w.lookahead.q, &w.lookahead.k, &w.lookahead.v};
}

/// For each of the six projections, rotation of that one alone.
inline std::vector<castle::Rotary> rotaries_of_one_projection() {
    std::vector<castle::Rotary> all;
    for (bool castle::Rotary::*flag :
         {&castle::Rotary::causal_q, &castle::Rotary::causal_k, &castle::Rotary::causal_v, &castle::Rotary::lookahead_q,
          &castle::Rotary::lookahead_k, &castle::Rotary::lookahead_v}) {
        castle::Rotary one{.causal_q = false,
                           .causal_k = false,
                           .causal_v = false,
                           .lookahead_q = false,
                           .lookahead_k = false,
                           .lookahead_v = false,
                           .base = 500};
        one.*flag = true;
        all.push_back(one);
    }
    return all;
}

/// Grouped queries: four query heads on two key-value heads and on one.
inline std::vector<castle::LayerConfig> grouped_configs(Index d_model, Index d_head) {
    return {{.d_model = d_model, .heads = 4, .kv_heads = 2, .d_head = d_head, .seed = 21},
            {.d_model = d_model, .heads = 4, .kv_heads = 1, .d_head = d_head, .seed = 22}};
}

/// As many key-value heads as heads, unless the configuration says how many.
inline Index kv_heads_of(const castle::LayerConfig& config) {
    return config.kv_heads == 0 ? config.heads : config.kv_heads;
}

/// For a SCOPED_TRACE.
inline std::string words_of(const castle::LayerConfig& config, const castle::Options& options) {
    return describe("d_model ", config.d_model, ", heads ", config.heads, " on ", kv_heads_of(config), ", d_head ",
                    config.d_head, ", ", config.rotary ? "rotary, " : "", "window ", options.lookahead_window);
}

template <class S, class T>
oracle::Layer<S> oracle_layer(const castle::LayerWeights<T>& w, const castle::LayerConfig& config) {
    const castle::Rotary rotary = config.rotary.value_or(castle::Rotary{});
    const bool on = config.rotary.has_value();
    oracle::Layer<S> layer{.heads = config.heads,
                           .kv_heads = kv_heads_of(config),
                           .d_head = config.d_head,
                           .in = {},
                           .out = oracle_rows<S>(w.w_out),
                           .rotated = {on && rotary.causal_q, on && rotary.causal_k, on && rotary.causal_v,
                                       on && rotary.lookahead_q, on && rotary.lookahead_k, on && rotary.lookahead_v},
                           .base = rotary.base};
    for (std::size_t i = 0; i < 6; ++i) layer.in[i] = oracle_rows<S>(*projections_of(w)[i]);
    return layer;
}

}  // namespace support
