// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <type_traits>

#include <castle/detail/simd/scalar.hpp>
#include <castle/detail/simd/storage.hpp>

// A packet as a template argument loses an attribute that nothing here depends on; Eigen silences this the same way.
// The other two are false alarms of gcc 12 about its own AVX-512 intrinsics (gcc bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

// Stands after the parameters of a lambda, where no standard attribute may. clang-cl defines no __GNUC__.
#if defined(__GNUC__) || defined(__clang__)
#define CASTLE_INLINE_LAMBDA __attribute__((always_inline))
#elif defined(_MSC_VER)
#define CASTLE_INLINE_LAMBDA [[msvc::forceinline]]
#else
#define CASTLE_INLINE_LAMBDA
#endif

// The one file that knows the vector layer: thin names over Eigen's packet primitives, so that one source runs on
// SSE, AVX, AVX-512 and NEON, and on plain scalars where Eigen's vectorisation is off.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The constant that a generic lambda is called with, by the parameter's type: not every compiler takes a captured
// parameter for a constant.
template <class C>
inline constexpr auto constant = std::remove_cvref_t<C>::value;

// Calls f(0), ..., f(N - 1) with constants, in this order; what makes arrays of packets live in registers. gcc decides
// where they live before it looks into an ordinary lambda, so f has to be a CASTLE_INLINE_LAMBDA where it has packets.
template <int N, class F>
EIGEN_ALWAYS_INLINE void unroll(const F& f) {
    if constexpr (N > 0) {
        unroll<N - 1>(f);
        f(std::integral_constant<int, N - 1>{});
    }
}

template <ComputeScalar T>
struct Simd {
    using Packet = typename Eigen::internal::packet_traits<T>::type;

    // Elements in a packet.
    static constexpr int width = Eigen::internal::unpacket_traits<Packet>::size;
    // Vector registers of the instruction set, which decides the size of a register tile.
    static constexpr int registers = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS;

    static EIGEN_ALWAYS_INLINE Packet load(const T* p) { return Eigen::internal::ploadu<Packet>(p); }
    static EIGEN_ALWAYS_INLINE void store(T* p, Packet a) { Eigen::internal::pstoreu(p, a); }
    // The same of 16-bit elements.
    template <StorageScalar H>
    static EIGEN_ALWAYS_INLINE Packet load(const H* p) requires std::same_as<T, float> {
        return StoredPacket<Packet, width>::load(p);
    }
    template <StorageScalar H>
    static EIGEN_ALWAYS_INLINE void store(H* p, Packet a) requires std::same_as<T, float> {
        StoredPacket<Packet, width>::store(p, a);
    }
    static EIGEN_ALWAYS_INLINE Packet set(T a) { return Eigen::internal::pset1<Packet>(a); }
    static EIGEN_ALWAYS_INLINE Packet zero() { return set(T(0)); }
    // *p in every place.
    static EIGEN_ALWAYS_INLINE Packet broadcast(const T* p) { return set(*p); }
    template <StorageScalar H>
    static EIGEN_ALWAYS_INLINE Packet broadcast(const H* p) requires std::same_as<T, float> {
        return StoredPacket<Packet, width>::broadcast(p);
    }
    // a, of which the compiler may not know where it comes from: neither the load that it is, to fold it into each of
    // several operations, which costs more than it saves, nor the sum that it is, to reassociate it.
    static EIGEN_ALWAYS_INLINE Packet opaque(Packet a) {
#if defined(__GNUC__) || defined(__clang__)
#if EIGEN_ARCH_i386_OR_x86_64
        __asm__("" : "+v"(a));
#elif EIGEN_ARCH_ARM64
        __asm__("" : "+w"(a));
#elif EIGEN_ARCH_PPC && defined(EIGEN_VECTORIZE_VSX)
        __asm__("" : "+wa"(a));
#elif defined(__riscv) || defined(__s390x__)
        if constexpr (width == 1) {
            __asm__("" : "+f"(a));
        } else {
            __asm__("" : "+m"(a));
        }
#else
        __asm__("" : "+m"(a));
#endif
#endif
        return a;
    }
    // first, first + 1, ...
    static EIGEN_ALWAYS_INLINE Packet iota(T first) { return Eigen::internal::plset<Packet>(first); }

    // a * b + c, in one rounding where the instruction set can. Every such sum is written as a call of this, so that
    // the compiler's own contraction never decides about a bit; scalars, where it could, take the standard function.
    static EIGEN_ALWAYS_INLINE Packet fma(Packet a, Packet b, Packet c) {
        if constexpr (width == 1) {
            return std::fma(a, b, c);
        } else {
            return Eigen::internal::pmadd(a, b, c);
        }
    }
    static EIGEN_ALWAYS_INLINE Packet add(Packet a, Packet b) { return Eigen::internal::padd(a, b); }
    static EIGEN_ALWAYS_INLINE Packet sub(Packet a, Packet b) { return Eigen::internal::psub(a, b); }
    static EIGEN_ALWAYS_INLINE Packet mul(Packet a, Packet b) { return Eigen::internal::pmul(a, b); }
    static EIGEN_ALWAYS_INLINE Packet div(Packet a, Packet b) { return Eigen::internal::pdiv(a, b); }
    static EIGEN_ALWAYS_INLINE Packet negate(Packet a) { return Eigen::internal::pnegate(a); }

    // Where a is NaN, that comes back; where only b is, a or NaN does.
    static EIGEN_ALWAYS_INLINE Packet larger(Packet a, Packet b) { return Eigen::internal::pmax(a, b); }
    static EIGEN_ALWAYS_INLINE Packet smaller(Packet a, Packet b) { return Eigen::internal::pmin(a, b); }

    // Lane masks and the choice by one.
    static EIGEN_ALWAYS_INLINE Packet less(Packet a, Packet b) { return Eigen::internal::pcmp_lt(a, b); }
    static EIGEN_ALWAYS_INLINE Packet both(Packet a, Packet b) { return Eigen::internal::pand(a, b); }
    static EIGEN_ALWAYS_INLINE Packet either(Packet a, Packet b) { return Eigen::internal::por(a, b); }
    static EIGEN_ALWAYS_INLINE Packet select(Packet mask, Packet yes, Packet no) {
        return Eigen::internal::pselect(mask, yes, no);
    }

    // As many packets as a packet has numbers.
    using Square = Eigen::internal::PacketBlock<Packet, width>;
    static EIGEN_ALWAYS_INLINE void transpose(Square& a) {
        if constexpr (width > 1) Eigen::internal::ptranspose(a);
    }

    static EIGEN_ALWAYS_INLINE T sum(Packet a) { return Eigen::internal::predux(a); }
    static EIGEN_ALWAYS_INLINE T largest(Packet a) { return Eigen::internal::predux_max(a); }

    // 2^n for whole n that is not so large that it is infinite; 0 where it is no number, or n is NaN. Eigen 3.4's
    // pldexp is not to see a NaN: on POWER it reaches the neighbouring lane.
    static EIGEN_ALWAYS_INLINE Packet power_of_two(Packet n) {
        return Eigen::internal::pldexp(set(1), larger(set(-1100), n));
    }

    // 2^(low bits of k) as the exponent field of a float: what is left of k after a shift by 23 bits.
    static constexpr bool has_exponent_shift = std::same_as<T, float> && requires {
        typename Eigen::internal::unpacket_traits<Packet>::integer_packet;
    };
    static EIGEN_ALWAYS_INLINE Packet shift_into_exponent(Packet k) requires has_exponent_shift {
        using Integers = typename Eigen::internal::unpacket_traits<Packet>::integer_packet;
        return Eigen::internal::preinterpret<Packet>(
            Eigen::internal::plogical_shift_left<23>(Eigen::internal::preinterpret<Integers>(k)));
    }
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
