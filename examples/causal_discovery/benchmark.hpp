// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <fmt/core.h>

#include "../model/batch.hpp"
#include "../support/experiments.hpp"
#include "../support/progress.hpp"
#include "../support/table.hpp"
#include "files.hpp"

// The published comparison: sets of series with known graphs, and what CausalFormer (arXiv:2406.16708) is reported to
// find in them.
namespace causal_discovery {

using castle::methods::GraphMatch;

struct SeriesSet {
    std::string name;
    std::string files;   // of the series, numbered
    std::string truths;  // numbered where each has its own
    Index first = 0, count = 10;
    Lags lags = {};
    double published_f1 = 0, published_lags = 0;
};

inline const std::array<SeriesSet, 6>& all_sets() {
    static const std::array<SeriesSet, 6> sets = {
        {{"diamond", "data_{}.csv", "groundtruth.csv", 0, 10, {}, 0.684, 0.74},
         {"mediator", "data_{}.csv", "groundtruth.csv", 0, 10, {}, 0.707, 0.63},
         {"v", "data_{}.csv", "groundtruth.csv", 0, 10, {}, 0.769, 0.59},
         {"fork", "data_{}.csv", "groundtruth.csv", 0, 10, {}, 0.793, 0.46},
         {"lorenz96", "timeseries{}.csv", "groundtruth.csv", 0, 10, {}, 0.694, 0.42},
         // Effects arrive within a sample.
         {"fMRI", "timeseries{}.csv", "sim{}_gt_processed.csv", 1, 28, {.first = 0, .last = 1}, 0.658, 0.41}}};
    return sets;
}

/// One series of a set, and what is found in it: with every seed, and by other means.
struct SeriesOfSet {
    const SeriesSet* set;
    castle::Matrix<double> x;
    std::vector<CausalLink> truth;
    std::vector<Findings> found;
};

inline std::vector<SeriesOfSet> read_sets(const std::string& folder) {
    std::vector<SeriesOfSet> all;
    for (const SeriesSet& set : all_sets()) {
        for (Index i = set.first; i < set.first + set.count; ++i) {
            const std::filesystem::path own = std::filesystem::path(folder) / set.name;
            const Series series = read_series(own / fmt::format(fmt::runtime(set.files), i));
            all.push_back({.set = &set,
                           .x = standardised(series.values),
                           .truth = read_truth((own / fmt::format(fmt::runtime(set.truths), i)).string(), series.names),
                           .found = {}});
        }
    }
    return all;
}

/// Of all series of a set and all seeds: match(series, seed) is a GraphMatch, of which one figure counts.
template <class Match>
Statistics mean_figure(const std::vector<SeriesOfSet>& all, const SeriesSet& set, std::size_t seeds, const Match& match,
                       double (GraphMatch::*figure)() const = &GraphMatch::f1) {
    std::vector<double> of_seeds(seeds, 0);
    for (std::size_t seed = 0; seed < seeds; ++seed) {
        for (const SeriesOfSet& series : all) {
            if (series.set == &set) of_seeds[seed] += (match(series, seed).*figure)() / double(set.count);
        }
    }
    return statistics(of_seeds, [](double of_seed) { return of_seed; });
}
/// The same, where links(series, seed) are those that are found.
template <class Links>
Statistics mean_f1(const std::vector<SeriesOfSet>& all, const SeriesSet& set, std::size_t seeds, const Links& links,
                   double (GraphMatch::*figure)() const = &GraphMatch::f1) {
    const auto match = [&](const SeriesOfSet& series, std::size_t seed) {
        return castle::methods::match_graphs(links(series, seed), series.truth);
    };
    return mean_figure(all, set, seeds, match, figure);
}

inline std::string words_of(const Statistics& s, std::size_t seeds) {
    return seeds > 1 ? fmt::format("{:.3f} ± {:.3f}", s.mean, s.deviation) : fmt::format("{:.3f}", s.mean);
}

inline void print_tables(const std::vector<SeriesOfSet>& all, std::size_t seeds, double level) {
    const auto attention_links = [&](double at) {
        return
            [at](const SeriesOfSet& series, std::size_t seed) { return Rule{.level = at}.links(series.found[seed]); };
    };
    const auto granger = [&](const auto& fit) {
        return [&fit, level](const SeriesOfSet& series, std::size_t) {
            return granger_links(series.x, series.set->lags, level, fit);
        };
    };

    Table table({"mean F1", "attention", "right lags", "Granger", "Granger, robust", "CausalFormer", "its right lags"});
    for (const SeriesSet& set : all_sets()) {
        const auto links = attention_links(level);
        table.add({set.name, words_of(mean_f1(all, set, seeds, links), seeds),
                   words_of(mean_f1(all, set, seeds, links, &GraphMatch::lags), seeds),
                   words_of(mean_f1(all, set, 1, granger(least_squares)), 1),
                   words_of(mean_f1(all, set, 1, granger(robust_fit)), 1), fmt::format("{:.3f}", set.published_f1),
                   fmt::format("{:.2f}", set.published_lags)});
    }
    table.print();

    fmt::print("\nThe same attention with other levels, at which the null lets a link through:\n\n");
    const std::array<double, 6> levels = {0.5, 0.2, 0.1, 0.05, 0.01, 0.001};
    std::vector<std::string> heads = {"mean F1, level"};
    for (const double at : levels) heads.push_back(fmt::format("{:g}", at));
    Table by_level(heads);
    for (const SeriesSet& set : all_sets()) {
        std::vector<std::string> row = {set.name};
        for (const double at : levels) row.push_back(words_of(mean_f1(all, set, seeds, attention_links(at)), 1));
        by_level.add(row);
    }
    by_level.print();

    const SeriesSet& fmri = all_sets().back();
    fmt::print(
        "\nfMRI: an effect comes within a sample, so most of what can be told is which variables go together. F1, and\n"
        "that of the links between different variables alone:\n\n");
    Table of_fmri({"fMRI", "F1", "without self-links"});
    const auto without_self = [](std::vector<CausalLink> links) {
        std::erase_if(links, [](const CausalLink& link) { return link.cause == link.effect; });
        return links;
    };
    const auto add = [&](const std::string& name, std::size_t runs, const auto& links) {
        const auto of_others = [&](const SeriesOfSet& series, std::size_t seed) {
            return castle::methods::match_graphs(without_self(links(series, seed)), without_self(series.truth));
        };
        of_fmri.add({name, words_of(mean_f1(all, fmri, runs, links), runs),
                     words_of(mean_figure(all, fmri, runs, of_others), runs)});
    };
    const auto attention = attention_links(level);
    add("attention", seeds, attention);
    add("attention and all self-links", seeds, [&](const SeriesOfSet& series, std::size_t seed) {
        return with_self_links(attention(series, seed), series.x.cols());
    });
    // Each link turned round: what the directions are worth.
    add("attention turned round, and all self-links", seeds, [&](const SeriesOfSet& series, std::size_t seed) {
        std::vector<CausalLink> links = attention(series, seed);
        for (CausalLink& link : links) std::swap(link.cause, link.effect);
        return with_self_links(links, series.x.cols());
    });
    add("Granger and all self-links", 1, [&](const SeriesOfSet& series, std::size_t seed) {
        return with_self_links(granger(least_squares)(series, seed), series.x.cols());
    });
    add("partial correlation and all self-links", 1, [&](const SeriesOfSet& series, std::size_t) {
        return with_self_links(partial_correlation_links(series.x, level), series.x.cols());
    });
    add("all self-links alone", 1, [](const SeriesOfSet& series, std::size_t) { return self_links(series.x.cols()); });
    of_fmri.print();
}

}  // namespace causal_discovery
