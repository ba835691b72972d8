// SPDX-License-Identifier: Apache-2.0

// Causal attention tuning (arXiv:2509.01535) on the spurious token game. Small models read eight attributes of a
// made-up person and tell a risk. In training some attributes follow the true causes, and a model that looks at them is
// wrong where they no longer do. A loss on its attention tells it which tokens are causes; see
// castle/methods/reattention.hpp.
#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include "causal_tuning/picture.hpp"
#include "model/batch.hpp"
#include "spurious_tokens/settings.hpp"
#include "spurious_tokens/train.hpp"
#include "support/bad_input.hpp"
#include "support/command_line.hpp"
#include "support/experiments.hpp"
#include "support/output_file.hpp"
#include "support/progress.hpp"
#include "support/table.hpp"

namespace {

using namespace causal_tuning;
using namespace spurious_tokens;
using castle::methods::ReattentionForm;

struct Settings : GameExperiments {
    bool all = false;
    std::string form = "hinge";
    std::string training, in_distribution, out_of_distribution;  // published files, all three or none
    std::string picture;
};

const std::map<std::string, ReattentionForm> forms = {{"hinge", ReattentionForm::hinge},
                                                      {"log_ratio", ReattentionForm::log_ratio},
                                                      {"log_odds", ReattentionForm::log_odds},
                                                      {"share", ReattentionForm::share}};

/// One row of the table: a kind of model and of loss, trained with every seed.
struct Experiment {
    Kind kind;
    std::optional<Tuning> tuning;
    std::vector<Accuracies> results = {};
};

std::vector<Experiment> experiments(const Settings& settings) {
    std::vector<Experiment> list;
    for (const Index layers : settings.all ? std::vector<Index>{1, 2} : std::vector<Index>{1}) {
        for (const bool castle : {false, true}) {
            const Kind kind{.castle = castle, .layers = layers};
            list.push_back({.kind = kind, .tuning = std::nullopt});
            for (const bool per_head : settings.all ? std::vector<bool>{false, true} : std::vector<bool>{false}) {
                for (const double alpha :
                     settings.all ? std::vector<double>{2, 5, 10, 20} : std::vector<double>{2, 20}) {
                    list.push_back(
                        {.kind = kind,
                         .tuning = Tuning{
                             .options = {.form = forms.at(settings.form), .alpha = alpha, .per_head = per_head}}});
                }
            }
        }
    }
    return list;
}

Data data_of(const Settings& settings, std::uint64_t seed) {
    Data data;
    if (settings.training.empty()) {
        data = {.training = random_people(settings.examples, true, 4 * seed),
                .validation = {},
                .in_distribution = random_people(400, true, 4 * seed + 1),
                .out_of_distribution = random_people(400, false, 4 * seed + 2)};
    } else {
        data = {.training = read_people(settings.training),
                .validation = {},
                .in_distribution = read_people(settings.in_distribution),
                .out_of_distribution = read_people(settings.out_of_distribution)};
    }
    split_validation(data);
    return data;
}

std::string words_of(const Experiment& e) {
    const std::string model = fmt::format("{}, {} layer{}", e.kind.castle ? "CASTLE" : "standard", e.kind.layers,
                                          e.kind.layers > 1 ? "s" : "");
    if (!e.tuning) return model + ", cross-entropy alone";
    return fmt::format("{}, alpha {:g}{}", model, e.tuning->options.alpha,
                       e.tuning->options.per_head ? " per head" : "");
}

// By the validation data, which know the causes but nothing of the other distribution: the most mass on the causes, of
// the experiments whose right answers are within a point of the best.
const Experiment& chosen_of(const std::vector<Experiment>& list) {
    const auto mean = [](const Experiment& e, double Accuracies::*figure) {
        return statistics(e.results, [&](const Accuracies& r) { return r.*figure; }).mean;
    };
    double best = 0;
    for (const Experiment& e : list) best = std::max(best, mean(e, &Accuracies::validation));
    const Experiment* chosen = nullptr;
    for (const Experiment& e : list) {
        if (mean(e, &Accuracies::validation) < best - 0.01) continue;
        if (!chosen || mean(e, &Accuracies::mass) > mean(*chosen, &Accuracies::mass)) chosen = &e;
    }
    return *chosen;
}

void print_table(const std::vector<Experiment>& list, double in, double out) {
    Table table({"right answers in %", "validation", "in distribution", "out of it", "mass on causes"});
    table.add({"the most frequent risk", "", fmt::format("{:.1f}", 100 * in), fmt::format("{:.1f}", 100 * out), ""});
    for (const Experiment& e : list) {
        table.add({words_of(e), percent(e.results, [](const auto& r) { return r.validation; }),
                   percent(e.results, [](const auto& r) { return r.in_distribution; }),
                   percent(e.results, [](const auto& r) { return r.out_of_distribution; }),
                   percent(e.results, [](const auto& r) { return r.mass; })});
    }
    table.print();
    fmt::print("\nChosen by the validation part of the training data: {}.\n", words_of(chosen_of(list)));
}

void draw_looks(const Settings& settings, const Data& data) {
    std::vector<Look> looks;
    const Person& person = data.out_of_distribution.front();
    for (const bool castle : {false, true}) {
        for (const double alpha : {0.0, 20.0}) {
            const auto seed = std::uint64_t(settings.seed);
            Model model({.castle = castle}, seed);
            std::optional<Tuning> tuning;
            if (alpha > 0) tuning = Tuning{.options = {.form = forms.at(settings.form), .alpha = alpha}};
            train(model, data.training, tuning, settings.epochs, seed);
            looks.push_back({fmt::format("{}, {}", castle ? "CASTLE" : "standard", alpha > 0 ? "tuned" : "not tuned"),
                             model.attention_of(person)});
        }
    }
    draw(settings.picture, person, looks);
    fmt::print("\nWhat the answer looks at, for a person out of distribution, is drawn in {}\n", settings.picture);
}

void run(const Settings& settings) {
    settings.use_threads();
    std::vector<Data> data;
    for (Index i = 0; i < settings.seeds; ++i) data.push_back(data_of(settings, std::uint64_t(settings.seed + i)));
    std::vector<Experiment> list = experiments(settings);
    double in = 0, out = 0;
    for (const Data& d : data) {
        in += most_frequent_right(d.training, d.in_distribution) / double(data.size());
        out += most_frequent_right(d.training, d.out_of_distribution) / double(data.size());
    }
    fmt::print(
        "The spurious token game: {} examples to train on, {} epochs, {} seeds. {} parameters in a layer of\n"
        "standard attention, {} in one of CASTLE. The attention loss is the {}.\n\n",
        data.front().training.size(), settings.epochs, settings.seeds, Model({}, 1).parameters(),
        Model({.castle = true}, 1).parameters(), settings.form);
    const Stopwatch watch;
    Progress progress(Index(list.size()) * settings.seeds);
    for (Experiment& e : list) {
        progress.say(fmt::format("training {}", words_of(e)));
        e.results.resize(data.size());
        model::for_parts(settings.seeds, [&](Index i) {
            const auto seed = std::uint64_t(settings.seed + i);
            Model model(e.kind, seed);
            train(model, data[std::size_t(i)].training, e.tuning, settings.epochs, seed);
            e.results[std::size_t(i)] = accuracies(model, data[std::size_t(i)]);
            progress.advance(1);
        });
    }
    print_table(list, in, out);
    fmt::print("Mean and deviation of {} seeds; {:.0f} s\n", settings.seeds, watch.seconds());
    if (!settings.picture.empty()) draw_looks(settings, data.front());
}

/// The settings, or nothing where the command line asked for --help and has been answered.
std::optional<Settings> parse(int argc, char** argv) {
    Settings settings;
    CLI::App app(
        "Trains small models on the spurious token game, with and without a loss that draws attention to the causes, "
        "and tells how often they are right where the game changes.",
        "causal_tuning");
    const auto option = [&](const std::string& name, auto& value, const std::string& help) {
        return app.add_option(name, value, help)->capture_default_str();
    };
    settings.add_to(app);
    option("--form", settings.form, "Of the attention loss")
        ->check(CLI::IsMember({"hinge", "log_ratio", "log_odds", "share"}));
    app.add_flag("--all", settings.all, "One and two layers, alpha 2 to 20, the mean mass and head by head");
    option("--train", settings.training, "A published file to train on, in place of random examples");
    option("--in_distribution", settings.in_distribution, "The published test file beside it");
    option("--out_of_distribution", settings.out_of_distribution, "The published file out of distribution");
    option("--picture", settings.picture, "An SVG to write, of what the answer looks at");
    if (!parse_command_line(app, argc, argv)) return std::nullopt;
    const int files = int(!settings.training.empty()) + int(!settings.in_distribution.empty()) +
                      int(!settings.out_of_distribution.empty());
    if (files != 0 && files != 3) {
        throw BadInput("--train, --in_distribution and --out_of_distribution go together, but there are " +
                       std::to_string(files) + " of the three");
    }
    if (!settings.picture.empty()) expect_can_be_written("--picture", settings.picture);
    return settings;
}

}  // namespace

int main(int argc, char** argv) {
    return exit_code("causal_tuning", [&] {
        if (const std::optional<Settings> settings = parse(argc, argv)) run(*settings);
        return 0;
    });
}
