// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <variant>

#include <castle/multi_head.hpp>

#include "config.hpp"

namespace language_model {

/// The attention layer that a configuration asks for.
class Attention {
  public:
    using Layer = castle::MultiHeadLayer<float>;

    Attention(const Config& config, std::uint64_t seed) : layer_(make(config, seed)) {}

    Layer& layer() {
        return std::visit([](auto& one) -> Layer& { return one; }, layer_);
    }
    const Layer& layer() const {
        return std::visit([](const auto& one) -> const Layer& { return one; }, layer_);
    }

  private:
    using Either = std::variant<castle::MultiHeadCastle<float>, castle::MultiHeadCausal<float>>;

    static Either make(const Config& config, std::uint64_t seed) {
        const castle::MultiHeadConfig sizes{.d_model = config.d_model,
                                            .heads = config.attention_heads(),
                                            .d_head = config.d_head,
                                            .rotary = castle::Rotary{},
                                            .seed = seed};
        if (config.is_causal()) return castle::MultiHeadCausal<float>(sizes);
        return castle::MultiHeadCastle<float>(sizes, config.options());
    }

    Either layer_;
};

}  // namespace language_model
