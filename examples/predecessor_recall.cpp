// SPDX-License-Identifier: Apache-2.0

// A task that needs lookahead keys. Of sequences A1 B1 A2 B2 ... A6 B6 Bj the answer is Aj: the key of Aj has to learn
// what came after it. One layer of CASTLE can do that, one layer of standard attention cannot. Trains both and draws
// what they look at.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include <fmt/core.h>
#include <CLI/CLI.hpp>
#include <castle/layer.hpp>

#include "model/adamw.hpp"
#include "model/batch.hpp"
#include "predecessor_recall/model.hpp"
#include "predecessor_recall/picture.hpp"
#include "predecessor_recall/task.hpp"
#include "support/bad_input.hpp"
#include "support/command_line.hpp"
#include "support/output_file.hpp"

namespace {

using namespace recall;

constexpr Index batch = 128;
constexpr Index parts = 8;  // of a batch, each on one core
constexpr Index report_every = 100;
constexpr double learning_rate = 3e-3;
constexpr model::AdamWSettings adamw{.beta2 = 0.99, .weight_decay = 0};

struct Settings {
    Index castle_steps = 500;
    Index causal_steps = 3000;
    Index seed = 1;
    std::string picture = "predecessor_recall.svg";
};

// The part of fresh sequences that is answered right.
double accuracy(const Model& model, std::uint64_t seed) {
    constexpr Index per_part = 125;
    std::vector<Index> right(parts);
    model::for_parts(parts, [&](Index part) {
        std::mt19937_64 bits(seed + static_cast<std::uint64_t>(part));
        for (Index i = 0; i < per_part; ++i) {
            const Sequence s = random_sequence(bits);
            right[std::size_t(part)] += model.answer(s) == s.answer ? 1 : 0;
        }
    });
    Index all = 0;
    for (const Index r : right) all += r;
    return static_cast<double>(all) / (parts * per_part);
}

double train(const std::string& title, Model& model, Index steps, const Settings& settings) {
    fmt::print("{}, {} parameters\n", title, model.layer.parameters());
    std::mt19937_64 bits(static_cast<std::uint64_t>(settings.seed));
    model::AdamW<Weights> optimizer(model.weights);
    model::BatchGradient<Weights> gradient(model.weights, parts);
    std::vector<castle::LayerWorkspace<float>> workspaces;
    for (Index i = 0; i < parts; ++i) workspaces.push_back(model.layer.make_workspace());
    std::vector<Sequence> sequences(batch);
    std::vector<double> losses(parts);
    const auto start = std::chrono::steady_clock::now();
    double right = 0;
    for (Index step = 1; step <= steps; ++step) {
        for (Sequence& s : sequences) s = random_sequence(bits);
        gradient.set_zero();
        model::for_parts(parts, [&](Index part) {
            double& loss = losses[std::size_t(part)] = 0;
            for (Index i = part * batch / parts; i < (part + 1) * batch / parts; ++i) {
                loss += model.learn(sequences[std::size_t(i)], workspaces[std::size_t(part)], gradient.part(part));
            }
        });
        Weights& sum = gradient.sum();
        for (const model::NamedMatrix& m : sum.matrices()) *m.matrix /= float(batch);
        optimizer.step(model.weights, sum, learning_rate, adamw);
        model.update();
        if (step % report_every != 0 && step != steps) continue;

        double loss = 0;
        for (const double l : losses) loss += l / batch;
        right = accuracy(model, 1000000);
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
        fmt::print("  step {:>4} of {}   loss {:.4f}   accuracy {:5.1f} %   {:5.1f} s\n", step, steps, loss,
                   100 * right, taken.count());
        std::fflush(stdout);
    }
    return right;
}

void run(const Settings& settings) {
    fmt::print("Which A came before this B? One attention layer, guessing among {} gives {:.1f} %.\n\n", pairs,
               100.0 / pairs);
    const auto seed = static_cast<std::uint64_t>(settings.seed);
    Model castle_model(seed, {});
    Model causal_model(seed, {.lookahead_window = 0});
    const double by_castle = train("CASTLE", castle_model, settings.castle_steps, settings);
    const double by_causal = train("\nStandard causal attention", causal_model, settings.causal_steps, settings);
    fmt::print("\nAnswered right: {:.1f} % with CASTLE after {} steps, {:.1f} % with standard attention after {}.\n",
               100 * by_castle, settings.castle_steps, 100 * by_causal, settings.causal_steps);

    std::mt19937_64 bits(7);
    const Sequence s = random_sequence(bits);
    draw(settings.picture, s, attention_of(castle_model, s), attention_of(causal_model, s));
    fmt::print("What they look at is drawn in {}\n", settings.picture);
}

/// The settings, or nothing where the command line asked for --help and has been answered.
std::optional<Settings> parse(int argc, char** argv) {
    Settings settings;
    CLI::App app(
        "Trains one layer of CASTLE and one of standard attention on a task that needs lookahead keys, and draws what "
        "they look at.",
        "predecessor_recall");
    constexpr Index most = 1000000;
    const auto option = [&](const std::string& name, auto& value, const std::string& help) {
        return app.add_option(name, value, help)->capture_default_str();
    };
    option("--castle_steps", settings.castle_steps, "Steps of 128 sequences for CASTLE")
        ->check(CLI::Range(Index(1), most));
    option("--causal_steps", settings.causal_steps, "Steps for standard attention")->check(CLI::Range(Index(1), most));
    option("--seed", settings.seed, "Of the weights and sequences")->check(CLI::Range(Index(0), Index(4294967295)));
    option("--picture", settings.picture, "The SVG to write");
    if (!parse_command_line(app, argc, argv)) return std::nullopt;
    expect_can_be_written("--picture", settings.picture);
    return settings;
}

}  // namespace

int main(int argc, char** argv) {
    return exit_code("predecessor_recall", [&] {
        if (const std::optional<Settings> settings = parse(argc, argv)) run(*settings);
        return 0;
    });
}
