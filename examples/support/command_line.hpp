// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <iostream>

#include <CLI/CLI.hpp>

#include "bad_input.hpp"

/// Whether the program is to run: false where --help or --version was asked for, and has been answered.
inline bool parse_command_line(CLI::App& app, int argc, const char* const* argv, std::ostream& answers = std::cout) {
    try {
        app.parse(argc, argv);
    } catch (const CLI::Success& asked) {
        app.exit(asked, answers);
        return false;
    } catch (const CLI::ParseError& error) {
        throw BadInput(error.what());
    }
    return true;
}
