# SPDX-License-Identifier: Apache-2.0
cmake_minimum_required(VERSION 3.22)

# Reads the tag that detail/simd/abi.hpp gives to a translation unit. Arguments: compiler, include, eigen, binary.
#
# What Eigen says of the instruction set is faked by an Eigen/Core of the test's own, which says nothing: its macros are
# options.
set(fake "${binary}/no_eigen")
file(WRITE "${fake}/Eigen/Core" "")
set(unit "${binary}/abi_tag.cpp")
file(WRITE "${unit}" "#include <castle/detail/simd/abi.hpp>\nthis_unit_has_tag CASTLE_ABI;\n")

# expect_tag(<tag> <folder of Eigen> [<option>...])
function(expect_tag expected eigen)
    set(folders)
    foreach(folder IN LISTS eigen)
        list(APPEND folders -isystem "${folder}")
    endforeach()
    execute_process(
        COMMAND "${compiler}" -std=c++20 -E -P -I "${include}" ${folders} ${ARGN} "${unit}"
        OUTPUT_VARIABLE text
        ERROR_VARIABLE messages
        RESULT_VARIABLE result)
    if(NOT result EQUAL 0 OR NOT text MATCHES "this_unit_has_tag ([^;]*);")
        message(FATAL_ERROR "no tag with ${ARGN}:\n${messages}")
    elseif(NOT CMAKE_MATCH_1 STREQUAL expected)
        message(SEND_ERROR "the tag with ${ARGN} is ${CMAKE_MATCH_1} but must be ${expected}")
    endif()
endfunction()

function(expect_faked_tag expected)
    set(options)
    foreach(macro IN LISTS ARGN)
        list(APPEND options "-D${macro}")
    endforeach()
    expect_tag(${expected} "${fake}" ${options})
endfunction()

# Whatever the compiler takes for granted does not count, only what Eigen makes of it.
expect_faked_tag(generic)
set(vectors EIGEN_VECTORIZE)
expect_faked_tag(neon ${vectors} EIGEN_VECTORIZE_NEON)
expect_faked_tag(neon_bf16 ${vectors} EIGEN_VECTORIZE_NEON __ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
expect_faked_tag(vsx ${vectors} EIGEN_VECTORIZE_VSX)
expect_faked_tag(altivec ${vectors} EIGEN_VECTORIZE_ALTIVEC)
expect_faked_tag(zvector ${vectors} EIGEN_VECTORIZE_ZVECTOR)
expect_faked_tag(zvector ${vectors} EIGEN_VECTORIZE_ZVECTOR __ARCH__=12)
expect_faked_tag(zvector_double ${vectors} EIGEN_VECTORIZE_ZVECTOR __ARCH__=11)
expect_faked_tag(msa ${vectors} EIGEN_VECTORIZE_MSA)
foreach(bits IN ITEMS 128 256 2048)
    # As Eigen defines it, through a macro of the compiler.
    expect_faked_tag(sve${bits} ${vectors} EIGEN_VECTORIZE_SVE EIGEN_ARM64_SVE_VL=__ARM_FEATURE_SVE_BITS
                     __ARM_FEATURE_SVE_BITS=${bits})
endforeach()
expect_faked_tag(vectorized ${vectors} EIGEN_VECTORIZE_OF_THE_FUTURE)

set(sse ${vectors} EIGEN_VECTORIZE_SSE EIGEN_VECTORIZE_SSE2)
expect_faked_tag(sse2 ${sse})
expect_faked_tag(sse3 ${sse} EIGEN_VECTORIZE_SSE3)
expect_faked_tag(sse4 ${sse} EIGEN_VECTORIZE_SSE3 EIGEN_VECTORIZE_SSE4_1)
set(avx ${sse} EIGEN_VECTORIZE_SSE3 EIGEN_VECTORIZE_SSE4_1 EIGEN_VECTORIZE_AVX)
expect_faked_tag(avx ${avx})
expect_faked_tag(avx_fma ${avx} EIGEN_VECTORIZE_FMA)
expect_faked_tag(avx2_fma ${avx} EIGEN_VECTORIZE_AVX2 EIGEN_VECTORIZE_FMA)
set(avx512 ${avx} EIGEN_VECTORIZE_AVX2 EIGEN_VECTORIZE_FMA EIGEN_VECTORIZE_AVX512)
expect_faked_tag(avx512f ${avx512})
expect_faked_tag(avx512 ${avx512} __AVX512DQ__ __AVX512BW__ __AVX512VL__)
expect_faked_tag(avx512_bf16 ${avx512} __AVX512DQ__ __AVX512BW__ __AVX512VL__ __AVX512BF16__)

# The real Eigen.
expect_tag(generic "${eigen}" -DEIGEN_DONT_VECTORIZE)
execute_process(COMMAND "${compiler}" -dM -E -x c++ - INPUT_FILE /dev/null OUTPUT_VARIABLE macros)
if(macros MATCHES "__x86_64__")
    expect_tag(sse2 "${eigen}" -march=x86-64)
    expect_tag(avx2_fma "${eigen}" -march=haswell)
    expect_tag(avx512 "${eigen}" -march=skylake-avx512)
    expect_tag(avx512_bf16 "${eigen}" -march=cooperlake)
    expect_tag(generic "${eigen}" -march=skylake-avx512 -DEIGEN_DONT_VECTORIZE)
endif()
