// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstdint>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "model/matrices.hpp"
#include "model/ranked_gradient.hpp"
#include "support/bad_input.hpp"
#include "support/ranks.hpp"

// What ranks of the examples do together.
namespace {

using model::Index;
using model::Matrix;

const Ranks& ranks() {
    static const Ranks all(connect_ranks());
    return all;
}

TEST(Ranks, ShareWhatThereIsInItsOrder) {
    for (const Index count : {0, 1, 2, 3, 4, 5, 16, 1000}) {
        Index next = 0;
        for (int r = 0; r < ranks().size(); ++r) {
            const Ranks::Share share = ranks().share(count, r);
            EXPECT_EQ(share.first, next);
            EXPECT_LE(share.count, count / ranks().size() + 1);
            next += share.count;
        }
        EXPECT_EQ(next, count);
        EXPECT_EQ(ranks().share(count).first, ranks().share(count, ranks().rank()).first);
    }
    EXPECT_EQ(ranks().size_here(), ranks().size()) << "all of them are on this machine";
}

TEST(Ranks, GatherWhatEachHas) {
    for (const Index count : {0, 1, 3, 4, 100}) {
        std::vector<double> all(std::size_t(count), -1);
        const Ranks::Share own = ranks().share(count);
        for (Index i = own.first; i < own.first + own.count; ++i) all[std::size_t(i)] = std::sqrt(double(i));
        ranks().gather(all);
        for (Index i = 0; i < count; ++i) EXPECT_EQ(all[std::size_t(i)], std::sqrt(double(i)));
    }
}

struct Weights {
    Matrix a;
    Matrix b;
    Matrix none;
    Matrix c;
    model::NamedMatrices matrices() { return {{"a", &a}, {"b", &b}, {"none", &none}, {"c", &c}}; }
};

Weights zeros(Index rows, Index cols) {
    return {Matrix::Zero(rows, cols), Matrix::Zero(1, 3), Matrix(0, 5), Matrix::Zero(7, cols)};
}

// Of magnitudes so different that another order, or another grouping, has another sum.
void fill(Weights& weights, Index part, std::uint64_t seed) {
    std::mt19937_64 random(seed * 1000 + std::uint64_t(part));
    for (const model::NamedMatrix& m : weights.matrices()) {
        for (Index i = 0; i < m.matrix->size(); ++i) {
            const std::uint64_t bits = random();
            m.matrix->data()[i] = std::ldexp(float(bits % 2001) - 1000, int(bits >> 32) % 20);
        }
    }
}

void expect_same_bits(Weights& is, Weights& should_be) {
    const model::NamedMatrices one = is.matrices(), other = should_be.matrices();
    for (std::size_t i = 0; i < one.size(); ++i) EXPECT_EQ(*one[i].matrix, *other[i].matrix) << one[i].name;
}

// As BatchGradient has it, with which one rank trains.
TEST(RankedGradient, IsTheSumOfThePartsInTheirOrder) {
    for (const Index parts : {1, 2, 3, 4, 5, 16}) {
        SCOPED_TRACE(parts);
        const Weights shape = zeros(5, 11);
        model::RankedGradient<Weights> ranked(ranks(), shape, parts);
        model::BatchGradient<Weights> whole(shape, parts);
        for (std::uint64_t step = 1; step <= 2; ++step) {
            ranked.set_zero();
            for (Index i = 0; i < ranked.own().count; ++i) fill(ranked.part(i), ranked.own().first + i, step);
            for (Index i = 0; i < parts; ++i) fill(whole.part(i), i, step);
            expect_same_bits(ranked.sum(), whole.sum());
        }
    }
}

// More than is sent at a time, and a last message that is shorter.
TEST(RankedGradient, IsTheSameInManyMessages) {
    constexpr Index parts = 64;
    const Weights shape = zeros(301, 499);
    model::RankedGradient<Weights> ranked(ranks(), shape, parts);
    for (Index i = 0; i < ranked.own().count; ++i) fill(ranked.part(i), ranked.own().first + i, 1);
    Weights sum = shape, next = shape;
    fill(sum, 0, 1);
    for (Index i = 1; i < parts; ++i) {
        fill(next, i, 1);
        model::add(sum, next);
    }
    expect_same_bits(ranked.sum(), sum);
}

// What run() does on every rank, and the line that it leaves on this one.
template <class F>
std::string line_of_failure(const F& run) {
    testing::internal::CaptureStderr();
    const int code = exit_code_of_ranks("program", [&](const Ranks& all) {
        run(all);
        return 0;
    });
    const std::string line = testing::internal::GetCapturedStderr();
    EXPECT_EQ(code, line.empty() ? 0 : 2);
    return line;
}

std::string expected_line(int failed, const std::string& reason) {
    const std::string where = ranks().rank() == failed ? "" : "rank " + std::to_string(failed) + " failed: ";
    return "program: " + where + reason + "\n";
}

TEST(Ranks, AllEndWhereverOneFails) {
    for (int failed = 0; failed < ranks().size(); ++failed) {
        SCOPED_TRACE(failed);
        const bool fails = ranks().rank() == failed;
        for (int at = 0; at <= 4; ++at) {
            const std::string line = line_of_failure([&](const Ranks& all) {
                const auto reach = [&](int place) {
                    if (fails && place == at) throw BadInput("no\nsense");
                };
                std::vector<double> losses(3);
                Weights shape = zeros(2, 2);
                model::RankedGradient<Weights> gradient(all, shape, 3);
                reach(0);
                all.agree();
                reach(1);
                all.expect_same("this", 1);
                reach(2);
                all.gather(losses);
                reach(3);
                gradient.sum();
                reach(4);
            });
            EXPECT_EQ(line, expected_line(failed, "no?sense")) << "at place " << at;
        }
        EXPECT_EQ(line_of_failure([&](const Ranks&) {
                      if (fails) throw std::bad_alloc();
                  }),
                  expected_line(failed, "not enough memory for these sizes"));
        const std::string endless(10000, 'x');
        EXPECT_EQ(line_of_failure([&](const Ranks&) {
                      if (fails) throw std::runtime_error(endless);
                  }),
                  expected_line(failed, fails ? endless : endless.substr(0, 4095)));
    }
    EXPECT_EQ(line_of_failure([](const Ranks& all) { all.agree(); }), "") << "and none where none does";
}

TEST(Ranks, EachThatFailsSaysWhy) {
    EXPECT_EQ(line_of_failure([](const Ranks& all) { throw BadInput("I am " + std::to_string(all.rank())); }),
              "program: I am " + std::to_string(ranks().rank()) + "\n");
}

TEST(Ranks, OneThatDiffersFromTheFirstIsFound) {
    for (int other = 1; other < ranks().size(); ++other) {
        const std::string line =
            line_of_failure([&](const Ranks& all) { all.expect_same("the text", all.rank() == other ? 2 : 1); });
        EXPECT_EQ(line, expected_line(other, "the text is not that of rank 0"));
    }
}

}  // namespace
