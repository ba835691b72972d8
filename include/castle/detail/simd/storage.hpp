// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>

#include <castle/detail/simd/scalar.hpp>

// Eigen 3.4 has these instructions for clang alone. Every processor with AVX2 has them, so the name of the instruction
// set says which code it is.
#if defined(EIGEN_VECTORIZE_AVX2) && (defined(__F16C__) || defined(_MSC_VER))
#define CASTLE_HAS_F16C
#endif
#if EIGEN_ARCH_i386_OR_x86_64
#include <immintrin.h>
#endif

// The one file that knows how numbers are stored: as they are, or in 16 bits, which are widened where they are read and
// rounded, to the nearest and to even, where they are written. A number has the same bits alone and in a packet.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

template <class T>
concept StorageScalar = Scalar<T> && !ComputeScalar<T>;

template <Scalar T>
EIGEN_ALWAYS_INLINE Compute<T> widened(T x) {
    if constexpr (std::same_as<T, bfloat16>) {
        return std::bit_cast<float>(std::uint32_t(x.value) << 16);
    } else {
#ifdef CASTLE_HAS_F16C
        if constexpr (std::same_as<T, half>) return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(x.x)));
#endif
        return static_cast<Compute<T>>(x);
    }
}

// What is no number becomes the one such number there is.
template <Scalar T>
EIGEN_ALWAYS_INLINE T narrowed(Compute<T> x) {
    if constexpr (std::same_as<T, bfloat16>) {
        const auto bits = std::bit_cast<std::uint32_t>(x);
        const std::uint32_t rounded = (bits + 0x7fffU + (bits >> 16 & 1U)) >> 16;
        return Eigen::bfloat16_impl::raw_uint16_to_bfloat16(static_cast<unsigned short>(x == x ? rounded : 0x7fc0U));
    } else {
#ifdef CASTLE_HAS_F16C
        if constexpr (std::same_as<T, half>) {
            return Eigen::half_impl::raw_uint16_to_half(static_cast<unsigned short>(
                _mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT)) & 0xffff));
        }
#endif
        return static_cast<T>(x);
    }
}

// Packets of `Width` floats.
template <class Packet, int Width>
struct StoredPacket {
#if defined(__GNUC__) || defined(__clang__)
    // Vectors of the compiler's own, which it has instructions for on every processor.
    template <class Element>
    struct VectorOf {
        typedef Element type __attribute__((vector_size(Width * sizeof(Element))));
    };
    template <class Element>
    using Vector = typename VectorOf<Element>::type;
    static constexpr bool has_vectors = Width > 1;
#else
    static constexpr bool has_vectors = false;
#endif
    template <class To, class From>
    static EIGEN_ALWAYS_INLINE To same_bits(const From& from) {
        static_assert(sizeof(To) == sizeof(From));
        To to;
        std::memcpy(&to, &from, sizeof(To));
        return to;
    }

    static EIGEN_ALWAYS_INLINE Packet load(const bfloat16* p) {
        // What the vectors below come to as well, for which gcc 12 takes three instructions more.
#if defined(EIGEN_VECTORIZE_AVX2)
        if constexpr (Width == 8) {
            const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
            return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
        }
#endif
#if defined(EIGEN_VECTORIZE_AVX512)
        if constexpr (Width == 16) {
            const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
            return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
        }
#endif
#if defined(__GNUC__) || defined(__clang__)
        if constexpr (has_vectors) {
            Vector<std::uint16_t> words;
            std::memcpy(&words, p, sizeof(words));
            return same_bits<Packet>(__builtin_convertvector(words, Vector<std::uint32_t>) << 16);
        }
#endif
        return load_one_by_one(p);
    }
    static EIGEN_ALWAYS_INLINE void store(bfloat16* p, Packet a) {
#if defined(__GNUC__) || defined(__clang__)
        if constexpr (has_vectors) {
            using Bits = Vector<std::uint32_t>;
            const auto floats = same_bits<Vector<float>>(a);
            const auto bits = same_bits<Bits>(a);
            const Bits rounded = (bits + 0x7fffU + (bits >> 16 & 1U)) >> 16;
            const auto is_number = same_bits<Bits>(floats == floats);
            const auto words =
                __builtin_convertvector((rounded & is_number) | (0x7fc0U & ~is_number), Vector<std::uint16_t>);
            std::memcpy(static_cast<void*>(p), &words, sizeof(words));
            return;
        }
#endif
        store_one_by_one(p, a);
    }

    static EIGEN_ALWAYS_INLINE Packet load(const half* p) {
#if defined(CASTLE_HAS_F16C)
        if constexpr (Width == 8) return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#if defined(EIGEN_VECTORIZE_AVX512)
        if constexpr (Width == 16) return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#endif
#elif defined(EIGEN_VECTORIZE_NEON) && EIGEN_ARCH_ARM64
        if constexpr (Width == 4) {
            return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p))));
        }
#endif
        return load_one_by_one(p);
    }
    static EIGEN_ALWAYS_INLINE void store(half* p, Packet a) {
#if defined(CASTLE_HAS_F16C)
        constexpr int nearest = _MM_FROUND_TO_NEAREST_INT;
        if constexpr (Width == 8) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, nearest));
            return;
        }
#if defined(EIGEN_VECTORIZE_AVX512)
        if constexpr (Width == 16) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, nearest));
            return;
        }
#endif
#elif defined(EIGEN_VECTORIZE_NEON) && EIGEN_ARCH_ARM64
        if constexpr (Width == 4) {
            vst1_u16(reinterpret_cast<std::uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(a)));
            return;
        }
#endif
        store_one_by_one(p, a);
    }

    // *p in every place.
    static EIGEN_ALWAYS_INLINE Packet broadcast(const half* p) { return Eigen::internal::pset1<Packet>(widened(*p)); }
    static EIGEN_ALWAYS_INLINE Packet broadcast(const bfloat16* p) {
#if defined(__GNUC__) || defined(__clang__)
        if constexpr (has_vectors) {
            // Twice in each place; a shift leaves the upper one.
            typedef std::uint16_t Pairs __attribute__((vector_size(Width * 4)));
            const Pairs pairs = p->value - Pairs{};
            return same_bits<Packet>(same_bits<Vector<std::uint32_t>>(pairs) << 16);
        }
#endif
        return Eigen::internal::pset1<Packet>(widened(*p));
    }

  private:
    template <StorageScalar H>
    static EIGEN_ALWAYS_INLINE Packet load_one_by_one(const H* p) {
        float wide[Width];
        for (int i = 0; i < Width; ++i) wide[i] = widened(p[i]);
        return Eigen::internal::ploadu<Packet>(wide);
    }
    template <StorageScalar H>
    static EIGEN_ALWAYS_INLINE void store_one_by_one(H* p, Packet a) {
        float wide[Width];
        Eigen::internal::pstoreu(wide, a);
        for (int i = 0; i < Width; ++i) p[i] = narrowed<H>(wide[i]);
    }
};

// Numbers one by one from one scalar to another.
template <Scalar From, Scalar To>
void copy_numbers(const From* from, Index count, To* to) {
    if constexpr (std::same_as<From, To>) {
        std::copy_n(from, count, to);
    } else {
        std::transform(from, from + count, to,
                       [](From x) { return narrowed<To>(static_cast<Compute<To>>(widened(x))); });
    }
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle

#undef CASTLE_HAS_F16C
