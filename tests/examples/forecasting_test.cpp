// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include <fmt/core.h>
#include <gtest/gtest.h>

#include "examples/slope.hpp"
#include "forecasting/baselines.hpp"
#include "forecasting/data.hpp"
#include "forecasting/errors.hpp"
#include "forecasting/model.hpp"
#include "forecasting/output.hpp"
#include "forecasting/train.hpp"
#include "support/message.hpp"

namespace {

using namespace forecasting;

std::string temporary(const std::string& name) { return (std::filesystem::path(::testing::TempDir()) / name).string(); }

/// What read_data makes of a file whose variable `v` is value(v, t) at time `t`.
template <class Value>
Data data_of(Index variables, const Split& split, const Value& value) {
    const std::string path = temporary("forecasting_test.csv");
    {
        std::ofstream file(path);
        file.precision(17);
        file << "date";
        for (Index v = 0; v < variables; ++v) file << ",v" << v;
        file << '\n';
        for (Index t = 0; t < split.training + split.validation + split.test; ++t) {
            file << "day " << t;
            for (Index v = 0; v < variables; ++v) file << ',' << value(v, t);
            file << '\n';
        }
    }
    return read_data(path, split);
}

/// Waves of a day of eight points, with noise.
Data waves(const Split& split) {
    std::mt19937_64 bits(3);
    return data_of(3, split, [&](Index v, Index t) {
        const double noise = double(model::normal_matrix(1, 1, 0.3, bits)(0));
        return double(v + 1) * std::sin(double(t + v) * 0.785) + 0.01 * double(t) + noise;
    });
}

constexpr Size small{.context = 24, .patch = 4, .segment = 8, .d_model = 8, .heads = 2, .layers = 2};

std::vector<Kind> all_kinds() {
    std::vector<Kind> all;
    for (const Decay decay : {Decay::multiplied, Decay::added, Decay::none}) {
        for (const Index window : {0, 4}) {
            for (const bool lookahead : {false, true}) {
                all.push_back({.decay = decay, .window = window, .lookahead = lookahead});
            }
        }
    }
    return all;
}

std::string words_of(const Kind& kind) {
    return fmt::format("decay {}, window {}, lookahead {}", int(kind.decay), kind.window, kind.lookahead);
}

Matrix random_matrix(Index rows, Index cols, std::uint64_t seed) {
    std::mt19937_64 bits(seed);
    return model::normal_matrix(rows, cols, 1, bits);
}

TEST(ForecastData, IsSplitInItsOrderAndNormalisedByTheTrainingRows) {
    const Split split{.training = 4, .validation = 3, .test = 2};
    // The training rows of the first variable: 1, 3, 1, 3, of mean 2 and deviation 1.
    const Data data =
        data_of(2, split, [](Index v, Index t) { return v == 0 ? (t < 4 ? double(1 + 2 * (t % 2)) : 7) : double(t); });
    ASSERT_EQ(data.values.rows(), 2);
    ASSERT_EQ(data.values.cols(), 9);
    EXPECT_EQ(data.means, (std::vector<double>{2, 1.5}));
    EXPECT_EQ(data.deviations.front(), 1);
    EXPECT_NEAR(data.deviations.back(), std::sqrt(1.25), 1e-15);
    EXPECT_EQ(data.values(0, 0), -1);
    EXPECT_EQ(data.values(0, 3), 1);
    EXPECT_EQ(data.values(0, 8), 5);
    EXPECT_EQ(data.original(0, 5), 7);
    EXPECT_EQ(data.training().first, 0);
    EXPECT_EQ(data.validation().first, 4);
    EXPECT_EQ(data.test().first, 7);
    EXPECT_EQ(data.test().count, 2);
}

TEST(ForecastData, HasTheWindowsOfTheUsualProtocol) {
    const Split ett;
    EXPECT_EQ(ett.training, 12 * 30 * 24);
    const Part test{ett.training + ett.validation, ett.test};
    EXPECT_EQ(test.first, 11520);
    EXPECT_EQ(test.windows(96), 2785);
    EXPECT_EQ(test.windows(720), 2161);
    EXPECT_EQ(test.windows(2880), 1);
}

TEST(ForecastData, RejectsWhatCannotBeForecast) {
    const auto says = [](const Split& split, double of_second) {
        return support::message<BadInput>(
            [&] { data_of(1, split, [&](Index, Index t) { return t < 4 ? 1 : of_second; }); });
    };
    const std::string file = temporary("forecasting_test.csv");
    EXPECT_EQ(says({.training = 4, .validation = 2, .test = 2}, 2),
              "\"" + file + "\": \"v0\" does not change in the 4 training rows");
    EXPECT_EQ(says({.training = 5, .validation = 2, .test = 2}, 2), "did not throw");
    EXPECT_EQ(support::message<BadInput>([&] { read_data(file, {.training = 6, .validation = 2, .test = 2}); }),
              "\"" + file + "\" has 9 rows but the split has 10: 6 for training, 2 for validation, 2 for tests");
}

// Two variables, three points of a part: horizon 1 has three windows, horizon 2 has two.
TEST(ForecastErrors, AreThoseByHand) {
    Data data;
    data.values.resize(2, 4);
    data.values << 9, 1, 2, 3,  //
        9, 0, 0, 0;
    const Part part{1, 3};
    Forecasts all(6, 2);
    all << 1, 4,  // of the first variable from the first point on: 0 and 2 too much
        1, 1,     // of the second: 1 and 1
        0, 3,     // from the second point on: -2 and 0
        0, 0,     //
        4, 77,    // from the third point on: 1, and what lies behind the end
        0, 77;
    const std::vector<Index> horizons = {1, 2};
    const Errors errors = errors_of(data, part, horizons, all);
    EXPECT_DOUBLE_EQ(errors.horizons[0].squared, (0 + 1 + 4 + 0 + 1 + 0) / 6.0);
    EXPECT_DOUBLE_EQ(errors.horizons[0].absolute, (0 + 1 + 2 + 0 + 1 + 0) / 6.0);
    EXPECT_DOUBLE_EQ(errors.horizons[1].squared, (4 + 1 + 1 + 4) / 8.0);
    EXPECT_DOUBLE_EQ(errors.horizons[1].absolute, (2 + 1 + 1 + 2) / 8.0);
    EXPECT_DOUBLE_EQ(errors.mean().squared, (1 + 1.25) / 2);
    EXPECT_DOUBLE_EQ(errors.mean().absolute, (4 / 6.0 + 0.75) / 2);
}

TEST(ForecastErrors, HaveTheWeightThatIsBestForThem) {
    const Data data = waves({.training = 20, .validation = 30, .test = 10});
    const Part part = data.validation();
    const std::vector<Index> horizons = {2, 5};
    const Index windows = part.windows(2);
    const Forecasts first = random_matrix(windows * 3, 5, 1), second = 0.5F * random_matrix(windows * 3, 5, 2);
    const auto error = [&](double weight) {
        return errors_of_mix(data, part, horizons, first, second, weight).mean().squared;
    };
    const double best = best_weight(data, part, horizons, first, second);
    ASSERT_GT(best, 0);
    ASSERT_LT(best, 1);
    EXPECT_NEAR((error(best + 0.1) - error(best - 0.1)) / error(best), 0, 1e-5);
    EXPECT_LT(error(best), error(best + 0.1));
    EXPECT_DOUBLE_EQ(error(1), errors_of(data, part, horizons, first).mean().squared);
    // With twice the errors of the other it would have a negative weight.
    const Forecasts truth = make_forecasts(
        data, windows, 5, [&](Index w, Index v, auto row) { row = data.values.row(v).segment(part.first + w, 5); });
    EXPECT_EQ(best_weight(data, part, horizons, truth + 2 * first, truth + first), 0);
    EXPECT_EQ(best_weight(data, part, horizons, truth + first, truth + 2 * first), 1);
    const double of_same = best_weight(data, part, horizons, first, first);
    EXPECT_TRUE(of_same >= 0 && of_same <= 1);
}

TEST(ForecastBaselines, RepeatWhatWasLast) {
    const Data data = waves({.training = 20, .validation = 10, .test = 10});
    const Part test = data.test();
    const Forecasts last = forecast_last_value(data, test, test.windows(4), 6);
    const Forecasts period = forecast_last_period(data, test, test.windows(4), 6, 4);
    ASSERT_EQ(last.rows(), 7 * 3);
    ASSERT_EQ(period.rows(), 7 * 3);
    for (Index w = 0; w < 7; ++w) {
        for (Index v = 0; v < 3; ++v) {
            for (Index k = 0; k < 6; ++k) {
                EXPECT_EQ(last(3 * w + v, k), data.values(v, 30 + w - 1));
                EXPECT_EQ(period(3 * w + v, k), data.values(v, 30 + w - 4 + k % 4));
            }
        }
    }
}

TEST(ForecastBaselines, RidgeSolvesTheNormalEquations) {
    const Data data = waves({.training = 300, .validation = 30, .test = 20});
    constexpr Index context = 5, longest = 3;
    Ridge ridge(data, context, longest);
    // Every window of the training part, of every variable.
    const Index windows = 300 - context - longest + 1;
    castle::Matrix<double> before(3 * windows, context), after(3 * windows, longest);
    for (Index v = 0; v < 3; ++v) {
        for (Index w = 0; w < windows; ++w) {
            const auto row = data.values.row(v).cast<double>();
            const double level = row(w + context - 1);
            before.row(v * windows + w) = row.segment(w, context).array() - level;
            after.row(v * windows + w) = row.segment(w + context, longest).array() - level;
        }
    }
    for (const double lambda : {0.5, 200.0}) {
        ridge.solve(lambda);
        const castle::Matrix<double> slope = before.transpose() * (before * ridge.map() - after) + lambda * ridge.map();
        EXPECT_LE(slope.cwiseAbs().maxCoeff(), 1e-8) << lambda;
    }
    const Part test = data.test();
    const Forecasts all = ridge.forecast(data, test, test.windows(1));
    ASSERT_EQ(all.rows(), 20 * 3);
    for (const Index w : {0, 7, 19}) {
        const auto row = data.values.row(1).segment(test.first + w - context, context).cast<double>();
        const double level = row(context - 1);
        const Eigen::RowVectorXd expected = ((row.array() - level).matrix() * ridge.map()).array() + level;
        EXPECT_LE((all.row(w * 3 + 1).cast<double>() - expected).cwiseAbs().maxCoeff(), 1e-5) << w;
    }
}

// Along the gradient the loss rises by the gradient's square. Of the gammas too, which are few: by themselves.
TEST(ForecastModel, HasTheGradientOfItsLoss) {
    const Matrix windows = random_matrix(6, small.context, 5), after = random_matrix(6, small.segment, 6);
    for (const Kind& kind : all_kinds()) {
        for (const double dropout : {0.0, 0.25}) {
            Model model(small, kind, 17);
            Model::Tape tape(model);
            Weights gradient = model::zeros_like(model.weights), ignored = gradient;
            const auto learn = [&](Weights& to) {
                std::mt19937_64 bits(7);  // the same elements are left out
                return model.learn(windows, after, tape, to, dropout, dropout > 0 ? &bits : nullptr);
            };
            learn(gradient);
            const auto loss = [&] { return learn(ignored); };
            const std::string where = words_of(kind) + fmt::format(", dropout {}", dropout);
            EXPECT_NEAR(support::slope_along(model, gradient, loss), 1, 0.01) << where;
            if (kind.decay == Decay::none) {
                EXPECT_EQ(gradient.gammas.size(), 0);
                continue;
            }
            EXPECT_GT(gradient.gammas.cwiseAbs().minCoeff(), 0) << where;
            Weights of_gammas = model::zeros_like(model.weights);
            of_gammas.gammas = gradient.gammas;
            EXPECT_NEAR(support::slope_along(model, of_gammas, loss), 1, 0.03) << where;
        }
    }
}

// A window's forecast is the same whatever windows are beside it, and half of it for half the window.
TEST(ForecastModel, SeesEachWindowAlone) {
    const Matrix windows = 3 * random_matrix(5, small.context, 8);
    for (const Kind& kind : all_kinds()) {
        const Model model(small, kind, 19);
        Model::Tape tape(model);
        const Matrix all = model.forward(windows, tape);
        ASSERT_EQ(all.rows(), 5);
        ASSERT_EQ(all.cols(), small.segment);
        for (Index i = 0; i < 5; ++i) {
            const Matrix alone = model.forward(windows.row(i), tape);
            EXPECT_LE((alone - all.row(i)).cwiseAbs().maxCoeff(), 1e-5F) << words_of(kind);
        }
        const Matrix half = model.forward(windows / 2, tape);
        EXPECT_LE((2 * half - all).cwiseAbs().maxCoeff(), 1e-3F) << words_of(kind);
    }
}

// A token sees as many before it as the window says: with a head that reads the last token alone, the rest is not seen.
TEST(ForecastModel, SeesAsFarAsItsWindow) {
    Size size = small;
    size.layers = 1;
    const Index last = (size.tokens() - 1) * size.d_model;
    Matrix windows(2, size.context);
    windows.row(0) = random_matrix(1, size.context, 9);
    windows.row(1) = windows.row(0);
    // Two patches before the last. Its sign leaves the size of the window as it was.
    windows.row(1).segment(size.context - 3 * size.patch, size.patch) *= -1;
    for (const bool lookahead : {false, true}) {
        for (const Index window : {0, 2, 4}) {
            Model model(size, {.decay = Decay::added, .window = window, .lookahead = lookahead}, 23);
            model.weights.head.topRows(last).setZero();
            Model::Tape tape(model);
            const Matrix forecasts = model.forward(windows, tape);
            const float change = (forecasts.row(0) - forecasts.row(1)).cwiseAbs().maxCoeff();
            if (window == 2) {
                EXPECT_LE(change, 1e-6F) << lookahead;
            } else {
                EXPECT_GT(change, 1e-4F) << window << lookahead;
            }
        }
    }
}

/// A forecaster that has learnt nothing.
Forecaster untrained(Index level, bool refines) {
    Forecaster f{.model = Model(small, {}, 29), .refiner = std::nullopt, .level = level};
    if (refines) f.refiner.emplace(refiner_size(small), Kind{}, 31);
    return f;
}

/// A row less the mean of its last points, forecast by one model, and that mean again.
Matrix next_of(const Model& model, Index level, const Matrix& window) {
    Model::Tape tape(model);
    const float mean = window.rightCols(level).mean();
    return model.forward(window.array() - mean, tape).array() + mean;
}

TEST(Forecasters, GoOnFromTheirOwnForecasts) {
    const Data data = waves({.training = 60, .validation = 30, .test = 40});
    const Part test = data.test();
    for (const Index level : {Index(1), small.context}) {
        const Forecaster f = untrained(level, false);
        const Forecasts all = forecast(f, data, test, test.windows(5), 13);
        ASSERT_EQ(all.rows(), 36 * 3);
        ASSERT_EQ(all.cols(), 13);
        for (const Index w : {0, 35}) {
            const Matrix window = data.values.row(2).segment(test.first + w - small.context, small.context);
            const Matrix first = next_of(f.model, level, window);
            Matrix moved(1, small.context);
            moved << window.rightCols(small.context - small.segment), first;
            const Matrix second = next_of(f.model, level, moved);
            EXPECT_LE((all.row(w * 3 + 2).head(8) - first).cwiseAbs().maxCoeff(), 1e-5F);
            EXPECT_LE((all.row(w * 3 + 2).tail(5) - second.leftCols(5)).cwiseAbs().maxCoeff(), 1e-5F);
        }
    }
}

TEST(Forecasters, RefinePatchesInTheirOrder) {
    const Forecaster coarse = untrained(1, false), fine = untrained(1, true);
    Matrix known = Matrix::Zero(2, small.context + small.segment), expected = known;
    known.leftCols(small.context) = random_matrix(2, small.context, 37);
    expected.leftCols(small.context) = known.leftCols(small.context);
    Forecaster::Tape tape(fine);
    fine.extend(known, small.context, tape);
    coarse.extend(expected, small.context, tape);
    Model::Tape own(*fine.refiner);
    for (Index patch = small.context; patch < known.cols(); patch += small.patch) {
        const Matrix window = expected.middleCols(patch + small.patch - small.context, small.context);
        const Eigen::VectorXf last = window.col(small.context - 1);
        expected.middleCols(patch, small.patch) += fine.refiner->forward(window.colwise() - last, own);
    }
    EXPECT_LE((known - expected).cwiseAbs().maxCoeff(), 1e-5F);
}

/// f() with some number of threads.
template <class F>
auto with_threads(int threads, const F& f) {
#ifdef _OPENMP
    const int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    const auto result = f();
    omp_set_num_threads(before);
    return result;
#else
    static_cast<void>(threads);
    return f();
#endif
}

TEST(Forecasters, LearnTheSameWithAnyNumberOfThreads) {
    const Data data = waves({.training = 200, .validation = 40, .test = 40});
    const Recipe recipe{.steps = 3, .batch = 20};
    const auto train_and_forecast = [&] {
        Forecaster f = train_forecaster(data, small, {}, 1, recipe, 5, [] {});
        train_refiner(f, data, {}, recipe, 5, [] {});
        return forecast(f, data, data.test(), 20, 12);
    };
    const Forecasts one = with_threads(1, train_and_forecast), three = with_threads(3, train_and_forecast);
    EXPECT_EQ(one, three);
    const auto other_seed = [&] {
        return forecast(train_forecaster(data, small, {}, 1, recipe, 6, [] {}), data, data.test(), 20, 12);
    };
    EXPECT_NE(one, other_seed());
}

// A wave that can be forecast; and the refiner, which begins with no correction, learns some.
TEST(Forecasters, LearnWhatCanBeForecast) {
    const Data data = waves({.training = 300, .validation = 60, .test = 60});
    const Part test = data.test();
    const std::vector<Index> horizons = {8, 16};
    const auto error = [&](const Forecasts& all) { return errors_of(data, test, horizons, all).mean().squared; };
    const Recipe recipe{.steps = 60, .batch = 64, .rate = 1e-2, .weight_decay = 0.1, .dropout = 0.1};
    Index steps = 0;
    Forecaster f = train_forecaster(data, small, {}, small.context, recipe, 1, [&] { ++steps; });
    EXPECT_EQ(steps, recipe.steps);
    const auto forecasts = [&] { return forecast(f, data, test, test.windows(8), 16); };
    const Forecasts coarse = forecasts();
    EXPECT_LT(error(coarse), 0.6 * error(forecast_last_value(data, test, test.windows(8), 16)));
    Recipe none = recipe;
    none.steps = 1;
    none.rate = 0;
    train_refiner(f, data, {}, none, 1, [] {});
    EXPECT_EQ(forecasts(), coarse);
    train_refiner(f, data, {}, recipe, 1, [] {});
    EXPECT_NE(forecasts(), coarse);
    EXPECT_LT(error(forecasts()), 1.1 * error(coarse));
}

TEST(ForecastOutput, IsInTheUnitsOfTheFile) {
    const Data data =
        data_of(2, {.training = 4, .validation = 3, .test = 3}, [](Index v, Index t) { return double(10 * v + t); });
    const Part test = data.test();
    // From point 1 on: two points, and one behind the end.
    Forecasts all = Forecasts::Zero(3 * 2, 3);
    const Shown shown = shown_of(data, test, 1, 2, {{"no change", &all}});
    EXPECT_EQ(shown.dates, (std::vector<std::string>{"day 8", "day 9"}));
    EXPECT_LE((shown.before - Matrix{{6, 7}, {16, 17}}).cwiseAbs().maxCoeff(), 1e-5F);
    EXPECT_LE((shown.truth - Matrix{{8, 9}, {18, 19}}).cwiseAbs().maxCoeff(), 1e-5F);
    ASSERT_EQ(shown.forecasts.size(), 1U);
    EXPECT_LE((shown.forecasts.front() - Matrix{{1.5F, 1.5F}, {11.5F, 11.5F}}).cwiseAbs().maxCoeff(), 1e-5F);

    const std::string path = temporary("forecasting_test_output.csv");
    write_csv(path, {shown});
    std::ifstream file(path);
    std::ostringstream text;
    text << file.rdbuf();
    const std::string name = "\"" + data.name() + "\"";
    EXPECT_EQ(text.str(), "file,variable,date,truth,no change\n" +    //
                              name + ",\"v0\",\"day 8\",8,1.5\n" +    //
                              name + ",\"v0\",\"day 9\",9,1.5\n" +    //
                              name + ",\"v1\",\"day 8\",18,11.5\n" +  //
                              name + ",\"v1\",\"day 9\",19,11.5\n");
}

}  // namespace
