// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <castle/detail/cache/saved_identity.hpp>
#include <castle/detail/check/attention_kind.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/check/message.hpp>
#include <castle/layer_weights.hpp>
#include <castle/rotary.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Which of the six projections are rotated.
inline std::array<bool, 6> rotated_projections(const Rotary& r) {
    return {r.causal_q, r.causal_k, r.causal_v, r.lookahead_q, r.lookahead_k, r.lookahead_v};
}

// What a layer, its caches and its workspaces must agree about.
struct LayerKind {
    AttentionKind attention;
    Index d_model = 0;
    std::optional<Rotary> rotary;

    bool operator==(const LayerKind&) const = default;

    // What sets it apart from a layer of another kind, with what that one has.
    std::string difference(const LayerKind& other) const {
        constexpr std::string_view name = "the layer";
        if (d_model != other.d_model) return text("d_model ", d_model, " but ", name, " has ", other.d_model);
        std::string words = attention.difference(other.attention, name);
        if (words.empty() && rotary != other.rotary) words = "other rotary settings than the layer";
        return words;
    }

    // Its form in a saved file: d_model, a bit for each rotated projection, the base of the rotation or 0 without.
    SavedIdentity::LayerWords to_words() const {
        SavedIdentity::LayerWords words{std::uint64_t(d_model)};
        if (rotary) {
            const auto rotated = rotated_projections(*rotary);
            for (std::size_t i = 0; i < rotated.size(); ++i) words[1] |= std::uint64_t(rotated[i]) << i;
            words[2] = std::bit_cast<std::uint64_t>(rotary->base);
        }
        return words;
    }
    static LayerKind from_words(const AttentionKind& attention, const SavedIdentity::LayerWords& words) {
        LayerKind kind{.attention = attention, .d_model = Index(words[0]), .rotary = std::nullopt};
        if (words[2] == 0) return kind;
        const auto is_rotated = [&](unsigned i) { return (words[1] >> i & 1) != 0; };
        kind.rotary = Rotary{.causal_q = is_rotated(0),
                             .causal_k = is_rotated(1),
                             .causal_v = is_rotated(2),
                             .lookahead_q = is_rotated(3),
                             .lookahead_k = is_rotated(4),
                             .lookahead_v = is_rotated(5),
                             .base = std::bit_cast<double>(words[2])};
        return kind;
    }
};

// The config with its number of key-value heads, if it fits; AttentionKind checks what is left.
inline LayerConfig completed(std::string_view where, LayerConfig config) {
    if (config.kv_heads == 0) config.kv_heads = config.heads;
    constexpr Index most = most_size;
    check_size(where, "d_model", config.d_model, 1);
    check_size(where, "heads", config.heads, 1);
    check_size(where, "kv_heads", config.kv_heads, 1);
    check_size(where, "d_head", config.d_head, 1);
    if (config.d_model > most || config.heads > most / config.d_head) {
        fail(where, "d_model is ", config.d_model, " with ", config.heads, " heads of size ", config.d_head,
             " but neither d_model nor heads * d_head may exceed ", most);
    }
    if (config.rotary) {
        if (config.d_head % 2 != 0) {
            fail(where, "d_head is ", config.d_head, " but must be even for rotary embedding");
        }
        check_rotary_base(where, config.rotary->base);
    }
    return config;
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
