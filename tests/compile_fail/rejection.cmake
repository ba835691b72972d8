# SPDX-License-Identifier: Apache-2.0
cmake_minimum_required(VERSION 3.22)

# Compiles each header that a program may begin with under options that castle rejects. The first error has to be the
# sentence, and all that the compiler says has to be short. Arguments: compiler, include, eigen, options (a list),
# sentence (a regular expression), lines (the most that the compiler may say).
set(command "${compiler}" -std=c++20 -x c++ -fsyntax-only -I "${include}")
foreach(directory IN LISTS eigen)
    list(APPEND command -isystem "${directory}")
endforeach()

# Without libraries of a target nothing but castle.hpp gets as far as the sentence: others include the standard first.
set(headers castle.hpp)
if(NOT options MATCHES "^-m")
    list(APPEND headers types.hpp executor.hpp attention.hpp)
endif()
foreach(header IN LISTS headers)
    set(unit "#include <castle/${header}>")
    execute_process(
        COMMAND ${CMAKE_COMMAND} -E echo "${unit}"
        COMMAND ${CMAKE_COMMAND} -E env LC_ALL=C ${command} ${options} -
        RESULT_VARIABLE result
        OUTPUT_VARIABLE messages
        ERROR_VARIABLE messages)

    if(result EQUAL 0)
        message(FATAL_ERROR "${header} compiles with ${options}, but should not")
    endif()
    string(REGEX MATCH "error: [^\n]*" first "${messages}")
    if(NOT first MATCHES "${sentence}")
        message(FATAL_ERROR "expected an error about ${sentence} from ${header}, but got:\n${messages}")
    endif()
    string(REGEX MATCHALL "\n" newlines "${messages}")
    list(LENGTH newlines count)
    if(count GREATER lines)
        message(FATAL_ERROR "${count} lines from ${header} where ${lines} should do:\n${messages}")
    endif()
endforeach()
