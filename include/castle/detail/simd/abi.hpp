// SPDX-License-Identifier: Apache-2.0
#pragma once

// First of all: what is included next would not survive the lack of it either.
#include <castle/detail/base/requirements.hpp>

#include <Eigen/Core>

static_assert(sizeof(Eigen::Index) == 8,
              "castle counts in 64 bits: EIGEN_DEFAULT_DENSE_INDEX_TYPE must be std::ptrdiff_t or left undefined");

// Everything in castle lives in an inline namespace named after the vector instructions that this translation unit is
// compiled for. Units with different ones thus instantiate different functions and different types, and the linker can
// neither merge their code nor pass a cache from one to the other. Units that share a tag but not every other extension
// still share code: such a program needs a machine that has them all.
#if defined(EIGEN_VECTORIZE_AVX512) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__) && \
    defined(__AVX512BF16__)
#define CASTLE_ABI avx512_bf16
#define CASTLE_ABI_HAS_BF16
#elif defined(EIGEN_VECTORIZE_AVX512) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define CASTLE_ABI avx512
#elif defined(EIGEN_VECTORIZE_AVX512)
#define CASTLE_ABI avx512f
#elif defined(EIGEN_VECTORIZE_AVX2) && defined(EIGEN_VECTORIZE_FMA)
#define CASTLE_ABI avx2_fma
#elif defined(EIGEN_VECTORIZE_AVX) && defined(EIGEN_VECTORIZE_FMA)
#define CASTLE_ABI avx_fma
#elif defined(EIGEN_VECTORIZE_AVX)
#define CASTLE_ABI avx
#elif defined(EIGEN_VECTORIZE_SSE4_1)
#define CASTLE_ABI sse4
#elif defined(EIGEN_VECTORIZE_SSE3)
#define CASTLE_ABI sse3
#elif defined(EIGEN_VECTORIZE_SSE2)
#define CASTLE_ABI sse2
#elif defined(EIGEN_VECTORIZE_SVE)
// A packet has the bits that the option -msve-vector-bits names.
#define CASTLE_ABI_WITH_BITS(name, bits) name##bits
#define CASTLE_ABI_EXPANDED(name, bits) CASTLE_ABI_WITH_BITS(name, bits)
#define CASTLE_ABI CASTLE_ABI_EXPANDED(sve, EIGEN_ARM64_SVE_VL)
#elif defined(EIGEN_VECTORIZE_NEON) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define CASTLE_ABI neon_bf16
#define CASTLE_ABI_HAS_BF16
#elif defined(EIGEN_VECTORIZE_NEON)
#define CASTLE_ABI neon
#elif defined(EIGEN_VECTORIZE_VSX)
#define CASTLE_ABI vsx
#elif defined(EIGEN_VECTORIZE_ALTIVEC)
#define CASTLE_ABI altivec
#elif defined(EIGEN_VECTORIZE_ZVECTOR) && defined(__ARCH__) && __ARCH__ < 12
// Has vectors of doubles only, as Eigen has it.
#define CASTLE_ABI zvector_double
#elif defined(EIGEN_VECTORIZE_ZVECTOR)
#define CASTLE_ABI zvector
#elif defined(EIGEN_VECTORIZE_MSA)
#define CASTLE_ABI msa
#elif defined(EIGEN_VECTORIZE)
// A vector unit that came to Eigen later.
#define CASTLE_ABI vectorized
#else
// Scalars, and nothing else.
#define CASTLE_ABI generic
#endif
