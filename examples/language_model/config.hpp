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
inline const std::vector<std::string> precisions = {"float", "bfloat16"};

/// What a size may be.
struct Limits {
    Index least;
    Index most;
};

namespace limits {
inline constexpr Limits layers = {1, 1000};
inline constexpr Limits d_model = {1, 65536};
inline constexpr Limits heads = {4, 65536};
inline constexpr Limits kv_heads = {1, 65536};
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
    Index heads = 4;     // of CASTLE; standard attention has as many as give it the same number of parameters
    Index kv_heads = 0;  // a divisor of heads; as many as heads if 0
    Index d_head = 16;
    Index window = 128;  // of castle-swl
    bool silu = true;
    bool causal_keys = true;
    Index context = 256;              // tokens that it is trained on at once
    std::string precision = "float";  // of the attention's weights, of what it reads and writes, and of its caches

    bool is_causal() const { return attention == "causal"; }
    bool has_lookahead() const { return options().lookahead_window > 0; }
    // Key-value heads of CASTLE, each with a group of query heads.
    Index groups() const { return kv_heads == 0 ? heads : kv_heads; }
    Index group_size() const { return heads / groups(); }

    // A group of n query heads has 2 n + 5 projections in CASTLE, 2 n + 2 in standard attention. Equal parameters take
    // 7/4 as many heads where n is 1; otherwise this is the nearest whole number of groups.
    Index attention_kv_heads() const {
        const Index castle = 2 * group_size() + 5, standard = 2 * group_size() + 2;
        return is_causal() ? (castle * groups() + standard / 2) / standard : groups();
    }
    Index attention_heads() const { return group_size() * attention_kv_heads(); }
    // 8/3 of d_model, as LLaMA has it, in whole packets.
    Index hidden() const { return (8 * d_model / 3 + 15) / 16 * 16; }

    /// How many elements its weights have.
    Index parameters() const {
        const Index projections = 2 * attention_heads() + (has_lookahead() ? 5 : 2) * attention_kv_heads();
        const Index feed_forward = 3 * hidden();
        return (2 * bytes + layers * (projections * d_head + feed_forward + 2) + 1) * d_model;
    }

    /// How far apart logits of products of other numbers of rows may be, relative to their size: some roundings of
    /// float, which rounding to 16 bits makes larger.
    float rounding() const { return precision == "float" ? 1e-4F : 2e-2F; }

    /// What is wrong with it, if anything.
    std::string problem() const {
        if (heads % 4 != 0) return fmt::format("heads is {} but must be a multiple of 4", heads);
        if (kv_heads != 0 && heads % kv_heads != 0) {
            return fmt::format("kv_heads is {} but must divide the number of heads, {}", kv_heads, heads);
        }
        if (d_head % 2 != 0) return fmt::format("d_head is {} but must be even", d_head);
        return "";
    }

    /// Its attention, for people.
    std::string description() const {
        return fmt::format("{} attention{}{}{}{}", attention,
                           attention == "castle-swl" ? fmt::format(" with a window of {}", window) : "",
                           silu ? "" : " without SiLU", causal_keys ? "" : " without causal keys",
                           precision == "float" ? "" : " in " + precision);
    }

    castle::Options options() const {
        if (is_causal()) return {.lookahead_window = 0};
        return {.lookahead_window = attention == "castle-swl" ? window : castle::unlimited,
                .silu = silu,
                .causal_keys = causal_keys};
    }
};

}  // namespace language_model
