# SPDX-License-Identifier: Apache-2.0
# Tiny runs of every form. The program itself compares the bits.
include("${CMAKE_CURRENT_LIST_DIR}/../expect.cmake")

set(sentence "The old man the boat; the complex houses married and single soldiers and their families. ")
string(REPEAT "${sentence}" 4 sentences)
set(text "${FOLDER}/sentences.txt")
file(WRITE "${text}" "${sentences}")

set(small --file "${text}" --d_model 24 --heads 4)
set(tiny ${small} --d_head 6)
set(same "Every way of cutting the text gave the same bits")
set(numbers " +[0-9.]+ +[0-9]+ +[0-9.]+ +")
expect_answer(
    "CASTLE, in parallel +4 +200${numbers}reference"
    "CASTLE, in chunks of 33 +4 +200${numbers}0\n"
    "CASTLE, token by token +4 +200${numbers}0\n"
    "CASTLE, window 20, in parallel +4 +200${numbers}reference"
    "CASTLE, window 20, token by token +4 +200${numbers}0\n"
    "causal attention, in parallel +7 +200${numbers}reference"
    "causal attention, token by token +7 +200${numbers}0\n"
    "${same}"
    ARGUMENTS ${tiny} --length 200 --window 20 --chunk 33)

# The whole of a text that is shorter than --length.
string(LENGTH "${sentences}" length)
expect_answer("The first ${length} bytes of " "${same}" ARGUMENTS ${tiny})

# The ends of what is allowed.
expect_answer("${same}" ARGUMENTS ${tiny} --length 1)
expect_answer("${same}" ARGUMENTS ${tiny} --length 100 --window 0)
expect_answer("${same}" ARGUMENTS ${tiny} --length 100 --chunk 1 --threads 1)
expect_answer("${same}" ARGUMENTS ${tiny} --length 100 --chunk 1000 --seed 4294967295)
expect_answer("no rotary" "${same}" ARGUMENTS ${small} --length 100 --no-rotary --d_head 5)

# Without a file: this repository's own.
expect_answer("this repository's sources" "${same}" ARGUMENTS --length 64 --d_model 24 --d_head 6)
run(${tiny} --length 64)
if(NOT err MATCHES "^(running [^\n]+\n)+$")
    complain("should have named each form while it ran" ${tiny} --length 64)
endif()
