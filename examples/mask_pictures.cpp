// SPDX-License-Identifier: Apache-2.0

// Draws the ready masks: which keys (columns) each row sees, for 24 tokens. The picture in docs/masks.md is one of
// these.
#include <optional>
#include <string>
#include <vector>

#include <fmt/core.h>
#include <CLI/CLI.hpp>
#include <castle/mask.hpp>

#include "support/bad_input.hpp"
#include "support/command_line.hpp"
#include "support/output_file.hpp"
#include "support/picture.hpp"

namespace {

using castle::Index;
namespace masks = castle::masks;

constexpr Index tokens = 24;

struct Named {
    std::string name;
    castle::Mask mask;
};

std::vector<Named> ready_masks() {
    // A prompt of 16 tokens: text, an image of six patches, text, an image of four, text.
    const std::vector<bool> visual = {false, false, true,  true, true, true, true, true,
                                      false, false, false, true, true, true, true, false};
    const auto strided = [](Index row, Index key) { return key <= row && (row - key) % 4 == 0; };
    return {{"causal()", masks::causal()},
            {"sliding_window(6)", masks::sliding_window(6)},
            {"sliding_window(6, 2)", masks::sliding_window(6, 2)},
            {"prefix(8)", masks::prefix(8)},
            {"documents({7, 5, 12})", masks::documents({7, 5, 12})},
            {"documents(..., sliding_window(4))", masks::documents({7, 5, 12}, masks::sliding_window(4))},
            {"modality(visual, Future::all)", masks::modality(visual, castle::Future::all)},
            {"modality(visual, Future::visual)", masks::modality(visual, castle::Future::visual)},
            {"modality(visual, Future::text)", masks::modality(visual, castle::Future::text)},
            {"predicate(strided) | sliding_window(3)", masks::predicate(strided) | masks::sliding_window(3)}};
}

void draw(const std::string& path, const std::vector<Named>& all) {
    constexpr double cell = 8, side = tokens * cell, gap = 50, top = 60;
    constexpr std::size_t columns = 5;
    const auto rows = static_cast<double>((all.size() + columns - 1) / columns);
    Picture picture(path, columns * (side + gap) + gap, top + rows * (side + gap));
    picture.text(gap, 26, "Which keys (columns) each row sees, of 24 tokens", 15);
    for (std::size_t i = 0; i < all.size(); ++i) {
        const double left = gap + static_cast<double>(i % columns) * (side + gap);
        const double y = top + static_cast<double>(i / columns) * (side + gap);
        picture.text(left, y - 6, all[i].name, 10);
        picture.fill(left, y, side, side, 0.92, 0.93, 0.95);
        for (Index row = 0; row < tokens; ++row) {
            const auto sees = [&](Index key) { return all[i].mask.sees(row, key, tokens); };
            for (Index key = 0, end = 0; key < tokens; key = end) {
                for (end = key + 1; end < tokens && sees(end) == sees(key);) ++end;
                if (!sees(key)) continue;
                picture.fill(left + static_cast<double>(key) * cell, y + static_cast<double>(row) * cell,
                             static_cast<double>(end - key) * cell, cell - 0.5, 0.08, 0.35, 0.7);
            }
        }
    }
    picture.finish();
}

std::optional<std::string> parse(int argc, char** argv) {
    std::string path = "masks.svg";
    CLI::App app("Draws the ready masks of castle.", "mask_pictures");
    app.add_option("--picture", path, "The SVG to write")->capture_default_str();
    if (!parse_command_line(app, argc, argv)) return std::nullopt;
    expect_can_be_written("--picture", path);
    return path;
}

}  // namespace

int main(int argc, char** argv) {
    return exit_code("mask_pictures", [&] {
        const std::optional<std::string> path = parse(argc, argv);
        if (!path) return 0;
        const std::vector<Named> all = ready_masks();
        draw(*path, all);
        fmt::print("Ten masks of {} tokens are drawn in {}\n", tokens, *path);
        return 0;
    });
}
