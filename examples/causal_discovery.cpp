// SPDX-License-Identifier: Apache-2.0

// Which variable of a series moves which, and after how long: the gradients of a transformer that forecasts all of them
// from their pasts; see castle/methods/causal_graph.hpp. Links that are known not to be there are masked in every
// layer.
#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include "causal_discovery/benchmark.hpp"
#include "causal_discovery/discover.hpp"
#include "causal_discovery/files.hpp"
#include "causal_discovery/linear.hpp"
#include "causal_discovery/picture.hpp"
#include "model/batch.hpp"
#include "support/bad_input.hpp"
#include "support/command_line.hpp"
#include "support/csv.hpp"
#include "support/experiments.hpp"
#include "support/output_file.hpp"
#include "support/picture.hpp"
#include "support/progress.hpp"
#include "support/table.hpp"

namespace {

using namespace causal_discovery;
using castle::methods::GraphMatch;
using castle::methods::match_graphs;

struct Settings : Experiments {
    Settings() { seeds = 3; }

    std::string series, benchmark;
    Lags lags;
    Index steps = 300;
    Index starts = 3;
    Rule rule;
    std::vector<std::string> excluded;
    std::string prior, truth, graph, json;

    // Of one of the starts of one of the runs.
    Training training(Index run, Index start) const {
        return {.steps = steps, .seed = std::uint64_t((seed + run) * 1000 + start)};
    }
};

/// With every seed; all trainings of all series beside each other.
void discover_all(const Settings& settings, std::vector<SeriesOfSet>& all) {
    const Index runs = settings.seeds, starts = settings.starts;
    const Index trainings = Index(all.size()) * runs * starts;
    std::vector<std::optional<Findings>> found(static_cast<std::size_t>(trainings));
    Progress progress(trainings * settings.steps);
    model::for_parts(trainings, [&](Index part) {
        // The largest series are at the end, and what takes longest begins first.
        const Index training = trainings - 1 - part, run = training / starts, start = training % starts;
        const SeriesOfSet& own = all[std::size_t(run / runs)];
        found[std::size_t(training)] =
            discover(own.x, own.set->lags, {}, settings.training(run % runs, start), [&] { progress.advance(1); });
        if (training % (runs * starts) == 0) {
            progress.say(fmt::format("{}: a series of {} variables", own.set->name, own.x.cols()));
        }
    });
    for (Index run = 0; run < Index(all.size()) * runs; ++run) {
        const auto of_run = std::span(found).subspan(std::size_t(run * starts), std::size_t(starts));
        all[std::size_t(run / runs)].found.push_back(together(of_run));
    }
}

void run_benchmark(const Settings& settings) {
    std::vector<SeriesOfSet> all = read_sets(settings.benchmark);
    fmt::print(
        "{} series with known graphs. {} seeds; with each of them the mean of {} forecasters, {} steps. A link is\n"
        "stronger than what comes of shuffled series, but for a chance of {:g} % in a graph; so it is for Granger's\n"
        "tests. No true graph was used. Means over the series, ± the deviation of the seeds' means.\n\n",
        all.size(), settings.seeds, settings.starts, settings.steps, 100 * settings.rule.level);
    const Stopwatch watch;
    discover_all(settings, all);
    print_tables(all, std::size_t(settings.seeds), settings.rule.level);
    fmt::print("\n{:.0f} s\n", watch.seconds());
}

void print_links(const std::vector<CausalLink>& links, const Names& names) {
    Table table({"cause", "effect", "lag", "strength"});
    for (const CausalLink& link : links) {
        table.add({names[std::size_t(link.cause)], names[std::size_t(link.effect)], fmt::format("{}", link.lag),
                   fmt::format("{:.3f}", link.strength)});
    }
    table.print();
}

/// What is found by other means, and how all of it compares with the truth, where that is known.
void print_comparison(const Settings& settings, const castle::Matrix<double>& x, const Excluded& excluded,
                      const std::vector<CausalLink>& found, const std::optional<std::vector<CausalLink>>& truth) {
    std::vector<std::string> heads = {"", "links"};
    if (truth) heads.insert(heads.end(), {"F1", "precision", "recall", "right lags"});
    Table table(heads);
    const auto add = [&](const std::string& name, std::vector<CausalLink> links) {
        std::erase_if(links, [&](const CausalLink& l) { return excluded.contains({l.cause, l.effect}); });
        std::vector<std::string> row = {name, fmt::format("{}", links.size())};
        if (truth) {
            const GraphMatch match = match_graphs(links, *truth);
            for (const double figure : {match.f1(), match.precision(), match.recall(), match.lags()}) {
                row.push_back(fmt::format("{:.3f}", figure));
            }
        }
        table.add(row);
    };
    const double level = settings.rule.level;
    const Index n = x.cols();
    add("attention", found);
    add("Granger", granger_links(x, settings.lags, level, least_squares));
    add("Granger, robust", granger_links(x, settings.lags, level, robust_fit));
    if (settings.lags.first == 0) {
        add("partial correlation and all self-links", with_self_links(partial_correlation_links(x, level), n));
        add("all self-links alone", self_links(n));
    }
    table.print();
}

void run_series(const Settings& settings) {
    const Series series = read_series(settings.series);
    const Index n = series.variables();
    // Lags, a window for each of the parameters of a linear forecast, and some to spare.
    const Index least = settings.lags.last + settings.lags.count() * n + 20;
    if (series.times() < least) {
        throw BadInput(fmt::format("\"{}\" has {} rows, but {} variables with {} lags need at least {}",
                                   settings.series, series.times(), n, settings.lags.count(), least));
    }
    Excluded excluded;
    if (!settings.prior.empty()) excluded = read_excluded(settings.prior, series.names);
    for (const std::string& pair : settings.excluded) excluded.insert(pair_of(series.names, pair));
    if (Index(excluded.size()) == n * n) throw BadInput("all links are excluded, so there is nothing to find");
    std::optional<std::vector<CausalLink>> truth;
    if (!settings.truth.empty()) truth = read_truth(settings.truth, series.names);

    fmt::print("{}: {} variables, {} times, lags {} to {}, {} links excluded; {} forecasters, {} steps.\n\n",
               std::filesystem::path(settings.series).filename().string(), n, series.times(), settings.lags.first,
               settings.lags.last, excluded.size(), settings.starts, settings.steps);
    const Stopwatch watch;
    const castle::Matrix<double> x = standardised(series.values);
    std::vector<std::optional<Findings>> all(std::size_t(settings.starts));
    Progress progress(settings.starts * settings.steps);
    model::for_parts(settings.starts, [&](Index start) {
        all[std::size_t(start)] =
            discover(x, settings.lags, excluded, settings.training(0, start), [&] { progress.advance(1); });
        progress.say(fmt::format("forecaster {} of {} is trained", start + 1, settings.starts));
    });
    const Findings findings = together(all);
    const std::vector<CausalLink> links = settings.rule.links(findings);
    print_links(links, series.names);
    fmt::print("\n");
    print_comparison(settings, x, excluded, links, truth);
    fmt::print("\n{:.0f} s\n", watch.seconds());
    if (!settings.json.empty()) write_graph(settings.json, series.names, links, excluded);
    if (!settings.graph.empty()) {
        GraphPicture(settings.graph, series.names).draw(links, truth ? &*truth : nullptr);
        fmt::print("The graph is drawn in {}\n", settings.graph);
    }
}

/// The settings, or nothing where the command line asked for --help and has been answered.
std::optional<Settings> parse(int argc, char** argv) {
    Settings settings;
    CLI::App app(
        "Finds which variable of a series moves which, and after how many steps, from the gradients of small "
        "transformers that forecast all of them.",
        "causal_discovery");
    app.add_option("series", settings.series, "A CSV: names of variables, then a line for every time");
    Experiments::add_count(app, "--lags", settings.lags.last, "The longest lag", 1, 100);
    Experiments::add_count(app, "--first_lag", settings.lags.first, "The shortest; 0 where effects come within a step",
                           0, 100);
    app.add_option("--exclude", settings.excluded, "\"A->B\": that A does not move B is known; may be given again")
        ->allow_extra_args(false);
    app.add_option("--prior", settings.prior, "A graph as --json writes it, whose list \"excluded\" is known");
    app.add_option("--truth", settings.truth, "The true graph, a CSV: cause, effect, perhaps lag; to compare with");
    app.add_option("--graph", settings.graph, "An SVG to write, of the graph");
    app.add_option("--json", settings.json, "The graph as JSON, to look at, change and give back with --prior");
    app.add_option("--level", settings.rule.level, "How probable it may be that a graph has a link of pure chance")
        ->capture_default_str()
        ->check(CLI::Range(1e-12, 0.999));
    auto* threshold = app.add_option("--threshold", settings.rule.threshold, "Instead: the least strength of a link")
                          ->check(CLI::Range(0.0, 1e12));
    app.add_option("--strongest", settings.rule.strongest, "Instead: so many causes of each effect")
        ->check(CLI::Range(Index(1), Index(1000000)))
        ->excludes(threshold);
    Experiments::add_count(app, "--starts", settings.starts, "Forecasters whose scores are averaged", 1, 1000);
    Experiments::add_count(app, "--steps", settings.steps, "Of training, each of 64 windows", 1, 1000000);
    Experiments::add_count(app, "--seed", settings.seed, "Of everything random", 0, 4294967295);
    Experiments::add_count(app, "--threads", settings.threads, "That train at the same time; 0 for all cores", 0, 1024);
    app.add_option("--benchmark", settings.benchmark,
                   "In place of a series: a folder with the published sets of series, all of which are read");
    Experiments::add_count(app, "--seeds", settings.seeds, "Runs of the whole benchmark", 1, 1000);
    if (!parse_command_line(app, argc, argv)) return std::nullopt;
    if (settings.series.empty() == settings.benchmark.empty()) {
        throw BadInput("there must be a series or else --benchmark, but there are " +
                       std::string(settings.series.empty() ? "none" : "both"));
    }
    if (settings.lags.first > settings.lags.last) {
        throw BadInput(fmt::format("--first_lag is {} but --lags is {}", settings.lags.first, settings.lags.last));
    }
    if (!settings.graph.empty()) expect_can_be_written("--graph", settings.graph);
    if (!settings.json.empty()) expect_can_be_written("--json", settings.json);
    return settings;
}

}  // namespace

int main(int argc, char** argv) {
    return exit_code("causal_discovery", [&] {
        if (const std::optional<Settings> settings = parse(argc, argv)) {
            settings->use_threads();
            settings->benchmark.empty() ? run_series(*settings) : run_benchmark(*settings);
        }
        return 0;
    });
}
