// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <random>
#include <vector>

#include "../model/adamw.hpp"
#include "../model/averaged_weights.hpp"
#include "../model/batch.hpp"
#include "../model/descent.hpp"
#include "../model/schedule.hpp"
#include "data.hpp"
#include "model.hpp"

namespace forecasting {

struct Recipe {
    Index steps = 200;
    Index batch = 1024;  // windows
    double rate = 1e-3;
    double warm_up = 0.05;
    double weight_decay = 1;
    double dropout = 0.2;
    double averaging = 0.98;  // of the average of weights, what a step leaves
};

/// Forecasts in segments, each from what came before it: from data first, and from earlier segments then. A segment is
/// forecast at once. With a refiner its patches are then corrected one after the other: the refiner sees all that came
/// before, corrected patches included, and as its last token the patch that it corrects.
struct Forecaster {
    Model model;
    std::optional<Model> refiner;
    Index level = 1;  // points at the end of a window, whose mean is its level

    struct Tape {
        explicit Tape(const Forecaster& f) : model(f.model) {
            if (f.refiner) refiner.emplace(*f.refiner);
        }
        Model::Tape model;
        std::optional<Model::Tape> refiner;
    };

    /// Fills in the segment from column `first` on, of which the `context` columns before it are known.
    void extend(Matrix& known, Index first, Tape& tape) const {
        const Size& size = model.size();
        const Matrix window = known.middleCols(first - size.context, size.context);
        const Eigen::VectorXf levels = levels_of(window, level);
        known.middleCols(first, size.segment) = model.forward(window.colwise() - levels, tape.model).colwise() + levels;
        if (!refiner) return;
        for (Index patch = first; patch < first + size.segment; patch += size.patch) {
            known.middleCols(patch, size.patch) += refiner->forward(refiner_window(known, patch), *tape.refiner);
        }
    }

    /// What the refiner sees, less its level, to correct the patch from column `patch` on.
    Matrix refiner_window(const Matrix& known, Index patch) const {
        const Size& size = model.size();
        const Matrix window = known.middleCols(patch + size.patch - size.context, size.context);
        return window.colwise() - levels_of(window, level);
    }
};

inline Size refiner_size(const Size& of_model) {
    Size size = of_model;
    size.segment = of_model.patch;
    return size;
}

/// Some rows of a batch: windows of the training part, and what comes after each.
inline Matrix random_windows(const Data& data, Index points, Index count, std::mt19937_64& bits) {
    const Index places = data.training().windows(points);
    Matrix windows(count, points);
    for (Index i = 0; i < count; ++i) {
        const Index variable = model::below(data.variables(), bits);
        windows.row(i) = data.values.row(variable).segment(model::below(places, bits), points);
    }
    return windows;
}

/// Trains a model on all cores, and gives it the average of its weights. learn(windows, tape, gradient, bits) adds the
/// gradient of the sum of losses; done() is called after every step. The result depends on the seed alone.
template <class Tape, class Learn, class Done>
void train(Model& model, const Data& data, const Size& size, const Recipe& recipe, std::uint64_t seed,
           std::vector<Tape>& tapes, const Learn& learn, const Done& done) {
    const Index parts = Index(tapes.size());
    model::Descent descent(model, {.weight_decay = recipe.weight_decay}, parts);
    model::AveragedWeights<Weights> average(recipe.averaging);
    for (Index step = 1; step <= recipe.steps; ++step) {
        const double rate =
            model::warm_cosine(recipe.rate, recipe.warm_up * double(recipe.steps), double(step), double(recipe.steps));
        descent.step_in_parts(recipe.batch, rate, [&](Index part, Weights& gradient) {
            std::seed_seq source{seed, std::uint64_t(step), std::uint64_t(part)};
            std::mt19937_64 bits(source);
            const Index count = recipe.batch * (part + 1) / parts - recipe.batch * part / parts;
            const Matrix windows = random_windows(data, size.context + size.segment, count, bits);
            learn(windows, tapes[std::size_t(part)], gradient, bits);
        });
        average.add(model.weights);
        done();
    }
    model.weights = average.average();
}

inline constexpr Index parts_of_a_batch = 8;

/// A model that forecasts the first segment after a window.
template <class Done>
Forecaster train_forecaster(const Data& data, const Size& size, const Kind& kind, Index level, const Recipe& recipe,
                            std::uint64_t seed, const Done& done) {
    Forecaster f{.model = Model(size, kind, seed), .refiner = std::nullopt, .level = level};
    std::vector<Model::Tape> tapes;
    for (Index part = 0; part < parts_of_a_batch; ++part) tapes.emplace_back(f.model);
    train(
        f.model, data, size, recipe, seed, tapes,
        [&](const Matrix& windows, Model::Tape& tape, Weights& gradient, std::mt19937_64& bits) {
            const Matrix window = windows.leftCols(size.context);
            const Eigen::VectorXf levels = levels_of(window, level);
            f.model.learn(window.colwise() - levels, windows.rightCols(size.segment).colwise() - levels, tape, gradient,
                          recipe.dropout, &bits);
        },
        done);
    return f;
}

/// Adds a refiner, which learns from what it has made of earlier patches itself. They are given: no gradient goes
/// through them.
template <class Done>
void train_refiner(Forecaster& f, const Data& data, const Kind& kind, const Recipe& recipe, std::uint64_t seed,
                   const Done& done) {
    const Size size = f.model.size();
    Model refiner(refiner_size(size), kind, ~seed);
    // It begins with no correction.
    refiner.weights.head.setZero();
    std::vector<Forecaster::Tape> tapes;
    const Forecaster coarse = f;
    f.refiner = refiner;
    for (Index part = 0; part < parts_of_a_batch; ++part) tapes.emplace_back(f);
    train(
        *f.refiner, data, size, recipe, ~seed, tapes,
        [&](const Matrix& windows, Forecaster::Tape& tape, Weights& gradient, std::mt19937_64& bits) {
            Matrix known = windows;
            coarse.extend(known, size.context, tape);
            for (Index patch = size.context; patch < known.cols(); patch += size.patch) {
                const Matrix window = f.refiner_window(known, patch);
                const Matrix needed = windows.middleCols(patch, size.patch) - known.middleCols(patch, size.patch);
                f.refiner->learn(window, needed, *tape.refiner, gradient, recipe.dropout, &bits);
                known.middleCols(patch, size.patch) += f.refiner->forward(window, *tape.refiner);
            }
        },
        done);
}

/// Of all points of a part, on all cores.
inline Forecasts forecast(const Forecaster& f, const Data& data, const Part& part, Index windows, Index longest) {
    constexpr Index rows_at_once = 256;
    const Size& size = f.model.size();
    Forecasts all(windows * data.variables(), longest);
    model::for_parts((all.rows() + rows_at_once - 1) / rows_at_once, [&](Index chunk) {
        const Index first = chunk * rows_at_once, count = std::min(rows_at_once, all.rows() - first);
        const Index segments = (longest + size.segment - 1) / size.segment;
        Matrix known(count, size.context + segments * size.segment);
        for (Index i = 0; i < count; ++i) {
            const Index row = first + i, variables = data.variables();
            known.row(i).head(size.context) =
                data.values.row(row % variables).segment(part.first + row / variables - size.context, size.context);
        }
        Forecaster::Tape tape(f);
        for (Index s = 0; s < segments; ++s) f.extend(known, size.context + s * size.segment, tape);
        all.middleRows(first, count) = known.middleCols(size.context, longest);
    });
    return all;
}

}  // namespace forecasting
