# SPDX-License-Identifier: Apache-2.0
cmake_minimum_required(VERSION 3.22)

# Compiles one case. Arguments: compiler, include, eigen, source, variant (ok or ko).
#
# The line that must not compile ends in a comment `// error: <regular expression>`, which the compiler's message for
# this line has to match. A line `// message: <regular expression>` is about all that the compiler says, notes included;
# the lines of sources that it may show with them are left out.
set(command "${compiler}" -std=c++20 -fsyntax-only -I "${include}")
foreach(directory IN LISTS eigen)
    list(APPEND command -isystem "${directory}")
endforeach()
if(variant STREQUAL "ko")
    list(APPEND command -D CASTLE_COMPILE_FAIL)
endif()
execute_process(
    COMMAND ${CMAKE_COMMAND} -E env LC_ALL=C ${command} "${source}"
    RESULT_VARIABLE result
    OUTPUT_VARIABLE messages
    ERROR_VARIABLE messages)

if(variant STREQUAL "ok")
    if(NOT result EQUAL 0)
        message(FATAL_ERROR "does not compile, but should:\n${messages}")
    endif()
    return()
endif()

if(result EQUAL 0)
    message(FATAL_ERROR "compiles, but should not")
endif()

file(READ "${source}" text)
string(REGEX MATCH "^(.*)// error: ([^\n]+)\n" ignored "${text}")
set(expected "${CMAKE_MATCH_2}")
string(REGEX MATCHALL "\n" newlines "${CMAKE_MATCH_1}")
list(LENGTH newlines line)
math(EXPR line "${line} + 1")
cmake_path(GET source FILENAME name)

if(NOT expected)
    message(FATAL_ERROR "${name} does not say which error it expects")
elseif(NOT messages MATCHES "${name}:${line}:[0-9]+: error: [^\n]*(${expected})")
    message(FATAL_ERROR "expected an error in line ${line} about ${expected}, but got:\n${messages}")
endif()
string(REGEX REPLACE "${name}:${line}:[0-9]+: error:" "" others "${messages}")
if(others MATCHES "${name}:[0-9]+:[0-9]+: error:")
    message(FATAL_ERROR "errors in other lines than ${line}:\n${messages}")
endif()
if(text MATCHES "\n// message: ([^\n]+)\n")
    set(wanted "${CMAKE_MATCH_1}")
    string(REGEX MATCHALL "[^\n]+: (error|note): [^\n]+" said "${messages}")
    if(NOT said MATCHES "${wanted}")
        message(FATAL_ERROR "expected a message about ${wanted}, but got:\n${messages}")
    endif()
endif()
