// SPDX-License-Identifier: Apache-2.0

// Future-aware attention (arXiv:2505.18605) on questions about images that the program draws. Small models are trained
// whose patches see nothing of what comes later, see it by one of the three masks, or look at it in the light form,
// which keeps the mask causal; see castle/methods/future_aware.hpp.
#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include "model/batch.hpp"
#include "support/bad_input.hpp"
#include "support/command_line.hpp"
#include "support/experiments.hpp"
#include "support/output_file.hpp"
#include "support/progress.hpp"
#include "support/table.hpp"
#include "visual_questions/model.hpp"
#include "visual_questions/picture.hpp"
#include "visual_questions/task.hpp"
#include "visual_questions/timing.hpp"

namespace {

using namespace visual_questions;
using castle::Future;
using castle::methods::Pooling;

struct Settings : Experiments {
    Index steps = 250;
    std::string pooling = "max";
    Index kernel = 1;
    Index prefix = 1;
    Index time_tokens = 2048;
    std::string picture;
};

const std::map<std::string, Pooling> poolings = {{"max", Pooling::max}, {"mean", Pooling::mean}};

struct NamedSight {
    std::string name;
    Sight sight;
};

std::vector<NamedSight> all_sights(const Settings& settings) {
    std::vector<NamedSight> all = {{"causal mask", {}}};
    const std::array<std::pair<const char*, Future>, 3> futures = {
        {{"all", Future::all}, {"v2v", Future::visual}, {"v2t", Future::text}}};
    for (const auto& [name, future] : futures) {
        all.push_back({fmt::format("mask {}", name), {.form = Sight::Form::full, .light = {.future = future}}});
    }
    for (const auto& [name, future] : futures) {
        all.push_back({fmt::format("light {}", name),
                       {.form = Sight::Form::light,
                        .light = {.future = future,
                                  .pooling = poolings.at(settings.pooling),
                                  .kernel = settings.kernel,
                                  .prefix = settings.prefix}}});
    }
    return all;
}

// A model is trained for each kind of prompt. One for all four learns too, but some seeds take far longer.
const std::vector<std::vector<Question>> lessons = {
    {Question::gone, Question::added}, {Question::unread}, {Question::odd}};

/// Right answers to each question.
using Accuracies = std::array<double, all_questions.size()>;

/// What one seed gives.
struct Outcome {
    std::vector<Accuracies> trained;   // with each sight
    std::vector<Accuracies> switched;  // of the models that were trained with the first sight, and are run with each
};

void test(const Model& model, const Sight& sight, const std::vector<Question>& lesson, std::uint64_t seed,
          Accuracies& right) {
    constexpr Index tested = 1000;
    for (const Question asked : lesson) right[std::size_t(asked)] = accuracy(model, sight, asked, tested, seed);
}

void print_accuracies(const std::vector<NamedSight>& sights, const std::vector<Outcome>& outcomes) {
    Table table({"right answers in %", "gone", "new", "unread", "odd"});
    const auto add = [&](const std::string& name, const auto& of) {
        std::vector<std::string> row = {name};
        for (const Question asked : all_questions) {
            row.push_back(percent(outcomes, [&](const Outcome& o) { return of(o)[std::size_t(asked)]; }));
        }
        table.add(row);
    };
    for (std::size_t s = 0; s < sights.size(); ++s) {
        add(sights[s].name, [&](const Outcome& o) -> const Accuracies& { return o.trained[s]; });
    }
    for (std::size_t s = 1; s < sights.size(); ++s) {
        add("trained causal, run with " + sights[s].name,
            [&](const Outcome& o) -> const Accuracies& { return o.switched[s]; });
    }
    table.print();
}

void print_timings(const std::vector<NamedSight>& sights, Index tokens) {
    fmt::print(
        "\nA model of {} layers, {} heads of {}, one thread: milliseconds for a prompt of {} tokens, three quarters "
        "of\n"
        "them patches; for a generated token after it; and for one that patches are to see as well, which makes the\n"
        "prompt be computed again.\n\n",
        measured_size.layers, measured_size.heads, measured_size.d_head, tokens);
    Table table({"", "prompt", "of causal", "generated token", "of causal", "seen by patches"});
    std::vector<Sight> all;
    for (const NamedSight& s : sights) all.push_back(s.sight);
    const std::vector<Timing> timings = timings_of(all, tokens);
    for (std::size_t s = 0; s < sights.size(); ++s) {
        const Timing &own = timings[s], &causal = timings.front();
        const bool sees_text = all[s].form == Sight::Form::full && all[s].light.future != Future::visual;
        table.add({sights[s].name, fmt::format("{:.1f}", 1e3 * own.prompt),
                   fmt::format("{:.2f}", own.prompt / causal.prompt), fmt::format("{:.3f}", 1e3 * own.token),
                   fmt::format("{:.2f}", own.token / causal.token),
                   sees_text ? fmt::format("{:.1f}", 1e3 * own.prompt) : ""});
    }
    table.print();
}

void draw_looks(const Settings& settings, const std::vector<NamedSight>& sights, const std::vector<Model>& trained) {
    std::mt19937_64 bits(7);
    const Prompt prompt = random_prompt(Question::gone, bits);
    std::vector<Look> looks;
    for (std::size_t s = 0; s < sights.size(); ++s) {
        const bool is_light_visual =
            sights[s].sight.form == Sight::Form::light && sights[s].sight.light.future == Future::visual;
        if (s > 0 && !is_light_visual) continue;
        looks.push_back(look_of(sights[s].name, trained[s], sights[s].sight, prompt));
    }
    draw(settings.picture, prompt, looks);
    fmt::print("\nWhat the first seed's models look at is drawn in {}\n", settings.picture);
}

void run(const Settings& settings) {
    settings.use_threads();
    const std::vector<NamedSight> sights = all_sights(settings);
    fmt::print(
        "Questions about patches, each a symbol in a colour. The answer is a colour; guessing gives {} %. {} steps of\n"
        "{} prompts for each question, {} seeds; light attention by the {} with a kernel of {} and a prefix of {}.\n\n",
        100 / colours, settings.steps, batch, settings.seeds, settings.pooling, settings.kernel, settings.prefix);
    const Stopwatch watch;
    std::vector<Outcome> outcomes(
        std::size_t(settings.seeds),
        Outcome{.trained = std::vector<Accuracies>(sights.size()), .switched = std::vector<Accuracies>(sights.size())});
    Progress progress(settings.seeds * Index(sights.size() * all_questions.size()) * settings.steps);
    std::vector<Model> to_show(sights.size(), Model({}, 0));  // of the first seed and lesson
    const Index trainings = Index(sights.size() * lessons.size());
    model::for_parts(settings.seeds * trainings, [&](Index i) {
        const std::size_t run = std::size_t(i / trainings), s = std::size_t(i % trainings) / lessons.size();
        const std::vector<Question>& lesson = lessons[std::size_t(i % trainings) % lessons.size()];
        const std::uint64_t seed = std::uint64_t(settings.seed) + run;
        Model model({}, seed);
        train(model, sights[s].sight, lesson, settings.steps * Index(lesson.size()), seed,
              [&] { progress.advance(1); });
        test(model, sights[s].sight, lesson, ~seed, outcomes[run].trained[s]);
        for (std::size_t other = 1; s == 0 && other < sights.size(); ++other) {
            test(model, sights[other].sight, lesson, ~seed, outcomes[run].switched[other]);
        }
        if (i % Index(lessons.size()) == 0 && run == 0) to_show[s] = model;
        progress.say(fmt::format("{}: a model for \"{}\" is trained with seed {}", sights[s].name,
                                 question_names[std::size_t(lesson.front())], seed));
    });
    print_accuracies(sights, outcomes);
    if (settings.time_tokens > 0) print_timings(sights, settings.time_tokens);
    fmt::print("\n{:.0f} s\n", watch.seconds());
    if (!settings.picture.empty()) draw_looks(settings, sights, to_show);
}

/// The settings, or nothing where the command line asked for --help and has been answered.
std::optional<Settings> parse(int argc, char** argv) {
    Settings settings;
    settings.seeds = 5;  // half a minute each
    CLI::App app(
        "Trains small models on questions about images, whose patches see what comes later or do not, and tells how "
        "often they are right and how long they take.",
        "visual_questions");
    const auto option = [&](const std::string& name, auto& value, const std::string& help) {
        return app.add_option(name, value, help)->capture_default_str();
    };
    settings.add_to(app);
    Experiments::add_count(app, "--steps", settings.steps, "Of 64 prompts, for each question", 1, 1000000);
    option("--pooling", settings.pooling, "Of later logits in the light form: max or mean")
        ->check(CLI::IsMember({"max", "mean"}));
    Experiments::add_count(app, "--kernel", settings.kernel, "Neighbours that are pooled there; odd", 1, 9999);
    Experiments::add_count(app, "--prefix", settings.prefix, "Tokens whose logits change there", 1, length);
    Experiments::add_count(app, "--time_tokens", settings.time_tokens, "Of the prompt that is timed; 0 for none", 0,
                           65536);
    option("--picture", settings.picture, "An SVG to write, of what a causal and a light model look at");
    if (!parse_command_line(app, argc, argv)) return std::nullopt;
    if (settings.kernel % 2 == 0) throw BadInput(fmt::format("--kernel is {} but must be odd", settings.kernel));
    if (!settings.picture.empty()) expect_can_be_written("--picture", settings.picture);
    return settings;
}

}  // namespace

int main(int argc, char** argv) {
    return exit_code("visual_questions", [&] {
        if (const std::optional<Settings> settings = parse(argc, argv)) run(*settings);
        return 0;
    });
}
