// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include <fmt/core.h>

/// Something that the user can put right; what() is one line.
struct BadInput : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// An argument that is quoted in a message may hold anything.
inline std::string one_line(std::string text) {
    std::replace_if(
        text.begin(), text.end(), [](unsigned char c) { return std::iscntrl(c) != 0; }, '?');
    return text;
}

/// What a user is told, in one line, of the exception that is being handled.
inline std::string current_reason() {
    try {
        throw;
    } catch (const std::bad_alloc&) {
        return "not enough memory for these sizes";
    } catch (const std::exception& error) {
        return one_line(error.what());
    }
}

/// What `program` ends with: what run() returns, or 2 after one line about what it threw.
template <class F>
int exit_code(const char* program, const F& run) {
    try {
        return run();
    } catch (const std::exception&) {
        fmt::print(stderr, "{}: {}\n", program, current_reason());
    }
    return 2;
}
