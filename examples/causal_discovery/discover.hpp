// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include <castle/methods/causal_graph.hpp>

#include "../model/descent.hpp"
#include "linear.hpp"
#include "model.hpp"
#include "windows.hpp"

namespace causal_discovery {

using castle::methods::CausalLink;
using castle::methods::CausalScores;

/// Cause and effect.
using Pair = std::pair<Index, Index>;

/// What is known beforehand: which links there are not.
using Excluded = std::set<Pair>;

struct Training {
    Index steps = 300;
    std::uint64_t seed = 1;
};

/// What a forecaster is trained on: windows over the series and, beside them, over series that are shuffled in time and
/// cause nothing, as inputs; the series as targets.
class Examples {
  public:
    /// Of standardised series.
    Examples(const castle::Matrix<double>& x, const Lags& lags, const Excluded& excluded, std::uint64_t seed)
        : lags_(lags), excluded_(excluded), variables_(x.cols()) {
        castle::Matrix<double> causes(x.rows(), 2 * variables_);
        causes << x, castle::methods::shuffled_in_time(x, seed);
        // A few values far out would rule the gradients of all others.
        inputs_ = windows_of(causes, lags).cast<float>().cwiseMax(-4.0F).cwiseMin(4.0F);
        const castle::Matrix<double> own = windows_of(x, lags), targets = x.bottomRows(own.rows());
        targets_.resize(own.rows(), variables_);
        for (Index i = 0; i < variables_; ++i) {
            units_.push_back(unit_of(least_squares(own, targets.col(i)).residuals));
            targets_.col(i) = (targets.col(i) / units_.back()).cast<float>();
        }
    }

    Index count() const { return inputs_.rows(); }
    Index variables() const { return variables_; }
    const Lags& lags() const { return lags_; }
    /// `[count, lags causes]`, and of causes the series come first.
    const Matrix& inputs() const { return inputs_; }
    /// `[count, variables]`, each in a unit of its own.
    const Matrix& targets() const { return targets_; }
    double unit(Index effect) const { return units_[std::size_t(effect)]; }

    /// Whether a forecast may use an input: not what it forecasts, and nothing of what is known to be no cause, in
    /// whatever order.
    bool sees(Index effect, Index input) const {
        const Index place = input % (2 * variables_), cause = place % variables_;
        const bool is_target = place == effect && lags_.first + input / (2 * variables_) == 0;
        return !is_target && !excluded_.contains({cause, effect});
    }
    Size size() const { return {.inputs = inputs_.cols(), .effects = variables_}; }

  private:
    static double unit_of(const Eigen::VectorXd& residuals) {
        for (const double unit :
             {robust_deviation(residuals), std::sqrt(residuals.squaredNorm() / double(residuals.size()))}) {
            if (unit > 1e-9) return unit;
        }
        return 1;  // of a variable that never changes
    }

    Lags lags_;
    Excluded excluded_;
    Index variables_;
    Matrix inputs_, targets_;
    std::vector<double> units_;
};

/// The sum of the Cauchy loss `log(1 + e^2)` of the errors, to which far ones add little more than near ones; errors
/// become its gradient.
inline double cauchy_loss(Matrix& errors) {
    const auto one_and_square = (1 + errors.array().square()).eval();
    const double loss = one_and_square.log().cast<double>().sum();
    errors.array() *= 2 / one_and_square;
    return loss;
}

/// Trains on the first four fifths; the last tells which weights on the way were the best, and those are kept. Calls
/// done() after every step.
template <class Done>
Forecaster trained_forecaster(const Examples& examples, const Training& training, const Done& done) {
    constexpr Index batch = 64, steps_between = 50;
    constexpr double peak_rate = 1e-2;
    Forecaster forecaster(examples.size(), training.seed,
                          [&](Index effect, Index input) { return examples.sees(effect, input); });
    Forecaster::Tape tape(forecaster), validation_tape(forecaster);
    model::Descent descent(forecaster, {.beta2 = 0.999, .weight_decay = 0.1});
    std::mt19937_64 bits(training.seed);
    const Index learnt = std::max<Index>(examples.count() * 4 / 5, 1), rest = examples.count() - learnt;
    double best = std::numeric_limits<double>::infinity();
    Weights best_weights = forecaster.weights;
    std::vector<Index> chosen(batch);
    for (Index step = 1; step <= training.steps; ++step) {
        for (Index& window : chosen) window = model::below(learnt, bits);
        const double rate =
            peak_rate * (0.5 + 0.5 * std::cos(std::numbers::pi * double(step) / double(training.steps)));
        descent.step(batch, rate, [&](Weights& gradient) {
            Matrix errors = forecaster.forward(examples.inputs()(chosen, Eigen::all), tape) -
                            examples.targets()(chosen, Eigen::all);
            cauchy_loss(errors);
            forecaster.backward(errors, tape, gradient);
        });
        done();
        if (step % steps_between != 0 && step != training.steps) continue;
        Matrix errors = forecaster.forward(examples.inputs().bottomRows(rest), validation_tape) -
                        examples.targets().bottomRows(rest);
        const double loss = cauchy_loss(errors);
        if (loss < best) {
            best = loss;
            best_weights = forecaster.weights;
        }
    }
    forecaster.weights = best_weights;
    return forecaster;
}

/// Scores of the series, and strengths of links from shuffled ones.
struct Findings {
    CausalScores scores;
    std::vector<double> null;
};

/// From the gradients in at most 1500 windows, evenly spread.
inline Findings findings_of(const Forecaster& forecaster, const Examples& examples) {
    const Index windows = std::min<Index>(1500, examples.count()), n = examples.variables();
    std::vector<Index> chosen;
    for (Index w = 0; w < windows; ++w) chosen.push_back(w * examples.count() / windows);
    const Matrix inputs = examples.inputs()(chosen, Eigen::all);
    Forecaster::Tape tape(forecaster);
    Weights ignored = model::zeros_like(forecaster.weights);
    Matrix gradients;  // of one effect in all windows
    const auto gradient_of = [&](Index effect, Index window) {
        if (window == 0) {
            forecaster.forward(inputs, tape);
            Matrix d_forecasts = Matrix::Zero(windows, n);
            d_forecasts.col(effect).setConstant(float(examples.unit(effect)));
            gradients = forecaster.backward(d_forecasts, tape, ignored);
        }
        return Eigen::Map<const Matrix>(gradients.row(window).data(), examples.lags().count(), 2 * n);
    };
    const CausalScores all =
        castle::methods::causal_scores(2 * n, n, examples.lags().first, examples.lags().last, windows, gradient_of);
    return {.scores = all.causes_from(0, n), .null = castle::methods::strengths_of(all.causes_from(n, n))};
}

/// From standardised series to scores. Calls done() after every step.
template <class Done>
Findings discover(const castle::Matrix<double>& x, const Lags& lags, const Excluded& excluded, const Training& training,
                  const Done& done) {
    const Examples examples(x, lags, excluded, training.seed);
    return findings_of(trained_forecaster(examples, training, done), examples);
}

/// What several trainings find: the means of their scores, and all that came of nothing.
inline Findings together(std::span<const std::optional<Findings>> all) {
    std::vector<CausalScores> scores;
    std::vector<double> null;
    for (const std::optional<Findings>& own : all) {
        scores.push_back(own->scores);
        null.insert(null.end(), own->null.begin(), own->null.end());
    }
    return {.scores = castle::methods::mean_scores(scores), .null = std::move(null)};
}

/// Which scores are links: those that series which cause nothing do not have, but for a chance of `level`; or else
/// those above a threshold; or else the strongest of each effect.
struct Rule {
    double level = 0.05;
    std::optional<double> threshold = std::nullopt;
    std::optional<Index> strongest = std::nullopt;

    std::vector<CausalLink> links(const Findings& findings) const {
        if (threshold) return castle::methods::links_above(findings.scores, *threshold);
        if (strongest) return castle::methods::strongest_links(findings.scores, *strongest);
        return castle::methods::links_against_null(findings.scores, findings.null, level);
    }
};

}  // namespace causal_discovery
