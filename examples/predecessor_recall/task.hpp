// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <numeric>
#include <random>
#include <string>
#include <utility>

#include "../model/matrices.hpp"

// The task: a sequence A1 B1 A2 B2 ... A6 B6 Bj of symbols, drawn anew each time, and the answer Aj. Whoever is to
// answer has to find the A that came before a B, and when that A was read, its B was still to come.
namespace recall {

using castle::Index;

inline constexpr Index symbols = 16;  // A's, and as many B's
inline constexpr Index pairs = 6;
inline constexpr Index length = 2 * pairs + 1;
inline constexpr Index question = length - 1;

struct Sequence {
    std::array<Index, length> tokens;  // A's are [0, symbols), B's [symbols, 2 symbols)
    Index asked;                       // j, from 0
    Index answer;                      // Aj

    Index place_of_answer() const { return 2 * asked; }
};

inline Sequence random_sequence(std::mt19937_64& bits) {
    const auto drawn = [&] {  // `pairs` different symbols come to the front
        std::array<Index, symbols> all;
        std::iota(all.begin(), all.end(), Index(0));
        for (Index i = 0; i < pairs; ++i) {
            std::swap(all[std::size_t(i)], all[std::size_t(i + model::below(symbols - i, bits))]);
        }
        return all;
    };
    const auto as = drawn(), bs = drawn();
    Sequence s;
    for (std::size_t i = 0; i < pairs; ++i) {
        s.tokens[2 * i] = as[i];
        s.tokens[2 * i + 1] = symbols + bs[i];
    }
    s.asked = model::below(pairs, bits);
    s.answer = as[std::size_t(s.asked)];
    s.tokens[question] = symbols + bs[std::size_t(s.asked)];
    return s;
}

inline std::string name(Index token) { return (token < symbols ? "A" : "B") + std::to_string(token % symbols + 1); }

}  // namespace recall
