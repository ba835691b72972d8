# SPDX-License-Identifier: Apache-2.0
# Runs PROGRAM, which has to end with 0 and to print what is in the file EXPECTED, and nothing else.
cmake_minimum_required(VERSION 3.22)

execute_process(COMMAND "${PROGRAM}" RESULT_VARIABLE code OUTPUT_VARIABLE out ERROR_VARIABLE err)
file(READ "${EXPECTED}" expected)
if(NOT code STREQUAL "0" OR NOT err STREQUAL "")
    message(FATAL_ERROR "exit code: ${code}\noutput:\n${out}\nerrors:\n${err}")
endif()
if(NOT out STREQUAL expected)
    message(FATAL_ERROR "the document shows\n${expected}\nbut this was printed:\n${out}")
endif()
