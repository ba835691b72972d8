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

/// For a SCOPED_TRACE.
inline std::string words_of(const castle::Shape& s) {
    return describe("d ", s.d, ", dv ", s.dv, ", ", s.heads, " heads on ", s.kv_heads);
}

/// Six matrices that are an attention's input: of a lone head, or of the heads of a shape side by side.
template <class T>
struct Head {
    Matrix<T> qc, kc, vc;
    Matrix<T> qu, ku, vu;

    explicit Head(Sizes s) : Head(s.length, {.d = s.d, .dv = s.dv}) {}
    Head(Index length, const castle::Shape& s)
        : qc(length, s.heads * s.d),
          kc(length, s.kv_heads * s.d),
          vc(length, s.kv_heads * s.dv),
          qu(length, s.kv_heads * s.d),
          ku(length, s.kv_heads * s.d),
          vu(length, s.kv_heads * s.d) {}

    castle::Input<T> input() const {
        return {.causal = {.q = qc, .k = kc, .v = vc}, .lookahead = {.q = qu, .k = ku, .v = vu}};
    }
    /// With the lookahead views left empty.
    castle::Input<T> causal_input() const { return {.causal = input().causal}; }
    castle::Input<T> first_tokens(Index count) const { return input().tokens(0, count); }

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
    denormals,     ///< all elements below the smallest normal number
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

/// Heads of normal numbers. Sums over many tokens stay moderate with a smaller deviation of the lookahead values.
template <class T>
Head<T> random_heads(Random& random, Index length, const castle::Shape& shape, double lookahead_value_deviation = 1) {
    Head<T> h(length, shape);
    for (Matrix<T>* m : h.all()) fill_normal(random, *m, m == &h.vu ? lookahead_value_deviation : 1);
    return h;
}

template <class T>
Head<T> random_head(Random& random, Sizes sizes, double lookahead_value_deviation = 1) {
    return random_heads<T>(random, sizes.length, {.d = sizes.d, .dv = sizes.dv}, lookahead_value_deviation);
}

/// Heads side by side: as many key-value heads as heads, groups of several sizes, one key-value head for all.
inline std::vector<castle::Shape> grouped_shapes(Index d, Index dv) {
    return {{.d = d, .dv = dv, .heads = 3, .kv_heads = 3},
            {.d = d, .dv = dv, .heads = 4, .kv_heads = 2},
            {.d = d, .dv = dv, .heads = 6, .kv_heads = 2},
            {.d = d, .dv = dv, .heads = 5, .kv_heads = 1}};
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
    if constexpr (sizeof(T) == 2) {
        return std::bit_cast<T>(std::uint16_t{0x7fd1});
    } else if constexpr (std::same_as<T, float>) {
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

/// A head whose inputs are views inside one matrix, as a packed projection leaves them, with sentinels before, between
/// the rows and behind.
template <class T>
class PackedHead {
  public:
    explicit PackedHead(Head<T>& from) {
        Index cols = 0;
        for (std::size_t i = 0; i < 6; ++i) {
            cols_[i] = from.all()[i]->cols();
            cols += cols_[i];
        }
        const Index length = from.qc.rows();
        packed_ = Matrix<T>::Constant(length + 2, cols + 7, sentinel<T>());
        Index column = first_column;
        for (const Matrix<T>* m : from.all()) {
            packed_.block(1, column, length, m->cols()) = *m;
            column += m->cols();
        }
    }

    castle::Input<T> input() const {
        const castle::ConstMatrixView<T> all = packed_;
        castle::Input<T> in;
        const std::array<castle::ConstMatrixView<T>*, 6> views{&in.causal.q,    &in.causal.k,    &in.causal.v,
                                                               &in.lookahead.q, &in.lookahead.k, &in.lookahead.v};
        Index column = first_column;
        for (std::size_t i = 0; i < 6; ++i) {
            *views[i] = all.middle_rows(1, packed_.rows() - 2).middle_cols(column, cols_[i]);
            column += cols_[i];
        }
        return in;
    }

  private:
    static constexpr Index first_column = 3;
    std::array<Index, 6> cols_{};
    Matrix<T> packed_;
};

/// Calls `write(view)` with a view of shape [rows, cols] that is full of sentinels and lies inside a frame of them;
/// returns what was written. An element of the view left alone, or one of the frame touched, is a failure.
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

/// How many tokens each of `sequences` takes in one call of a ragged batch: none, one, as in decoding, some, as in
/// verification, more than a block of 32 and, now and then, more than a group of 128, as in prefill.
inline std::vector<Index> random_counts(Random& random, Index sequences) {
    const std::array<Index, 10> counts{0, 0, 1, 1, 1, 2, 5, 31, 33, 70};
    std::vector<Index> all;
    for (Index i = 0; i < sequences; ++i) {
        all.push_back(random.integer(0, 19) == 0 ? random.integer(100, 300) : random.pick(counts));
    }
    return all;
}

/// Their sum: the rows of the input.
inline Index total(const std::vector<Index>& counts) {
    Index sum = 0;
    for (const Index count : counts) sum += count;
    return sum;
}

}  // namespace support
