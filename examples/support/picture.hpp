// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include <cairo/cairo-svg.h>

/// A page to draw on, which becomes a file.
class Picture {
  public:
    Picture(const std::string& path, double width, double height)
        : surface_(cairo_svg_surface_create(path.c_str(), width, height)), cairo_(cairo_create(surface_)) {
        fill(0, 0, width, height, 1, 1, 1);
        cairo_select_font_face(cairo_, "sans-serif", CAIRO_FONT_SLANT_NORMAL, CAIRO_FONT_WEIGHT_NORMAL);
    }
    Picture(const Picture&) = delete;
    Picture& operator=(const Picture&) = delete;
    ~Picture() {
        cairo_destroy(cairo_);
        cairo_surface_destroy(surface_);
    }

    /// Writes the file; whether that worked.
    bool finish() {
        cairo_surface_finish(surface_);
        return cairo_surface_status(surface_) == CAIRO_STATUS_SUCCESS;
    }

    void fill(double x, double y, double width, double height, double red, double green, double blue) {
        cairo_set_source_rgb(cairo_, red, green, blue);
        cairo_rectangle(cairo_, x, y, width, height);
        cairo_fill(cairo_);
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
    cairo_surface_t* surface_;
    cairo_t* cairo_;
};
