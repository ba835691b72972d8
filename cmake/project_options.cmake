# SPDX-License-Identifier: Apache-2.0
# How the project builds its own tests, examples and benchmarks. None of it reaches a consumer of castle::castle.
include(CheckCXXCompilerFlag)

option(CASTLE_NATIVE "Compile tests, examples and benchmarks for this machine's instruction set" ON)
set(CASTLE_SANITIZE "" CACHE STRING "Sanitizers for them: empty, \"address,undefined\" or \"thread\"")
set_property(CACHE CASTLE_SANITIZE PROPERTY STRINGS "" "address,undefined" "thread")
if(NOT CASTLE_SANITIZE MATCHES "^(|address,undefined|thread)$")
    message(FATAL_ERROR "CASTLE_SANITIZE is \"${CASTLE_SANITIZE}\"; it may be empty, \"address,undefined\" or \"thread\"")
endif()

get_property(multi_config GLOBAL PROPERTY GENERATOR_IS_MULTI_CONFIG)
if(PROJECT_IS_TOP_LEVEL AND NOT multi_config AND NOT CMAKE_BUILD_TYPE)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

# castle_project: warnings as errors, and sanitizers.
add_library(castle_project INTERFACE)
target_link_libraries(castle_project INTERFACE castle::castle)
if(MSVC)
    target_compile_options(castle_project INTERFACE /W4 /WX)
else()
    target_compile_options(castle_project INTERFACE -Wall -Wextra -Wpedantic -Wconversion -Wshadow)
    # Instrumented code misleads gcc's analysis into false alarms.
    if(NOT CASTLE_SANITIZE)
        target_compile_options(castle_project INTERFACE -Werror)
    endif()
endif()
if(CASTLE_SANITIZE)
    # Assertions on, Eigen's among them; some optimisation, for the tests are many.
    target_compile_options(castle_project INTERFACE -fsanitize=${CASTLE_SANITIZE} -fno-sanitize-recover=all
                                                    -fno-omit-frame-pointer -g1 -O1 -UNDEBUG)
    # Null pointers and overruns are what the address sanitizer finds as well; checked a second time in every register
    # tile they double the time to compile.
    if(CASTLE_SANITIZE MATCHES "undefined")
        target_compile_options(castle_project INTERFACE -fno-sanitize=null,alignment,object-size)
    endif()
    target_link_options(castle_project INTERFACE -fsanitize=${CASTLE_SANITIZE})
endif()

# castle_native: the instruction set of this machine.
add_library(castle_native INTERFACE)
check_cxx_compiler_flag(-march=native CASTLE_HAS_MARCH_NATIVE)
if(CASTLE_HAS_MARCH_NATIVE)
    target_compile_options(castle_native INTERFACE -march=native)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
        # False alarms about gcc's own AVX-512 intrinsics, https://gcc.gnu.org/bugzilla/show_bug.cgi?id=105593
        target_compile_options(castle_native INTERFACE -Wno-uninitialized -Wno-maybe-uninitialized)
    endif()
endif()

# castle_program: what a test, an example or a benchmark links.
add_library(castle_program INTERFACE)
target_link_libraries(castle_program INTERFACE castle_project $<$<BOOL:${CASTLE_NATIVE}>:castle_native>)
# The thread sanitizer sees none of the synchronisation inside an OpenMP runtime and would report races that are not.
if(NOT CASTLE_SANITIZE STREQUAL "thread")
    find_package(OpenMP QUIET COMPONENTS CXX)
    if(OpenMP_CXX_FOUND)
        target_link_libraries(castle_program INTERFACE OpenMP::OpenMP_CXX)
    endif()
endif()
