// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "../support/experiments.hpp"
#include "data.hpp"
#include "model.hpp"
#include "train.hpp"

namespace forecasting {

/// Seconds of one thread, the best of a few runs.
struct StepTime {
    double step = std::numeric_limits<double>::infinity();       // both passes of a model
    double attention = std::numeric_limits<double>::infinity();  // those of its attentions alone
};

/// Of models of several kinds that learn from `batch` windows. All kinds take turns, so that whatever else the machine
/// does meets all of them.
inline std::vector<StepTime> step_times(const Data& data, const Size& size, const std::vector<Kind>& kinds,
                                        Index batch) {
    constexpr Index runs = 5;
    std::mt19937_64 bits(1);
    const Matrix windows = random_windows(data, size.context + size.segment, batch, bits);
    const Matrix x = model::normal_matrix(batch * size.tokens(), size.d_model, 1, bits);
    const std::vector<Index> counts(std::size_t(batch), size.tokens());
    std::vector<StepTime> best(kinds.size());
    const auto measure = [](double& least, const auto& call) {
        const Stopwatch watch;
        call();
        least = std::min(least, watch.seconds());
    };
    // A team of one, in which no product starts threads of its own.
    model::for_parts(1, [&](Index) {
        for (Index run = 0; run < runs; ++run) {
            for (std::size_t k = 0; k < kinds.size(); ++k) {
                const Model model(size, kinds[k], 1);
                Weights gradient = model::zeros_like(model.weights);
                Model::Tape tape(model);
                measure(best[k].step, [&] {
                    model.learn(windows.leftCols(size.context), windows.rightCols(size.segment), tape, gradient);
                });
                Matrix y(x.rows(), x.cols()), d_x(x.rows(), x.cols());
                Matrix gammas = Matrix::Constant(1, size.heads, 0.5F), d_gammas = Matrix::Zero(1, size.heads);
                if (kinds[k].decay == Decay::none) {
                    gammas.resize(0, size.heads);
                    d_gammas.resize(0, size.heads);
                }
                Attention attention = model.attention();
                const auto& w = model.weights.blocks.front().attention;
                measure(best[k].attention, [&] {
                    attention.forward(w, gammas, x, counts, y);
                    attention.backward(w, x, y, d_x, gradient.blocks.front().attention, d_gammas);
                });
            }
        }
    });
    return best;
}

}  // namespace forecasting
