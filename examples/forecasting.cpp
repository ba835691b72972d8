// SPDX-License-Identifier: Apache-2.0

// Forecasts of time series by dynamic windowed attention with hierarchical generation (AutoHFormer, arXiv:2506.16001):
// segment by segment, each at once, and then refined patch by patch if that is asked for; see
// castle/methods/temporal.hpp. A forecast is the mean of two models', one of which sees windows less their last value
// and one less their mean. Beside it the last value, the last day and a ridge regression. What is left to choose, the
// number of steps and the ridge's penalty, is chosen by the validation part.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <fmt/core.h>
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include "forecasting/baselines.hpp"
#include "forecasting/data.hpp"
#include "forecasting/errors.hpp"
#include "forecasting/model.hpp"
#include "forecasting/output.hpp"
#include "forecasting/picture.hpp"
#include "forecasting/timing.hpp"
#include "forecasting/train.hpp"
#include "support/bad_input.hpp"
#include "support/command_line.hpp"
#include "support/experiments.hpp"
#include "support/output_file.hpp"
#include "support/progress.hpp"
#include "support/table.hpp"

namespace {

using namespace forecasting;

struct Settings : Experiments {
    std::vector<std::string> files;
    Split split;
    std::vector<Index> horizons = {96, 192, 336, 720};
    Index period = 24;
    Size size;
    Kind kind;
    std::string decay = "multiplied";
    Index level = 0;  // 0: two of them
    Index steps = 0;  // 0: chosen
    Recipe recipe;
    bool refine = false, ablations = false, hourly = false;
    Index shown = 0;
    std::string picture, csv;

    /// From which the validation part chooses.
    std::vector<Index> all_steps() const {
        return steps > 0 ? std::vector<Index>{steps} : std::vector<Index>{100, 200};
    }
    /// There is a model for each, and the forecast is the mean of theirs.
    std::vector<Index> levels() const {
        return level > 0 ? std::vector<Index>{level} : std::vector<Index>{1, size.context};
    }
    Index shortest() const { return *std::min_element(horizons.begin(), horizons.end()); }
    Index longest() const { return *std::max_element(horizons.begin(), horizons.end()); }
};

const std::map<std::string, Decay> decays = {
    {"multiplied", Decay::multiplied}, {"added", Decay::added}, {"none", Decay::none}};

/// The errors of one way to forecast: of each seed, or once where there is none.
struct Method {
    std::string name;
    std::vector<Errors> results;

    double mean_squared() const {
        return statistics(results, [](const Errors& e) { return e.mean().squared; }).mean;
    }
};

void print_table(const std::string& what, const std::vector<Index>& horizons, const std::vector<Method>& methods,
                 double Error::*figure) {
    std::vector<std::string> heads = {what};
    for (const Index horizon : horizons) heads.push_back(fmt::format("{}", horizon));
    heads.push_back("mean");
    Table table(heads);
    for (const Method& m : methods) {
        std::vector<std::string> row = {m.name};
        const auto add = [&](const auto& of) {
            const Statistics s = statistics(m.results, of);
            row.push_back(m.results.size() > 1 ? fmt::format("{:.4f} ± {:.4f}", s.mean, s.deviation)
                                               : fmt::format("{:.4f}", s.mean));
        };
        for (std::size_t h = 0; h < horizons.size(); ++h) add([&](const Errors& e) { return e.horizons[h].*figure; });
        add([&](const Errors& e) { return e.mean().*figure; });
        table.add(row);
    }
    table.print();
}

void print_tables(const std::vector<Index>& horizons, const std::vector<Method>& methods) {
    print_table("mean squared error", horizons, methods, &Error::squared);
    fmt::print("\n");
    print_table("mean absolute error", horizons, methods, &Error::absolute);
}

/// Everything that is done with one data set.
class Study {
  public:
    Study(const Settings& settings, const Data& data) : settings_(settings), data_(data) {}

    void run() {
        fmt::print("{}: {} variables, {} rows for training, {} for validation, {} for tests\n", data_.name(),
                   data_.variables(), data_.split.training, data_.split.validation, data_.split.test);
        choose_ridge();
        choose_attention();
        forecast_tests();
        if (settings_.ablations) compare_variants();
        if (settings_.hourly) use_single_points();
    }

    const Shown& shown() const { return shown_; }

  private:
    Index windows(const Part& part) const { return part.windows(settings_.shortest()); }
    Errors errors(const Part& part, const Forecasts& all) const {
        return errors_of(data_, part, settings_.horizons, all);
    }
    Forecasts forecast_part(const Forecaster& f, const Part& part) const {
        return forecast(f, data_, part, windows(part), settings_.longest());
    }
    // The mean of all of them.
    Forecasts forecast_part(const std::vector<Forecaster>& all, const Part& part) const {
        Forecasts mean = forecast_part(all.front(), part);
        for (std::size_t i = 1; i < all.size(); ++i) mean += forecast_part(all[i], part);
        return mean / float(all.size());
    }
    double validation_error(const Forecasts& all) const { return errors(data_.validation(), all).mean().squared; }

    void choose_ridge() {
        ridge_.emplace(data_, settings_.size.context, settings_.longest());
        double best = 0, best_lambda = 0;
        for (const double lambda : lambdas) {
            ridge_->solve(lambda);
            const double error =
                validation_error(ridge_->forecast(data_, data_.validation(), windows(data_.validation())));
            if (best_lambda > 0 && error >= best) continue;
            best = error;
            best_lambda = lambda;
        }
        ridge_->solve(best_lambda);
        fmt::print("Ridge regression: lambda {:g}, of {}, by the validation part ({:.4f}).\n", best_lambda,
                   fmt::join(lambdas, ", "), best);
    }

    // Trains as many steps as are best for the validation part, by the mean over the seeds.
    void choose_attention() {
        Table table({"training steps", "mean squared error, validation"});
        double best = 0;
        for (const Index steps : settings_.all_steps()) {
            Method method{fmt::format("{} steps", steps), {}};
            std::vector<std::vector<Forecaster>> trained;
            for (Index s = 0; s < settings_.seeds; ++s) {
                trained.push_back(train_all(settings_.size, settings_.kind, recipe_of(steps), method.name, s));
                method.results.push_back(errors(data_.validation(), forecast_part(trained.back(), data_.validation())));
            }
            const double error = method.mean_squared();
            table.add({fmt::format("{}", steps), fmt::format("{:.4f}", error)});
            if (!chosen_.empty() && error >= best) continue;
            best = error;
            steps_ = steps;
            chosen_ = std::move(trained);
        }
        fmt::print("Attention, of which the validation part chooses the number of steps:\n\n");
        table.print();
        fmt::print("\nOn the test part, after {} steps:\n\n", steps_);
    }

    Recipe recipe_of(Index steps) const {
        Recipe recipe = settings_.recipe;
        recipe.steps = steps;
        return recipe;
    }
    // A model for each level.
    std::vector<Forecaster> train_all(const Size& size, const Kind& kind, const Recipe& recipe, const std::string& name,
                                      Index s) const {
        const auto seed = std::uint64_t(settings_.seed + s);
        std::vector<Forecaster> all;
        for (const Index level : settings_.levels()) {
            Progress progress(recipe.steps);
            progress.say(fmt::format("{}: {}, less the mean of the last {}, seed {}", data_.name(), name, level, seed));
            all.push_back(train_forecaster(data_, size, kind, level, recipe, seed, [&] { progress.advance(1); }));
        }
        return all;
    }
    std::vector<Forecaster> refined(std::vector<Forecaster> all, Index s) const {
        Recipe recipe = recipe_of(steps_);
        // A step learns from every patch of a segment.
        recipe.batch = std::max<Index>(1, recipe.batch * settings_.size.patch / settings_.size.segment);
        const auto seed = std::uint64_t(settings_.seed + s);
        for (Forecaster& f : all) {
            Progress progress(recipe.steps);
            progress.say(fmt::format("{}: refinement, seed {}", data_.name(), seed));
            train_refiner(f, data_, settings_.kind, recipe, seed, [&] { progress.advance(1); });
        }
        return all;
    }

    void forecast_tests() {
        const Part test = data_.test(), validation = data_.validation();
        const Index longest = settings_.longest();
        std::vector<Method> methods;
        methods.push_back({"last value", {errors(test, forecast_last_value(data_, test, windows(test), longest))}});
        methods.push_back(
            {fmt::format("last {} values again", settings_.period),
             {errors(test, forecast_last_period(data_, test, windows(test), longest, settings_.period))}});
        const Forecasts ridge = ridge_->forecast(data_, test, windows(test));
        const Forecasts ridge_validation = ridge_->forecast(data_, validation, windows(validation));
        methods.push_back({"ridge regression", {errors(test, ridge)}});
        Method attention{"attention", {}}, average{"average of attention and ridge", {}},
            mix{"the same, weighted by validation", {}};
        Forecasts sum = Forecasts::Zero(ridge.rows(), ridge.cols());
        for (std::size_t s = 0; s < chosen_.size(); ++s) {
            const Forecasts own = forecast_part(chosen_[s], test);
            attention.results.push_back(errors(test, own));
            add_mixes(average, mix, own, forecast_part(chosen_[s], validation), ridge, ridge_validation);
            if (s == 0) show(own, ridge);
            sum += own;
        }
        methods.push_back(attention);
        if (settings_.refine || settings_.ablations) refined_ = refined_method();
        if (settings_.refine) methods.push_back(refined_);
        methods.push_back(average);
        methods.push_back(mix);
        if (chosen_.size() > 1) {
            const Forecasts mean = sum / float(chosen_.size());
            methods.push_back({"attention, mean of all seeds", {errors(test, mean)}});
            methods.push_back(
                {"average of that and ridge", {errors_of_mix(data_, test, settings_.horizons, mean, ridge, 0.5)}});
        }
        print_tables(settings_.horizons, methods);
    }
    void add_mixes(Method& average, Method& mix, const Forecasts& own, const Forecasts& own_validation,
                   const Forecasts& ridge, const Forecasts& ridge_validation) const {
        const std::vector<Index>& horizons = settings_.horizons;
        const double weight = best_weight(data_, data_.validation(), horizons, own_validation, ridge_validation);
        average.results.push_back(errors_of_mix(data_, data_.test(), horizons, own, ridge, 0.5));
        mix.results.push_back(errors_of_mix(data_, data_.test(), horizons, own, ridge, weight));
    }
    Method refined_method() const {
        Method method{"attention, refined", {}};
        for (std::size_t s = 0; s < chosen_.size(); ++s) {
            method.results.push_back(errors(data_.test(), forecast_part(refined(chosen_[s], Index(s)), data_.test())));
        }
        return method;
    }

    // All with the settings that were chosen for the first.
    void compare_variants() {
        const Kind base = settings_.kind;
        const auto with = [&](const auto& change) {
            Kind kind = base;
            change(kind);
            return kind;
        };
        const std::vector<std::pair<std::string, Kind>> variants = {
            {"decay multiplied", with([](Kind& k) { k.decay = Decay::multiplied; })},
            {"decay added", with([](Kind& k) { k.decay = Decay::added; })},
            {"no decay", with([](Kind& k) { k.decay = Decay::none; })},
            {"no window", with([](Kind& k) { k.window = 0; })},
            {"neither window nor decay", with([](Kind& k) {
                 k.window = 0;
                 k.decay = Decay::none;
             })},
            {"CASTLE: lookahead keys", with([](Kind& k) { k.lookahead = true; })}};
        std::vector<Method> methods;
        for (const auto& [name, kind] : variants) {
            Method method{name, {}};
            for (Index s = 0; s < settings_.seeds; ++s) {
                const std::vector<Forecaster> own = kind == settings_.kind
                                                        ? chosen_[std::size_t(s)]
                                                        : train_all(settings_.size, kind, recipe_of(steps_), name, s);
                method.results.push_back(errors(data_.test(), forecast_part(own, data_.test())));
            }
            methods.push_back(method);
        }
        methods.push_back(refined_);
        for (std::size_t level = 0; level < settings_.levels().size(); ++level) {
            Method method{fmt::format("the last {} subtracted alone", settings_.levels()[level]), {}};
            for (const auto& own : chosen_) {
                method.results.push_back(errors(data_.test(), forecast_part(own[level], data_.test())));
            }
            methods.push_back(method);
        }
        fmt::print("\nVariants:\n\n");
        print_tables(settings_.horizons, methods);
    }

    // A token for every point, and the window of the paper.
    void use_single_points() {
        Size size = settings_.size;
        size.patch = 1;
        Kind kind = settings_.kind, full = kind;
        kind.window = 32;
        full.window = 0;
        full.decay = Decay::none;
        constexpr Index timed = 32;
        const std::vector<StepTime> times = step_times(data_, size, {kind, full}, timed);
        fmt::print("\n{} tokens, one a point; milliseconds for both passes over {} windows, one thread:\n\n",
                   size.tokens(), timed);
        Table table({"", "model", "attention alone"});
        table.add({"window of 32", fmt::format("{:.1f}", 1e3 * times[0].step),
                   fmt::format("{:.1f}", 1e3 * times[0].attention)});
        table.add({"full causal attention", fmt::format("{:.1f}", 1e3 * times[1].step),
                   fmt::format("{:.1f}", 1e3 * times[1].attention)});
        table.print();
        // Batches of an eighth: a window takes far longer.
        Recipe recipe = recipe_of(steps_);
        recipe.batch = std::max<Index>(1, recipe.batch / 8);
        const std::vector<Forecaster> own = train_all(size, kind, recipe, "single points", 0);
        fmt::print("\nThe first, trained with one seed and batches of {} windows:\n\n", recipe.batch);
        print_tables(settings_.horizons,
                     {{"single points, window of 32", {errors(data_.test(), forecast_part(own, data_.test()))}}});
    }

    void show(const Forecasts& attention, const Forecasts& ridge) {
        shown_ = shown_of(data_, data_.test(), settings_.shown, settings_.size.context,
                          {{"attention", &attention}, {"ridge regression", &ridge}});
    }

    static constexpr std::array<double, 4> lambdas = {100, 1000, 10000, 100000};

    const Settings& settings_;
    const Data& data_;
    std::optional<Ridge> ridge_;
    Index steps_ = 0;                              // chosen
    std::vector<std::vector<Forecaster>> chosen_;  // of each seed
    Method refined_;
    Shown shown_;
};

void run(const Settings& settings) {
    settings.use_threads();
    std::vector<Data> data;
    for (const std::string& file : settings.files) data.push_back(read_data(file, settings.split));
    const Stopwatch watch;
    fmt::print(
        "Forecasts of {} points from {}, normalised, from every point of the test part; models of {} layer with {} "
        "heads\n"
        "of {}, {} points a token and {} a segment; {} seeds, batches of {} windows. {} parameters.\n\n",
        fmt::join(settings.horizons, ", "), settings.size.context, settings.size.layers, settings.size.heads,
        settings.size.d_model / settings.size.heads, settings.size.patch, settings.size.segment, settings.seeds,
        settings.recipe.batch, model::parameters(Model(settings.size, settings.kind, 1).weights));
    std::vector<Shown> shown;
    for (const Data& own : data) {
        Study study(settings, own);
        study.run();
        shown.push_back(study.shown());
        fmt::print("\n{:.0f} s\n\n", watch.seconds());
    }
    if (!settings.csv.empty()) write_csv(settings.csv, shown);
    if (!settings.picture.empty()) draw(settings.picture, shown);
}

void check(const Settings& settings) {
    const Size& size = settings.size;
    const auto expect = [](bool holds, const std::string& what) {
        if (!holds) throw BadInput(what);
    };
    const std::set<Index> different(settings.horizons.begin(), settings.horizons.end());
    expect(different.size() == settings.horizons.size(), "--horizons has the same horizon twice");
    expect(size.context % size.patch == 0,
           fmt::format("--context is {} but must be a multiple of --patch, {}", size.context, size.patch));
    expect(size.segment % size.patch == 0,
           fmt::format("--segment is {} but must be a multiple of --patch, {}", size.segment, size.patch));
    expect(settings.period <= size.context,
           fmt::format("--period is {} but must be at most --context, {}", settings.period, size.context));
    expect(settings.level <= size.context,
           fmt::format("--level is {} but must be at most --context, {}", settings.level, size.context));
    expect(settings.kind.window % 2 == 0, fmt::format("--window is {} but must be even", settings.kind.window));
    const Index longest = settings.longest(), points = size.context + std::max(longest, size.segment);
    expect(settings.split.training >= points,
           fmt::format("--training_rows is {} but must be at least {}, as --context and the longest horizon or segment",
                       settings.split.training, points));
    for (const auto& [name, rows] :
         {std::pair("--validation_rows", settings.split.validation), std::pair("--test_rows", settings.split.test)}) {
        expect(rows >= longest,
               fmt::format("{} is {} but must be at least the longest horizon, {}", name, rows, longest));
    }
    const Index last = settings.split.test - settings.shortest();
    expect(settings.shown <= last, fmt::format("--shown is {} but must be at most {}", settings.shown, last));
    // CLI::Range lets a NaN pass.
    for (const auto& [name, value] :
         {std::pair("--rate", settings.recipe.rate), std::pair("--weight_decay", settings.recipe.weight_decay),
          std::pair("--dropout", settings.recipe.dropout)}) {
        expect(std::isfinite(value), fmt::format("{} is {} but must be finite", name, value));
    }
    if (!settings.picture.empty()) expect_can_be_written("--picture", settings.picture);
    if (!settings.csv.empty()) expect_can_be_written("--csv", settings.csv);
}

/// The settings, or nothing where the command line asked for --help and has been answered.
std::optional<Settings> parse(int argc, char** argv) {
    Settings settings;
    settings.seeds = 3;
    CLI::App app(
        "Forecasts time series by windowed attention and by what it has to beat, and tells how far off the forecasts "
        "are.",
        "forecasting");
    const auto count = [&](const std::string& name, Index& value, const std::string& help, Index least, Index most) {
        Experiments::add_count(app, name, value, help, least, most);
    };
    const auto number = [&](const std::string& name, double& value, const std::string& help, double least,
                            double most) {
        app.add_option(name, value, help)->capture_default_str()->check(CLI::Range(least, most));
    };
    app.add_option("files", settings.files, "CSVs: names in the first line, a first column called date or none")
        ->required();
    settings.add_to(app);
    count("--training_rows", settings.split.training, "The file's first", 1, 100000000);
    count("--validation_rows", settings.split.validation, "Those after them, by which settings are chosen", 1,
          100000000);
    count("--test_rows", settings.split.test, "Those after them", 1, 100000000);
    app.add_option("--horizons", settings.horizons, "Points that are forecast")
        ->capture_default_str()
        ->delimiter(',')
        ->check(CLI::Range(Index(1), Index(100000)));
    count("--period", settings.period, "Points of a day, for the baseline", 1, 100000);
    count("--context", settings.size.context, "Points that forecasts are made from", 2, 100000);
    count("--patch", settings.size.patch, "Points of a token", 1, 100000);
    count("--segment", settings.size.segment, "Points that are forecast at once", 1, 100000);
    app.add_option("--decay", settings.decay, "What distance does to scores: multiplied (as in the paper), added, none")
        ->capture_default_str()
        ->check(CLI::IsMember({"multiplied", "added", "none"}));
    count("--window", settings.kind.window, "A token sees half as many before it; 0 for all", 0, 100000);
    app.add_flag("--lookahead", settings.kind.lookahead, "CASTLE attention, with lookahead keys");
    app.add_flag("--refine", settings.refine, "Patches of a segment are refined one after the other");
    count("--level", settings.level,
          "What models subtract: the mean of so many points; 0: the mean of two models, with 1 and the context", 0,
          100000);
    count("--steps", settings.steps, "Of training; 0: 100 or 200, by validation", 0, 1000000);
    count("--batch", settings.recipe.batch, "Windows of a step", 1, 1000000);
    number("--rate", settings.recipe.rate, "Of learning, at its peak", 1e-8, 1);
    number("--weight_decay", settings.recipe.weight_decay, "Of AdamW", 0, 100);
    number("--dropout", settings.recipe.dropout, "Part of the elements that training leaves out", 0, 0.9);
    app.add_flag("--ablations", settings.ablations, "Other decays, no window, lookahead keys, refinement");
    app.add_flag("--hourly", settings.hourly, "A model with a token for every point too, and the time of its steps");
    count("--shown", settings.shown, "The point of the test part from which forecasts are written and drawn", 0,
          100000000);
    app.add_option("--csv", settings.csv, "A file to write these to");
    app.add_option("--picture", settings.picture, "An SVG to draw them in");
    if (!parse_command_line(app, argc, argv)) return std::nullopt;
    settings.kind.decay = decays.at(settings.decay);
    check(settings);
    return settings;
}

}  // namespace

int main(int argc, char** argv) {
    return exit_code("forecasting", [&] {
        if (const std::optional<Settings> settings = parse(argc, argv)) run(*settings);
        return 0;
    });
}
