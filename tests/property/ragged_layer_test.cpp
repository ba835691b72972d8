// SPDX-License-Identifier: Apache-2.0
#include "support/allocations.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/executors.hpp"
#include "support/generators.hpp"
#include "support/layer_gradient_oracle.hpp"
#include "support/layers.hpp"
#include "support/message.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// Several sequences in one call of a layer, any number of tokens each: every one as if it were alone.
namespace {

using castle::Index;
using castle::LayerConfig;
using castle::Matrix;
using namespace support;

using Counts = std::vector<Index>;

constexpr Index d_model = 20;

template <class T>
Matrix<T> random_rows(Random& random, Index rows) {
    Matrix<T> x(rows, d_model);
    fill_normal(random, x);
    return x;
}

// Grouped queries and none, with and without lookahead, rotary throughout.
struct Kind {
    LayerConfig config;
    castle::Options options;
};
std::vector<Kind> all_kinds() {
    std::vector<Kind> kinds;
    for (const Index kv_heads : {1, 2, 0}) {
        for (const Index window : {Index(0), Index(20), castle::unlimited}) {
            kinds.push_back({{.d_model = d_model,
                              .heads = 4,
                              .kv_heads = kv_heads,
                              .d_head = 6,
                              .rotary = castle::Rotary{.base = 100},
                              .seed = 31},
                             {.lookahead_window = window}});
        }
    }
    return kinds;
}

template <class T>
std::vector<castle::LayerCache<T>*> pointers_to(std::vector<castle::LayerCache<T>>& caches) {
    std::vector<castle::LayerCache<T>*> pointers;
    for (castle::LayerCache<T>& cache : caches) pointers.push_back(&cache);
    return pointers;
}

template <class T>
void expect_same_lookahead_keys(const castle::LayerCache<T>& a, const castle::LayerCache<T>& b) {
    for (Index kv = 0; kv < a.shape().kv_heads; ++kv) {
        EXPECT_TRUE(same_bits(a.lookahead_keys(kv), b.lookahead_keys(kv))) << "key-value head " << kv;
    }
}

template <class T>
class RaggedLayer : public ::testing::Test {};
TYPED_TEST_SUITE(RaggedLayer, support::Scalars);

TYPED_TEST(RaggedLayer, ExtendsEveryCacheAsIfItWereAlone) {
    using T = TypeParam;
    ThreadPool two(2), four(4);
    std::uint64_t seed = 7000;
    for (const Kind& kind : all_kinds()) {
        Random random(++seed);
        SCOPED_TRACE(describe("seed ", seed, ", ", words_of(kind.config, kind.options)));
        const castle::Layer<T> layer(kind.config, kind.options);
        std::vector<castle::LayerCache<T>> together, alone;
        const Matrix<T> prompt = random_rows<T>(random, 150);
        for (const Index length : {0, 5, 64, 150, 33, 150}) {
            together.push_back(length == 150 && together.size() == 5 ? together[3].fork() : layer.make_cache());
            alone.push_back(layer.make_cache());
            if (together.size() < 6) layer.extend(together.back(), prompt.topRows(length));
            layer.extend(alone.back(), prompt.topRows(length));
        }
        const std::vector<castle::Executor> executors = {castle::Executor{}, two.executor(), four.executor(),
                                                         reversed_executor(), shuffled_executor(seed)};
        for (int step = 0; step < 12; ++step) {
            // Sequences come and go; from the sixth step on they are all decoded.
            std::vector<std::size_t> order = {0, 1, 2, 3, 4, 5};
            for (std::size_t i = 5; i > 0; --i) std::swap(order[i], order[std::size_t(random.integer(0, Index(i)))]);
            order.resize(std::size_t(random.integer(1, 6)));
            Counts counts = random_counts(random, Index(order.size()));
            if (step >= 6) std::fill(counts.begin(), counts.end(), 1);
            std::vector<castle::LayerCache<T>*> caches;
            for (const std::size_t i : order) caches.push_back(&together[i]);
            const Matrix<T> x = random_rows<T>(random, total(counts));
            const Matrix<T> y = written<T>(x.rows(), d_model, [&](castle::MatrixView<T> view) {
                layer.extend(caches, counts, x, view, random.pick(executors));
            });
            Index first = 0;
            for (std::size_t i = 0; i < order.size(); ++i) {
                castle::LayerCache<T>& one = alone[order[i]];
                EXPECT_TRUE(same_bits(Matrix<T>(y.middleRows(first, counts[i])),
                                      layer.extend(one, x.middleRows(first, counts[i]))))
                    << counts[i] << " tokens onto " << one.size() - counts[i] << " in step " << step;
                EXPECT_EQ(caches[i]->size(), one.size());
                first += counts[i];
            }
            if (this->HasFailure()) return;
        }
        for (std::size_t i = 0; i < 6; ++i) {
            expect_same_lookahead_keys(together[i], alone[i]);
            EXPECT_EQ(together[i].max_rollback(), alone[i].max_rollback());
        }
    }
}

TYPED_TEST(RaggedLayer, AllocatesNothingForSingleTokensWithinTheCapacity) {
    using T = TypeParam;
    Random random(7050);
    for (const Kind& kind : all_kinds()) {
        SCOPED_TRACE(words_of(kind.config, kind.options));
        const castle::Layer<T> layer(kind.config, kind.options);
        std::vector<castle::LayerCache<T>> together;
        for (Index i = 0; i < 4; ++i) {
            const Matrix<T> prompt = random_rows<T>(random, 20 * i);
            together.push_back(layer.make_cache());
            layer.extend(together.back(), prompt);
            together.back().reserve(250);
        }
        const std::vector<castle::LayerCache<T>*> caches = pointers_to(together);
        const Counts ones(4, 1);
        const Matrix<T> x = random_rows<T>(random, 4);
        Matrix<T> y(4, d_model);
        layer.extend(caches, ones, x, y);  // gives the first cache its scratch
        const Allocations::Count count;
        for (int step = 0; step < 150; ++step) layer.extend(caches, ones, x, y);
        EXPECT_EQ(count.allocations(), 0);
    }
}

TYPED_TEST(RaggedLayer, WithoutMemoryChangesNoToken) {
    using T = TypeParam;
    for (const Index window : {Index(0), castle::unlimited}) {
        const castle::Layer<T> layer({.d_model = d_model, .heads = 4, .kv_heads = 2, .d_head = 6},
                                     {.lookahead_window = window});
        Random random(7060);
        const Counts counts{40, 0, 1, 70};
        const Matrix<T> prompt = random_rows<T>(random, 64), x = random_rows<T>(random, total(counts));
        const auto make = [&] {
            std::vector<castle::LayerCache<T>> all;
            for (int i = 0; i < 3; ++i) {
                all.push_back(layer.make_cache());
                layer.extend(all.back(), prompt);
            }
            all.push_back(all.front().fork());
            return all;
        };
        std::vector<castle::LayerCache<T>> fine = make(), before = make();
        Matrix<T> expected(x.rows(), d_model);
        layer.extend(pointers_to(fine), counts, x, expected);
        long failures = 0;
        for (bool failed = true; failed;) {
            SCOPED_TRACE(describe("window ", window, ", ", failures, " allocations go well"));
            std::vector<castle::LayerCache<T>> together = make();
            const std::vector<castle::LayerCache<T>*> caches = pointers_to(together);
            Matrix<T> y(x.rows(), d_model);
            failed = false;
            try {
                const Allocations::Failure failure(failures);
                layer.extend(caches, counts, x, y);
            } catch (const std::bad_alloc&) {
                failed = true;
                ++failures;
                for (std::size_t i = 0; i < together.size(); ++i) {
                    ASSERT_EQ(together[i].size(), 64);
                    expect_same_lookahead_keys(together[i], before[i]);
                }
                layer.extend(caches, counts, x, y);
            }
            ASSERT_TRUE(same_bits(y, expected));
            for (std::size_t i = 0; i < together.size(); ++i) expect_same_lookahead_keys(together[i], fine[i]);
            ASSERT_FALSE(this->HasFailure());
            ASSERT_LT(failures, 1000);
        }
        EXPECT_GE(failures, 2) << "scratch and a cache that grows at least";
    }
}

TYPED_TEST(RaggedLayer, RejectsWhatDoesNotFitAndChangesNothing) {
    using T = TypeParam;
    constexpr Index most = std::numeric_limits<Index>::max();
    const LayerConfig config{.d_model = d_model, .heads = 4, .kv_heads = 2, .d_head = 6};
    const castle::Layer<T> layer(config);
    LayerConfig other_config = config;
    other_config.kv_heads = 4;
    Random random(7070);
    const Matrix<T> prompt = random_rows<T>(random, 40), tokens = random_rows<T>(random, 10);
    std::vector<castle::LayerCache<T>> all;
    for (int i = 0; i < 2; ++i) {
        all.push_back(layer.make_cache());
        layer.extend(all.back(), prompt);
    }
    castle::LayerCache<T>&a = all[0], &b = all[1];
    castle::LayerCache<T> other_heads = castle::Layer<T>(other_config).make_cache();
    castle::LayerCache<T> other_window = castle::Layer<T>(config, {.lookahead_window = 7}).make_cache();
    castle::LayerCache<T> standard = castle::Layer<T>(config, {.lookahead_window = 0}).make_cache();
    castle::LayerCache<T> expected = layer.make_cache();
    layer.extend(expected, prompt);

    using Caches = std::vector<castle::LayerCache<T>*>;
    const auto expect_rejected = [&](const Caches& caches, const Counts& counts, Index rows, Index out_rows,
                                     const std::vector<std::string>& parts) {
        SCOPED_TRACE(describe("counts ", ::testing::PrintToString(counts), ", ", rows, " rows"));
        const Matrix<T> untouched = Matrix<T>::Constant(out_rows, d_model, sentinel<T>());
        Matrix<T> y = untouched;
        const std::string sentence =
            message<std::invalid_argument>([&] { layer.extend(caches, counts, tokens.topRows(rows), y); });
        EXPECT_EQ(sentence.rfind("castle::Layer: ", 0), 0U) << sentence;
        EXPECT_EQ(sentence.find('\n'), std::string::npos) << sentence;
        for (const std::string& part : parts) {
            EXPECT_NE(sentence.find(part), std::string::npos) << "'" << part << "' is not in: " << sentence;
        }
        EXPECT_TRUE(same_bits(y, untouched)) << "the output was written to before the throw";
        for (const castle::LayerCache<T>& cache : all) {
            EXPECT_EQ(cache.size(), 40);
            expect_same_lookahead_keys(cache, expected);
        }
        for (const castle::LayerCache<T>* cache : {&other_heads, &other_window, &standard}) EXPECT_EQ(cache->size(), 0);
    };
    expect_rejected({&a, nullptr}, {1, 2}, 3, 3, {"caches[1]", "null"});
    expect_rejected({&a, &b, &a}, {1, 0, 2}, 3, 3, {"caches[0] and caches[2] are the same cache"});
    expect_rejected({&a, &b}, {3}, 3, 3, {"caches has 2", "counts has 1"});
    expect_rejected({&a, &b}, {1, -1}, 0, 0, {"counts"});
    expect_rejected({&a, &b}, {-1, 1}, 3, 3, {"counts[0] is -1"});
    expect_rejected({&a, &b}, {1, 1}, 3, 3, {"2", "3"});
    expect_rejected({&a, &b}, {3, 1}, 3, 3, {"3"});
    expect_rejected({&a, &b}, {most, most}, 3, 3, {"3"});
    expect_rejected({&a, &other_heads}, {1, 2}, 3, 3, {"caches[1]", "key-value heads"});
    expect_rejected({&a, &b, &other_window}, {1, 2, 0}, 3, 3, {"caches[2]", "lookahead_window"});
    expect_rejected({&standard}, {3}, 3, 3, {"caches[0]", "lookahead_window"});
    expect_rejected({&a, &b}, {1, 2}, 3, 4, {"y is [4, 20] but must be [3, 20]"});

    const Matrix<T> narrow = Matrix<T>::Zero(3, d_model - 1);
    Matrix<T> y(3, d_model);
    EXPECT_NE(message<std::invalid_argument>([&] {
                  layer.extend(Caches{&a, &b}, Counts{1, 2}, narrow, y);
              }).find("x is [3, 19] but must be [3, 20]"),
              std::string::npos);
    layer.extend(Caches{&b, &a}, Counts{3, 0}, tokens.topRows(3), y);
    EXPECT_TRUE(same_bits(y, layer.extend(expected, tokens.topRows(3))));
    EXPECT_EQ(a.size(), 40);
}

// --- packed sequences
// -------------------------------------------------------------------------------------------------

template <class T>
struct Packed {
    Counts counts;
    Matrix<T> x;
    Matrix<T> d_y;

    Packed(std::uint64_t seed, const Counts& of) : counts(of) {
        Random random(seed);
        x = random_rows<T>(random, total(of));
        d_y = random_rows<T>(random, total(of));
    }
};

template <class T>
struct Trained {
    Matrix<T> y;
    castle::LayerGradient<T> gradient;
};

// Every sequence in a workspace of its own; gradients of weights added up.
template <class T>
Trained<T> train_alone(const castle::Layer<T>& layer, const Packed<T>& packed) {
    Trained<T> all{.y = Matrix<T>(packed.x.rows(), d_model),
                   .gradient = {.x = Matrix<T>(packed.x.rows(), d_model), .weights = layer.zero_gradient()}};
    Index first = 0;
    for (const Index count : packed.counts) {
        castle::LayerWorkspace<T> workspace = layer.make_workspace();
        const auto rows = [&](const Matrix<T>& m) { return Matrix<T>(m.middleRows(first, count)); };
        const Matrix<T> x = rows(packed.x), d_y = rows(packed.d_y);
        Matrix<T> y(count, d_model);
        layer.forward(workspace, x, y);
        EXPECT_TRUE(same_bits(y, layer.forward(x)));
        all.y.middleRows(first, count) = y;
        layer.backward(workspace, x, d_y, all.gradient.x.middleRows(first, count), all.gradient.weights);
        first += count;
    }
    return all;
}

template <class T>
Trained<T> train_packed(const castle::Layer<T>& layer, castle::LayerWorkspace<T>& workspace, const Packed<T>& packed,
                        const castle::Executor& executor = {}) {
    Trained<T> all{.y = Matrix<T>(), .gradient = {.x = Matrix<T>(), .weights = layer.zero_gradient()}};
    const Index rows = packed.x.rows();
    all.y = written<T>(rows, d_model, [&](castle::MatrixView<T> y) {
        layer.forward(workspace, packed.counts, packed.x, y, executor);
    });
    EXPECT_EQ(workspace.size(), rows);
    all.gradient.x = written<T>(rows, d_model, [&](castle::MatrixView<T> d_x) {
        layer.backward(workspace, packed.counts, packed.x, packed.d_y, d_x, all.gradient.weights, executor);
    });
    EXPECT_EQ(workspace.size(), 0);
    return all;
}

template <class T>
void expect_same_weights(const castle::LayerWeights<T>& a, const castle::LayerWeights<T>& b) {
    for (std::size_t i = 0; i < 6; ++i) {
        EXPECT_TRUE(same_bits(*projections_of(a)[i], *projections_of(b)[i])) << input_names[i];
    }
    EXPECT_TRUE(same_bits(a.w_out, b.w_out)) << "w_out";
}

template <class T>
class RaggedLayerTraining : public ::testing::Test {};
TYPED_TEST_SUITE(RaggedLayerTraining, support::Scalars);

// Positions of the rotary embedding begin anew as well, or else neither would be.
TYPED_TEST(RaggedLayerTraining, GivesEverySequenceTheOutputAndTheInputGradientThatItHasAlone) {
    using T = TypeParam;
    Counts one_long_many_short;
    for (Index i = 0; i < 31; ++i) one_long_many_short.push_back(i == 12 ? 530 : i % 3);
    const std::vector<Counts> all_counts = {{5, 0, 130, 33}, {}, {1}, {0, 0}, one_long_many_short, {64, 31, 128, 32}};
    std::uint64_t seed = 7100;
    for (const Kind& kind : all_kinds()) {
        const castle::Layer<T> layer(kind.config, kind.options);
        castle::LayerWorkspace<T> workspace = layer.make_workspace();  // of all of them, one after the other
        for (const Counts& counts : all_counts) {
            SCOPED_TRACE(describe("seed ", ++seed, ", counts ", ::testing::PrintToString(counts), ", ",
                                  words_of(kind.config, kind.options)));
            const Packed<T> packed(seed, counts);
            const Trained<T> alone = train_alone(layer, packed), together = train_packed(layer, workspace, packed);
            EXPECT_TRUE(same_bits(together.y, alone.y));
            EXPECT_TRUE(same_bits(together.gradient.x, alone.gradient.x));
            if (this->HasFailure()) return;
        }
        // And without counts.
        const Packed<T> whole(++seed, {90});
        const Trained<T> alone = train_alone(layer, whole);
        Matrix<T> y(90, d_model);
        layer.forward(workspace, whole.x, y);
        const castle::LayerGradient<T> g = layer.backward(workspace, whole.x, whole.d_y);
        EXPECT_TRUE(same_bits(y, alone.y));
        EXPECT_TRUE(same_bits(g.x, alone.gradient.x));
        expect_same_weights(g.weights, alone.gradient.weights);
    }
}

// An element of a weight's gradient is one sum over all rows instead of a sum over those of each sequence: as many
// roundings as there are rows in either, relative to the sum of the absolute terms.
TYPED_TEST(RaggedLayerTraining, AddsTheGradientsOfWeightsUp) {
    using T = TypeParam;
    std::uint64_t seed = 7200;
    for (const Kind& kind : all_kinds()) {
        const castle::Layer<T> layer(kind.config, kind.options);
        const Packed<T> packed(++seed, {5, 0, 33, 40, 1, 12});
        SCOPED_TRACE(describe("seed ", seed, ", ", words_of(kind.config, kind.options)));
        castle::LayerWorkspace<T> workspace = layer.make_workspace();
        const castle::LayerWeights<T> ours = train_packed(layer, workspace, packed).gradient.weights;
        const castle::LayerWeights<T> sum = train_alone(layer, packed).gradient.weights;

        const oracle::Layer<double> by_oracle = oracle_layer<double>(layer.weights(), kind.config);
        std::vector<oracle::LayerGradient<double>> magnitudes;
        Index first = 0;
        for (const Index count : packed.counts) {
            if (count > 0) {
                const auto rows = [&](const Matrix<T>& m) {
                    return oracle_rows<double>(Matrix<T>(m.middleRows(first, count)));
                };
                magnitudes.push_back(oracle::backward(by_oracle, rows(packed.x), rows(packed.d_y),
                                                      oracle_settings(kind.config.d_head, kind.options),
                                                      oracle::Terms::absolute));
            }
            first += count;
        }
        const double roundings = 2 * static_cast<double>(packed.x.rows() + Index(packed.counts.size()));
        const auto expect = [&](const char* name, const Matrix<T>& our, const Matrix<T>& expected,
                                const auto& magnitude_of) {
            oracle::Rows<double> bounds(our.rows(), our.cols());
            for (Index i = 0; i < our.rows(); ++i) {
                for (Index j = 0; j < our.cols(); ++j) {
                    for (const auto& g : magnitudes) {
                        bounds(i, j) += gamma<T>(roundings) * magnitude_of(g)(i, j) + roundings * smallest_normal<T>;
                    }
                }
            }
            EXPECT_TRUE(within(our, oracle_rows<double>(expected), bounds)) << name;
        };
        for (std::size_t m = 0; m < 6; ++m) {
            expect(
                input_names[m], *projections_of(ours)[m],
                *projections_of(sum)[m], [m](const auto& g) -> auto& { return g.in[m]; });
        }
        expect(
            "w_out", ours.w_out, sum.w_out, [](const auto& g) -> auto& { return g.out; });
    }
}

TYPED_TEST(RaggedLayerTraining, HasTheSameBitsOnEveryExecutorAndEveryTime) {
    using T = TypeParam;
    ThreadPool two(2), four(4);
    std::uint64_t seed = 7300;
    for (const Kind& kind : all_kinds()) {
        Random random(++seed);
        Counts counts = random_counts(random, random.integer(1, 7));
        counts.push_back(200);
        SCOPED_TRACE(describe("seed ", seed, ", counts ", ::testing::PrintToString(counts), ", ",
                              words_of(kind.config, kind.options)));
        const castle::Layer<T> layer(kind.config, kind.options);
        castle::LayerWorkspace<T> workspace = layer.make_workspace();
        const Packed<T> packed(seed, counts);
        const Trained<T> serial = train_packed(layer, workspace, packed);
        for (const castle::Executor& executor :
             {castle::Executor{}, two.executor(), four.executor(), reversed_executor(), shuffled_executor(seed)}) {
            const Trained<T> again = train_packed(layer, workspace, packed, executor);
            EXPECT_TRUE(same_bits(again.y, serial.y));
            EXPECT_TRUE(same_bits(again.gradient.x, serial.gradient.x));
            expect_same_weights(again.gradient.weights, serial.gradient.weights);
            if (this->HasFailure()) return;
        }
        castle::Options options = kind.options;
        options.executor = four.executor();
        const castle::Layer<T> threaded(kind.config, options);
        Matrix<T> y(packed.x.rows(), d_model);
        threaded.forward(workspace, counts, packed.x, y);
        const castle::LayerGradient<T> g = threaded.backward(workspace, counts, packed.x, packed.d_y);
        EXPECT_TRUE(same_bits(g.x, serial.gradient.x));
        expect_same_weights(g.weights, serial.gradient.weights);
    }
}

TYPED_TEST(RaggedLayerTraining, AddsToTheGradientsOfEarlierBatches) {
    using T = TypeParam;
    const castle::Layer<T> layer({.d_model = d_model, .heads = 4, .kv_heads = 2, .d_head = 6});
    castle::LayerWorkspace<T> workspace = layer.make_workspace();
    const Packed<T> first(7400, {20, 33}), second(7401, {1, 0, 40});
    const Trained<T> one = train_packed(layer, workspace, first), two = train_packed(layer, workspace, second);
    castle::LayerWeights<T> both = one.gradient.weights;
    Matrix<T> y(second.x.rows(), d_model), d = second.d_y;
    layer.forward(workspace, second.counts, second.x, y);
    layer.backward(workspace, second.counts, second.x, d, d, both);  // d_x in the place of d_y
    EXPECT_TRUE(same_bits(d, two.gradient.x));
    EXPECT_TRUE(same_bits(both.w_out, Matrix<T>(one.gradient.weights.w_out + two.gradient.weights.w_out)));
    for (std::size_t m = 0; m < 6; ++m) {
        EXPECT_TRUE(same_bits(*projections_of(both)[m], Matrix<T>(*projections_of(one.gradient.weights)[m] +
                                                                  *projections_of(two.gradient.weights)[m])))
            << input_names[m];
    }
}

TYPED_TEST(RaggedLayerTraining, AllocatesNothingInTheSecondStep) {
    using T = TypeParam;
    for (const Kind& kind : all_kinds()) {
        SCOPED_TRACE(words_of(kind.config, kind.options));
        const castle::Layer<T> layer(kind.config, kind.options);
        castle::LayerWorkspace<T> workspace = layer.make_workspace();
        castle::LayerWeights<T> d_weights = layer.zero_gradient();
        const Packed<T> packed(7450, {33, 0, 140, 1, 64});
        Matrix<T> y(packed.x.rows(), d_model), d_x(packed.x.rows(), d_model);
        const auto train = [&] {
            layer.forward(workspace, packed.counts, packed.x, y);
            layer.backward(workspace, packed.counts, packed.x, packed.d_y, d_x, d_weights);
        };
        train();
        const Allocations::Count count;
        train();
        EXPECT_EQ(count.allocations(), 0);
    }
}

TYPED_TEST(RaggedLayerTraining, RejectsCountsThatDoNotFitAndChangesNothing) {
    using T = TypeParam;
    constexpr Index most = std::numeric_limits<Index>::max();
    const castle::Layer<T> layer({.d_model = d_model, .heads = 4, .kv_heads = 2, .d_head = 6});
    castle::LayerWorkspace<T> workspace = layer.make_workspace();
    const Packed<T> packed(7500, {10, 0, 25});
    const Trained<T> expected = train_packed(layer, workspace, packed);
    Matrix<T> y(35, d_model), d_x(35, d_model);
    layer.forward(workspace, packed.counts, packed.x, y);
    const auto expect_rejected = [&](const std::string& part, const auto& call) {
        const std::string sentence = message<std::invalid_argument>(call);
        EXPECT_EQ(sentence.rfind("castle::Layer: ", 0), 0U) << sentence;
        EXPECT_NE(sentence.find(part), std::string::npos) << "'" << part << "' is not in: " << sentence;
        EXPECT_EQ(workspace.size(), 35);
    };
    castle::LayerWeights<T> d_weights = layer.zero_gradient();
    for (const Counts& wrong : {Counts{10, 24}, Counts{}, Counts{10, 26}, Counts{10, -1, 26}, Counts{most, most, 37}}) {
        SCOPED_TRACE(::testing::PrintToString(wrong));
        expect_rejected("counts", [&] { layer.forward(workspace, wrong, packed.x, y); });
        expect_rejected("counts", [&] { layer.backward(workspace, wrong, packed.x, packed.d_y, d_x, d_weights); });
    }
    // As many rows, cut in another way.
    for (const Counts& other : {Counts{35}, Counts{25, 0, 10}, Counts{10, 25, 0}, Counts{10, 1, 24}}) {
        SCOPED_TRACE(::testing::PrintToString(other));
        expect_rejected("counts", [&] { layer.backward(workspace, other, packed.x, packed.d_y, d_x, d_weights); });
        expect_rejected("counts", [&] { static_cast<void>(layer.backward(workspace, other, packed.x, packed.d_y)); });
    }
    EXPECT_EQ(d_weights.w_out.cwiseAbs().maxCoeff(), 0);
    // The forward pass from before still waits.
    EXPECT_TRUE(same_bits(y, expected.y));
    layer.backward(workspace, packed.counts, packed.x, packed.d_y, d_x, d_weights);
    EXPECT_TRUE(same_bits(d_x, expected.gradient.x));
    expect_same_weights(d_weights, expected.gradient.weights);
}

}  // namespace
