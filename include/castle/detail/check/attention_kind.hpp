// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include <castle/detail/check/checks.hpp>
#include <castle/detail/check/message.hpp>
#include <castle/input.hpp>
#include <castle/options.hpp>
#include <castle/terms.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// What an attention is, in one value: what caches, workspaces, layers and saved files must agree about.
struct AttentionKind {
    Shape shape;
    Index lookahead_window = unlimited;
    bool silu = true;
    bool causal_keys = true;
    double scale = 1;  // as the scalar has it
    std::shared_ptr<const ScoreTerms> terms = nullptr;

    bool operator==(const AttentionKind& other) const {
        return shape == other.shape && lookahead_window == other.lookahead_window && silu == other.silu &&
               causal_keys == other.causal_keys && scale == other.scale && has_terms_of(other);
    }
    bool has_terms_of(const AttentionKind& other) const {
        return terms == other.terms || (terms != nullptr && other.terms != nullptr && *terms == *other.terms);
    }

    // Of an attention of this shape and these options, if both fit.
    template <Scalar T>
    static AttentionKind checked(std::string_view where, const Shape& shape, const Options& options) {
        check_sizes(where, shape);
        check_options<T>(where, options);
        check_terms<T>(where, options.terms, shape.heads);
        return {.shape = shape,
                .lookahead_window = options.lookahead_window,
                .silu = options.silu,
                .causal_keys = options.causal_keys,
                .scale = double(static_cast<Compute<T>>(scale_for(options, shape.d))),
                .terms = options.terms.has_any() ? std::make_shared<const ScoreTerms>(options.terms) : nullptr};
    }

    // Without lookahead it is standard attention.
    bool has_lookahead() const { return lookahead_window > 0; }
    // Query heads on each key-value head.
    Index group() const { return shape.heads / shape.kv_heads; }

    Options options(Executor executor) const {
        return {.scale = scale,
                .lookahead_window = lookahead_window,
                .silu = silu,
                .causal_keys = causal_keys,
                .terms = terms != nullptr ? *terms : ScoreTerms(),
                .executor = std::move(executor)};
    }

    // The first thing that sets it apart from another, with what that one has; empty if there is none.
    std::string difference(const AttentionKind& other, std::string_view others_name) const {
        std::string words;
        const auto compare = [&](std::string_view name, auto own, auto others) {
            if (words.empty() && own != others) words = text(name, " ", own, " but ", others_name, " has ", others);
        };
        compare("a number of heads of", shape.heads, other.shape.heads);
        compare("a number of key-value heads of", shape.kv_heads, other.shape.kv_heads);
        compare("d", shape.d, other.shape.d);
        compare("dv", shape.dv, other.shape.dv);
        compare("lookahead_window", lookahead_window, other.lookahead_window);
        compare("silu", Index(silu), Index(other.silu));
        compare("causal_keys", Index(causal_keys), Index(other.causal_keys));
        compare("scale", scale, other.scale);
        if (words.empty() && !has_terms_of(other)) words = text("other score terms than ", others_name);
        return words;
    }

    // Its form in a saved file.
    static constexpr std::size_t word_count = 8;
    std::array<std::uint64_t, word_count> to_words() const {
        return {std::uint64_t(shape.d),          std::uint64_t(shape.dv),
                std::uint64_t(shape.heads),      std::uint64_t(shape.kv_heads),
                std::uint64_t(lookahead_window), std::uint64_t(silu),
                std::uint64_t(causal_keys),      std::bit_cast<std::uint64_t>(scale)};
    }
    static AttentionKind from_words(const std::uint64_t* w) {
        return {.shape = {.d = Index(w[0]), .dv = Index(w[1]), .heads = Index(w[2]), .kv_heads = Index(w[3])},
                .lookahead_window = Index(w[4]),
                .silu = w[5] != 0,
                .causal_keys = w[6] != 0,
                .scale = std::bit_cast<double>(w[7])};
    }
    // Whether it could have been made, for one that comes from a file.
    template <Scalar T>
    bool is_sensible() const {
        return are_sizes(shape) && lookahead_window >= 0 && is_scale<T>(scale);
    }
};

// That of a call on a whole sequence, if shapes and options fit.
template <Scalar T>
AttentionKind checked_kind(std::string_view where, const Shape& shape, const Input<T>& input, const Options& options,
                           const Masks& mask = {}) {
    const AttentionKind kind = AttentionKind::checked<T>(where, shape, options);
    const Index keys = cross_keys(input, kind.has_lookahead(), mask);
    call_of_whole(where, shape, input, keys).check_input(input, kind.has_lookahead());
    return kind;
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
