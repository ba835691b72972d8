// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>

#include <fmt/core.h>
#include <CLI/CLI.hpp>
#include <castle/types.hpp>
#include <castle/version.hpp>

#include "../support/bad_input.hpp"
#include "../support/command_line.hpp"

/// What the command line decides.
struct Settings {
    std::optional<std::string> file = std::nullopt;  ///< this repository's own files unless given
    castle::Index length = 6144;
    castle::Index heads = 8;
    castle::Index d_model = 512;
    castle::Index d_head = 64;
    castle::Index window = 128;
    castle::Index chunk = 256;
    int threads = 0;
    bool rotary = true;
    castle::Index seed = 1;

    /// Heads of standard attention with as many parameters: 4 n projections of it weigh as much as 7 n of CASTLE.
    castle::Index causal_heads() const { return heads * 7 / 4; }
};

inline void check(const Settings& settings) {
    if (settings.heads % 4 != 0) {
        throw BadInput(
            fmt::format("--heads is {} but must be a multiple of 4: standard attention of equal size has 7/4 as many",
                        settings.heads));
    }
    if (settings.rotary && settings.d_head % 2 != 0) {
        throw BadInput(fmt::format("--d_head is {} but must be even for rotary embedding; --no-rotary allows it",
                                   settings.d_head));
    }
#ifndef _OPENMP
    if (settings.threads > 1) {
        throw BadInput(fmt::format("--threads is {} but this program was built without OpenMP and has one thread",
                                   settings.threads));
    }
#endif
}

/// The settings, or nothing where the command line asked for --help or --version and has been answered.
inline std::optional<Settings> parse(int argc, char** argv) {
    constexpr castle::Index most_tokens = castle::Index(1) << 24;
    constexpr castle::Index widest = castle::Index(1) << 16;
    Settings settings;
    CLI::App app(
        "Runs one multi-head layer over the bytes of a text: CASTLE, CASTLE with a lookahead window, and standard "
        "causal attention with as many parameters; in parallel, in chunks and token by token. The weights are random, "
        "so this shows what the layer costs and that all ways give the same bits, not what a trained one says.",
        "text_attention");
    app.set_version_flag("--version", fmt::format("text_attention, castle {}.{}.{}", CASTLE_VERSION_MAJOR,
                                                  CASTLE_VERSION_MINOR, CASTLE_VERSION_PATCH));
    app.add_option("--file", settings.file, "The text; this repository's own sources and documents unless given");
    const auto number = [&](const std::string& name, auto& value, castle::Index least, castle::Index most,
                            const std::string& help) {
        app.add_option(name, value, help)
            ->check(CLI::Range(least, most).description(fmt::format("{} to {}", least, most)))
            ->type_name("N")
            ->capture_default_str();
    };
    number("--length", settings.length, 1, most_tokens, "How many bytes of the text to use, at most");
    number("--heads", settings.heads, 1, widest, "CASTLE heads, a multiple of 4; standard attention gets 7/4 of them");
    number("--d_model", settings.d_model, 1, widest, "Elements of a token's vector");
    number("--d_head", settings.d_head, 1, widest, "Elements of a head's queries, keys and values");
    number("--window", settings.window, 0, most_tokens,
           "Lookahead window: tokens that a lookahead key absorbs; with 0 it has no lookahead projections");
    number("--chunk", settings.chunk, 1, most_tokens, "Tokens in a chunk");
    number("--threads", settings.threads, 0, 256,
           "Threads; 0 takes all processors. OMP_WAIT_POLICY=passive in the environment helps a busy machine");
    number("--seed", settings.seed, 0, 4294967295, "Of the random weights and byte vectors");
    app.add_flag("--rotary,!--no-rotary", settings.rotary, "Rotary position embedding, or none")
        ->default_str("rotary")
        ->disable_flag_override();

    if (!parse_command_line(app, argc, argv)) return std::nullopt;
    check(settings);
    return settings;
}
