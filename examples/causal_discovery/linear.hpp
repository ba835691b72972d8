// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include <Eigen/Cholesky>
#include <boost/math/distributions/normal.hpp>
#include <castle/methods/causal_graph.hpp>

#include "../model/batch.hpp"
#include "windows.hpp"

// What a linear forecast says of causes, to compare with.
namespace causal_discovery {

/// A linear forecast of one effect, with a coefficient and a t-value for every input.
struct LinearForecast {
    Eigen::VectorXd coefficients;
    Eigen::VectorXd t;
    Eigen::VectorXd residuals;
};

/// By least squares of weighted times, with a small ridge; without t-values.
inline LinearForecast weighted_fit(const castle::Matrix<double>& inputs, const Eigen::VectorXd& targets,
                                   const Eigen::VectorXd& weights) {
    constexpr double ridge = 1e-3;
    castle::Matrix<double> normal = inputs.transpose() * weights.asDiagonal() * inputs;
    normal.diagonal().array() += ridge * weights.sum();
    LinearForecast f;
    f.coefficients = normal.llt().solve(inputs.transpose() * weights.cwiseProduct(targets));
    f.residuals = targets - inputs * f.coefficients;
    return f;
}

/// The t-values of a fit whose loss has, of each residual, the derivatives `first` and `second`: its variance is
/// mean(first^2) / mean(second)^2 times the inverse of X' X.
inline void add_t_values(LinearForecast& f, const castle::Matrix<double>& inputs, const Eigen::VectorXd& first,
                         const Eigen::VectorXd& second) {
    const Index n = inputs.cols(), count = inputs.rows();
    castle::Matrix<double> normal = inputs.transpose() * inputs;
    normal.diagonal().array() += 1e-12 * double(count);
    const castle::Matrix<double> inverse = normal.llt().solve(castle::Matrix<double>::Identity(n, n));
    const double freedom = double(std::max<Index>(count - n, 1));
    const double variance = first.squaredNorm() / freedom / std::max(std::pow(second.mean(), 2), 1e-300);
    f.t = f.coefficients.array() / (variance * inverse.diagonal().array()).max(1e-300).sqrt();
}

inline LinearForecast least_squares(const castle::Matrix<double>& inputs, const Eigen::VectorXd& targets) {
    const Eigen::VectorXd ones = Eigen::VectorXd::Ones(targets.size());
    LinearForecast f = weighted_fit(inputs, targets, ones);
    add_t_values(f, inputs, f.residuals, ones);
    return f;
}

/// By the Cauchy loss `s^2 / 2 log(1 + (e / s)^2)`, `s` being a robust deviation of the residuals: least squares again
/// and again, with weights `1 / (1 + (e / s)^2)`.
inline LinearForecast robust_fit(const castle::Matrix<double>& inputs, const Eigen::VectorXd& targets) {
    constexpr int rounds = 30;
    Eigen::VectorXd weights = Eigen::VectorXd::Ones(targets.size());
    LinearForecast f = weighted_fit(inputs, targets, weights);
    for (int round = 0; round < rounds; ++round) {
        const double s = std::max(robust_deviation(f.residuals), 1e-12);
        weights = (1 + (f.residuals.array() / s).square()).inverse();
        f = weighted_fit(inputs, targets, weights);
    }
    // Of e w the derivative is (1 - (e / s)^2) w^2, and (e / s)^2 is 1 / w - 1.
    add_t_values(f, inputs, f.residuals.cwiseProduct(weights), 2 * weights.array().square() - weights.array());
    return f;
}

/// What the largest size of `tests` standard normal numbers exceeds with a probability of `level`, at most.
inline double largest_normal(double level, Index tests) {
    return boost::math::quantile(
        boost::math::complement(boost::math::normal_distribution<double>(), level / double(2 * tests)));
}

/// Granger's test: the causes whose coefficients in a linear forecast are not 0. Their strengths are sizes of t-values.
template <class Fit>
std::vector<castle::methods::CausalLink> granger_links(const castle::Matrix<double>& x, const Lags& lags, double level,
                                                       const Fit& fit) {
    const Index n = x.cols();
    const castle::Matrix<double> inputs = windows_of(x, lags);
    castle::methods::CausalScores scores(n, n, lags.first, lags.last);
    model::for_parts(n, [&](Index effect) {
        castle::Matrix<double> own = inputs;
        if (lags.first == 0) own.col(effect).setZero();  // the target itself
        const LinearForecast forecast = fit(own, x.col(effect).tail(own.rows()));
        for (Index i = 0; i < inputs.cols(); ++i) {
            scores(i % n, effect, lags.first + i / n) = std::abs(forecast.t(i));
        }
    });
    return castle::methods::links_above(scores, largest_normal(level, n * n * lags.count()));
}

/// Variables that go together at the same time, given all others: pairs with a partial correlation other than 0. It has
/// no direction, so each pair is two links, of lag 0.
inline std::vector<castle::methods::CausalLink> partial_correlation_links(const castle::Matrix<double>& x,
                                                                          double level) {
    constexpr double ridge = 1e-3;
    const Index n = x.cols(), times = x.rows();
    castle::Matrix<double> covariance = x.transpose() * x / double(times);
    covariance.diagonal().array() += ridge;
    const castle::Matrix<double> precision = covariance.llt().solve(castle::Matrix<double>::Identity(n, n));
    castle::methods::CausalScores scores(n, n, 0, 0);
    const double freedom = std::sqrt(double(std::max<Index>(times - n - 1, 1)));
    for (Index i = 0; i < n; ++i) {
        for (Index j = 0; j < n; ++j) {
            const double r = -precision(i, j) / std::sqrt(precision(i, i) * precision(j, j));
            // Fisher's transformation makes it normal.
            if (i != j) scores(i, j, 0) = std::abs(std::atanh(r)) * freedom;
        }
    }
    return castle::methods::links_above(scores, largest_normal(level, std::max<Index>(n * (n - 1) / 2, 1)));
}

/// Every variable as its own cause.
inline std::vector<castle::methods::CausalLink> self_links(Index variables) {
    std::vector<castle::methods::CausalLink> links;
    for (Index i = 0; i < variables; ++i) links.push_back({.cause = i, .effect = i, .lag = 1, .strength = 0});
    return links;
}

/// With the self-links that are missing.
inline std::vector<castle::methods::CausalLink> with_self_links(std::vector<castle::methods::CausalLink> links,
                                                                Index variables) {
    for (const castle::methods::CausalLink& self : self_links(variables)) {
        const bool is_there = std::ranges::any_of(
            links, [&](const auto& link) { return link.cause == self.cause && link.effect == self.effect; });
        if (!is_there) links.push_back(self);
    }
    return links;
}

}  // namespace causal_discovery
