# SPDX-License-Identifier: Apache-2.0
cmake_minimum_required(VERSION 3.22)

# Runs programs that print lines `name checksum`, and compares what each prints with what the first does. Arguments:
# programs, names (of the programs, for people), emulator (a command before each, if any).
set(expected)
set(differences)
foreach(program name IN ZIP_LISTS programs names)
    execute_process(
        COMMAND ${emulator} "${program}"
        RESULT_VARIABLE result
        OUTPUT_VARIABLE lines
        ERROR_VARIABLE errors)
    if(NOT result EQUAL 0 OR NOT lines MATCHES "^[^ \n]+ [0-9a-f]+\n")
        message(FATAL_ERROR "${name}: ended with ${result}, having printed\n${lines}${errors}")
    endif()
    string(REGEX MATCHALL "[^\n]+" lines "${lines}")
    if(NOT expected)
        set(expected "${lines}")
        set(expected_name "${name}")
        continue()
    endif()

    list(LENGTH lines count)
    list(LENGTH expected expected_count)
    if(NOT count EQUAL expected_count)
        message(FATAL_ERROR "${name} prints ${count} lines, but ${expected_name} ${expected_count}")
    endif()
    set(different)
    foreach(line other IN ZIP_LISTS lines expected)
        if(NOT line STREQUAL other)
            string(REGEX REPLACE ".* " "" other "${other}")
            string(APPEND different "    ${line}, not ${other}\n")
        endif()
    endforeach()
    if(different)
        string(APPEND differences "${name}\n  computes other bits than ${expected_name}:\n${different}")
    endif()
endforeach()

list(LENGTH programs count)
if(differences)
    message(FATAL_ERROR "${differences}")
elseif(count LESS 2)
    message(FATAL_ERROR "there is nothing to compare")
endif()
list(JOIN names ", " names)
message(STATUS "the same bits: ${names}")
