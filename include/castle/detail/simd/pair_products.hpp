// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#include <castle/detail/simd/simd.hpp>

// The one file that knows the processor's dot products of bfloat16: c + a0 b0 + a1 b1 in every lane of a packet of
// floats, twice the products of a multiply-add. A build has them where its tag says so; see abi.hpp.
//
// What is summed over goes in pairs (0, 1), (2, 3), ..., always, and where one of a pair is left out zeros stand in its
// place, in both factors. So it is the same chain of instructions for an element whoever computes it. How such an
// instruction rounds is the processor's: x86 rounds after each product, and takes denormal numbers for 0; ARM may round
// once.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

template <Scalar T>
struct PairProducts {
    static constexpr bool exist = false;
};

#if defined(CASTLE_ABI_HAS_BF16) && EIGEN_ARCH_i386_OR_x86_64
template <>
struct PairProducts<bfloat16> {
    static constexpr bool exist = true;

    using Packet = Simd<float>::Packet;
    // A pair in every lane, the first in the lower half.
    using Pairs = __m512i;
    static_assert(sizeof(Packet) == sizeof(Pairs));

    // Pairs of what two rows have in the same place.
    static EIGEN_ALWAYS_INLINE Pairs load(const bfloat16* first, const bfloat16* second) {
        const auto half_of = [](const bfloat16* p) {
            return _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
        };
        return _mm512_permutex2var_epi16(half_of(first), places<32>(), half_of(second));
    }
    // Of two packets.
    static EIGEN_ALWAYS_INLINE void load_two(const bfloat16* first, const bfloat16* second, Pairs& low, Pairs& high) {
        const Pairs a = _mm512_loadu_si512(first), b = _mm512_loadu_si512(second);
        low = _mm512_permutex2var_epi16(a, places<32>(), b);
        high = _mm512_permutex2var_epi16(a, places<32, 16>(), b);
    }
    static EIGEN_ALWAYS_INLINE void load_two(const float* first, const float* second, Pairs& low, Pairs& high) {
        low = load(first, second);
        high = load(first + 16, second + 16);
    }
    static EIGEN_ALWAYS_INLINE Pairs load(const float* first, const float* second) {
        const auto rounded = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(second), _mm512_loadu_ps(first));
        return _mm512_permutexvar_epi16(places<16>(), (Pairs)rounded);
    }
    // With 0 as the second.
    static EIGEN_ALWAYS_INLINE Pairs load_alone(const bfloat16* first) {
        return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(first)));
    }
    static EIGEN_ALWAYS_INLINE Pairs load_alone(const float* first) {
        return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(first)));
    }
    // The pair that lies at p, in every lane.
    static EIGEN_ALWAYS_INLINE Pairs broadcast(const bfloat16* p) {
        int pair;
        std::memcpy(&pair, p, sizeof pair);
        return _mm512_set1_epi32(pair);
    }
    static EIGEN_ALWAYS_INLINE Pairs first_of(Pairs a) { return _mm512_and_si512(a, _mm512_set1_epi32(0xffff)); }
    // Those numbers of pairs that the lane masks leave, with zeros for the others.
    static EIGEN_ALWAYS_INLINE Pairs mask_of(Packet first, Packet second) {
        const Pairs lower = _mm512_set1_epi32(0xffff);
        return _mm512_or_si512(_mm512_and_si512(_mm512_castps_si512(first), lower),
                               _mm512_andnot_si512(lower, _mm512_castps_si512(second)));
    }
    static EIGEN_ALWAYS_INLINE Pairs both(Pairs a, Pairs mask) { return _mm512_and_si512(a, mask); }

    // c + a b
    static EIGEN_ALWAYS_INLINE Packet add_dot(Pairs a, Pairs b, Packet c) {
        return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
    }

    static EIGEN_ALWAYS_INLINE void store(bfloat16* p, Pairs a) { _mm512_storeu_si512(p, a); }
    static EIGEN_ALWAYS_INLINE void round(Packet a, bfloat16* to) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(a));
    }

  private:
    // first, first + second, first + 1, first + second + 1, ...
    template <int second, int first = 0>
    static EIGEN_ALWAYS_INLINE Pairs places() {
        alignas(64) static constexpr auto table = [] {
            std::array<std::uint16_t, 32> t{};
            for (std::size_t i = 0; i < t.size(); ++i) t[i] = std::uint16_t(first + i / 2 + (i % 2) * second);
            return t;
        }();
        return _mm512_load_si512(table.data());
    }
};
#elif defined(CASTLE_ABI_HAS_BF16)
template <>
struct PairProducts<bfloat16> {
    static constexpr bool exist = true;

    using Packet = Simd<float>::Packet;
    using Pairs = uint16x8_t;
    static_assert(sizeof(Packet) == sizeof(Pairs));

    static EIGEN_ALWAYS_INLINE Pairs load(const bfloat16* first, const bfloat16* second) {
        return zipped(words(first), words(second));
    }
    static EIGEN_ALWAYS_INLINE void load_two(const bfloat16* first, const bfloat16* second, Pairs& low, Pairs& high) {
        const auto a = vld1q_u16(reinterpret_cast<const std::uint16_t*>(first));
        const auto b = vld1q_u16(reinterpret_cast<const std::uint16_t*>(second));
        low = vzip1q_u16(a, b);
        high = vzip2q_u16(a, b);
    }
    static EIGEN_ALWAYS_INLINE void load_two(const float* first, const float* second, Pairs& low, Pairs& high) {
        low = load(first, second);
        high = load(first + 4, second + 4);
    }
    static EIGEN_ALWAYS_INLINE Pairs load(const float* first, const float* second) {
        return zipped(rounded(vld1q_f32(first)), rounded(vld1q_f32(second)));
    }
    static EIGEN_ALWAYS_INLINE Pairs load_alone(const bfloat16* first) {
        return vreinterpretq_u16_u32(vmovl_u16(words(first)));
    }
    static EIGEN_ALWAYS_INLINE Pairs load_alone(const float* first) {
        return vreinterpretq_u16_u32(vmovl_u16(rounded(vld1q_f32(first))));
    }
    static EIGEN_ALWAYS_INLINE Pairs broadcast(const bfloat16* p) {
        std::uint32_t pair;
        std::memcpy(&pair, p, sizeof pair);
        return vreinterpretq_u16_u32(vdupq_n_u32(pair));
    }
    static EIGEN_ALWAYS_INLINE Pairs first_of(Pairs a) { return both(a, lower()); }
    static EIGEN_ALWAYS_INLINE Pairs mask_of(Packet first, Packet second) {
        return vbslq_u16(lower(), vreinterpretq_u16_f32(first), vreinterpretq_u16_f32(second));
    }
    static EIGEN_ALWAYS_INLINE Pairs both(Pairs a, Pairs mask) { return vandq_u16(a, mask); }

    static EIGEN_ALWAYS_INLINE Packet add_dot(Pairs a, Pairs b, Packet c) {
        return vbfdotq_f32(c, vreinterpretq_bf16_u16(a), vreinterpretq_bf16_u16(b));
    }

    static EIGEN_ALWAYS_INLINE void store(bfloat16* p, Pairs a) { vst1q_u16(reinterpret_cast<std::uint16_t*>(p), a); }
    static EIGEN_ALWAYS_INLINE void round(Packet a, bfloat16* to) {
        vst1_u16(reinterpret_cast<std::uint16_t*>(to), rounded(a));
    }

  private:
    static EIGEN_ALWAYS_INLINE uint16x4_t words(const bfloat16* p) {
        return vld1_u16(reinterpret_cast<const std::uint16_t*>(p));
    }
    static EIGEN_ALWAYS_INLINE uint16x4_t rounded(float32x4_t a) { return vreinterpret_u16_bf16(vcvt_bf16_f32(a)); }
    static EIGEN_ALWAYS_INLINE Pairs zipped(uint16x4_t first, uint16x4_t second) {
        return vcombine_u16(vzip1_u16(first, second), vzip2_u16(first, second));
    }
    static EIGEN_ALWAYS_INLINE Pairs lower() { return vreinterpretq_u16_u32(vdupq_n_u32(0xffff)); }
};
#endif

// Whether products of what is stored as T are of pairs.
template <Scalar T>
inline constexpr bool multiplies_pairs = PairProducts<T>::exist;

// The first `count` elements of a row rounded, and as many more as fill a packet.
template <Scalar T>
void round_row(const float* from, Index count, T* to) requires multiplies_pairs<T> {
    constexpr Index width = Simd<float>::width;
    for (Index j = 0; j < count; j += width) PairProducts<T>::round(Simd<float>::load(from + j), to + j);
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
