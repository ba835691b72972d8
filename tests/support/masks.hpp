// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <castle/castle.hpp>

#include "support/generators.hpp"

// Masks of every kind beside what they are to mean, said once more by hand.
namespace support {

struct NamedMask {
    std::string name;
    castle::Mask mask;
    std::function<bool(Index, Index)> sees;
};

/// For sequences of `length` tokens. Some leave rows without a key, or let rows see later ones.
inline std::vector<NamedMask> all_masks(Random& random, Index length) {
    namespace masks = castle::masks;
    std::vector<NamedMask> all;
    const auto add = [&](std::string name, const castle::Mask& mask, std::function<bool(Index, Index)> sees) {
        all.push_back({std::move(name), mask, std::move(sees)});
    };
    const auto causal = [](Index t, Index s) { return s <= t; };
    add("causal", masks::causal(), causal);
    add("full", masks::full(), [](Index, Index) { return true; });
    for (const Index window : {Index(1), Index(7), Index(40), Index(100)}) {
        for (const Index kept : {Index(0), Index(3)}) {
            add(describe("window ", window, ", kept ", kept), masks::sliding_window(window, kept),
                [=](Index t, Index s) { return s <= t && (t - s < window || s < kept); });
        }
    }
    const Index prefix = length / 2;
    add(describe("prefix ", prefix), masks::prefix(prefix),
        [=](Index t, Index s) { return s <= t || (t < prefix && s < prefix); });

    std::vector<Index> lengths, document, start;
    for (Index left = length; left > 0;) {
        const Index size = std::min<Index>(left, random.integer(0, 90));
        for (Index i = 0; i < size; ++i) {
            document.push_back(Index(lengths.size()));
            start.push_back(length - left);
        }
        lengths.push_back(size);
        left -= size;
    }
    const auto same = [document](Index t, Index s) { return document[std::size_t(t)] == document[std::size_t(s)]; };
    add("documents", masks::documents(lengths), [=](Index t, Index s) { return s <= t && same(t, s); });
    add("documents of windows", masks::documents(lengths, masks::sliding_window(9, 2)),
        [=](Index t, Index s) { return s <= t && same(t, s) && (t - s < 9 || s - start[std::size_t(t)] < 2); });
    // Not run as packed sequences.
    add("documents within a mask", masks::documents(lengths, masks::full()) & masks::full(), same);

    std::vector<bool> visual;
    for (Index t = 0; t < length - length / 4; ++t) visual.push_back(random.integer(0, 2) > 0);
    const auto is_visual = [visual](Index t) { return t < Index(visual.size()) && visual[std::size_t(t)]; };
    const auto in_prompt = [n = Index(visual.size())](Index s) { return s < n; };
    add("future", masks::modality(visual, castle::Future::all),
        [=](Index t, Index s) { return s <= t || (is_visual(t) && in_prompt(s)); });
    add("visual to visual", masks::modality(visual, castle::Future::visual),
        [=](Index t, Index s) { return s <= t || (is_visual(t) && is_visual(s)); });
    add("visual to text", masks::modality(visual, castle::Future::text),
        [=](Index t, Index s) { return s <= t || (is_visual(t) && in_prompt(s) && !is_visual(s)); });

    Eigen::Matrix<bool, Eigen::Dynamic, Eigen::Dynamic> bits(length, length);
    for (Index t = 0; t < length; ++t) {
        for (Index s = 0; s < length; ++s) bits(t, s) = t % 5 != 3 && random.integer(0, 2) == 0;
    }
    const auto at = [bits](Index t, Index s) { return bits(t, s); };
    add("random bits", masks::matrix(bits).allowing_empty_rows(), at);
    add("random bits, causal", (masks::matrix(bits) & masks::causal()).allowing_empty_rows(),
        [=](Index t, Index s) { return s <= t && at(t, s); });
    add("random bits or a window", masks::matrix(bits) | masks::sliding_window(4),
        [=](Index t, Index s) { return (s <= t && t - s < 4) || at(t, s); });
    // Whole panels that nobody sees, or everybody.
    const auto panels = [](Index t, Index s) { return s <= t && (t / 64 + 3 * (s / 64)) % 2 == 0; };
    add("panels", masks::predicate(panels).allowing_empty_rows(), panels);
    add("packed panels", masks::packed(length, length, panels).allowing_empty_rows(), panels);
    return all;
}

/// A second mask, for masses, and what it means.
inline bool in_mass(Index t, Index s) { return (t + s) % 3 != 0; }
inline castle::Mask some_mass() { return castle::masks::predicate(in_mass); }

/// Score terms of every kind: one row of factors, one of biases for each head.
inline castle::ScoreTerms some_terms(Random& random, Index heads, Index distances) {
    castle::ScoreTerms terms;
    terms.factor = Matrix<double>(1, distances);
    terms.bias = Matrix<double>(heads, distances);
    for (Matrix<double>* table : {&terms.factor, &terms.bias}) fill_normal(random, *table);
    terms.factor.array() = 1 + 0.3 * terms.factor.array();
    terms.bias *= 0.5;
    terms.soft_cap = 1.5;
    for (Index h = 0; h < heads; ++h) terms.sinks.push_back(random.normal());
    return terms;
}

}  // namespace support
