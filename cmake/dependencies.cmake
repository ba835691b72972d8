# SPDX-License-Identifier: Apache-2.0
# What tests, examples and benchmarks need beside Eigen: the installed package, or else a release from GitHub.
include(FetchContent)

# Headers of other projects are not held to this project's warnings.
function(castle_mark_as_system)
    foreach(target IN LISTS ARGN)
        get_target_property(directories ${target} INTERFACE_INCLUDE_DIRECTORIES)
        set_target_properties(${target} PROPERTIES INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${directories}")
    endforeach()
endfunction()

# For what runs on several machines, which is left out without it. Only the C interface is used.
set(MPI_CXX_SKIP_MPICXX ON)
find_package(MPI QUIET COMPONENTS CXX)

if(CASTLE_BUILD_TESTS)
    find_package(GTest QUIET)
    if(NOT GTest_FOUND)
        message(STATUS "GoogleTest is not installed: fetching it")
        set(INSTALL_GTEST OFF)
        FetchContent_Declare(
            googletest
            GIT_REPOSITORY https://github.com/google/googletest.git
            GIT_TAG v1.15.2
            GIT_SHALLOW ON)
        FetchContent_MakeAvailable(googletest)
        castle_mark_as_system(gtest gmock)
    endif()
endif()

if(CASTLE_BUILD_BENCHMARKS)
    find_package(benchmark QUIET)
    if(NOT benchmark_FOUND)
        message(STATUS "Google Benchmark is not installed: fetching it")
        set(BENCHMARK_ENABLE_TESTING OFF)
        set(BENCHMARK_ENABLE_INSTALL OFF)
        FetchContent_Declare(
            benchmark
            GIT_REPOSITORY https://github.com/google/benchmark.git
            GIT_TAG v1.9.1
            GIT_SHALLOW ON)
        FetchContent_MakeAvailable(benchmark)
        castle_mark_as_system(benchmark)
    endif()
endif()

if(CASTLE_BUILD_EXAMPLES)
    find_package(CLI11 QUIET)
    if(NOT CLI11_FOUND)
        message(STATUS "CLI11 is not installed: fetching it")
        FetchContent_Declare(
            CLI11
            GIT_REPOSITORY https://github.com/CLIUtils/CLI11.git
            GIT_TAG v2.4.2
            GIT_SHALLOW ON)
        FetchContent_MakeAvailable(CLI11)
        castle_mark_as_system(CLI11)
    endif()

    find_package(fmt QUIET)
    if(NOT fmt_FOUND)
        message(STATUS "fmt is not installed: fetching it")
        FetchContent_Declare(
            fmt
            GIT_REPOSITORY https://github.com/fmtlib/fmt.git
            GIT_TAG 11.0.2
            GIT_SHALLOW ON)
        FetchContent_MakeAvailable(fmt)
        castle_mark_as_system(fmt)
    endif()

    find_package(nlohmann_json 3.9 QUIET)
    if(NOT nlohmann_json_FOUND)
        message(STATUS "JSON for Modern C++ is not installed: fetching it")
        FetchContent_Declare(
            nlohmann_json
            GIT_REPOSITORY https://github.com/nlohmann/json.git
            GIT_TAG v3.11.3
            GIT_SHALLOW ON)
        FetchContent_MakeAvailable(nlohmann_json)
        castle_mark_as_system(nlohmann_json)
    endif()

    find_package(Boost 1.72 REQUIRED) # headers only

    # For the one example that draws.
    find_package(PkgConfig QUIET)
    if(PkgConfig_FOUND)
        pkg_check_modules(cairo QUIET IMPORTED_TARGET cairo)
    endif()
endif()
