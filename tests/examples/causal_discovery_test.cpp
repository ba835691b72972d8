// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "causal_discovery/discover.hpp"
#include "causal_discovery/files.hpp"
#include "causal_discovery/linear.hpp"
#include "examples/slope.hpp"
#include "model/batch.hpp"
#include "support/csv.hpp"
#include "support/message.hpp"

namespace {

using namespace causal_discovery;
using support::message;

std::string written(const std::string& name, const std::string& text) {
    const std::string path = (std::filesystem::temp_directory_path() / ("castle_causal_" + name)).string();
    std::ofstream(path) << text;
    return path;
}

// Standard normal, but for every tenth, which is far out.
double heavy_tailed(std::mt19937_64& bits) {
    std::normal_distribution<double> normal;
    const double x = normal(bits);
    return model::below(10, bits) == 0 ? 8 * x : x;
}

/// x0 -> x0 and x0 -> x1 by lag 2, not linear, and x1 -> x2 by lag 1; x2 knows nothing else of x0.
castle::Matrix<double> chain(Index times, std::uint64_t seed) {
    std::mt19937_64 bits(seed);
    castle::Matrix<double> x = castle::Matrix<double>::Zero(times, 3);
    for (Index t = 2; t < times; ++t) {
        x(t, 0) = 0.6 * x(t - 1, 0) + 0.3 * heavy_tailed(bits);
        x(t, 1) = std::tanh(2 * x(t - 2, 0)) + 0.3 * heavy_tailed(bits);
        x(t, 2) = 0.8 * std::sin(x(t - 1, 1)) + 0.2 * heavy_tailed(bits);
    }
    return x;
}
const std::vector<CausalLink> chain_truth = {{0, 0, 1, 0}, {0, 1, 2, 0}, {1, 2, 1, 0}};

TEST(CausalWindows, HoldWhatWasBefore) {
    castle::Matrix<double> x(5, 2);
    x << 0, 10, 1, 11, 2, 12, 3, 13, 4, 14;
    castle::Matrix<double> expected(3, 4);
    expected << 1, 11, 0, 10, 2, 12, 1, 11, 3, 13, 2, 12;  // lag 1 of both, then lag 2
    EXPECT_EQ(windows_of(x, {.first = 1, .last = 2}), expected);
    castle::Matrix<double> with_now(4, 4);
    with_now << 1, 11, 0, 10, 2, 12, 1, 11, 3, 13, 2, 12, 4, 14, 3, 13;
    EXPECT_EQ(windows_of(x, {.first = 0, .last = 1}), with_now);

    const castle::Matrix<double> s = standardised((castle::Matrix<double>(4, 2) << 1, 5, 3, 5, 1, 5, 3, 5).finished());
    EXPECT_EQ(s, (castle::Matrix<double>(4, 2) << -1, 0, 1, 0, -1, 0, 1, 0).finished());
    // Median 2, distances from it 1, 0, 1, 998, 1.
    EXPECT_DOUBLE_EQ(robust_deviation((Eigen::VectorXd(5) << 1, 2, 3, 1000, 1).finished()), 1.4826);
}

Forecaster small_forecaster(const Excluded& excluded, Index variables = 3, Index lags = 2) {
    return Forecaster({.inputs = variables * lags, .effects = variables, .width = 6, .hidden = 5, .layers = 2}, 7,
                      [&, variables](Index effect, Index input) {
                          return !excluded.contains({input % variables, effect});
                      });
}

// Biases of scores begin as 0, where it could not be seen that they are used.
void make_biased(Forecaster& forecaster) {
    std::mt19937_64 bits(3);
    for (LayerWeights& layer : forecaster.weights.layers) {
        layer.bias = model::normal_matrix(layer.bias.rows(), layer.bias.cols(), 0.5, bits);
    }
}

TEST(Forecasts, HaveTheGradientsOfTheirLoss) {
    Forecaster forecaster = small_forecaster({{0, 1}, {2, 2}});
    make_biased(forecaster);
    std::mt19937_64 bits(5);
    Matrix inputs = model::normal_matrix(9, 6, 1, bits);
    const Matrix targets = model::normal_matrix(9, 3, 1, bits);
    Forecaster::Tape tape(forecaster);
    const auto loss = [&] {
        Matrix errors = forecaster.forward(inputs, tape) - targets;
        return cauchy_loss(errors);
    };
    Matrix errors = forecaster.forward(inputs, tape) - targets;
    cauchy_loss(errors);
    Weights gradient = model::zeros_like(forecaster.weights);
    const Matrix d_inputs = forecaster.backward(errors, tape, gradient);
    EXPECT_NEAR(support::slope_along(forecaster, gradient, loss), 1, 0.01);
    // One kind of weight after the other, some of which are too small to be seen among all.
    for (std::size_t kind = 0; kind < gradient.matrices().size(); ++kind) {
        Weights own = gradient;
        const model::NamedMatrices all = own.matrices();
        for (std::size_t i = 0; i < all.size(); ++i) {
            if (i != kind) all[i].matrix->setZero();
        }
        const double norm = model::norm(all);
        if (norm < 0.05) continue;  // where rounding of the loss hides it
        EXPECT_NEAR(support::slope_along(forecaster, own, loss), 1, 0.02) << all[kind].name << ", norm " << norm;
    }
    constexpr float step = 1e-2F;
    for (Index w = 0; w < inputs.rows(); w += 4) {
        for (Index i = 0; i < inputs.cols(); ++i) {
            const float before = inputs(w, i);
            inputs(w, i) = before + step;
            const double above = loss();
            inputs(w, i) = before - step;
            const double below = loss();
            inputs(w, i) = before;
            EXPECT_NEAR((above - below) / double(2 * step), double(d_inputs(w, i)), 2e-3);
        }
    }
}

// The forecast of an effect has the same bits whatever an excluded cause does, also where it could come by a third
// variable, since none of them is mixed with another; and its gradient is exactly 0.
TEST(Forecasts, KnowNothingOfExcludedCauses) {
    std::mt19937_64 bits(9);
    const Matrix inputs = model::normal_matrix(5, 6, 1, bits);
    for (Index cause = 0; cause < 3; ++cause) {
        for (Index effect = 0; effect < 3; ++effect) {
            Forecaster forecaster = small_forecaster({{cause, effect}});
            make_biased(forecaster);
            Forecaster::Tape tape(forecaster);
            const Matrix before = forecaster.forward(inputs, tape);
            Matrix d_forecasts = Matrix::Zero(5, 3);
            d_forecasts.col(effect).setOnes();
            Weights ignored = model::zeros_like(forecaster.weights);
            const Matrix d_inputs = forecaster.backward(d_forecasts, tape, ignored);
            for (const float value :
                 {0.0F, 1e30F, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
                Matrix changed = inputs;
                for (const Index input : {cause, cause + 3}) changed.col(input).setConstant(value);
                const Matrix after = forecaster.forward(changed, tape);
                for (Index i = 0; i < 3; ++i) {
                    const bool is_same = (after.col(i).array() == before.col(i).array()).all();
                    EXPECT_EQ(is_same, i == effect) << cause << " -> " << effect << ", forecast " << i;
                }
            }
            for (Index input = 0; input < 6; ++input) {
                EXPECT_EQ((d_inputs.col(input).array() == 0).all(), input % 3 == cause);
            }
        }
    }
}

// One without any cause is a constant.
TEST(Forecasts, MayHaveNoCause) {
    const Forecaster forecaster = small_forecaster({{0, 1}, {1, 1}, {2, 1}});
    Forecaster::Tape tape(forecaster);
    std::mt19937_64 bits(9);
    const Matrix forecasts = forecaster.forward(model::normal_matrix(4, 6, 1, bits), tape);
    EXPECT_LE((forecasts.col(1).array() - forecasts(0, 1)).abs().maxCoeff(), 1e-6F);
    EXPECT_GT((forecasts.col(0).array() - forecasts(0, 0)).abs().maxCoeff(), 1e-3F);
}

// What training may look at: series and shuffled series, of an excluded cause neither, and never the target itself.
TEST(CausalExamples, ShowWhatMayBeUsed) {
    const castle::Matrix<double> x = standardised(chain(100, 1));
    const Examples examples(x, {.first = 0, .last = 1}, {{2, 0}}, 5);
    EXPECT_EQ(examples.count(), 99);
    EXPECT_EQ(examples.inputs().cols(), 12);
    for (Index effect = 0; effect < 3; ++effect) {
        for (Index input = 0; input < 12; ++input) {
            const bool is_target = input == effect, is_excluded = effect == 0 && input % 3 == 2;
            EXPECT_EQ(examples.sees(effect, input), !is_target && !is_excluded);
        }
        const Eigen::VectorXd own = examples.targets().col(effect).cast<double>() * examples.unit(effect);
        EXPECT_LE((own - x.col(effect).tail(99)).cwiseAbs().maxCoeff(), 1e-5);
    }
    EXPECT_LE(examples.inputs().cwiseAbs().maxCoeff(), 4);
}

TEST(Discovery, FindsTheChain) {
    const castle::Matrix<double> x = standardised(chain(1500, 2));
    // The first again, to the last bit; and once with a link that is known not to be there.
    const std::vector<Training> trainings = {
        {.steps = 120, .seed = 1}, {.steps = 120, .seed = 2}, {.steps = 120, .seed = 1}, {.steps = 20, .seed = 1}};
    std::vector<std::optional<Findings>> found(trainings.size());
    model::for_parts(Index(found.size()), [&](Index i) {
        const Excluded excluded = i == 3 ? Excluded{{0, 1}} : Excluded();
        found[std::size_t(i)] = discover(x, {}, excluded, trainings[std::size_t(i)], [] {});
    });
    const Findings all = together(std::span(found).first(2));
    EXPECT_EQ(all.null.size(), 18U);
    const auto match = castle::methods::match_graphs(Rule().links(all), chain_truth);
    EXPECT_EQ(match.f1(), 1);
    EXPECT_EQ(match.lags(), 1);
    EXPECT_EQ(Rule{.threshold = 1e9}.links(all).size(), 0U);
    EXPECT_EQ(Rule{.strongest = 1}.links(all).size(), 3U);
    EXPECT_EQ(castle::methods::strengths_of(found[0]->scores), castle::methods::strengths_of(found[2]->scores));
    EXPECT_EQ(found[3]->scores.strength(0, 1), 0);
    EXPECT_GT(found[3]->scores.strength(1, 1), 0);
}

TEST(LinearForecasts, AreLeastSquares) {
    std::mt19937_64 bits(3);
    std::normal_distribution<double> normal;
    const Index count = 4000;
    castle::Matrix<double> inputs(count, 3);
    Eigen::VectorXd targets(count);
    for (Index t = 0; t < count; ++t) {
        for (Index i = 0; i < 3; ++i) inputs(t, i) = normal(bits);
        targets(t) = 0.5 * inputs(t, 0) - 0.02 * inputs(t, 1) + 0.3 * normal(bits);
    }
    // The deviation of a coefficient is 0.3 / sqrt(4000).
    const double deviation = 0.3 / std::sqrt(double(count));
    const LinearForecast f = least_squares(inputs, targets);
    EXPECT_NEAR(f.coefficients(0), 0.5, 4 * deviation);
    EXPECT_NEAR(f.coefficients(1), -0.02, 4 * deviation);
    EXPECT_NEAR(f.t(0), f.coefficients(0) / deviation, 0.05 * f.t(0));
    EXPECT_LE(std::abs(f.t(2)), 4);
    // Every twentieth target is somewhere else.
    for (Index t = 0; t < count; t += 20) targets(t) += 100 * normal(bits);
    const LinearForecast robust = robust_fit(inputs, targets);
    EXPECT_NEAR(robust.coefficients(0), 0.5, 6 * deviation);
    EXPECT_GT(std::abs(robust.t(0)), 50);
    EXPECT_LT(std::abs(least_squares(inputs, targets).t(0)), 20);
}

// Of 1000 inputs without any effect as many exceed a bound as should.
TEST(LinearForecasts, HaveTValues) {
    std::mt19937_64 bits(4);
    Index beyond = 0, beyond_robust = 0;
    for (int i = 0; i < 250; ++i) {
        const castle::Matrix<double> inputs =
            castle::Matrix<double>::NullaryExpr(300, 4, [&] { return heavy_tailed(bits); });
        const Eigen::VectorXd targets = Eigen::VectorXd::NullaryExpr(300, [&] { return heavy_tailed(bits); });
        beyond += (least_squares(inputs, targets).t.array().abs() > 1.96).count();
        beyond_robust += (robust_fit(inputs, targets).t.array().abs() > 1.96).count();
    }
    EXPECT_NEAR(double(beyond), 50, 28);
    EXPECT_NEAR(double(beyond_robust), 50, 28);
}

TEST(LinearForecasts, FindALinearChain) {
    std::mt19937_64 bits(6);
    castle::Matrix<double> x = castle::Matrix<double>::Zero(2000, 3);
    for (Index t = 2; t < x.rows(); ++t) {
        x(t, 0) = 0.6 * x(t - 1, 0) + heavy_tailed(bits);
        x(t, 1) = 0.7 * x(t - 2, 0) + heavy_tailed(bits);
        x(t, 2) = 0.5 * x(t - 1, 1) + heavy_tailed(bits);
    }
    x = standardised(x);
    for (const bool robust : {false, true}) {
        const auto links = granger_links(x, {}, 0.05, robust ? robust_fit : least_squares);
        const auto match = castle::methods::match_graphs(links, chain_truth);
        EXPECT_EQ(match.missed, 0);
        EXPECT_LE(match.surplus, 1);
        EXPECT_EQ(match.lags(), 1);
    }
    // Two variables of the same time, one of which is the other and noise.
    castle::Matrix<double> pair(500, 3);
    for (Index t = 0; t < pair.rows(); ++t) {
        pair(t, 0) = heavy_tailed(bits);
        pair(t, 1) = pair(t, 0) + heavy_tailed(bits);
        pair(t, 2) = heavy_tailed(bits);
    }
    const auto links = partial_correlation_links(standardised(pair), 1e-6);
    ASSERT_EQ(links.size(), 2U);
    EXPECT_EQ(links[0].cause, 1);
    EXPECT_EQ(links[0].effect, 0);
    EXPECT_EQ(with_self_links(links, 3).size(), 5U);
    EXPECT_EQ(with_self_links(self_links(3), 3).size(), 3U);
}

// The 97.5 % quantile for one test.
TEST(LinearForecasts, AllowForManyTests) {
    EXPECT_NEAR(largest_normal(0.05, 1), 1.959963984540054, 1e-9);
    EXPECT_NEAR(largest_normal(0.5, 10), 1.959963984540054, 1e-9);
}

TEST(GraphFiles, AreReadAsTheyWereWritten) {
    const Names names = {"wind", "rain", "7"};
    const std::string path = written("graph.json", "");
    write_graph(path, names, {{0, 1, 2, 0.5}}, {{1, 0}, {2, 2}});
    EXPECT_EQ(read_excluded(path, names), (Excluded{{1, 0}, {2, 2}}));
    const nlohmann::json graph = nlohmann::json::parse(std::ifstream(path));
    EXPECT_EQ(graph["variables"], (nlohmann::json{"wind", "rain", "7"}));
    EXPECT_EQ(graph["links"][0]["cause"], "wind");
    EXPECT_EQ(graph["links"][0]["effect"], "rain");
    EXPECT_EQ(graph["links"][0]["lag"], 2);
    EXPECT_EQ(graph["links"][0]["strength"], 0.5);

    EXPECT_EQ(pair_of(names, "wind->rain"), (Pair{0, 1}));
    EXPECT_EQ(pair_of(names, " 7 -> 7"), (Pair{2, 2}));
    EXPECT_EQ(read_truth(written("truth.csv", "wind,rain,3\n2,1\n7,7,1\n"), names),
              (std::vector<CausalLink>{{0, 1, 3, 0}, {2, 1, 1, 0}, {2, 2, 1, 0}}));
}

TEST(GraphFiles, AreRejectedInOneLine) {
    const Names names = {"wind", "rain"};
    const auto pair_says = [&](const std::string& text) { return message<BadInput>([&] { pair_of(names, text); }); };
    EXPECT_EQ(pair_says("wind"), "--exclude \"wind\" must be two variables with -> between them");
    EXPECT_EQ(pair_says("wind->snow"), "--exclude \"wind->snow\": there is no variable \"snow\"");
    EXPECT_EQ(pair_says("->rain"), "--exclude \"->rain\": there is no variable \"\"");
    const auto truth_says = [&](const std::string& text) {
        return message<BadInput>([&] { read_truth(written("truth.csv", text), names); });
    };
    EXPECT_NE(truth_says("0\n").find("line 1: has 1 fields but must have"), std::string::npos);
    EXPECT_NE(truth_says("0,1\n0,2\n").find("line 2: the effect is 2 but must be a whole number from 0 to 1"),
              std::string::npos);
    EXPECT_NE(truth_says("0,1\nwind,rain,2\n").find("line 2: the link is there already"), std::string::npos);
    EXPECT_NE(truth_says("0,1,-1\n").find("the lag is -1"), std::string::npos);
    const auto graph_says = [&](const std::string& text) {
        return message<BadInput>([&] { read_excluded(written("graph.json", text), names); });
    };
    EXPECT_NE(graph_says("{").find("is no graph in JSON"), std::string::npos);
    EXPECT_NE(graph_says("{\"excluded\": 1}").find("is no graph in JSON"), std::string::npos);
    EXPECT_NE(graph_says("{\"excluded\": [1]}").find("without a \"cause\""), std::string::npos);
    EXPECT_NE(graph_says("{\"excluded\": [{\"cause\": \"wind\"}]}").find("without a \"effect\""), std::string::npos);
    EXPECT_NE(graph_says("{\"excluded\": [{\"cause\": \"wind\", \"effect\": \"snow\"}]}").find("no variable \"snow\""),
              std::string::npos);
}

TEST(SeriesFiles, AreNumbersUnderNames) {
    const Series series = read_series(written("series.csv",
                                              "\xEF\xBB\xBF"
                                              "date,a,\"b, c\"\r\n2020-01-01,1, 2.5\r\n\r\nx,+3,-4e1\n"));
    EXPECT_EQ(series.names, (std::vector<std::string>{"a", "b, c"}));
    EXPECT_EQ(series.dates, (std::vector<std::string>{"2020-01-01", "x"}));
    EXPECT_EQ(series.values, (castle::Matrix<double>(2, 2) << 1, 2.5, 3, -40).finished());
    EXPECT_TRUE(read_series(written("series.csv", "a\n1\n")).dates.empty());

    const auto says = [](const std::string& text) {
        const std::string path = written("series.csv", text), words = message<BadInput>([&] { read_series(path); });
        return words.starts_with('"' + path + '"') ? words.substr(path.size() + 2) : words;
    };
    EXPECT_EQ(says(""), " is empty");
    EXPECT_EQ(says("a,b\n"), " has no rows");
    EXPECT_EQ(says("date\n2020\n"), " has no variables");
    EXPECT_EQ(says("a,a\n1,2\n"), " has two columns \"a\"");
    EXPECT_EQ(says("a,b\n1,2\n1,\n"), ", line 3: \"b\" is empty");
    EXPECT_EQ(says("a,b\n1,2\n1\n"), ", line 3: has 1 fields but the first line has 2");
    EXPECT_EQ(says("a,b\n1,2,3\n"), ", line 2: has 3 fields but the first line has 2");
    for (const std::string text : {"x", "1x", "nan", "inf", "1e999", "0x1", "--1", "1 2"}) {
        EXPECT_EQ(says("a,b\n1," + text + "\n"), ", line 2: \"b\" is \"" + text + "\" but must be a finite number");
    }
    EXPECT_EQ(says("a,b\n1,\\x\n"), ", line 2: has a backslash that means nothing");
    EXPECT_EQ(message<BadInput>([] { read_series("no_such_file"); }), "cannot open \"no_such_file\"");
}

}  // namespace
