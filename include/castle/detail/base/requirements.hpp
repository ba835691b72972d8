// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the compiler and its options have to offer, asked before any other header is read. No compiler has to stop at an
// #error, and after one of these a cascade would follow; so each includes a file that does not exist, at which gcc,
// clang and MSVC do stop.

#if (defined(_MSVC_LANG) ? _MSVC_LANG : __cplusplus) < 202002L
#error "castle needs C++20: compile with -std=c++20 or newer (/std:c++20)"
#include <castle/detail/base/see_the_error_above.hpp>
#endif

// Sizes of caches, and products of sizes that are checked, are held in 64 bits.
#if (defined(__SIZEOF_POINTER__) && __SIZEOF_POINTER__ < 8) || \
    (defined(__SIZEOF_SIZE_T__) && __SIZEOF_SIZE_T__ < 8) || (defined(_WIN32) && !defined(_WIN64))
#error "castle needs a 64-bit target: pointers and std::size_t must have 64 bits"
#include <castle/detail/base/see_the_error_above.hpp>
#endif

#if !defined(__cpp_exceptions) && !defined(_CPPUNWIND)
#error "castle needs exceptions, which report every wrong argument: compile without -fno-exceptions (with /EHsc)"
#include <castle/detail/base/see_the_error_above.hpp>
#endif

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) || defined(_M_FP_FAST)
#error "castle relies on infinities, NaNs and the order of operations: compile without -ffast-math or its like"
#include <castle/detail/base/see_the_error_above.hpp>
#endif

// gcc 12 and newer say so; for other compilers the kernels hold every sum whose order matters in a register.
#if defined(__ASSOCIATIVE_MATH__)
#error "castle relies on the order of operations: compile without -fassociative-math or -funsafe-math-optimizations"
#include <castle/detail/base/see_the_error_above.hpp>
#endif
