// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include <castle/types.hpp>

#include "../model/matrices.hpp"

namespace causal_discovery {

using castle::Index;
using model::Matrix;

/// Lags that a forecast looks back, `[first, last]`.
struct Lags {
    Index first = 1;
    Index last = 3;

    Index count() const { return last - first + 1; }
};

/// Every variable with mean 0 and variance 1. One that never changes becomes 0.
inline castle::Matrix<double> standardised(castle::Matrix<double> x) {
    for (Index j = 0; j < x.cols(); ++j) {
        auto column = x.col(j).array();
        column -= column.mean();
        const double deviation = std::sqrt(column.square().mean());
        if (deviation > 0) column /= deviation;
    }
    return x;
}

inline double median(std::vector<double> values) {
    const auto middle = values.begin() + Index(values.size()) / 2;
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

/// A deviation that a few large values do not change: that of a normal distribution with the same median of `|x|`.
inline double robust_deviation(const Eigen::VectorXd& residuals) {
    std::vector<double> sizes(residuals.data(), residuals.data() + residuals.size());
    const double centre = median(sizes);
    for (double& s : sizes) s = std::abs(s - centre);
    return 1.4826 * median(sizes);
}

/// The values of all causes at all lags before each time from `lags.last` on: `[times - lags.last, lags causes]`, the
/// causes of the shortest lag first.
inline castle::Matrix<double> windows_of(const castle::Matrix<double>& causes, const Lags& lags) {
    const Index count = causes.rows() - lags.last, n = causes.cols();
    castle::Matrix<double> windows(count, lags.count() * n);
    for (Index l = 0; l < lags.count(); ++l) {
        windows.middleCols(l * n, n) = causes.middleRows(lags.last - lags.first - l, count);
    }
    return windows;
}

}  // namespace causal_discovery
