# SPDX-License-Identifier: Apache-2.0
cmake_minimum_required(VERSION 3.22)

# The source must not compile with the options, for a reason that names one of them. Arguments: compiler, options,
# include, eigen, source.
set(command "${compiler}" -std=c++20 -fsyntax-only -I "${include}")
foreach(directory IN LISTS eigen)
    list(APPEND command -isystem "${directory}")
endforeach()
foreach(more IN ITEMS "" "${options}")
    execute_process(
        COMMAND ${CMAKE_COMMAND} -E env LC_ALL=C ${command} -O2 ${more} "${source}"
        RESULT_VARIABLE result
        OUTPUT_VARIABLE messages
        ERROR_VARIABLE messages)
    if(more STREQUAL "" AND NOT result EQUAL 0)
        message(FATAL_ERROR "does not compile without the options:\n${messages}")
    endif()
endforeach()
if(result EQUAL 0)
    message(FATAL_ERROR "compiles, but should not")
elseif(NOT messages MATCHES "error: [^\n]*compile without [^\n]*-fassociative-math")
    message(FATAL_ERROR "expected an error about -fassociative-math, but got:\n${messages}")
endif()
