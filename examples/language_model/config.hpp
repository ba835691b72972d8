// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include <fmt/core.h>
#include <castle/options.hpp>
#include <castle/types.hpp>

namespace language_model {

using castle::Index;

inline constexpr Index bytes = 256;  // the vocabulary
inline const std::vector<std::string> attentions = {"castle", "castle-swl", "causal"};

/// What a size may be.
struct Limits {
    Index least;
    Index most;
};

namespace limits {
inline constexpr Limits layers = {1, 1000};
inline constexpr Limits d_model = {1, 65536};
inline constexpr Limits heads = {4, 65536};
inline constexpr Limits d_head = {2, 65536};
inline constexpr Limits window = {0, Index(1) << 30};
inline constexpr Limits context = {1, Index(1) << 20};
inline constexpr Limits steps = {1, Index(1) << 30};
inline constexpr Limits batch = {1, 65536};
inline constexpr Limits seed = {0, 4294967295};
}  // namespace limits

/// What a model is, apart from its weights.
struct Config {
    std::string attention = "castle";  // one of those above
    Index layers = 4;
    Index d_model = 128;
    Index heads = 4;  // of CASTLE; standard attention of as many parameters has 7/4 of them
    Index d_head = 16;
    Index window = 128;  // of castle-swl
    bool silu = true;
    bool causal_keys = true;
    Index context = 256;  // tokens that it is trained on at once

    bool is_causal() const { return attention == "causal"; }
    Index attention_heads() const { return is_causal() ? 7 * heads / 4 : heads; }
    // 8/3 of d_model, as LLaMA has it, in whole packets.
    Index hidden() const { return (8 * d_model / 3 + 15) / 16 * 16; }

    /// How many numbers its weights have.
    Index parameters() const {
        const Index projections = (is_causal() ? 4 : 7) * attention_heads() * d_head, feed_forward = 3 * hidden();
        return (2 * bytes + layers * (projections + feed_forward + 2) + 1) * d_model;
    }

    /// What is wrong with it, if anything.
    std::string problem() const {
        if (heads % 4 != 0) return fmt::format("heads is {} but must be a multiple of 4", heads);
        if (d_head % 2 != 0) return fmt::format("d_head is {} but must be even", d_head);
        return "";
    }

    /// Its attention, for people.
    std::string description() const {
        return fmt::format("{} attention{}{}{}", attention,
                           attention == "castle-swl" ? fmt::format(" with a window of {}", window) : "",
                           silu ? "" : " without SiLU", causal_keys ? "" : " without causal keys");
    }

    castle::Options options() const {
        return {.lookahead_window = attention == "castle-swl" ? window : castle::unlimited,
                .silu = silu,
                .causal_keys = causal_keys};
    }
};

}  // namespace language_model
