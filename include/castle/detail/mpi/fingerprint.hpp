// SPDX-License-Identifier: Apache-2.0
#pragma once

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
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

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
        add(m.rows());
        add(m.cols());
        for (Index i = 0; i < m.rows(); ++i) add(m.row(i), m.cols());
    }
    void add(const AttentionKind& kind) {
        add_each(kind.to_words());
        if (kind.terms == nullptr) return;
        for (const Matrix<double>* table : {&kind.terms->factor, &kind.terms->bias})
            add(ConstMatrixView<double>(*table));
        add_each(kind.terms->sinks);
        add(kind.terms->soft_cap.value_or(0));
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
