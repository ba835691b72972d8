// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include <cairo/cairo-svg.h>
#include <fmt/core.h>

#include "bad_input.hpp"

/// A page to draw on, which becomes an SVG.
class Picture {
  public:
    Picture(const std::string& path, double width, double height)
        : path_(path), surface_(cairo_svg_surface_create(path.c_str(), width, height)), cairo_(cairo_create(surface_)) {
        fill(0, 0, width, height, 1, 1, 1);
        cairo_select_font_face(cairo_, "sans-serif", CAIRO_FONT_SLANT_NORMAL, CAIRO_FONT_WEIGHT_NORMAL);
    }
    Picture(const Picture&) = delete;
    Picture& operator=(const Picture&) = delete;
    ~Picture() {
        cairo_destroy(cairo_);
        cairo_surface_destroy(surface_);
    }

    /// Writes the file. Throws BadInput if that failed.
    void finish() {
        cairo_surface_finish(surface_);
        if (cairo_surface_status(surface_) == CAIRO_STATUS_SUCCESS) return;
        throw BadInput(fmt::format("the picture {} could not be written", path_));
    }

    void fill(double x, double y, double width, double height, double red, double green, double blue) {
        cairo_set_source_rgb(cairo_, red, green, blue);
        cairo_rectangle(cairo_, x, y, width, height);
        cairo_fill(cairo_);
    }
    struct Point {
        double x, y;
    };
    void line(const std::vector<Point>& points, double red, double green, double blue, double width = 1) {
        cairo_set_source_rgb(cairo_, red, green, blue);
        cairo_set_line_width(cairo_, width);
        cairo_new_path(cairo_);  // text leaves a point
        for (const Point& p : points) cairo_line_to(cairo_, p.x, p.y);
        cairo_stroke(cairo_);
    }
    void frame(double x, double y, double width, double height) {
        cairo_set_source_rgb(cairo_, 0.85, 0.2, 0.1);
        cairo_set_line_width(cairo_, 2);
        cairo_rectangle(cairo_, x, y, width, height);
        cairo_stroke(cairo_);
    }
    /// `align` is 0 for text that begins at x, 0.5 for text around it, 1 for text that ends there.
    void text(double x, double y, const std::string& words, double size, double align = 0) {
        cairo_set_source_rgb(cairo_, 0.1, 0.1, 0.1);
        cairo_set_font_size(cairo_, size);
        cairo_text_extents_t extents;
        cairo_text_extents(cairo_, words.c_str(), &extents);
        cairo_move_to(cairo_, x - align * extents.x_advance, y);
        cairo_show_text(cairo_, words.c_str());
    }

  private:
    std::string path_;
    cairo_surface_t* surface_;
    cairo_t* cairo_;
};
