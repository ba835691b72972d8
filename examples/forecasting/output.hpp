// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include <fmt/core.h>

#include "../support/bad_input.hpp"
#include "data.hpp"

namespace forecasting {

/// Forecasts of one run of points, of all variables, in the units of the file.
struct Shown {
    std::string title;
    std::vector<std::string> variables;
    std::vector<std::string> dates;  // of the points that are forecast: their row where the file has none
    Matrix before;                   // [variables, points]: what came before them
    Matrix truth;                    // [variables, points]
    std::vector<std::string> names;  // of the forecasts
    std::vector<Matrix> forecasts;   // [variables, points] each
};

/// The forecasts from point `window` of a part on, as far as the part goes, with `earlier` points before them.
inline Shown shown_of(const Data& data, const Part& part, Index window, Index earlier,
                      const std::vector<std::pair<std::string, const Forecasts*>>& forecasts) {
    const Index variables = data.variables(), first = part.first + window;
    const Index points = std::min(forecasts.front().second->cols(), part.count - window);
    const auto original = [&](const Matrix& normalised) {
        return Matrix::NullaryExpr(variables, normalised.cols(),
                                   [&](Index v, Index i) { return float(data.original(v, double(normalised(v, i)))); });
    };
    Shown shown{.title = data.name(),
                .variables = data.series.names,
                .dates = {},
                .before = data.series.values.middleRows(first - earlier, earlier).transpose().cast<float>(),
                .truth = data.series.values.middleRows(first, points).transpose().cast<float>(),
                .names = {},
                .forecasts = {}};
    for (Index i = first; i < first + points; ++i) {
        shown.dates.push_back(data.series.dates.empty() ? fmt::format("{}", i + 1) : data.series.dates[std::size_t(i)]);
    }
    for (const auto& [name, all] : forecasts) {
        shown.names.push_back(name);
        shown.forecasts.push_back(original(all->block(window * variables, 0, variables, points)));
    }
    return shown;
}

/// A line for every variable and point: file,variable,date,truth, and the forecasts.
inline void write_csv(const std::string& path, const std::vector<Shown>& all) {
    std::ofstream file(path);
    file << "file,variable,date,truth";
    for (const std::string& name : all.front().names) file << ',' << name;
    file << '\n';
    for (const Shown& shown : all) {
        for (std::size_t v = 0; v < shown.variables.size(); ++v) {
            for (Index i = 0; i < shown.truth.cols(); ++i) {
                file << fmt::format("\"{}\",\"{}\",\"{}\",{:g}", shown.title, shown.variables[v],
                                    shown.dates[std::size_t(i)], shown.truth(Index(v), i));
                for (const Matrix& forecast : shown.forecasts) file << fmt::format(",{:g}", forecast(Index(v), i));
                file << '\n';
            }
        }
    }
    file.flush();
    if (!file) throw BadInput(fmt::format("--csv {}: the file could not be written", path));
}

}  // namespace forecasting
