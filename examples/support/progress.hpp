// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdio>
#include <iostream>
#include <optional>
#include <string>

#include <fmt/core.h>
#include <boost/timer/progress_display.hpp>
#include <castle/types.hpp>

#if __has_include(<unistd.h>)
#include <unistd.h>
inline bool errors_go_to_terminal() { return isatty(STDERR_FILENO) != 0; }
#else
inline bool errors_go_to_terminal() { return false; }
#endif

/// How far the work is, on the error stream: a bar on a terminal, elsewhere a line for each form.
class Progress {
  public:
    explicit Progress(castle::Index tokens) {
        if (errors_go_to_terminal()) bar_.emplace(static_cast<unsigned long>(tokens), std::cerr, "");
    }

    void begin(const std::string& form) {
        if (!bar_) fmt::print(stderr, "running {}\n", form);
    }
    void advance(castle::Index tokens) {
        if (bar_) *bar_ += static_cast<unsigned long>(tokens);
    }

  private:
    std::optional<boost::timer::progress_display> bar_;
};
