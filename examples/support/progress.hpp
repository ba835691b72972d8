// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdio>
#include <iostream>
#include <mutex>
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

/// How far the work is, on the error stream: a bar on a terminal, elsewhere a line for each of its parts. Any thread
/// may call it.
class Progress {
  public:
    explicit Progress(castle::Index steps) {
        if (errors_go_to_terminal()) bar_.emplace(static_cast<unsigned long>(steps), std::cerr, "");
    }

    /// Names a part of the work: "running ...", "... is done".
    void say(const std::string& part) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!bar_) fmt::print(stderr, "{}\n", part);
    }
    void advance(castle::Index steps) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (bar_) *bar_ += static_cast<unsigned long>(steps);
    }

  private:
    std::mutex mutex_;
    std::optional<boost::timer::progress_display> bar_;
};
