// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/generators.hpp"
#include "support/runs.hpp"
#include "support/tolerances.hpp"

// A bad call gets one clear sentence, and changes nothing.
namespace {

using castle::Index;
using castle::Matrix;
using namespace support;
using Scalar = float;

using View = castle::ConstMatrixView<Scalar>;
using Input = castle::Input<Scalar>;

// Expects that `call` throws one sentence that says all of `parts`.
template <class Call>
void expect_sentence(const Call& call, const std::vector<std::string>& parts) {
    try {
        call();
        ADD_FAILURE() << "nothing was thrown";
    } catch (const std::invalid_argument& error) {
        const std::string sentence = error.what();
        for (const std::string& part : parts) {
            EXPECT_NE(sentence.find(part), std::string::npos) << "'" << part << "' is not in: " << sentence;
        }
        EXPECT_EQ(sentence.find('\n'), std::string::npos) << sentence;
    }
}

std::array<View*, 6> views(Input& in) {
    return {&in.causal.q, &in.causal.k, &in.causal.v, &in.lookahead.q, &in.lookahead.k, &in.lookahead.v};
}

constexpr Sizes sizes{.length = 4, .d = 3, .dv = 5};
constexpr castle::Shape shape{.d = 3, .dv = 5};

std::string shape_text(Index rows, Index cols) { return describe("[", rows, ", ", cols, "]"); }

// Everything that takes an input and gives a matrix; `shaped` is whether a shape, or a cache, says what the sizes must
// be. Where they say so, `object` is what has the options, in place of the call.
struct Form {
    std::string name;
    bool shaped;
    std::function<void(const Input&, castle::MatrixView<Scalar>, const castle::Options&)> run;
    std::string object = {};
};

const std::vector<Form> forms = {
    {"parallel", false, [](const Input& in, auto out, const castle::Options& o) { castle::parallel(in, out, o); }},
    {"recurrent", false, [](const Input& in, auto out, const castle::Options& o) { castle::recurrent(in, out, o); }},
    {"dense::gates", false,
     [](const Input& in, auto, const castle::Options& o) { return castle::dense::gates(in, o); }},
    {"dense::lookahead_keys", false,
     [](const Input& in, auto, const castle::Options& o) { return castle::dense::lookahead_keys(in, 1, o); }},
    {"dense::causal_scores", false,
     [](const Input& in, auto, const castle::Options& o) { return castle::dense::causal_scores(in, o); }},
    {"dense", false,
     [](const Input& in, auto, const castle::Options& o) { return castle::dense::lookahead_scores(in, o); }},
    {"dense", false, [](const Input& in, auto, const castle::Options& o) { return castle::dense::scores(in, o); }},
    {"dense", false, [](const Input& in, auto, const castle::Options& o) { return castle::dense::weights(in, o); }},
    {"dense", false, [](const Input& in, auto, const castle::Options& o) { return castle::dense::output(in, o); }},
    {"parallel", true,
     [](const Input& in, auto out, const castle::Options& o) { castle::parallel(shape, in, out, o); }},
    {"recurrent", true,
     [](const Input& in, auto out, const castle::Options& o) { castle::recurrent(shape, in, out, o); }},
    {"dense", true,
     [](const Input& in, auto, const castle::Options& o) { return castle::dense::output(shape, in, o); }},
    {"extend", true,
     [](const Input& in, auto out, const castle::Options& o) {
         castle::UqKvCache<Scalar> cache(shape, o);
         castle::extend(cache, in, out);
     },
     "UqKvCache"},
    {"extend", true,
     [](const Input& in, auto out, const castle::Options& o) {
         castle::UqKvCache<Scalar> cache(shape, o);
         const std::vector<castle::UqKvCache<Scalar>*> caches = {&cache};
         const std::vector<Index> counts = {in.causal.q.rows()};
         castle::extend(caches, counts, in, out);
     },
     "UqKvCache"},
};

bool writes(const Form& form) { return form.name == "parallel" || form.name == "recurrent" || form.name == "extend"; }

// The output that goes with a head, full of sentinels that must still be there after a throw.
struct Output {
    explicit Output(Index rows = sizes.length, Index cols = sizes.dv)
        : memory(Matrix<Scalar>::Constant(rows, cols, sentinel<Scalar>())) {}
    ~Output() {
        for (Index i = 0; i < memory.size(); ++i) {
            if (!is_sentinel(memory.data()[i])) {
                ADD_FAILURE() << "the output was written to before the throw";
                return;
            }
        }
    }
    Matrix<Scalar> memory;
};

// What a sentence says of input i where it is `is` and must be `must`.
std::string misfit(std::size_t i, const std::string& is, const std::string& must) {
    return std::string("input.") + input_names[i] + " is " + is + " but must be " + must;
}

// `check(form, i, in, wrong)` with input i of the head replaced by wrong, a larger or smaller one from `cut`.
template <class Cut, class Check>
void for_wrong_inputs(const Cut& cut, const Check& check) {
    Random random(1);
    const Head<Scalar> head = random_head<Scalar>(random, sizes);
    const Head<Scalar> larger = random_head<Scalar>(random, {.length = 6, .d = 7, .dv = 8});
    for (const Form& form : forms) {
        for (std::size_t i = 0; i < 6; ++i) {
            Input right = head.input();
            Input large = larger.input();
            for (const View& wrong : cut(*views(right)[i], *views(large)[i])) {
                SCOPED_TRACE(describe(form.name, ", ", input_names[i], " ", shape_text(wrong.rows(), wrong.cols())));
                Input in = head.input();
                *views(in)[i] = wrong;
                check(form, i, in, wrong);
            }
        }
    }
}

constexpr std::size_t causal_q = 0, causal_k = 1, causal_v = 2;

TEST(ShapeErrors, NameTheInputWithAWrongNumberOfRowsAndBothShapes) {
    for_wrong_inputs(
        [](const View& right, const View& large) {
            return std::vector<View>{right.middle_rows(0, 3), large.middle_cols(0, right.cols())};
        },
        [](const Form& form, std::size_t i, const Input& in, const View& wrong) {
            Output out;
            // The rows of causal.q are the number of tokens, so that the next input does not fit it.
            const std::string is = shape_text(wrong.rows(), wrong.cols());
            const std::string sentence =
                i == causal_q ? misfit(causal_k, shape_text(4, 3), is) : misfit(i, is, shape_text(4, wrong.cols()));
            expect_sentence([&] { form.run(in, out.memory, {}); }, {"castle::" + form.name, sentence});
        });
}

TEST(ShapeErrors, NameTheInputWithAWrongNumberOfColumnsAndBothShapes) {
    for_wrong_inputs(
        [](const View& right, const View& large) {
            return std::vector<View>{right.middle_cols(0, 2), large.middle_rows(0, right.rows())};
        },
        [](const Form& form, std::size_t i, const Input& in, const View& wrong) {
            Output out;
            const std::string is = shape_text(wrong.rows(), wrong.cols());
            std::string sentence = misfit(i, is, shape_text(4, i == causal_v ? 5 : 3));
            // Without a shape causal.q says what d is and causal.v what dv is: the next input, or the output, does not
            // fit it.
            if (!form.shaped && i == causal_q) sentence = misfit(causal_k, shape_text(4, 3), is);
            if (!form.shaped && i == causal_v) {
                if (!writes(form)) return;
                sentence = "out is " + shape_text(4, 5) + " but must be " + is;
            }
            expect_sentence([&] { form.run(in, out.memory, {}); }, {"castle::" + form.name, sentence});
        });
}

TEST(ShapeErrors, NameTheInputThatIsMissing) {
    for_wrong_inputs([](const View&, const View&) { return std::vector<View>{View()}; },
                     [](const Form& form, std::size_t i, const Input& in, const View&) {
                         Output out;
                         const Index rows = i == causal_q ? 0 : 4;
                         std::string sentence = misfit(i, shape_text(0, 0), shape_text(rows, i == causal_v ? 5 : 3));
                         if (!form.shaped && i == causal_q)
                             sentence = "causal.q is [0, 0] but must have at least one column";
                         if (!form.shaped && i == causal_v)
                             sentence = "causal.v is [0, 0] but must have at least one column";
                         expect_sentence([&] { form.run(in, out.memory, {}); }, {"castle::" + form.name, sentence});
                     });
}

// Standard attention reads no lookahead inputs: either none is there or all.
TEST(ShapeErrors, NameTheLookaheadInputThatIsMissing) {
    Random random(8);
    const Head<Scalar> head = random_head<Scalar>(random, sizes);
    for (const Form& form : forms) {
        SCOPED_TRACE(form.name);
        const castle::Options options{.lookahead_window = 0};
        Matrix<Scalar> memory(sizes.length, sizes.dv);
        EXPECT_NO_THROW(form.run(head.causal_input(), memory, options));
        EXPECT_NO_THROW(form.run(head.input(), memory, options));
        for (const std::size_t i : {3U, 4U, 5U}) {
            Output out;
            Input one_missing = head.input();
            *views(one_missing)[i] = {};
            expect_sentence([&] { form.run(one_missing, out.memory, options); },
                            {"castle::" + form.name, misfit(i, shape_text(0, 0), shape_text(4, 3))});
            Input one_there = head.causal_input();
            *views(one_there)[i] = *views(one_missing)[i == 3 ? 4 : 3];
            const std::size_t first_missing = i == 3 ? 4 : 3;
            expect_sentence([&] { form.run(one_there, out.memory, options); },
                            {"castle::" + form.name, misfit(first_missing, shape_text(0, 0), shape_text(4, 3))});
        }
        Output out;
        expect_sentence([&] { form.run(head.causal_input(), out.memory, {.lookahead_window = 1}); },
                        {"castle::" + form.name, misfit(3, shape_text(0, 0), shape_text(4, 3))});
    }
}

TEST(ShapeErrors, NameTheOutputAndBothShapes) {
    Random random(2);
    const Head<Scalar> head = random_head<Scalar>(random, sizes);
    for (const Form& form : forms) {
        if (!writes(form)) continue;
        SCOPED_TRACE(form.name);
        for (const Sizes& wrong : {Sizes{3, 0, 5}, Sizes{5, 0, 5}, Sizes{4, 0, 4}, Sizes{4, 0, 6}, Sizes{0, 0, 0}}) {
            Output out(wrong.length, wrong.dv);
            expect_sentence([&] { form.run(head.input(), out.memory, {}); },
                            {"castle::" + form.name,
                             "out is " + shape_text(wrong.length, wrong.dv) + " but must be " + shape_text(4, 5)});
        }
    }
}

TEST(ShapeErrors, NameAStrideThatIsTooSmallAndAViewOfNothing) {
    Random random(3);
    const Head<Scalar> head = random_head<Scalar>(random, sizes);
    for (const Form& form : forms) {
        for (std::size_t i = 0; i < 6; ++i) {
            SCOPED_TRACE(describe(form.name, ", ", input_names[i]));
            Input in = head.input();
            View& view = *views(in)[i];
            const Index cols = view.cols();
            Output out;
            view = View(view.data(), 4, cols, cols - 1);
            expect_sentence([&] { form.run(in, out.memory, {}); },
                            {"castle::" + form.name, std::string("input.") + input_names[i],
                             describe("only ", cols - 1, " elements apart"), describe("at least ", cols)});
            view = View(nullptr, 4, cols);
            expect_sentence([&] { form.run(in, out.memory, {}); },
                            {"castle::" + form.name, std::string("input.") + input_names[i], "points nowhere"});
        }
    }
}

TEST(ShapeErrors, DenseLookaheadKeysNameATokenOutsideTheSequence) {
    Random random(4);
    const Head<Scalar> head = random_head<Scalar>(random, sizes);
    for (const Index t : {-1, 5}) {
        expect_sentence([&] { return castle::dense::lookahead_keys(head.input(), t); },
                        {"castle::dense::lookahead_keys", describe("t is ", t), "[0, 4]", shape_text(4, 3)});
    }
}

TEST(OptionErrors, NameTheOptionAndItsValueInEveryForm) {
    Random random(5);
    const Head<Scalar> head = random_head<Scalar>(random, sizes);
    for (const Form& form : forms) {
        SCOPED_TRACE(form.name);
        const std::string where = "castle::" + (form.object.empty() ? form.name : form.object);
        Output out;
        expect_sentence([&] { form.run(head.input(), out.memory, {.lookahead_window = -1}); },
                        {where, "options.lookahead_window is -1", "at least 0"});
        for (const double scale : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
            expect_sentence([&] { form.run(head.input(), out.memory, {.scale = scale}); },
                            {where, "options.scale is", "finite"});
        }
    }
}

TEST(OptionErrors, OfCachesNameTheSize) {
    using castle::UqKvCache;
    expect_sentence([] { UqKvCache<Scalar>({.d = 0, .dv = 1}); }, {"castle::UqKvCache", "d is 0", "at least 1"});
    expect_sentence([] { UqKvCache<Scalar>({.d = 1, .dv = -2}); }, {"castle::UqKvCache", "dv is -2", "at least 1"});
    expect_sentence([] { UqKvCache<Scalar>({.d = Index(1) << 40, .dv = 1}); },
                    {"castle::UqKvCache", "d is 1099511627776"});
    expect_sentence([] { UqKvCache<Scalar>({.d = 1, .dv = 0}, {.lookahead_window = 0}); },
                    {"castle::UqKvCache", "dv is 0", "at least 1"});
    expect_sentence([] { UqKvCache<Scalar>({.d = 1, .dv = 1}, {.scale = std::nan(""), .lookahead_window = 0}); },
                    {"castle::UqKvCache", "options.scale is", "finite"});
    UqKvCache<Scalar> cache(shape);
    expect_sentence([&] { cache.reserve(-1); }, {"castle::", "reserve", "tokens is -1", "at least 0"});
    expect_sentence([&] { cache.reserve(castle::unlimited); },
                    {"castle::", "reserve", describe("tokens is ", castle::unlimited)});
    EXPECT_EQ(cache.capacity(), 0);
    expect_sentence([&] { return cache.bytes_for(-1); }, {"castle::", "bytes_for", "tokens is -1", "at least 0"});
    expect_sentence([&] { return cache.lookahead_keys(1); }, {"castle::", "lookahead_keys", "kv_head is 1"});
}

TEST(ShapeErrors, OfCausalAttentionNameTheArgumentAndBothShapes) {
    Random random(6);
    const Head<Scalar> head = random_head<Scalar>(random, sizes);
    const View q = head.qc, k = head.kc, v = head.vc;
    expect_sentence([&] { return castle::causal_attention(q, k.middle_rows(0, 3), v); },
                    {"castle::causal_attention: k is " + shape_text(3, 3), "must be " + shape_text(4, 3)});
    expect_sentence([&] { return castle::causal_attention(q, k.middle_cols(0, 2), v); },
                    {"castle::causal_attention: k is " + shape_text(4, 2), "must be " + shape_text(4, 3)});
    expect_sentence([&] { return castle::causal_attention(q, k, v.middle_rows(0, 2)); },
                    {"castle::causal_attention: v is " + shape_text(2, 5), "must be " + shape_text(4, 5)});
    Output out(4, 4);
    const castle::Options standard{.lookahead_window = 0};
    expect_sentence([&] { castle::parallel(head.causal_input(), out.memory, standard); },
                    {"castle::parallel: out is " + shape_text(4, 4), "must be " + shape_text(4, 5)});

    castle::UqKvCache<Scalar> cache(shape, standard);
    expect_sentence(
        [&] { castle::extend(cache, {.causal = {.q = q.middle_cols(0, 2), .k = k, .v = v}}); },
        {"castle::extend: input.causal.q is " + shape_text(4, 2), "must be " + shape_text(4, 3), "d 3, dv 5"});
    expect_sentence(
        [&] { castle::extend(cache, {.causal = {.q = q, .k = k, .v = v.middle_cols(0, 1)}}); },
        {"castle::extend: input.causal.v is " + shape_text(4, 1), "must be " + shape_text(4, 5), "d 3, dv 5"});
    EXPECT_EQ(cache.size(), 0);
}

// A count of rows below 0 must not take tokens away again.
TEST(ShapeErrors, RejectANegativeNumberOfTokens) {
    Random random(7);
    const Head<Scalar> head = random_head<Scalar>(random, sizes);
    castle::UqKvCache<Scalar> cache(shape);
    castle::extend(cache, head.input());
    Input in = head.input();
    for (View* view : views(in)) *view = View(view->data(), -2, view->cols(), view->cols());
    Output out;
    const castle::MatrixView<Scalar> negative(out.memory.data(), -2, 5, 5);
    expect_sentence([&] { castle::extend(cache, in, negative); },
                    {"castle::extend: input.causal.q is [-2, 3]", "negative"});
    // Also where the output would be allocated.
    expect_sentence([&] { castle::extend(cache, in); }, {"castle::extend: input.causal.q is [-2, 3]", "negative"});
    expect_sentence([&] { return castle::parallel(in); }, {"castle::parallel: input.causal.q is [-2, 3]", "negative"});
    expect_sentence([&] { return castle::recurrent(in); },
                    {"castle::recurrent: input.causal.q is [-2, 3]", "negative"});
    expect_sentence([&] { return castle::parallel(shape, in); },
                    {"castle::parallel: input.causal.q is [-2, 3]", "negative"});
    expect_sentence([&] { return castle::causal_attention(in.causal.q, in.causal.k, in.causal.v); },
                    {"castle::causal_attention: q is [-2, 3]", "negative"});
    EXPECT_EQ(cache.size(), 4);
}

// A scale that is a number in double may be none in float.
TEST(OptionErrors, NameAScaleThatTheScalarCannotHold) {
    expect_sentence([] { castle::UqKvCache<float>({.d = 2, .dv = 2}, {.scale = 1e39}); },
                    {"castle::UqKvCache", "options.scale is 1e+39", "finite"});
    EXPECT_NO_THROW(castle::UqKvCache<double>({.d = 2, .dv = 2}, {.scale = 1e39}));
    EXPECT_NO_THROW(castle::UqKvCache<float>({.d = 2, .dv = 2}, {.scale = -1e38}));
}

TEST(ShapeErrors, LeaveTheCacheAsItWas) {
    Random random(7);
    const Head<Scalar> head = random_head<Scalar>(random, {.length = 90, .d = 3, .dv = 5});
    const std::vector<Index> chunks = {40, 1, 49};
    const Outcome<Scalar> expected = run_in_chunks(head.input(), chunks);

    castle::UqKvCache<Scalar> cache(shape);
    Matrix<Scalar> out(90, 5);
    Index first = 0;
    for (const Index chunk : chunks) {
        const Input right = head.input().tokens(first, chunk);
        const Matrix<Scalar> keys = cache.lookahead_keys();
        const auto bytes = cache.bytes();
        for (std::size_t i = 0; i < 6; ++i) {
            Input wrong = right;
            *views(wrong)[i] = views(wrong)[i]->middle_cols(0, 2);
            Output poisoned(chunk, 5);
            EXPECT_THROW(castle::extend(cache, wrong, poisoned.memory), std::invalid_argument);
        }
        Output narrow(chunk, 4);
        EXPECT_THROW(castle::extend(cache, right, narrow.memory), std::invalid_argument);
        EXPECT_THROW(cache.reserve(-5), std::invalid_argument);

        EXPECT_EQ(cache.size(), first);
        EXPECT_EQ(cache.bytes(), bytes);
        EXPECT_TRUE(same_bits(cache.lookahead_keys(), keys));
        castle::extend(cache, right, out.middleRows(first, chunk));
        first += chunk;
    }
    EXPECT_TRUE(same_bits(out, expected.output));
    EXPECT_TRUE(same_bits(cache.lookahead_keys(), expected.lookahead_keys));
}

}  // namespace
