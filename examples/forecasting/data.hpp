// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include <fmt/core.h>

#include "../model/batch.hpp"
#include "../model/matrices.hpp"
#include "../support/bad_input.hpp"
#include "../support/csv.hpp"

namespace forecasting {

using model::Index;
using model::Matrix;

/// Rows of a series, in their order: those that models learn from, those by which their settings are chosen, and those
/// that they are tested with. The usual split of the hourly ETT data, 12, 4 and 4 months of 30 days.
struct Split {
    Index training = 8640;
    Index validation = 2880;
    Index test = 2880;
};

/// A run of points in time that are to be forecast from what came before.
struct Part {
    Index first = 0;
    Index count = 0;

    /// How often `horizon` points are forecast: from every point on after which there are as many.
    Index windows(Index horizon) const { return count - horizon + 1; }
};

/// A file's series, each less its mean over the training rows and over its deviation there.
struct Data {
    std::string path;
    Series series;  // as in the file
    Split split;
    std::vector<double> means, deviations;
    Matrix values;  // [variables, times]

    std::string name() const { return std::filesystem::path(path).filename().string(); }
    Index variables() const { return values.rows(); }
    Part training() const { return {0, split.training}; }
    Part validation() const { return {split.training, split.validation}; }
    Part test() const { return {split.training + split.validation, split.test}; }

    /// In the units of the file.
    double original(Index variable, double value) const {
        return means[std::size_t(variable)] + deviations[std::size_t(variable)] * value;
    }
};

/// Throws BadInput as read_series does; and if there are fewer rows than those of the split, or a variable does not
/// change in the training rows.
inline Data read_data(const std::filesystem::path& path, const Split& split) {
    Data data{.path = path.string(),
              .series = read_series(path),
              .split = split,
              .means = {},
              .deviations = {},
              .values = {}};
    const castle::Matrix<double>& values = data.series.values;
    const Index needed = split.training + split.validation + split.test;
    if (values.rows() < needed) {
        throw BadInput(
            fmt::format("\"{}\" has {} rows but the split has {}: {} for training, {} for validation, {} for tests",
                        data.path, values.rows(), needed, split.training, split.validation, split.test));
    }
    data.values.resize(values.cols(), values.rows());
    for (Index v = 0; v < values.cols(); ++v) {
        const auto training = values.col(v).head(split.training).array();
        const double mean = training.mean(), deviation = std::sqrt((training - mean).square().mean());
        if (!(deviation > 0)) {
            throw BadInput(fmt::format("\"{}\": \"{}\" does not change in the {} training rows", data.path,
                                       data.series.names[std::size_t(v)], split.training));
        }
        data.means.push_back(mean);
        data.deviations.push_back(deviation);
        data.values.row(v) = ((values.col(v).array() - mean) / deviation).cast<float>().transpose();
    }
    return data;
}

/// Forecasts of a part's points from every point on: row `w variables + v` is of variable `v` from the part's point `w`
/// on. `[windows(least) variables, longest]`, where `least` is the shortest horizon and `longest` the longest: what
/// lies behind the part's end is there, and is not looked at.
using Forecasts = Matrix;

/// Calls write(window, variable, row) for every row of forecasts, on all cores.
template <class Write>
Forecasts make_forecasts(const Data& data, Index windows, Index longest, const Write& write) {
    Forecasts all(windows * data.variables(), longest);
    model::for_parts(windows, [&](Index w) {
        for (Index v = 0; v < data.variables(); ++v) write(w, v, all.row(w * data.variables() + v));
    });
    return all;
}

}  // namespace forecasting
