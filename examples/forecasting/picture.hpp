// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include <fmt/core.h>

#include "../support/picture.hpp"
#include "output.hpp"

namespace forecasting {

/// A column for each data set, a panel for each variable.
inline void draw(const std::string& path, const std::vector<Shown>& all) {
    constexpr double width = 620, height = 130, margin = 60, top = 80, gap = 30;
    struct Colour {
        double red, green, blue;
    };
    constexpr Colour known{0.25, 0.25, 0.25};
    constexpr std::array<Colour, 3> colours = {{{0.85, 0.2, 0.1}, {0.1, 0.4, 0.8}, {0.2, 0.65, 0.3}}};
    std::size_t rows = 0;
    for (const Shown& shown : all) rows = std::max(rows, shown.variables.size());
    Picture picture(path, margin + double(all.size()) * (width + margin), top + double(rows) * (height + gap) + gap);
    for (std::size_t column = 0; column < all.size(); ++column) {
        const Shown& shown = all[column];
        const double left = margin + double(column) * (width + margin);
        picture.text(left, 30, shown.title, 16);
        double x = left;
        const auto legend = [&](const std::string& name, const Colour& colour) {
            picture.fill(x, 47, 16, 3, colour.red, colour.green, colour.blue);
            picture.text(x + 22, 53, name, 12);
            x += 60 + 7 * double(name.size());
        };
        legend("truth", known);
        for (std::size_t f = 0; f < shown.names.size(); ++f) legend(shown.names[f], colours[f % colours.size()]);
        const Index earlier = shown.before.cols(), points = earlier + shown.truth.cols();
        for (std::size_t v = 0; v < shown.variables.size(); ++v) {
            const auto row = Index(v);
            const double y = top + double(v) * (height + gap);
            float least = std::min(shown.before.row(row).minCoeff(), shown.truth.row(row).minCoeff());
            float most = std::max(shown.before.row(row).maxCoeff(), shown.truth.row(row).maxCoeff());
            for (const Matrix& forecast : shown.forecasts) {
                least = std::min(least, forecast.row(row).minCoeff());
                most = std::max(most, forecast.row(row).maxCoeff());
            }
            if (most == least) most = least + 1;
            picture.fill(left, y, width, height, 0.96, 0.96, 0.97);
            picture.fill(left + width * double(earlier) / double(points), y, 1, height, 0.6, 0.6, 0.6);
            const auto line = [&](Index first, const Eigen::RowVectorXf& values, const Colour& colour) {
                std::vector<Picture::Point> to;
                for (Index i = 0; i < values.size(); ++i) {
                    to.push_back({left + width * double(first + i) / double(points - 1),
                                  y + height * double((most - values(i)) / (most - least))});
                }
                picture.line(to, colour.red, colour.green, colour.blue);
            };
            Eigen::RowVectorXf truth(points);
            truth << shown.before.row(row), shown.truth.row(row);
            line(0, truth, known);
            for (std::size_t f = 0; f < shown.forecasts.size(); ++f) {
                line(earlier, shown.forecasts[f].row(row), colours[f % colours.size()]);
            }
            picture.text(left, y - 5, shown.variables[v], 12);
            picture.text(left - 5, y + 10, fmt::format("{:.3g}", most), 10, 1);
            picture.text(left - 5, y + height, fmt::format("{:.3g}", least), 10, 1);
        }
    }
    picture.finish();
}

}  // namespace forecasting
