// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "data.hpp"

namespace forecasting {

/// Of the points of all windows and variables, normalised.
struct Error {
    double squared = 0;   ///< mean squared error
    double absolute = 0;  ///< mean absolute error
};

/// Of each horizon, and of them all: the mean over horizons.
struct Errors {
    std::vector<Error> horizons;

    Error mean() const {
        Error sum;
        for (const Error& e : horizons) {
            sum.squared += e.squared / double(horizons.size());
            sum.absolute += e.absolute / double(horizons.size());
        }
        return sum;
    }
};

/// Of the forecasts that row(r) gives, r as in Forecasts.
template <class Row>
Errors errors_of(const Data& data, const Part& part, const std::vector<Index>& horizons, const Row& row) {
    const Index variables = data.variables();
    const Index windows = part.windows(*std::min_element(horizons.begin(), horizons.end()));
    // Sums over a window's rows, for each horizon: added up in order, whatever thread they are from.
    std::vector<Errors> sums(std::size_t(windows), Errors{std::vector<Error>(horizons.size())});
    model::for_parts(windows, [&](Index w) {
        for (Index v = 0; v < variables; ++v) {
            const auto forecast = row(w * variables + v);
            for (std::size_t h = 0; h < horizons.size(); ++h) {
                if (w >= part.windows(horizons[h])) continue;
                const auto truth = data.values.row(v).segment(part.first + w, horizons[h]);
                const Eigen::ArrayXd difference =
                    (forecast.head(horizons[h]) - truth).template cast<double>().transpose().array();
                Error& sum = sums[std::size_t(w)].horizons[h];
                sum.squared += difference.square().sum();
                sum.absolute += difference.abs().sum();
            }
        }
    });
    Errors errors{std::vector<Error>(horizons.size())};
    for (std::size_t h = 0; h < horizons.size(); ++h) {
        const double points = double(part.windows(horizons[h]) * variables * horizons[h]);
        for (const Errors& own : sums) {
            errors.horizons[h].squared += own.horizons[h].squared / points;
            errors.horizons[h].absolute += own.horizons[h].absolute / points;
        }
    }
    return errors;
}

inline Errors errors_of(const Data& data, const Part& part, const std::vector<Index>& horizons, const Forecasts& all) {
    return errors_of(data, part, horizons, [&](Index r) { return all.row(r); });
}

/// Of `weight` of the first and `1 - weight` of the second.
inline Errors errors_of_mix(const Data& data, const Part& part, const std::vector<Index>& horizons,
                            const Forecasts& first, const Forecasts& second, double weight) {
    return errors_of(data, part, horizons, [&](Index r) -> Eigen::RowVectorXf {
        return float(weight) * first.row(r) + float(1 - weight) * second.row(r);
    });
}

/// The weight of the first, within [0, 1], with which the mean of the squared errors is least. That mean is a parabola
/// of the weight.
inline double best_weight(const Data& data, const Part& part, const std::vector<Index>& horizons,
                          const Forecasts& first, const Forecasts& second) {
    const auto at = [&](double weight) {
        return errors_of_mix(data, part, horizons, first, second, weight).mean().squared;
    };
    const double none = at(0), half = at(0.5), all = at(1);
    const double bend = none - 2 * half + all;  // half of what is before the square
    if (!(bend > 0)) return all < none ? 1 : 0;
    return std::clamp((3 * none - 4 * half + all) / (4 * bend), 0.0, 1.0);
}

}  // namespace forecasting
