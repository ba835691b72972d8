# SPDX-License-Identifier: Apache-2.0
cmake_minimum_required(VERSION 3.22)

# Installs the build tree, checks that every header is there and nothing else, and moves what was installed elsewhere:
# whoever uses it there depends on no path of this machine. Arguments: build, config, source_include, includedir, prefix.
file(REMOVE_RECURSE "${prefix}" "${prefix}-first")
execute_process(COMMAND "${CMAKE_COMMAND}" --install "${build}" --config "${config}" --prefix "${prefix}-first"
                COMMAND_ERROR_IS_FATAL ANY OUTPUT_QUIET)

file(GLOB_RECURSE headers RELATIVE "${source_include}" "${source_include}/*.hpp")
file(GLOB_RECURSE installed RELATIVE "${prefix}-first/${includedir}" "${prefix}-first/${includedir}/*")
if(NOT headers)
    message(FATAL_ERROR "no headers in ${source_include}")
elseif(NOT headers STREQUAL installed)
    message(FATAL_ERROR "include/ holds\n  ${headers}\nbut installed was\n  ${installed}")
endif()

file(RENAME "${prefix}-first" "${prefix}")
