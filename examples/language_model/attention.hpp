// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <castle/layer.hpp>

#include "config.hpp"

namespace language_model {

/// The attention layer that a configuration asks for.
inline castle::Layer<float> attention_layer(const Config& config, std::uint64_t seed) {
    return castle::Layer<float>({.d_model = config.d_model,
                                 .heads = config.attention_heads(),
                                 .kv_heads = config.attention_kv_heads(),
                                 .d_head = config.d_head,
                                 .rotary = castle::Rotary{},
                                 .seed = seed},
                                config.options());
}

}  // namespace language_model
