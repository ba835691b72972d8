// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <type_traits>

#include <castle/detail/cache/checksum.hpp>
#include <castle/detail/check/attention_kind.hpp>
#include <castle/detail/simd/pair_products.hpp>
#include <castle/detail/simd/simd.hpp>
#include <castle/input.hpp>
#include <castle/options.hpp>
#include <castle/terms.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Whether ranks compare the elements of matrices as well as their shapes: in builds with assertions.
#ifdef EIGEN_NO_DEBUG
inline constexpr bool compares_elements = false;
#else
inline constexpr bool compares_elements = true;
#endif

// A checksum of arguments, by which ranks find that they are not the same.
class Fingerprint {
  public:
    // Of anything that is its bytes.
    template <class X>
    requires std::is_arithmetic_v<X>
    void add(X x) { sum_.add(&x, sizeof x); }
    template <class X>
    void add(const X* data, Index count) {
        sum_.add(data, std::size_t(count) * sizeof(X));
    }
    template <class Range>
    void add_each(const Range& range) {
        add(Index(std::size(range)));
        for (const auto& x : range) add(x);
    }
    template <Scalar T>
    void add(const ConstMatrixView<T>& m) {
        add_shape(m);
        for (Index i = 0; i < m.rows(); ++i) add(m.row(i), m.cols());
    }
    void add(const Shape& shape) { add_each(std::array{shape.d, shape.dv, shape.heads, shape.kv_heads}); }
    void add(const ScoreTerms& terms) {
        add(ConstMatrixView<double>(terms.factor));
        add(ConstMatrixView<double>(terms.bias));
        add_each(terms.sinks);
        add(terms.soft_cap.has_value());
        add(terms.soft_cap.value_or(0));
    }
    // All but the executor.
    void add(const Options& options) {
        add(options.scale.has_value());
        add(options.scale.value_or(0));
        add(options.lookahead_window);
        add(options.silu);
        add(options.causal_keys);
        add(options.terms);
    }
    template <Scalar T>
    void add_shape(const ConstMatrixView<T>& m) {
        add(m.rows());
        add(m.cols());
    }
    // Of a call's rows, which are many.
    template <Scalar T>
    void add_rows(const ConstMatrixView<T>& m) {
        if constexpr (compares_elements) {
            add(m);
        } else {
            add_shape(m);
        }
    }
    template <Scalar T>
    void add_rows(const Input<T>& input) {
        for (const auto* part : {&input.causal, &input.lookahead}) {
            for (const ConstMatrixView<T>* m : {&part->q, &part->k, &part->v}) add_rows(*m);
        }
    }
    void add(const AttentionKind& kind) {
        add_each(kind.to_words());
        if (kind.terms != nullptr) add(*kind.terms);
    }
    // Of this build: bits are those of its packets, and of how it multiplies and adds.
    template <Scalar T>
    void add_build() {
        add(sizeof(T));
        add(Simd<Compute<T>>::width);
        add(multiplies_pairs<T>);
        add(std::endian::native == std::endian::little);
        using S = Simd<Compute<T>>;
        const auto x = S::set(Compute<T>(1) + std::numeric_limits<Compute<T>>::epsilon());
        add(S::sum(S::fma(x, x, S::set(Compute<T>(-1)))));
    }

    std::uint64_t value() const { return sum_.value(); }

  private:
    Checksum sum_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
