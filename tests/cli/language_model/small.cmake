# SPDX-License-Identifier: Apache-2.0
# What the tests of language_model share: a folder, a text, and a model that is small.
include("${CMAKE_CURRENT_LIST_DIR}/../expect.cmake")

cmake_path(GET CMAKE_SCRIPT_MODE_FILE STEM script)
set(own "${FOLDER}/language_model_${script}")
file(REMOVE_RECURSE "${own}")
file(MAKE_DIRECTORY "${own}")

string(REPEAT "Every key goes on absorbing what comes after it. " 60 text)
set(text_file "${own}/text")
file(WRITE "${text_file}" "${text}")
set(small --layers 1 --d_model 16 --heads 4 --d_head 4 --context 24 --batch 4)

# reject_and_keep(<regex> <file> <arguments>...): a rejection that leaves the file as it was.
function(reject_and_keep regex file)
    file(SHA256 "${file}" before)
    expect_rejection("${regex}" ${ARGN})
    file(SHA256 "${file}" after)
    if(NOT before STREQUAL after)
        message(FATAL_ERROR "${ARGN} changed ${file}")
    endif()
endfunction()
