// SPDX-License-Identifier: Apache-2.0
#include "support/allocations.hpp"

#include <algorithm>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <mpi.h>

#include <castle/layer.hpp>
#include <castle/mpi/split_layer.hpp>

#include "support/executors.hpp"
#include "support/generators.hpp"
#include "support/layers.hpp"
#include "support/masks.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

// A layer whose heads are dealt to ranks is bitwise identical to one that has all of them, on every rank.
namespace {

using castle::Compute;
using castle::Index;
using castle::LayerConfig;
using castle::LayerWeights;
using castle::Masks;
using castle::Matrix;
using castle::MatrixView;
using castle::Options;
using castle::mpi::SplitLayer;
using castle::mpi::SplitLayerCache;
using castle::mpi::SplitLayerWorkspace;
using namespace support;

using Counts = std::vector<Index>;

const castle::mpi::Communicator& ranks() {
    static const castle::mpi::Communicator all(MPI_COMM_WORLD);
    return all;
}
bool is_last_rank() { return ranks().rank() == ranks().size() - 1; }

struct Kind {
    LayerConfig config;
    Options options = {};
};

// Grouped queries and none, heads and columns that do not divide evenly, standard attention, windows, rotations, and
// score terms. Every one has heads for four ranks.
std::vector<Kind> all_kinds(Index distances) {
    std::vector<Kind> kinds = {
        {{.d_model = 72, .heads = 5, .d_head = 6, .rotary = castle::Rotary{.base = 100}, .seed = 41}},
        {{.d_model = 130, .heads = 8, .kv_heads = 4, .d_head = 16, .rotary = castle::Rotary{}, .seed = 42},
         {.lookahead_window = 20}},
        {{.d_model = 20, .heads = 8, .kv_heads = 4, .d_head = 6, .seed = 43}, {.lookahead_window = 0}},
        {{.d_model = 300, .heads = 10, .kv_heads = 5, .d_head = 4, .seed = 44}, {.scale = 0.7}}};
    Random random(45);
    Options terms{.terms = some_terms(random, 8, distances)};
    kinds.push_back({{.d_model = 72, .heads = 8, .kv_heads = 4, .d_head = 5, .seed = 46}, terms});
    terms.terms = some_terms(random, 5, distances);
    std::swap(terms.terms.factor, terms.terms.bias);
    terms.terms.soft_cap.reset();
    terms.lookahead_window = 9;
    kinds.push_back({{.d_model = 24, .heads = 5, .d_head = 8, .seed = 47}, terms});
    return kinds;
}

// A layer, and the same one dealt to all ranks.
template <class T>
struct Both {
    castle::Layer<T> whole;
    SplitLayer<T> split;

    explicit Both(const Kind& kind) : whole(kind.config, kind.options), split(kind.config, kind.options, ranks()) {}

    Matrix<T> random_rows(Random& random, Index rows) const {
        Matrix<T> x(rows, whole.config().d_model);
        fill_normal(random, x);
        return x;
    }
};

template <class T>
void expect_same_weights(const LayerWeights<T>& a, const LayerWeights<T>& b) {
    for (std::size_t i = 0; i < 6; ++i) {
        EXPECT_TRUE(same_bits(*projections_of(a)[i], *projections_of(b)[i])) << input_names[i];
    }
    EXPECT_TRUE(same_bits(a.w_out, b.w_out)) << "w_out";
}

// What a call may write beside its output.
template <class T>
struct Outputs {
    Matrix<T> y;
    Matrix<Compute<T>> log_sum_exp, mass;

    Outputs(const LayerConfig& config, Index rows)
        : y(rows, config.d_model), log_sum_exp(rows, config.heads), mass(rows, config.heads) {}

    castle::Output<T> view() { return {.out = y, .log_sum_exp = log_sum_exp, .mass = mass, .mass_over = some_mass()}; }
};
template <class T>
void expect_same_outputs(const Outputs<T>& a, const Outputs<T>& b) {
    EXPECT_TRUE(same_bits(a.y, b.y));
    EXPECT_TRUE(same_bits(a.log_sum_exp, b.log_sum_exp)) << "log_sum_exp";
    EXPECT_TRUE(same_bits(a.mass, b.mass)) << "mass";
}

#ifdef CASTLE_TEST_FLOAT_ONLY
using AllScalars = ::testing::Types<float, castle::bfloat16>;
#else
using AllScalars = ::testing::Types<float, double, castle::bfloat16>;
#endif

template <class T>
class Split : public ::testing::Test {};
TYPED_TEST_SUITE(Split, AllScalars);

TYPED_TEST(Split, RunsWholeSequences) {
    using T = TypeParam;
    ThreadPool two(2);
    for (const Kind& kind : all_kinds(300)) {
        SCOPED_TRACE(words_of(kind.config, kind.options));
        const Both<T> layers(kind);
        Random random(1);
        for (const Index length : {0, 1, 2, 40, 300}) {
            const Matrix<T> x = layers.random_rows(random, length);
            const Matrix<T> expected = layers.whole.forward(x);
            EXPECT_TRUE(same_bits(expected, layers.split.forward(x))) << length << " tokens";
            const Matrix<T> y = written<T>(length, x.cols(), [&](MatrixView<T> view) {
                layers.split.forward(x, view, ranks().rank() == 0 ? two.executor() : reversed_executor());
            });
            EXPECT_TRUE(same_bits(expected, y)) << length << " tokens, on executors";
        }
    }
}

TYPED_TEST(Split, ExtendsInChunksRollsBackAndForks) {
    using T = TypeParam;
    std::uint64_t seed = 100;
    for (const Kind& kind : all_kinds(400)) {
        for (const Index sliding_window : {castle::unlimited, Index(70)}) {
            Random random(++seed);
            SCOPED_TRACE(describe("seed ", seed, ", ", words_of(kind.config, kind.options)));
            const Both<T> layers(kind);
            castle::LayerCache<T> expected = layers.whole.make_cache(64, sliding_window);
            SplitLayerCache<T> cache = layers.split.make_cache(64, sliding_window);
            EXPECT_EQ(cache.sliding_window(), sliding_window);
            const auto extend = [&](Index tokens) {
                const Matrix<T> x = layers.random_rows(random, tokens);
                EXPECT_TRUE(same_bits(layers.whole.extend(expected, x), layers.split.extend(cache, x)));
                EXPECT_EQ(cache.size(), expected.size());
                EXPECT_EQ(cache.max_rollback(), expected.max_rollback());
            };
            for (const Index tokens : {1, 130, 1, 1, 33}) extend(tokens);
            for (const Index tokens : random_split(random, 50)) extend(tokens);
            const Index back = random.integer(1, cache.max_rollback());
            cache.rollback(back);
            expected.rollback(back);
            extend(1);
            SplitLayerCache<T> fork = cache.fork();
            castle::LayerCache<T> expected_fork = expected.fork();
            extend(3);
            std::swap(cache, fork);
            std::swap(expected, expected_fork);
            extend(40);
            cache.clear();
            expected.clear();
            cache.reserve(30);
            for (int i = 0; i < 3; ++i) extend(1);
        }
    }
}

TYPED_TEST(Split, ExtendsRaggedBatches) {
    using T = TypeParam;
    ThreadPool two(2);
    std::uint64_t seed = 200;
    for (const Kind& kind : all_kinds(3000)) {
        Random random(++seed);
        SCOPED_TRACE(describe("seed ", seed, ", ", words_of(kind.config, kind.options)));
        const Both<T> layers(kind);
        std::vector<castle::LayerCache<T>> expected;
        std::vector<SplitLayerCache<T>> caches;
        std::vector<castle::LayerCache<T>*> to_expected;
        std::vector<SplitLayerCache<T>*> to_caches;
        for (int i = 0; i < 5; ++i) {
            expected.push_back(layers.whole.make_cache());
            caches.push_back(layers.split.make_cache());
        }
        for (auto& one : expected) to_expected.push_back(&one);
        for (auto& one : caches) to_caches.push_back(&one);
        for (int step = 0; step < 8; ++step) {
            const Counts counts = step < 5 ? random_counts(random, 5) : Counts(5, 1);
            const Matrix<T> x = layers.random_rows(random, total(counts));
            Matrix<T> y(x.rows(), x.cols());
            layers.whole.extend(to_expected, counts, x, y);
            const Matrix<T> got = written<T>(x.rows(), x.cols(), [&](MatrixView<T> view) {
                layers.split.extend(to_caches, counts, x, view,
                                    step % 2 == ranks().rank() % 2 ? two.executor() : castle::Executor());
            });
            EXPECT_TRUE(same_bits(y, got)) << "step " << step;
        }
    }
}

TYPED_TEST(Split, ObeysMasksAndGivesByProducts) {
    using T = TypeParam;
    std::uint64_t seed = 300;
    const std::vector<Kind> kinds = all_kinds(150);
    for (const std::size_t i : {1U, 2U, 4U}) {
        const Kind& kind = kinds[i];
        Random random(++seed);
        SCOPED_TRACE(describe("seed ", seed, ", ", words_of(kind.config, kind.options)));
        const Both<T> layers(kind);
        const Index length = 150;
        const Matrix<T> x = layers.random_rows(random, length);
        for (const NamedMask& named : all_masks(random, length)) {
            SCOPED_TRACE(named.name);
            Outputs<T> a(kind.config, length), b(kind.config, length);
            layers.whole.forward(x, a.view(), named.mask);
            layers.split.forward(x, b.view(), named.mask);
            expect_same_outputs(a, b);
        }
        castle::LayerCache<T> expected = layers.whole.make_cache();
        SplitLayerCache<T> cache = layers.split.make_cache();
        const Masks window(castle::masks::sliding_window(9, 2));
        Index first = 0;
        for (const Index tokens : {70, 1, 1, 40}) {
            const castle::ConstMatrixView<T> rows = castle::ConstMatrixView<T>(x).middle_rows(first, tokens);
            Outputs<T> a(kind.config, tokens), b(kind.config, tokens);
            layers.whole.extend(expected, rows, a.view(), window);
            layers.split.extend(cache, rows, b.view(), window);
            expect_same_outputs(a, b);
            first += tokens;
        }
    }
}

TYPED_TEST(Split, TrainsOnPackedSequences) {
    using T = TypeParam;
    using C = Compute<T>;
    ThreadPool two(2);
    std::uint64_t seed = 400;
    for (const Kind& kind : all_kinds(150)) {
        Random random(++seed);
        SCOPED_TRACE(describe("seed ", seed, ", ", words_of(kind.config, kind.options)));
        const Both<T> layers(kind);
        castle::LayerWorkspace<T> expected = layers.whole.make_workspace();
        SplitLayerWorkspace<T> workspace = layers.split.make_workspace();
        LayerWeights<C> d_expected = layers.whole.zero_gradient(), d_own = layers.split.zero_gradient();
        for (const Counts& counts : {Counts{1}, Counts{70, 0, 1, 33}, Counts{150}, Counts{}}) {
            const Index rows = total(counts);
            const Matrix<T> x = layers.random_rows(random, rows);
            Matrix<C> d_y(rows, x.cols());
            fill_normal(random, d_y);
            Matrix<T> y(rows, x.cols()), own_y(rows, x.cols());
            Matrix<C> d_x(rows, x.cols());
            layers.whole.forward(expected, counts, x, y);
            layers.split.forward(workspace, counts, x, own_y);
            EXPECT_TRUE(same_bits(y, own_y));
            EXPECT_EQ(workspace.size(), rows);
            // Gradients of several steps sum up.
            layers.whole.backward(expected, x, d_y, d_x, d_expected);
            const Matrix<C> own_d_x = written<C>(rows, x.cols(), [&](MatrixView<C> view) {
                if (rows > 0) {
                    EXPECT_THROW(layers.split.backward(workspace, Counts{rows + 1}, x, d_y, view, d_own),
                                 std::invalid_argument);
                }
                layers.split.backward(workspace, counts, x, d_y, view, d_own,
                                      ranks().rank() == 0 ? two.executor() : castle::Executor());
            });
            EXPECT_TRUE(same_bits(d_x, own_d_x));
            expect_same_weights(d_expected, layers.split.gathered(d_own));
            EXPECT_EQ(workspace.size(), 0);
        }
    }
}

TYPED_TEST(Split, TrainsUnderMasksAndOnByProducts) {
    using T = TypeParam;
    using C = Compute<T>;
    const Index length = 100;
    for (const Kind& kind : all_kinds(length)) {
        SCOPED_TRACE(words_of(kind.config, kind.options));
        Random random(500);
        const Both<T> layers(kind);
        const Matrix<T> x = layers.random_rows(random, length);
        Matrix<C> d_y(length, x.cols()), d_log_sum_exp(length, kind.config.heads), d_mass(length, kind.config.heads);
        for (Matrix<C>* m : {&d_y, &d_log_sum_exp, &d_mass}) fill_normal(random, *m);
        for (const castle::Mask& mask : {castle::masks::prefix(60), castle::masks::sliding_window(20, 3)}) {
            castle::LayerWorkspace<T> expected = layers.whole.make_workspace();
            SplitLayerWorkspace<T> workspace = layers.split.make_workspace();
            Outputs<T> a(kind.config, length), b(kind.config, length);
            const Counts counts = {length};
            layers.whole.forward(expected, counts, x, a.view(), mask);
            layers.split.forward(workspace, counts, x, b.view(), mask);
            expect_same_outputs(a, b);
            const castle::OutputGradient<C> d{.out = d_y, .log_sum_exp = d_log_sum_exp, .mass = d_mass};
            LayerWeights<C> d_expected = layers.whole.zero_gradient(), d_own = layers.split.zero_gradient();
            Matrix<C> d_x(length, x.cols()), own_d_x = d_y;
            layers.whole.backward(expected, x, d, d_x, d_expected);
            // In place of the gradient that it comes from.
            layers.split.backward(workspace, x, {.out = own_d_x, .log_sum_exp = d_log_sum_exp, .mass = d_mass}, own_d_x,
                                  d_own);
            EXPECT_TRUE(same_bits(d_x, own_d_x));
            expect_same_weights(d_expected, layers.split.gathered(d_own));
        }
    }
}

TYPED_TEST(Split, DealsWeightsAndGathersThem) {
    using T = TypeParam;
    for (const Kind& kind : all_kinds(100)) {
        SCOPED_TRACE(words_of(kind.config, kind.options));
        Both<T> layers(kind);
        const LayerWeights<T> all = layers.whole.weights();
        expect_same_weights(all, layers.split.weights());
        EXPECT_EQ(layers.split.parameters(), layers.whole.parameters());

        Index parameters = layers.split.own_parameters();
        MPI_Allreduce(MPI_IN_PLACE, &parameters, 1, MPI_INT64_T, MPI_SUM, ranks().handle());
        EXPECT_EQ(parameters, layers.whole.parameters());

        // This rank's columns are those of its heads.
        const LayerWeights<T> own = layers.split.own_weights();
        const Index d = kind.config.d_head;
        EXPECT_TRUE(same_bits(own.causal.q, Matrix<T>(all.causal.q.middleCols(layers.split.first_head() * d,
                                                                              layers.split.own_shape().heads * d))));
        EXPECT_TRUE(same_bits(own.causal.v, Matrix<T>(all.causal.v.middleCols(layers.split.first_kv_head() * d,
                                                                              layers.split.own_shape().kv_heads * d))));

        EXPECT_TRUE(
            same_bits(own.w_out, Matrix<T>(all.w_out.middleCols(layers.split.first_column(), own.w_out.cols()))));

        LayerConfig other = kind.config;
        other.seed += 1000;
        const castle::Layer<T> others(other, kind.options);
        const LayerWeights<T> w = others.weights();
        LayerWeights<T> transposed;
        for (std::size_t i = 0; i < 6; ++i) *projections_of(transposed)[i] = projections_of(w)[i]->transpose();
        transposed.w_out = w.w_out.transpose();
        layers.split.set_weights(transposed, castle::WeightOrder::out_in);
        expect_same_weights(w, layers.split.weights());
        layers.split.set_own_weights(own);
        expect_same_weights(all, layers.split.weights());
        const SplitLayer<T> made(kind.config, w, kind.options, ranks());
        expect_same_weights(w, made.weights());
    }
}

TEST(SplitLayer, OfSixteenBitsTakesMasters) {
    using castle::bfloat16;
    const Kind kind{{.d_model = 72, .heads = 4, .d_head = 6, .seed = 1}};
    Both<bfloat16> layers(kind);
    const LayerWeights<float> masters =
        castle::Layer<float>({.d_model = 72, .heads = 4, .d_head = 6, .seed = 2}).weights();
    layers.whole.set_weights(masters);
    layers.split.set_weights(masters);
    expect_same_weights(layers.whole.weights(), layers.split.weights());
    const SplitLayer<float> of_float({.d_model = 72, .heads = 4, .d_head = 6, .seed = 3}, {}, ranks());
    layers.whole.set_weights(of_float.weights());
    layers.split.set_own_weights(of_float.own_weights());
    expect_same_weights(layers.whole.weights(), layers.split.weights());
}

TEST(SplitLayer, RejectsMoreRanksThanKeyValueHeads) {
    const Index kv_heads = ranks().size() - 1;
    if (kv_heads == 0) return;
    const auto make = [&] {
        SplitLayer<float>({.d_model = 8, .heads = 2 * kv_heads, .kv_heads = kv_heads, .d_head = 4}, {}, ranks());
    };
    EXPECT_EQ(message<std::invalid_argument>(make),
              describe("castle::mpi::SplitLayer: there are ", ranks().size(), " ranks but kv_heads is ", kv_heads,
                       "; every rank takes one key-value head at least"));
}

TEST(SplitLayer, RejectsOtherLayersOnOneRank) {
    if (ranks().size() == 1) return;
    const std::string differ = "castle::mpi::SplitLayer: the arguments are not the same on all ranks";
    const auto make = [&](const LayerConfig& config, const Options& options) {
        return message<std::invalid_argument>([&] { SplitLayer<float>(config, options, ranks()); });
    };
    const auto here = [](auto one, auto others) { return is_last_rank() ? one : others; };
    EXPECT_EQ(make({.d_model = here(8, 9), .heads = 4, .d_head = 4}, {}), differ);
    EXPECT_EQ(make({.d_model = 8, .heads = here(4, 8), .d_head = 4}, {}), differ);
    EXPECT_EQ(make({.d_model = 8, .heads = 4, .d_head = 4, .seed = here(1U, 2U)}, {}), differ);
    EXPECT_EQ(make({.d_model = 8, .heads = 4, .d_head = 4}, {.lookahead_window = here(1, 2)}), differ);
    EXPECT_EQ(make({.d_model = 8, .heads = 4, .d_head = 4}, {.terms = {.sinks = {0, 0, 0, here(1.0, 2.0)}}}), differ);
    EXPECT_EQ(message<std::invalid_argument>(
                  [&] { SplitLayer<float>({.d_model = here(0, 8), .heads = 4, .d_head = 4}, {}, ranks()); }),
              std::string("castle::mpi::SplitLayer: d_model is 0 but must be at least 1") +
                  (is_last_rank() ? "" : describe(" (on rank ", ranks().size() - 1, ")")));
}

// What is wrong on one rank is an error on all of them, and leaves everything as it was.
class OneRankIsWrong : public ::testing::Test {
  protected:
    OneRankIsWrong() {
        x_ = layers_.random_rows(random_, 40);
        EXPECT_TRUE(same_bits(layers_.whole.extend(expected_, x_), layers_.split.extend(cache_, x_)));
    }
    template <class Call>
    void expect_rejected(std::string_view words, const Call& call) {
        const std::string said = message<std::invalid_argument>(call);
        EXPECT_NE(said.find(words), std::string::npos) << said;
        EXPECT_EQ(cache_.size(), 40);
    }
    ~OneRankIsWrong() override {
        const Matrix<float> more = layers_.random_rows(random_, 3);
        EXPECT_TRUE(same_bits(layers_.whole.extend(expected_, more), layers_.split.extend(cache_, more)));
    }

    Random random_{600};
    Both<float> layers_{Kind{{.d_model = 72, .heads = 8, .kv_heads = 4, .d_head = 6, .seed = 5}}};
    castle::LayerCache<float> expected_ = layers_.whole.make_cache();
    SplitLayerCache<float> cache_ = layers_.split.make_cache();
    Matrix<float> x_, y_{40, 72};
};

TEST_F(OneRankIsWrong, ByTheShapeOfItsRows) {
    const Matrix<float> narrow = x_.leftCols(71);
    expect_rejected("x is [40, 71] but must be [40, 72] for 40 tokens (the rows of x) and a layer of d_model 72",
                    [&] { layers_.split.extend(cache_, is_last_rank() ? narrow : x_, y_); });
    expect_rejected("x is [40, 71]", [&] { (void)layers_.split.forward(is_last_rank() ? narrow : x_); });
    expect_rejected("x is [40, 71]", [&] { (void)layers_.split.extend(cache_, is_last_rank() ? narrow : x_); });
}

TEST_F(OneRankIsWrong, ByTheNumberOfItsRows) {
    if (ranks().size() == 1) return;
    const Index rows = is_last_rank() ? 1 : 40;
    expect_rejected("the arguments are not the same on all ranks", [&] {
        layers_.split.extend(cache_, castle::ConstMatrixView<float>(x_).middle_rows(0, rows),
                             MatrixView<float>(y_).middle_rows(0, rows));
    });
}

TEST_F(OneRankIsWrong, ByTheElementsOfItsRows) {
    if (ranks().size() == 1 || !castle::detail::compares_elements) return;
    Matrix<float> other = x_;
    if (is_last_rank()) other(39, 71) += 1;
    expect_rejected("the arguments are not the same on all ranks", [&] { layers_.split.extend(cache_, other, y_); });
}

TEST_F(OneRankIsWrong, ByItsCache) {
    SplitLayerCache<float> other = layers_.split.make_cache();
    SplitLayerCache<float>& here = is_last_rank() ? other : cache_;
    if (ranks().size() > 1) {
        expect_rejected("the arguments are not the same on all ranks", [&] { layers_.split.extend(here, x_, y_); });
    }
    const SplitLayer<float> narrow({.d_model = 72, .heads = 4, .d_head = 6}, {}, ranks());
    other = narrow.make_cache();
    expect_rejected("cache is for a layer with a number of heads of 4 but the layer has 8",
                    [&] { layers_.split.extend(here, x_, y_); });
    const castle::mpi::Communicator others(MPI_COMM_WORLD);
    const SplitLayer<float> elsewhere(layers_.split.config(), {}, others);
    other = elsewhere.make_cache();
    expect_rejected("cache is for a layer of another communicator", [&] { layers_.split.extend(here, x_, y_); });
}

TEST_F(OneRankIsWrong, InABatch) {
    std::vector<SplitLayerCache<float>*> caches{&cache_, is_last_rank() ? nullptr : &cache_};
    SplitLayerCache<float> second = layers_.split.make_cache();
    if (!is_last_rank()) caches[1] = &second;
    expect_rejected("caches[1] is null", [&] { layers_.split.extend(caches, Counts{20, 20}, x_, y_); });
    caches[1] = &second;
    if (ranks().size() > 1) {
        const Counts counts = is_last_rank() ? Counts{10, 30} : Counts{20, 20};
        expect_rejected("the arguments are not the same", [&] { layers_.split.extend(caches, counts, x_, y_); });
    }
    EXPECT_EQ(second.size(), 0);
}

TEST_F(OneRankIsWrong, ByAnotherCall) {
    if (ranks().size() == 1) return;
    expect_rejected("the arguments are not the same on all ranks", [&] {
        if (is_last_rank()) {
            layers_.split.forward(x_, y_);
        } else {
            layers_.split.extend(cache_, x_, y_);
        }
    });
}

TEST_F(OneRankIsWrong, InABackwardPass) {
    SplitLayerWorkspace<float> workspace = layers_.split.make_workspace();
    LayerWeights<float> d_weights = layers_.split.zero_gradient();
    Matrix<float> d_x(40, 72);
    layers_.split.forward(workspace, x_, y_);
    const Matrix<float> narrow = y_.leftCols(71);
    expect_rejected("d_y is [40, 71]",
                    [&] { layers_.split.backward(workspace, x_, is_last_rank() ? narrow : y_, d_x, d_weights); });
    EXPECT_EQ(d_weights.w_out, Matrix<float>(layers_.split.zero_gradient().w_out));
    layers_.split.backward(workspace, x_, y_, d_x, d_weights);
    expect_rejected("holds no forward pass", [&] { layers_.split.backward(workspace, x_, y_, d_x, d_weights); });
    // Where a forward pass is rejected, no rank has one.
    layers_.split.forward(workspace, x_, y_);
    expect_rejected("x is [40, 71]", [&] { layers_.split.forward(workspace, is_last_rank() ? narrow : x_, y_); });
    EXPECT_EQ(workspace.size(), 0);
}

TEST_F(OneRankIsWrong, ByItsMemory) {
    // Calls until every allocation of the last rank has failed once; at last the call goes well.
    const auto run_out = [&](const auto& call, const auto& expect_unchanged) {
        for (long successes = 0;; ++successes) {
            try {
                std::optional<Allocations::Failure> failure;
                if (is_last_rank()) failure.emplace(successes);
                call();
                return;
            } catch (const std::bad_alloc&) {
                expect_unchanged();
            }
        }
    };
    const auto same_cache = [&] { EXPECT_EQ(cache_.size(), 40); };
    const auto nothing = [] {};
    run_out([&] { layers_.split.extend(cache_, x_, y_); }, same_cache);
    EXPECT_TRUE(same_bits(y_, layers_.whole.extend(expected_, x_)));
    cache_.rollback(40);
    expected_.rollback(40);
    SplitLayerCache<float> second = layers_.split.make_cache();
    const std::vector<SplitLayerCache<float>*> caches{&cache_, &second};
    run_out(
        [&] {
            layers_.split.extend(caches, Counts{1, 39}, x_, y_);
        },
        [&] {
            same_cache();
            EXPECT_EQ(second.size(), 0);
        });
    cache_.rollback(1);
    run_out([&] { layers_.split.forward(x_, y_); }, nothing);
    EXPECT_TRUE(same_bits(y_, layers_.whole.forward(x_)));

    SplitLayerWorkspace<float> workspace = layers_.split.make_workspace();
    run_out([&] { layers_.split.forward(workspace, x_, y_); }, [&] { EXPECT_EQ(workspace.size(), 0); });
    EXPECT_TRUE(same_bits(y_, layers_.whole.forward(x_)));
    LayerWeights<float> d_weights = layers_.split.zero_gradient();
    Matrix<float> d_x = Matrix<float>::Zero(40, 72);
    run_out([&] { layers_.split.backward(workspace, x_, y_, d_x, d_weights); },
            [&] {
                EXPECT_EQ(workspace.size(), 40);
                EXPECT_TRUE((d_x.array() == 0).all() && (d_weights.causal.q.array() == 0).all());
            });
    LayerWeights<float> all;
    run_out([&] { all = layers_.split.weights(); }, nothing);
    std::optional<SplitLayer<float>> made;
    run_out([&] { made.emplace(layers_.split.config(), Options(), ranks()); }, nothing);
    expect_same_weights(made->weights(), layers_.whole.weights());
}

TEST_F(OneRankIsWrong, ByTheShapeOfAWeight) {
    const LayerWeights<float> before = layers_.split.weights();
    LayerWeights<float> all = layers_.whole.weights();
    if (is_last_rank()) all.causal.k.resize(72, 23);
    expect_rejected("weights.causal.k is [72, 23]", [&] { layers_.split.set_weights(all); });
    LayerWeights<float> own = layers_.split.zero_gradient();
    if (is_last_rank()) own.w_out.resize(47, own.w_out.cols());
    expect_rejected("own.w_out is [47, ", [&] { layers_.split.set_own_weights(own); });
    expect_same_weights(before, layers_.split.weights());
}

TEST(SplitLayer, CachesTakeTheirShareOfTheBytes) {
    for (const Kind& kind : all_kinds(100)) {
        const Both<float> layers(kind);
        castle::LayerCache<float> whole = layers.whole.make_cache();
        SplitLayerCache<float> cache = layers.split.make_cache();
        const Index expected = cache.bytes_for(1000);
        const Index empty = cache.bytes().total();
        cache.reserve(1000);
        EXPECT_EQ(cache.bytes().total(), expected);
        EXPECT_GE(cache.capacity(), 1000);
        Index all = expected - empty;
        MPI_Allreduce(MPI_IN_PLACE, &all, 1, MPI_INT64_T, MPI_SUM, ranks().handle());
        EXPECT_EQ(all, whole.bytes_for(1000) - whole.bytes().total());
    }
}

TEST(SplitLayer, ExtendsByOneTokenWithoutAllocating) {
    for (const Kind& kind : all_kinds(300)) {
        SCOPED_TRACE(words_of(kind.config, kind.options));
        const Both<float> layers(kind);
        Random random(8);
        std::vector<SplitLayerCache<float>> caches;
        for (int i = 0; i < 3; ++i) caches.push_back(layers.split.make_cache());
        std::vector<SplitLayerCache<float>*> pointers;
        for (SplitLayerCache<float>& cache : caches) {
            cache.reserve(300);
            pointers.push_back(&cache);
        }
        const Counts ones(3, 1);
        const Matrix<float> x = layers.random_rows(random, 3);
        Matrix<float> y(3, x.cols());
        layers.split.extend(pointers, ones, x, y);  // gives the first cache its scratch
        const castle::ConstMatrixView<float> token = castle::ConstMatrixView<float>(x).middle_rows(0, 1);
        const MatrixView<float> row = MatrixView<float>(y).middle_rows(0, 1);
        const Allocations::Count count;
        for (int step = 0; step < 70; ++step) {
            layers.split.extend(pointers, ones, x, y);
            layers.split.extend(caches[0], token, row);
        }
        EXPECT_EQ(count.allocations(), 0);
    }
}

TEST(SplitLayer, MovesAndKeepsItsCaches) {
    const Kind kind{{.d_model = 24, .heads = 4, .d_head = 6}};
    Both<float> layers(kind);
    Random random(7);
    const Matrix<float> x = layers.random_rows(random, 10);
    SplitLayerCache<float> cache = layers.split.make_cache();
    layers.split.extend(cache, x);
    SplitLayer<float> moved = std::move(layers.split);
    SplitLayerCache<float> moved_cache = std::move(cache);
    castle::LayerCache<float> expected = layers.whole.make_cache();
    layers.whole.extend(expected, x);
    EXPECT_TRUE(same_bits(layers.whole.extend(expected, x), moved.extend(moved_cache, x)));
}

}  // namespace
