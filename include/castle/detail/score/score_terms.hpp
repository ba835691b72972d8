// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/detail/simd/packet_math.hpp>
#include <castle/detail/simd/product.hpp>
#include <castle/detail/simd/simd.hpp>
#include <castle/terms.hpp>

// What makes scores of s^C - SiLU(s^U): the one place where a term is computed, and differentiated, for both passes.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Score terms as the kernels read them. Tables are mirrored, so that the entries of neighbouring keys are neighbours
// whether they come before the row or after it, and have room on both sides for the rest of a panel and a block that
// the row does not see.
template <ComputeScalar T>
class TermTables {
    using S = Simd<T>;
    using Packet = typename S::Packet;
    static constexpr Index margin = panel_size + block_size;

  public:
    explicit TermTables(const ScoreTerms& terms)
        : distances_(terms.distances()),
          rows_((std::max)(terms.factor.rows(), terms.bias.rows())),
          cap_(static_cast<T>(terms.soft_cap.value_or(0))),
          tables_(2 * rows_ * row_size()),
          sinks_(Index(terms.sinks.size())) {
        for (Index row = 0; row < rows_; ++row) {
            fill(terms.factor, row, 1, tables_.data() + row * row_size());
            fill(terms.bias, row, 0, tables_.data() + (rows_ + row) * row_size());
        }
        std::transform(terms.sinks.begin(), terms.sinks.end(), sinks_.data(),
                       [](double x) { return static_cast<T>(x); });
    }

    // Whether scores are other than s^C - SiLU(s^U).
    bool changes_scores() const { return rows_ > 0 || cap_ > 0; }
    bool has_tables() const { return rows_ > 0; }
    Index distances() const { return distances_; }
    bool has_sinks() const { return sinks_.size() > 0; }
    T sink(Index head) const { return sinks_.data()[head]; }

    // The scores, in place of x = s^C - SiLU(s^U), of the row of token t for Cols keys from first_key on.
    template <Index Cols>
    void apply(Index head, Index t, Index first_key, T* x) const {
        if (cap_ > 0) {
            for_packets<T, Cols>(
                [&](Index c) CASTLE_INLINE_LAMBDA { S::store(x + c, SoftCap<T>(S::load(x + c), cap_).value()); });
        }
        if (rows_ > 0) {
            const T* factors = factor(head, first_key - t);
            const T* biases = bias(head, first_key - t);
            for_packets<T, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
                S::store(x + c, S::fma(S::load(factors + c), S::load(x + c), S::load(biases + c)));
            });
        }
    }

    // The same, and beside it what a table's factor is multiplied with, and d score / d x.
    template <Index Cols>
    void apply_and_differentiate(Index head, Index t, Index first_key, T* x, T* capped, T* slope) const {
        for_packets<T, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
            Packet value = S::load(x + c), derivative = S::set(1);
            if (cap_ > 0) {
                const SoftCap<T> cap(value, cap_);
                value = cap.value();
                derivative = cap.derivative();
            }
            S::store(capped + c, value);
            if (rows_ > 0) {
                const Packet f = S::load(factor(head, first_key - t) + c);
                value = S::fma(f, value, S::load(bias(head, first_key - t) + c));
                derivative = S::mul(f, derivative);
            }
            S::store(x + c, value);
            S::store(slope + c, derivative);
        });
    }

  private:
    // Of distances below 0 and from 0 on.
    Index row_size() const { return 2 * (distances_ + margin); }
    Index middle() const { return distances_ + margin; }

    void fill(const Matrix<double>& from, Index row, T missing, T* to) const {
        if (from.size() == 0) {
            std::fill_n(to, row_size(), missing);
            return;
        }
        const Index own = from.rows() == 1 ? 0 : row;
        for (Index k = 0; k < distances_; ++k) {
            to[middle() + k] = to[middle() - k] = static_cast<T>(from(own, k));
        }
    }

    // The entry of the key that lies so far after the row.
    const T* factor(Index head, Index after) const {
        return tables_.data() + (rows_ == 1 ? 0 : head) * row_size() + middle() + after;
    }
    const T* bias(Index head, Index after) const { return factor(head, after) + rows_ * row_size(); }

    Index distances_;
    Index rows_;
    T cap_;
    AlignedBuffer<T> tables_;
    AlignedBuffer<T> sinks_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
