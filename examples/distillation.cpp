// SPDX-License-Identifier: Apache-2.0

// LeaF (arXiv:2506.07851) on the spurious token game: a small student learns from a larger teacher. Where the gradients
// of the two differ most, tokens mislead the student; examples without them, which the teacher still answers right, are
// distilled as well. See castle/methods/confounders.hpp.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include "distillation/leaf.hpp"
#include "model/batch.hpp"
#include "spurious_tokens/settings.hpp"
#include "support/bad_input.hpp"
#include "support/command_line.hpp"
#include "support/experiments.hpp"
#include "support/progress.hpp"
#include "support/table.hpp"

namespace {

using namespace distillation;

struct Settings : GameExperiments {
    double threshold = 0.10;
    double lambda = 0.5;
};

constexpr Kind teacher_kind{.d_model = 64}, student_kind{.d_model = 32};

/// Right answers of one model, in and out of distribution.
struct Result {
    std::string name;
    double in_distribution = 0;
    double out_of_distribution = 0;
};

/// What one seed gives, and whom the confounders were.
struct Outcome {
    std::vector<Result> results;
    double spurious = 0;  // of the tokens that are removed
    double causal = 0;
    std::string example;
};

std::string told(const Person& person, const std::vector<TokenSpan>& spans) {
    std::string words;
    for (Index t = 0; t < Index(attributes.size()); ++t) {
        const Phrase& phrase = person.phrases[std::size_t(t)];
        const std::string name = fmt::format("{}: {}", attributes[std::size_t(phrase.attribute)], phrase.value);
        words += (t > 0 ? ", " : "") + (any_has(spans, t + 1) ? "[" + name + "]" : name);
    }
    return words + fmt::format(" -> {}", risks[std::size_t(person.risk)]);
}

Outcome outcome_of(const Settings& settings, std::uint64_t seed) {
    const std::vector<Person> people = random_people(settings.examples, true, 4 * seed);
    const std::vector<Person> in = random_people(400, true, 4 * seed + 1),
                              out = random_people(400, false, 4 * seed + 2);
    Outcome outcome;
    const auto report = [&](const std::string& name, const Model& model) {
        outcome.results.push_back({name, accuracy(model, in), accuracy(model, out)});
    };
    const auto student_of = [&](const std::string& name, const Model& teacher, const Counterfactuals& counterfactuals) {
        Model student(student_kind, seed + 1000);
        distil(student, teacher, people, counterfactuals, settings.lambda, settings.epochs, seed);
        report(name, student);
    };

    Model teacher(teacher_kind, seed), misled(teacher_kind, seed), base(student_kind, seed + 1000);
    std::mt19937_64 bits(seed + 5);
    train(teacher, Index(people.size()), settings.epochs, seed,
          [&](std::span<const Index> numbers, Index, Model::Tape& tape, Weights& gradient) {
              teacher.learn(with_random_followers(chosen(people, numbers), 0.7, bits), std::nullopt, 0, tape, gradient);
          });
    train(misled, people, std::nullopt, settings.epochs, seed);
    train(base, people, std::nullopt, settings.epochs, seed);
    report("teacher", teacher);
    report("student, alone", base);
    student_of("distilled", teacher, {});

    const auto spans = confounding_spans(teacher, base, people, settings.threshold);
    student_of("LeaF, spans one by one", teacher, kept(teacher, people, spans, true));
    student_of("LeaF, all spans at once", teacher, kept(teacher, people, spans, false));
    student_of("random spans", teacher, kept(teacher, people, random_spans(spans, seed), true));
    student_of("the true spurious spans", teacher, kept(teacher, people, spurious_spans(people), true));
    report("misled teacher", misled);
    student_of("LeaF with the misled teacher", misled,
               kept(misled, people, confounding_spans(misled, base, people, settings.threshold), true));

    Index flagged = 0, spurious = 0, causal = 0;
    for (std::size_t p = 0; p < people.size(); ++p) {
        for (const TokenSpan& span : spans[p]) {
            for (Index t = span.begin; t < span.end; ++t) {
                const Phrase& phrase = people[p].phrases[std::size_t(t - 1)];
                ++flagged;
                spurious += phrase.is_spurious() ? 1 : 0;
                causal += phrase.is_cause() ? 1 : 0;
            }
        }
    }
    outcome.spurious = flagged > 0 ? double(spurious) / double(flagged) : 0;
    outcome.causal = flagged > 0 ? double(causal) / double(flagged) : 0;
    for (std::size_t p = 0; p < std::min<std::size_t>(people.size(), 3); ++p) {
        outcome.example += "    " + told(people[p], spans[p]) + "\n";
    }
    return outcome;
}

void run(const Settings& settings) {
    settings.use_threads();
    fmt::print(
        "The spurious token game: {} examples, {} epochs, {} seeds; teacher of d_model {}, student of {}; threshold "
        "{:g}, lambda {:g}.\n\n",
        settings.examples, settings.epochs, settings.seeds, teacher_kind.d_model, student_kind.d_model,
        settings.threshold, settings.lambda);
    const Stopwatch watch;
    std::vector<Outcome> outcomes(std::size_t(settings.seeds), Outcome());
    Progress progress(settings.seeds);
    model::for_parts(settings.seeds, [&](Index i) {
        outcomes[std::size_t(i)] = outcome_of(settings, std::uint64_t(settings.seed + i));
        progress.advance(1);
        progress.say(fmt::format("seed {} is done", settings.seed + i));
    });
    Table table({"right answers in %", "in distribution", "out of it"});
    for (std::size_t k = 0; k < outcomes.front().results.size(); ++k) {
        const auto of = [&](double Result::*figure) {
            return percent(outcomes, [&](const Outcome& o) { return o.results[k].*figure; });
        };
        table.add({outcomes.front().results[k].name, of(&Result::in_distribution), of(&Result::out_of_distribution)});
    }
    table.print();
    const auto share = [&](double Outcome::*figure) {
        return 100 * statistics(outcomes, [&](const Outcome& o) { return o.*figure; }).mean;
    };
    fmt::print(
        "\nMean and deviation of {} seeds; {:.0f} s. Of the removed tokens {:.0f} % are spurious, {:.0f} % causes. "
        "Removed, in\nbrackets:\n\n{}",
        settings.seeds, watch.seconds(), share(&Outcome::spurious), share(&Outcome::causal), outcomes.front().example);
}

/// The settings, or nothing where the command line asked for --help and has been answered.
std::optional<Settings> parse(int argc, char** argv) {
    Settings settings;
    settings.epochs = 8;
    CLI::App app(
        "Distils a small model from a larger one on the spurious token game, with and without examples from which "
        "tokens that mislead it are removed.",
        "distillation");
    const auto option = [&](const std::string& name, auto& value, const std::string& help) {
        return app.add_option(name, value, help)->capture_default_str();
    };
    settings.add_to(app);
    option("--threshold", settings.threshold, "Tokens with a normalised difference up to here are confounders")
        ->check(CLI::Range(0.0, 1.0));
    option("--lambda", settings.lambda, "The weight of whole examples beside counterfactual ones")
        ->check(CLI::Range(0.0, 1.0));
    if (!parse_command_line(app, argc, argv)) return std::nullopt;
    return settings;
}

}  // namespace

int main(int argc, char** argv) {
    return exit_code("distillation", [&] {
        if (const std::optional<Settings> settings = parse(argc, argv)) run(*settings);
        return 0;
    });
}
