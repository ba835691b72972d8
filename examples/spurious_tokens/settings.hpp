// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>

#include "../support/experiments.hpp"
#include "game.hpp"

namespace spurious_tokens {

/// What programs that play the game have in common.
struct GameExperiments : Experiments {
    Index examples = 1600;
    Index epochs = 20;

    void add_to(CLI::App& app) {
        add_count(app, "--examples", examples, "To train on", 10, 1000000);
        add_count(app, "--epochs", epochs, "Passes over them", 1, 10000);
        Experiments::add_to(app);
    }
};

}  // namespace spurious_tokens
