// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <limits>
#include <ostream>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <castle/input.hpp>
#include <castle/options.hpp>

#include "support/oracle.hpp"

// What the tests feed the library with, and where they let it write.
namespace support {

using castle::Index;
using castle::Matrix;

/// A generator whose seeds mean the same on every machine: integers throughout, and sums of a few exact fractions.
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed) {}

    std::uint64_t bits() {
        state_ += 0x9e3779b97f4a7c15u;
        std::uint64_t z = state_;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    /// In [least, most].
    Index integer(Index least, Index most) {
        return least + static_cast<Index>(bits() % static_cast<std::uint64_t>(most - least + 1));
    }
    /// In [0, 1).
    double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
    /// Mean 0, variance 1: twelve uniform numbers added up, which is as near to normal as tests need.
    double normal() {
        double sum = -6;
        for (int i = 0; i < 12; ++i) sum += uniform();
        return sum;
    }
    template <class Range>
    auto pick(const Range& choices) {
        return *(std::begin(choices) + integer(0, static_cast<Index>(std::size(choices)) - 1));
    }

  private:
    std::uint64_t state_;
};

struct Sizes {
    Index length;
    Index d;
    Index dv;
};

inline std::ostream& operator<<(std::ostream& out, const Sizes& s) {
    return out << "L " << s.length << ", d " << s.d << ", dv " << s.dv;
}

/// The words of a SCOPED_TRACE: everything that it takes to run a failing case again.
template <class... Parts>
std::string describe(const Parts&... parts) {
    std::ostringstream text;
    text.precision(17);
    (text << ... << parts);
    return text.str();
}

/// Six matrices that are one head's input.
template <class T>
struct Head {
    Matrix<T> qc, kc, vc;
    Matrix<T> qu, ku, vu;

    explicit Head(Sizes s)
        : qc(s.length, s.d),
          kc(s.length, s.d),
          vc(s.length, s.dv),
          qu(s.length, s.d),
          ku(s.length, s.d),
          vu(s.length, s.d) {}

    castle::HeadInput<T> input() const {
        return {.causal = {.q = qc, .k = kc, .v = vc}, .lookahead = {.q = qu, .k = ku, .v = vu}};
    }
    castle::HeadInput<T> first_tokens(Index count) const { return input().tokens(0, count); }

    std::array<Matrix<T>*, 6> all() { return {&qc, &kc, &vc, &qu, &ku, &vu}; }
};

inline constexpr std::array<const char*, 6> input_names = {"causal.q",    "causal.k",    "causal.v",
                                                           "lookahead.q", "lookahead.k", "lookahead.v"};

template <class S, class T>
oracle::Rows<S> oracle_rows(const Matrix<T>& m) {
    oracle::Rows<S> rows(m.rows(), m.cols());
    for (Index i = 0; i < m.rows(); ++i) {
        for (Index j = 0; j < m.cols(); ++j) rows(i, j) = static_cast<S>(m(i, j));
    }
    return rows;
}

/// The options in the oracle's terms, for heads of size d without a scale of their own.
inline oracle::Settings oracle_settings(Index d, const castle::Options& options) {
    oracle::Settings settings = oracle::standard_settings(d, options.lookahead_window);
    settings.silu = options.silu;
    settings.causal_keys = options.causal_keys;
    return settings;
}

/// The options that leave out a part of the scores.
inline std::vector<castle::Options> partial_scores(Index window) {
    return {{.lookahead_window = window, .silu = false},
            {.lookahead_window = window, .causal_keys = false},
            {.lookahead_window = window, .silu = false, .causal_keys = false}};
}

/// The head for the oracle; in double unless S says otherwise.
template <class S = double, class T>
oracle::Head<S> oracle_head(const Head<T>& h) {
    return {.qc = oracle_rows<S>(h.qc),
            .kc = oracle_rows<S>(h.kc),
            .vc = oracle_rows<S>(h.vc),
            .qu = oracle_rows<S>(h.qu),
            .ku = oracle_rows<S>(h.ku),
            .vu = oracle_rows<S>(h.vu)};
}

/// How a head is filled: the ordinary case and the cases that break careless code.
enum class Fill {
    normal,
    logits_88,     ///< query-key products near +-88, where exp of a float begins to overflow
    logits_1000,   ///< query-key products near +-1000, where exp of a double does
    all_negative,  ///< every causal query-key product far below 0
    ties,          ///< all tokens alike but for their values
    zeros,         ///< all queries, keys and lookahead values 0
    denormals,     ///< all numbers below the smallest normal one
};

inline constexpr std::array<Fill, 7> all_fills = {Fill::normal, Fill::logits_88, Fill::logits_1000, Fill::all_negative,
                                                  Fill::ties,   Fill::zeros,     Fill::denormals};

inline std::ostream& operator<<(std::ostream& out, Fill fill) {
    constexpr std::array<const char*, 7> names = {"normal", "logits_88", "logits_1000", "all_negative",
                                                  "ties",   "zeros",     "denormals"};
    return out << names[static_cast<std::size_t>(fill)];
}

template <class T>
void fill_normal(Random& random, Matrix<T>& m, double deviation = 1) {
    for (Index i = 0; i < m.size(); ++i) m.data()[i] = static_cast<T>(deviation * random.normal());
}

/// A head of normal numbers. Sums over many tokens stay moderate with a smaller deviation of the lookahead values.
template <class T>
Head<T> random_head(Random& random, Sizes sizes, double lookahead_value_deviation = 1) {
    Head<T> h(sizes);
    for (Matrix<T>* m : h.all()) fill_normal(random, *m, m == &h.vu ? lookahead_value_deviation : 1);
    return h;
}

template <class T>
Head<T> filled_head(Fill fill, Random& random, Sizes sizes) {
    Head<T> h = random_head<T>(random, sizes);
    // Rows of +-a with jitter, whose products with each other are +-size under the scale 1 / sqrt(d).
    const auto aligned = [&](Matrix<T>& m, double size, double sign) {
        const double a = std::sqrt(size / std::sqrt(static_cast<double>(sizes.d)));
        for (Index i = 0; i < m.rows(); ++i) {
            const double row_sign = sign != 0 ? sign : (random.integer(0, 1) == 0 ? -1.0 : 1.0);
            for (Index k = 0; k < m.cols(); ++k) {
                m(i, k) = static_cast<T>(row_sign * a * (1 + 0.01 * (random.uniform() - 0.5)));
            }
        }
    };
    switch (fill) {
        case Fill::normal:
            break;
        case Fill::logits_88:
        case Fill::logits_1000:
            for (Matrix<T>* m : {&h.qc, &h.kc, &h.qu, &h.ku}) aligned(*m, fill == Fill::logits_88 ? 88 : 1000, 0);
            break;
        case Fill::all_negative:
            aligned(h.qc, 300, 1);
            aligned(h.kc, 300, -1);
            break;
        case Fill::ties:
            for (Matrix<T>* m : {&h.qc, &h.kc, &h.qu, &h.ku, &h.vu}) {
                for (Index i = 1; i < m->rows(); ++i) m->row(i) = m->row(0);
            }
            break;
        case Fill::zeros:
            for (Matrix<T>* m : {&h.qc, &h.kc, &h.qu, &h.ku, &h.vu}) m->setZero();
            break;
        case Fill::denormals:
            for (Matrix<T>* m : h.all()) {
                for (Index i = 0; i < m->size(); ++i) {
                    m->data()[i] = static_cast<T>(random.integer(-1000, 1000)) * std::numeric_limits<T>::denorm_min();
                }
            }
            break;
    }
    return h;
}

/// A NaN that no arithmetic makes: what is still there afterwards was never written.
template <class T>
T sentinel() {
    if constexpr (std::same_as<T, float>) {
        return std::bit_cast<float>(std::uint32_t{0x7fd15ea5});
    } else {
        return std::bit_cast<double>(std::uint64_t{0x7ff9d15ea5e0beef});
    }
}

template <class T>
bool is_sentinel(T x) {
    const T expected = sentinel<T>();
    return std::memcmp(&x, &expected, sizeof x) == 0;
}

/// A head whose inputs are views inside one matrix `[L, 5 d + dv]`, as a packed projection leaves them, with sentinels
/// before, between the rows and behind.
template <class T>
class PackedHead {
  public:
    explicit PackedHead(Head<T>& from) : sizes_{from.qc.rows(), from.qc.cols(), from.vc.cols()} {
        packed_ = Matrix<T>::Constant(sizes_.length + 2, 5 * sizes_.d + sizes_.dv + 7, sentinel<T>());
        Index column = first_column;
        for (const Matrix<T>* m : from.all()) {
            packed_.block(1, column, sizes_.length, m->cols()) = *m;
            column += m->cols();
        }
    }

    castle::HeadInput<T> input() const {
        Index column = first_column;
        const auto next = [&](Index cols) {
            const castle::ConstMatrixView<T> all = packed_;
            column += cols;
            return all.middle_rows(1, sizes_.length).middle_cols(column - cols, cols);
        };
        castle::HeadInput<T> in;
        for (auto* view : {&in.causal.q, &in.causal.k}) *view = next(sizes_.d);
        in.causal.v = next(sizes_.dv);
        for (auto* view : {&in.lookahead.q, &in.lookahead.k, &in.lookahead.v}) *view = next(sizes_.d);
        return in;
    }

  private:
    static constexpr Index first_column = 3;
    Sizes sizes_;
    Matrix<T> packed_;
};

/// Calls `write(view)` with a view of shape [rows, cols] that is full of sentinels and lies inside a frame of them;
/// returns what was written. A number of the view left alone, or one of the frame touched, is a failure.
template <class T, class F>
Matrix<T> written(Index rows, Index cols, const F& write) {
    Matrix<T> memory = Matrix<T>::Constant(rows + 2, cols + 5, sentinel<T>());
    write(castle::MatrixView<T>(memory).middle_rows(1, rows).middle_cols(2, cols));
    for (Index i = 0; i < memory.rows(); ++i) {
        for (Index j = 0; j < memory.cols(); ++j) {
            const bool inside = i >= 1 && i <= rows && j >= 2 && j < 2 + cols;
            if (is_sentinel(memory(i, j)) == inside) {
                ADD_FAILURE() << (inside ? "never written: " : "written outside the output: ") << "(" << i - 1 << ", "
                              << j - 2 << ") of [" << rows << ", " << cols << "]";
                return memory.block(1, 2, rows, cols);
            }
        }
    }
    return memory.block(1, 2, rows, cols);
}

/// The sizes of chunks that `length` tokens are cut into: one by one, in small pieces, in large ones, or mixed; now and
/// then an empty one.
inline std::vector<Index> random_split(Random& random, Index length) {
    const Index kind = random.integer(0, 3);
    std::vector<Index> chunks;
    for (Index left = length; left > 0;) {
        Index most = 1;
        if (kind == 1) most = 7;
        if (kind == 2) most = 150;
        if (kind == 3) most = random.integer(0, 2) == 0 ? left : 40;
        const Index chunk = kind == 0 ? 1 : random.integer(random.integer(0, 9) == 0 ? 0 : 1, std::min(most, left));
        chunks.push_back(chunk);
        left -= chunk;
    }
    return chunks;
}

inline std::vector<Index> one_by_one(Index length) { return std::vector<Index>(static_cast<std::size_t>(length), 1); }

}  // namespace support
