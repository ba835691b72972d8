// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "../support/experiments.hpp"
#include "model.hpp"
#include "task.hpp"

namespace visual_questions {

/// Seconds of one thread.
struct Timing {
    double prompt = std::numeric_limits<double>::infinity();
    double token = std::numeric_limits<double>::infinity();  // a generated one, with a cache
};

inline constexpr Size measured_size = {.layers = 2, .heads = 4, .d_head = 64};

/// Of a model that is not trained; the best of a few runs. All sights take turns, token by token, so that whatever else
/// the machine does meets all of them.
inline std::vector<Timing> timings_of(const std::vector<Sight>& sights, Index tokens) {
    constexpr Index runs = 5, generated = 32;
    const Model model(measured_size, 1);
    std::vector<Timing> best(sights.size());
    const auto measure = [](double& least, const auto& call) {
        const Stopwatch watch;
        call();
        least = std::min(least, watch.seconds());
    };
    for (Index run = 0; run < runs; ++run) {
        std::mt19937_64 bits(1);
        const Prompt prompt = long_prompt(tokens, bits);
        std::vector<Model::Decoder> decoders;
        for (std::size_t s = 0; s < sights.size(); ++s) {
            Model::Decoder& decoder = decoders.emplace_back(model, sights[s], tokens + generated);
            measure(best[s].prompt, [&] { decoder.extend(prompt, prompt.tokens); });
        }
        for (Index i = 0; i < generated; ++i) {
            const model::TokenRows next = {{word, model::below(symbols, bits)}};
            for (std::size_t s = 0; s < sights.size(); ++s) {
                measure(best[s].token, [&] { decoders[s].extend(prompt, next); });
            }
        }
    }
    return best;
}

}  // namespace visual_questions
