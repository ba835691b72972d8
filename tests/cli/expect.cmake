# SPDX-License-Identifier: Apache-2.0
# Runs PROGRAM, which calls itself NAME, and compares what it does with what is expected of it.
cmake_minimum_required(VERSION 3.22)

# run(<arguments>...) sets code, out and err.
macro(run)
    execute_process(COMMAND "${PROGRAM}" ${ARGN} RESULT_VARIABLE code OUTPUT_VARIABLE out ERROR_VARIABLE err)
endmacro()

function(complain what)
    list(JOIN ARGN " " arguments)
    message(FATAL_ERROR "${NAME} ${arguments}\n${what}\nexit code: ${code}\noutput:\n${out}\nerrors:\n${err}")
endfunction()

# expect_answer(<regex>... ARGUMENTS <arguments>...): ends well, and the output matches each expression; sets out and err.
function(expect_answer)
    cmake_parse_arguments(PARSE_ARGV 0 expect "" "" "ARGUMENTS")
    run(${expect_ARGUMENTS})
    if(NOT code STREQUAL "0")
        complain("should have ended with 0" ${expect_ARGUMENTS})
    endif()
    foreach(regex IN LISTS expect_UNPARSED_ARGUMENTS)
        if(NOT out MATCHES "${regex}")
            complain("should have printed ${regex}" ${expect_ARGUMENTS})
        endif()
    endforeach()
    set(out "${out}" PARENT_SCOPE)
    set(err "${err}" PARENT_SCOPE)
endfunction()

# expect_rejection(<regex> <arguments>...): exit code 2, no output, one line of error that matches the expression.
function(expect_rejection regex)
    run(${ARGN})
    if(NOT code STREQUAL "2")
        complain("should have ended with 2" ${ARGN})
    endif()
    if(NOT out STREQUAL "")
        complain("should have printed nothing" ${ARGN})
    endif()
    if(NOT err MATCHES "^${NAME}: [^\n]+\n$")
        complain("should have given one line of error" ${ARGN})
    endif()
    if(NOT err MATCHES "${regex}")
        complain("should have said ${regex}" ${ARGN})
    endif()
endfunction()
