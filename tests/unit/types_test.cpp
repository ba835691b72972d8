// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include <gtest/gtest.h>

#include <castle/input.hpp>
#include <castle/types.hpp>

#include "support/generators.hpp"
#include "support/message.hpp"

// Views look at memory, and only at memory that has the right layout and lives on.
namespace {

using castle::ConstMatrixView;
using castle::Index;
using castle::Matrix;
using castle::MatrixView;

Matrix<float> counting(Index rows, Index cols) {
    Matrix<float> m(rows, cols);
    for (Index i = 0; i < m.size(); ++i) m.data()[i] = static_cast<float>(i);
    return m;
}

void expect_view(ConstMatrixView<float> v, const float* data, Index rows, Index cols, Index stride) {
    EXPECT_EQ(v.data(), data);
    EXPECT_EQ(v.rows(), rows);
    EXPECT_EQ(v.cols(), cols);
    EXPECT_EQ(v.outer_stride(), stride);
}

TEST(Views, LookAtAMatrix) {
    Matrix<float> m = counting(3, 4);
    const Matrix<float>& constant = m;
    expect_view(m, m.data(), 3, 4, 4);
    expect_view(constant, m.data(), 3, 4, 4);
    expect_view(MatrixView<float>(m), m.data(), 3, 4, 4);
}

TEST(Views, LookAtAFixedSizeMatrix) {
    Eigen::Matrix<float, 2, 3, Eigen::RowMajor> m = Eigen::Matrix<float, 2, 3, Eigen::RowMajor>::Zero();
    expect_view(m, m.data(), 2, 3, 3);
}

TEST(Views, LookAtAMap) {
    Matrix<float> m = counting(3, 10);
    const Eigen::Map<Matrix<float>, 0, Eigen::OuterStride<>> map(m.data() + 2, 3, 4, Eigen::OuterStride<>(10));
    expect_view(map, m.data() + 2, 3, 4, 10);
    const Eigen::Map<const Matrix<float>> constant(m.data(), 5, 6);
    expect_view(constant, m.data(), 5, 6, 6);
    expect_view(Eigen::Map<const Matrix<float>>(m.data(), 5, 6), m.data(), 5, 6, 6);
}

TEST(Views, LookAtABlockOfAMatrix) {
    Matrix<float> m = counting(5, 10);
    expect_view(m.middleCols(3, 4), m.data() + 3, 5, 4, 10);
    expect_view(m.middleRows(1, 2), m.data() + 10, 2, 10, 10);
    expect_view(m.block(1, 2, 3, 4), m.data() + 12, 3, 4, 10);
    const Matrix<float>& constant = m;
    expect_view(constant.middleCols(3, 4), m.data() + 3, 5, 4, 10);
    expect_view(MatrixView<float>(m.block(1, 2, 3, 4)), m.data() + 12, 3, 4, 10);
}

TEST(Views, LookAtARowOfAMatrix) {
    Matrix<float> m = counting(5, 10);
    const ConstMatrixView<float> v = m.row(2);
    EXPECT_EQ(v.data(), m.data() + 20);
    EXPECT_EQ(v.rows(), 1);
    EXPECT_EQ(v.cols(), 10);
    const Eigen::RowVectorXf row = m.row(3);
    const ConstMatrixView<float> w = row;
    EXPECT_EQ(w.data(), row.data());
    EXPECT_EQ(w.rows(), 1);
    EXPECT_EQ(w.cols(), 10);
}

TEST(Views, LookAtAPointer) {
    Matrix<float> m = counting(3, 4);
    expect_view(ConstMatrixView<float>(m.data(), 3, 4), m.data(), 3, 4, 4);
    expect_view(ConstMatrixView<float>(m.data(), 3, 2, 4), m.data(), 3, 2, 4);
    expect_view(MatrixView<float>(m.data(), 3, 2, 4), m.data(), 3, 2, 4);
}

TEST(Views, AreEmptyAtFirst) {
    expect_view(ConstMatrixView<float>(), nullptr, 0, 0, 0);
    expect_view(MatrixView<float>(), nullptr, 0, 0, 0);
    const Matrix<float> none(0, 4);
    const ConstMatrixView<float> v = none;
    EXPECT_EQ(v.rows(), 0);
    EXPECT_EQ(v.cols(), 4);
    EXPECT_EQ(v.map().size(), 0);
}

TEST(Views, CutRowsAndColumns) {
    Matrix<float> m = counting(6, 8);
    const auto check = [&](auto v) {
        EXPECT_EQ(v.row(2), m.data() + 16);
        expect_view(v.middle_rows(1, 4), m.data() + 8, 4, 8, 8);
        expect_view(v.middle_cols(3, 2), m.data() + 3, 6, 2, 8);
        expect_view(v.middle_rows(1, 4).middle_cols(3, 2), m.data() + 11, 4, 2, 8);
        expect_view(v.middle_rows(6, 0), m.data() + 48, 0, 8, 8);
        EXPECT_EQ(Matrix<float>(v.middle_rows(1, 4).middle_cols(3, 2).map()), Matrix<float>(m.block(1, 3, 4, 2)));
    };
    check(ConstMatrixView<float>(m));
    check(MatrixView<float>(m));
}

constexpr Index largest = (std::numeric_limits<Index>::max)(), smallest = (std::numeric_limits<Index>::min)();

// What a slice that is not there answers.
template <class Cut>
std::string rejected(const Cut& cut) {
    return support::message<std::invalid_argument>([&] { static_cast<void>(cut()); });
}

// Ranges that are not within 6, sums that overflow among them.
struct Range {
    Index first, count;
};
constexpr Range outside_of_6[] = {{0, 7},
                                  {6, 1},
                                  {7, 0},
                                  {-1, 2},
                                  {2, -1},
                                  {-1, -1},
                                  {3, 4},
                                  {largest, 1},
                                  {1, largest},
                                  {largest, 0},
                                  {0, largest},
                                  {smallest, 1},
                                  {1, smallest},
                                  {0, smallest},
                                  {smallest, 0},
                                  {-3, largest},
                                  {largest, largest},
                                  {smallest, smallest}};

TEST(Views, RejectRowsAndColumnsThatAreNotThere) {
    Matrix<float> m = counting(6, 6);
    const auto expect_rejected = [](auto v) {
        for (const Range& r : outside_of_6) {
            const std::string values = "first is " + std::to_string(r.first) + " and count is " +
                                       std::to_string(r.count) + " but the view has 6 ";
            EXPECT_EQ(rejected([&] { return v.middle_rows(r.first, r.count); }),
                      "castle::middle_rows: " + values + "rows");
            EXPECT_EQ(rejected([&] { return v.middle_cols(r.first, r.count); }),
                      "castle::middle_cols: " + values + "columns");
        }
    };
    expect_rejected(ConstMatrixView<float>(m));
    expect_rejected(MatrixView<float>(m));
}

TEST(Views, RejectSlicesOfWhatIsSmaller) {
    Matrix<float> m = counting(6, 8);
    EXPECT_EQ(rejected([&] { return ConstMatrixView<float>(m).middle_rows(5, 2); }),
              "castle::middle_rows: first is 5 and count is 2 but the view has 6 rows");
    EXPECT_EQ(rejected([&] { return MatrixView<float>(m).middle_cols(5, 4); }),
              "castle::middle_cols: first is 5 and count is 4 but the view has 8 columns");
    EXPECT_EQ(rejected([] { return ConstMatrixView<float>().middle_rows(0, 1); }),
              "castle::middle_rows: first is 0 and count is 1 but the view has 0 rows");
    // A view of a negative size holds nothing.
    for (const Index size : {Index(-1), smallest}) {
        EXPECT_EQ(rejected([&] { return ConstMatrixView<float>(m.data(), size, size).middle_rows(0, 0); }),
                  "castle::middle_rows: first is 0 and count is 0 but the view has " + std::to_string(size) + " rows");
    }
}

TEST(Views, WriteThrough) {
    Matrix<float> m = counting(3, 4);
    const MatrixView<float> v = m.middleCols(1, 2);
    v.map().setZero();
    v.row(2)[1] = -1;
    EXPECT_EQ(m.row(0), (Eigen::RowVector4f(0, 0, 0, 3)));
    EXPECT_EQ(m.row(2), (Eigen::RowVector4f(8, 0, -1, 11)));
}

// What cannot be looked at does not convert.
template <class From>
constexpr bool readable = std::is_convertible_v<From, ConstMatrixView<float>>;
template <class From>
constexpr bool writable = std::is_convertible_v<From, MatrixView<float>>;

static_assert(readable<Matrix<float>&> && readable<const Matrix<float>&> && writable<Matrix<float>&>);
static_assert(!writable<const Matrix<float>&>, "const memory");
static_assert(!readable<Matrix<float>> && !writable<Matrix<float>>, "a temporary that owns its elements");
static_assert(!readable<Eigen::MatrixXf&> && !readable<const Eigen::MatrixXf&> && !readable<Eigen::MatrixXf>,
              "column-major");
static_assert(!writable<Eigen::MatrixXf&> && !std::is_constructible_v<MatrixView<float>, Eigen::MatrixXf&>,
              "column-major");
static_assert(!readable<Eigen::VectorXf&>, "a column");
static_assert(!readable<Matrix<double>&>, "another scalar");
static_assert(!readable<decltype(std::declval<Matrix<float>&>() * 2.0f)>, "an expression");
static_assert(!readable<decltype(std::declval<Matrix<float>&>().col(0))>, "elements that are not neighbours");
static_assert(!readable<decltype(std::declval<Matrix<float>&>().transpose())>, "column-major");
static_assert(!readable<Eigen::Map<Matrix<float>, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>&>, "inner stride");
static_assert(!readable<Eigen::Ref<const Matrix<float>>>, "may own a copy that dies");
static_assert(readable<Eigen::Ref<Matrix<float>>>, "never owns");
static_assert(readable<MatrixView<float>> && !std::is_convertible_v<ConstMatrixView<float>, MatrixView<float>>);
static_assert(writable<decltype(std::declval<Matrix<float>&>().middleCols(0, 1))>);
static_assert(!writable<decltype(std::declval<const Matrix<float>&>().middleCols(0, 1))>, "const memory");

TEST(Input, CutsTokensOfAllSixInputs) {
    support::Random random(1);
    const support::Head<float> head = support::random_head<float>(random, {.length = 9, .d = 3, .dv = 2});
    const castle::Input<float> cut = head.input().tokens(4, 3);
    expect_view(cut.causal.q, head.qc.row(4).data(), 3, 3, 3);
    expect_view(cut.causal.k, head.kc.row(4).data(), 3, 3, 3);
    expect_view(cut.causal.v, head.vc.row(4).data(), 3, 2, 2);
    expect_view(cut.lookahead.q, head.qu.row(4).data(), 3, 3, 3);
    expect_view(cut.lookahead.k, head.ku.row(4).data(), 3, 3, 3);
    expect_view(cut.lookahead.v, head.vu.row(4).data(), 3, 3, 3);
    expect_view(head.input().tokens(9, 0).causal.v, head.vc.data() + 18, 0, 2, 2);
}

TEST(Input, RejectsTokensThatAreNotThere) {
    support::Random random(2);
    const support::Head<float> head = support::random_head<float>(random, {.length = 6, .d = 3, .dv = 2});
    for (const Range& r : outside_of_6) {
        EXPECT_EQ(rejected([&] { return head.input().tokens(r.first, r.count); }),
                  "castle::tokens: first is " + std::to_string(r.first) + " and count is " + std::to_string(r.count) +
                      " but causal.q has 6 rows");
    }
}

TEST(Input, NamesTheViewThatDoesNotHaveTheTokens) {
    support::Random random(3);
    const support::Head<float> head = support::random_head<float>(random, {.length = 9, .d = 3, .dv = 2});
    const auto expect_named = [&](const std::string& name, auto member) {
        castle::Input<float> input = head.input();
        ConstMatrixView<float>& view = member(input);
        view = view.middle_rows(0, 6);
        EXPECT_EQ(rejected([&] { return input.tokens(4, 3); }),
                  "castle::tokens: first is 4 and count is 3 but " + name + " has 6 rows");
        EXPECT_EQ(input.tokens(4, 2).causal.q.rows(), 2) << name;
        view = {};
        EXPECT_EQ(rejected([&] { return input.tokens(4, 3); }),
                  "castle::tokens: first is 4 and count is 3 but " + name + " has 0 rows");
    };
    expect_named(
        "causal.q", [](auto& x) -> auto& { return x.causal.q; });
    expect_named(
        "causal.k", [](auto& x) -> auto& { return x.causal.k; });
    expect_named(
        "causal.v", [](auto& x) -> auto& { return x.causal.v; });
    expect_named(
        "lookahead.q", [](auto& x) -> auto& { return x.lookahead.q; });
    expect_named(
        "lookahead.k", [](auto& x) -> auto& { return x.lookahead.k; });
    expect_named(
        "lookahead.v", [](auto& x) -> auto& { return x.lookahead.v; });
}

TEST(Input, WithoutLookaheadIsCutByItsCausalPart) {
    support::Random random(4);
    const support::Head<float> head = support::random_head<float>(random, {.length = 9, .d = 3, .dv = 2});
    const Matrix<float> none(0, 3);
    castle::Input<float> input{.causal = head.input().causal, .lookahead = {.q = none, .k = none, .v = none}};
    const castle::Input<float> cut = input.tokens(4, 3);
    expect_view(cut.causal.v, head.vc.row(4).data(), 3, 2, 2);
    for (const ConstMatrixView<float>& view : {cut.lookahead.q, cut.lookahead.k, cut.lookahead.v}) {
        expect_view(view, none.data(), 0, 3, 3);
    }
    EXPECT_FALSE(input.has_lookahead());
    EXPECT_TRUE(head.input().has_lookahead());
    input.lookahead = {};
    EXPECT_FALSE(input.has_lookahead());
    expect_view(input.tokens(4, 3).causal.q, head.qc.row(4).data(), 3, 3, 3);
    EXPECT_EQ(rejected([&] { return input.tokens(4, 6); }),
              "castle::tokens: first is 4 and count is 6 but causal.q has 9 rows");
}

TEST(Input, OfAHeadIsItsQueriesAndItsKeyValueHead) {
    support::Random random(5);
    const castle::Shape shape{.d = 3, .dv = 2, .heads = 6, .kv_heads = 2};
    const support::Head<float> heads = support::random_heads<float>(random, 9, shape);
    for (Index h = 0; h < 6; ++h) {
        SCOPED_TRACE(h);
        const Index kv_head = h / 3;
        const castle::Input<float> lone = heads.input().head(shape, h);
        expect_view(lone.causal.q, heads.qc.data() + 3 * h, 9, 3, 18);
        expect_view(lone.causal.k, heads.kc.data() + 3 * kv_head, 9, 3, 6);
        expect_view(lone.causal.v, heads.vc.data() + 2 * kv_head, 9, 2, 4);
        expect_view(lone.lookahead.q, heads.qu.data() + 3 * kv_head, 9, 3, 6);
        expect_view(lone.lookahead.k, heads.ku.data() + 3 * kv_head, 9, 3, 6);
        expect_view(lone.lookahead.v, heads.vu.data() + 3 * kv_head, 9, 3, 6);
        expect_view(heads.causal_input().head(shape, h).causal.q, heads.qc.data() + 3 * h, 9, 3, 18);
        EXPECT_FALSE(heads.causal_input().head(shape, h).has_lookahead());
    }
}

TEST(Input, RejectsAHeadThatIsNotThere) {
    support::Random random(6);
    const castle::Shape shape{.d = 3, .dv = 2, .heads = 6, .kv_heads = 2};
    const support::Head<float> heads = support::random_heads<float>(random, 9, shape);
    for (const Index h : {Index(-1), Index(6), largest, smallest}) {
        EXPECT_EQ(rejected([&] { return heads.input().head(shape, h); }),
                  "castle::Input::head: h is " + std::to_string(h) + " but the shape has 6 heads on 2 key-value heads");
    }
    // Of views that do not have the columns.
    castle::Input<float> narrow = heads.input();
    narrow.causal.k = narrow.causal.k.middle_cols(0, 3);
    EXPECT_EQ(narrow.head(shape, 2).causal.k.cols(), 3);
    EXPECT_EQ(rejected([&] { return narrow.head(shape, 3); }),
              "castle::middle_cols: first is 3 and count is 3 but the view has 3 columns");
    for (const castle::Shape& none : {castle::Shape{.d = 3, .dv = 2, .heads = 6, .kv_heads = 0},
                                      {.d = 3, .dv = 2, .heads = 6, .kv_heads = 4},
                                      {.d = 3, .dv = 2, .heads = 0, .kv_heads = 1}}) {
        EXPECT_NE(rejected([&] { return heads.input().head(none, 0); }), "did not throw");
    }
}

TEST(Shape, IsOfALoneHeadUnlessItSaysOtherwise) {
    EXPECT_TRUE((castle::Shape{.d = 3, .dv = 2} == castle::Shape{.d = 3, .dv = 2, .heads = 1, .kv_heads = 1}));
    EXPECT_FALSE((castle::Shape{.d = 3, .dv = 2} == castle::Shape{.d = 3, .dv = 2, .heads = 2}));
}

TEST(Gradient, HasTheShapesOfTheInput) {
    castle::Gradient<float> g(9, {.d = 3, .dv = 2, .heads = 6, .kv_heads = 2});
    const castle::GradientView<float> view = g.view();
    const auto expect_shape = [](const Matrix<float>& m, const MatrixView<float>& of, Index cols) {
        EXPECT_EQ(m.rows(), 9);
        EXPECT_EQ(m.cols(), cols);
        expect_view(of, m.data(), 9, cols, cols);
    };
    expect_shape(g.causal.q, view.causal.q, 18);
    expect_shape(g.causal.k, view.causal.k, 6);
    expect_shape(g.causal.v, view.causal.v, 4);
    expect_shape(g.lookahead.q, view.lookahead.q, 6);
    expect_shape(g.lookahead.k, view.lookahead.k, 6);
    expect_shape(g.lookahead.v, view.lookahead.v, 6);

    castle::Gradient<float> causal(9, {.d = 3, .dv = 2}, /*has_lookahead=*/false);
    EXPECT_EQ(causal.causal.q.cols(), 3);
    EXPECT_EQ(causal.lookahead.q.size(), 0);
    expect_view(causal.view().lookahead.v, causal.lookahead.v.data(), 0, 0, 0);
}

}  // namespace
