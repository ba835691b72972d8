// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>

// Everything in castle lives in an inline namespace named after the instruction set that this translation unit is
// compiled for. Translation units with different -march flags thus instantiate different functions and different
// types, and the linker can neither merge their code nor pass a cache from one to the other.
#if defined(EIGEN_VECTORIZE_AVX512)
#define CASTLE_ABI avx512
#elif defined(EIGEN_VECTORIZE_AVX) && defined(EIGEN_VECTORIZE_FMA)
#define CASTLE_ABI avx_fma
#elif defined(EIGEN_VECTORIZE_AVX)
#define CASTLE_ABI avx
#elif defined(EIGEN_VECTORIZE_SSE4_1)
#define CASTLE_ABI sse4
#elif defined(EIGEN_VECTORIZE_SSE2)
#define CASTLE_ABI sse2
#elif defined(EIGEN_VECTORIZE_NEON)
#define CASTLE_ABI neon
#else
#define CASTLE_ABI generic
#endif
