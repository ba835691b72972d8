// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) || defined(_M_FP_FAST)
#error "castle relies on infinities, NaNs and the order of operations: compile without -ffast-math or its like"
#endif

// Everything in castle lives in an inline namespace named after the vector instructions that this translation unit is
// compiled for. Units with different ones thus instantiate different functions and different types, and the linker can
// neither merge their code nor pass a cache from one to the other. Units that share a tag but not every other extension
// still share code: such a program needs a machine that has them all.
#if defined(EIGEN_VECTORIZE_AVX512) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
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
#elif defined(EIGEN_VECTORIZE_NEON)
#define CASTLE_ABI neon
#else
#define CASTLE_ABI generic
#endif
