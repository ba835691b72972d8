// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/check/attention_kind.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/check/message.hpp>
#include <castle/terms.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

[[noreturn]] inline void reject_cache(const std::string& why) {
    throw std::runtime_error("castle::load: the saved cache " + why);
}

// What a saved cache is, by which it is told from others, and how much there is of it.
struct SavedIdentity {
    // What a layer adds to it; all 0 for a cache of heads alone.
    using LayerWords = std::array<std::uint64_t, 3>;

    AttentionKind kind = {};
    LayerWords layer = {};
    Index size = 0;
    Index undoable = 0;  // finished blocks that can be undone
    bool is_masked = false;
    Index sliding_window = unlimited;

    // How much there is of the score terms, which come after the identity: rows and columns of the two tables, sinks,
    // and whether there is a cap.
    using TermsWords = std::array<std::uint64_t, 6>;
    TermsWords terms = {};

    static TermsWords words_of(const ScoreTerms* terms) {
        if (terms == nullptr) return {};
        return {std::uint64_t(terms->factor.rows()), std::uint64_t(terms->factor.cols()),
                std::uint64_t(terms->bias.rows()),   std::uint64_t(terms->bias.cols()),
                std::uint64_t(terms->sinks.size()),  std::uint64_t(terms->soft_cap ? 1 : 0)};
    }

    static constexpr std::array<char, 8> magic = {'c', 'a', 's', 't', 'l', 'e', 'K', 'V'};

    // The bytes of a scalar, and more for the second of two of as many bytes.
    template <Scalar T>
    static constexpr std::uint64_t scalar_word = sizeof(T) + (std::same_as<T, bfloat16> ? 16 : 0);
    // What a build expects: the format's version, the order of an element's bytes, which scalar it is, the layout.
    using Format = std::array<std::uint64_t, 5>;
    template <Scalar T>
    static constexpr Format format = {3, std::endian::native == std::endian::little ? 1 : 2, scalar_word<T>, block_size,
                                      panel_size};
    static std::string name_of(std::uint64_t scalar) {
        return scalar == scalar_word<double>     ? "double"
               : scalar == scalar_word<float>    ? "float"
               : scalar == scalar_word<half>     ? "half"
               : scalar == scalar_word<bfloat16> ? "bfloat16"
                                                 : "another scalar";
    }

    static constexpr std::size_t word_count =
        Format().size() + AttentionKind::word_count + LayerWords().size() + TermsWords().size() + 4;
    using Words = std::array<std::uint64_t, word_count>;

    template <Scalar T>
    Words to_words() const {
        Words all{};
        auto to = std::ranges::copy(format<T>, all.begin()).out;
        to = std::ranges::copy(kind.to_words(), to).out;
        to = std::ranges::copy(layer, to).out;
        to = std::ranges::copy(terms, to).out;
        *to++ = std::uint64_t(sliding_window);
        *to++ = std::uint64_t(is_masked ? 1 : 0);
        *to++ = std::uint64_t(size);
        *to++ = std::uint64_t(undoable);
        return all;
    }

    template <Scalar T>
    static SavedIdentity from_words(const Words& w) {
        constexpr Format own = format<T>;
        if (w[0] != own[0]) reject_cache("is of another version of the format");
        if (w[1] != own[1]) reject_cache("has the bytes of its elements in another order");
        if (w[2] != own[2]) {
            reject_cache(text("has elements of ", name_of(w[2]), ", not of ", name_of(own[2])));
        }
        if (w[3] != own[3] || w[4] != own[4]) reject_cache("has another layout");
        const std::uint64_t* from = w.data() + own.size();
        SavedIdentity saved{.kind = AttentionKind::from_words(from)};
        std::copy_n(from + AttentionKind::word_count, saved.layer.size(), saved.layer.begin());
        std::copy_n(from + AttentionKind::word_count + saved.layer.size(), saved.terms.size(), saved.terms.begin());
        saved.sliding_window = Index(w[word_count - 4]);
        saved.is_masked = w[word_count - 3] != 0;
        saved.size = Index(w[word_count - 2]);
        saved.undoable = Index(w[word_count - 1]);
        // Words that are no flags would come back as others.
        if (!saved.kind.is_sensible<T>() || saved.to_words<T>() != w || saved.size < 0 || saved.size > most_tokens ||
            !saved.has_sensible_terms() || saved.sliding_window < 1 ||
            (saved.sliding_window > most_tokens && saved.sliding_window != unlimited) || saved.undoable < 0 ||
            saved.undoable > most_size / block_size || saved.undoable > saved.size / block_size) {
            reject_cache("has no sensible sizes");
        }
        return saved;
    }

    bool has_terms() const { return terms != TermsWords(); }
    // All their numbers.
    std::size_t count_of_terms() const {
        return std::size_t(terms[0] * terms[1] + terms[2] * terms[3] + terms[4] + terms[5]);
    }
    bool has_sensible_terms() const {
        const auto is_table = [&](std::uint64_t rows, std::uint64_t cols) {
            return rows <= std::uint64_t(most_heads) && cols <= std::uint64_t(most_tokens) &&
                   (rows == 0) == (cols == 0);
        };
        return is_table(terms[0], terms[1]) && is_table(terms[2], terms[3]) && terms[4] <= std::uint64_t(most_heads) &&
               terms[5] <= 1;
    }
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
