# SPDX-License-Identifier: Apache-2.0
cmake_minimum_required(VERSION 3.22)

# Fails if two object files for different instruction sets define the same function of the library: the linker would
# keep one of the two for both. Arguments: nm, baseline, native.
function(library_symbols object symbols_result instruction_set_result)
    execute_process(
        COMMAND "${nm}" --defined-only "${object}"
        OUTPUT_VARIABLE listing
        COMMAND_ERROR_IS_FATAL ANY)
    # Weak symbols are the ones that the linker merges.
    string(REGEX MATCHALL "[Wwu] [A-Za-z0-9_.$]*6castle[A-Za-z0-9_.$]*" symbols "${listing}")
    if(NOT symbols)
        message(FATAL_ERROR "no symbol of the library in ${object}")
    endif()
    set(${symbols_result} "${symbols}" PARENT_SCOPE)

    # The inline namespace is named after the instruction set; a mangled name has its length before it.
    string(REGEX MATCH "6castle([0-9]+)([a-z0-9_]+)" ignored "${symbols}")
    string(SUBSTRING "${CMAKE_MATCH_2}" 0 ${CMAKE_MATCH_1} instruction_set)
    set(${instruction_set_result} "${instruction_set}" PARENT_SCOPE)
endfunction()

library_symbols("${baseline}" baseline_symbols baseline_set)
library_symbols("${native}" native_symbols native_set)
if(baseline_set STREQUAL native_set)
    message(STATUS "skipped: this machine's instruction set is the baseline, ${baseline_set}")
    return()
endif()

foreach(symbol IN LISTS baseline_symbols)
    if(symbol IN_LIST native_symbols)
        message(SEND_ERROR "defined for ${baseline_set} and for ${native_set}: ${symbol}")
    endif()
endforeach()
list(LENGTH baseline_symbols count)
message(STATUS "${count} symbols for ${baseline_set}, none of them also for ${native_set}")
