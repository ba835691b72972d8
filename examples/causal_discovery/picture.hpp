// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>
#include <vector>

#include <fmt/core.h>

#include "../support/picture.hpp"
#include "files.hpp"

namespace causal_discovery {

/// Variables on a circle, arrows from causes to effects: the stronger the wider, with their lags. What is there in
/// error is red, and what is missing grey, where the truth is known.
class GraphPicture {
  public:
    GraphPicture(const std::string& path, const Names& names)
        : names_(names),
          ring_(std::max(150.0, 26 * double(names.size()))),
          picture_(path, 2 * (ring_ + margin), 2 * (ring_ + margin)) {}

    void draw(const std::vector<CausalLink>& links, const std::vector<CausalLink>* truth) {
        double strongest = 0;
        for (const CausalLink& link : links) strongest = std::max(strongest, link.strength);
        const auto has = [](const auto& all, const CausalLink& link) {
            return std::ranges::any_of(
                all, [&](const CausalLink& l) { return l.cause == link.cause && l.effect == link.effect; });
        };
        constexpr Colour found{0.1, 0.35, 0.7}, wrong{0.85, 0.2, 0.1}, missed{0.72, 0.72, 0.72};
        if (truth) {
            for (const CausalLink& link : *truth) {
                if (!has(links, link)) arrow(link, 1, missed, fmt::format("{}", link.lag));
            }
        }
        for (const CausalLink& link : links) {
            arrow(link, 1 + 4 * link.strength / std::max(strongest, 1e-12), !truth || has(*truth, link) ? found : wrong,
                  fmt::format("{}: {:.2f}", link.lag, link.strength));
        }
        for (std::size_t i = 0; i < names_.size(); ++i) {
            const Point p = place(Index(i));
            picture_.line(circle(p, node), 0.2, 0.2, 0.2, 1);
            picture_.text(p.x, p.y + 4, names_[i], 12, 0.5);
        }
        picture_.text(12, 22, "An arrow has its lag and its strength.", 12);
        picture_.finish();
    }

  private:
    using Point = Picture::Point;
    struct Colour {
        double red, green, blue;
    };
    static constexpr double margin = 90, node = 20, loop = 16;

    // Clockwise from the top.
    double angle(Index variable) const {
        return 2 * std::numbers::pi * double(variable) / double(names_.size()) - std::numbers::pi / 2;
    }
    Point place(Index variable, double further = 0) const {
        const double a = angle(variable), radius = (names_.size() > 1 ? ring_ : 0) + further;
        return {ring_ + margin + radius * std::cos(a), ring_ + margin + radius * std::sin(a)};
    }
    static std::vector<Point> circle(const Point& centre, double radius) {
        std::vector<Point> points;
        for (int i = 0; i <= 48; ++i) {
            const double a = 2 * std::numbers::pi * i / 48;
            points.push_back({centre.x + radius * std::cos(a), centre.y + radius * std::sin(a)});
        }
        return points;
    }
    void arrow(const CausalLink& link, double width, const Colour& c, const std::string& label) {
        if (link.cause == link.effect) {
            const Point centre = place(link.cause, node + loop - 2);
            picture_.line(circle(centre, loop), c.red, c.green, c.blue, width);
            const Point p = place(link.cause, node + 2 * loop + 14);
            picture_.text(p.x, p.y + 4, label, 10, 0.5);
            return;
        }
        const Point from = place(link.cause), to = place(link.effect);
        const double length = std::hypot(to.x - from.x, to.y - from.y);
        const double x = (to.x - from.x) / length, y = (to.y - from.y) / length;
        // Beside the middle, so that the arrow of the other direction has a place of its own.
        constexpr double aside = 5;
        const auto along = [&](double s, double across) {
            return Point{from.x + s * x - (across + aside) * y, from.y + s * y + (across + aside) * x};
        };
        const Point tip = along(length - node - 2, 0);
        picture_.line({along(node, 0), tip}, c.red, c.green, c.blue, width);
        picture_.line({along(length - node - 14, 6), tip, along(length - node - 14, -6)}, c.red, c.green, c.blue,
                      width);
        const Point words = along(length * 0.62, 9);
        picture_.text(words.x, words.y + 4, label, 10, 0.5);
    }

    Names names_;
    double ring_;
    Picture picture_;
};

}  // namespace causal_discovery
