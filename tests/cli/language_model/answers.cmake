# SPDX-License-Identifier: Apache-2.0
# A model of each kind is trained, evaluated, and writes.
include("${CMAKE_CURRENT_LIST_DIR}/small.cmake")

set(castle-swl_options --window 8)
foreach(attention IN ITEMS castle castle-swl causal)
    set(model "${own}/${attention}")
    set(log "${own}/${attention}.csv")
    expect_answer("${attention} attention" "step    40 of 40   loss [0-2]\\.[0-9]+   perplexity .* tokens/s   0:00 left"
                  "validation [0-2]\\.[0-9]+"
                  ARGUMENTS train --text "${text_file}" --checkpoint "${model}" --attention ${attention} ${small}
                            ${${attention}_options} --steps 40 --warm_up 5 --learning_rate 0.02 --log "${log}")
    if(NOT out MATCHES "validation ([0-9]+\\.[0-9]+), [0-9.]+\nthe model is in")
        message(FATAL_ERROR "nothing was said of the validation at the end:\n${out}")
    endif()
    expect_answer("validation loss ${CMAKE_MATCH_1}, perplexity" ARGUMENTS evaluate --text "${text_file}" --checkpoint "${model}")
    file(STRINGS "${log}" lines)
    list(LENGTH lines count)
    if(NOT count EQUAL 3)
        message(FATAL_ERROR "the log should have had a heading and two lines:\n${lines}")
    endif()

    expect_answer("^Every" ARGUMENTS generate --checkpoint "${model}" --prompt Every --bytes 100 --temperature 0.5)
    set(written "${out}")
    string(LENGTH "${written}" length)
    if(length GREATER 106)
        message(FATAL_ERROR "5 bytes, 100 more and a line's end are not ${length}")
    endif()
    if(NOT err MATCHES "agree on the next byte at 100 of 100 places")
        message(FATAL_ERROR "nothing was said of the check:\n${err}")
    endif()
    expect_answer("^Every" ARGUMENTS generate --checkpoint "${model}" --prompt Every --bytes 100 --temperature 0.5)
    if(NOT out STREQUAL written)
        message(FATAL_ERROR "the same seed wrote another text:\n${written}\n${out}")
    endif()
    expect_answer("^Every" ARGUMENTS generate --checkpoint "${model}" --prompt Every --bytes 100 --temperature 0.5
                               --draft "${own}/castle")
    if(NOT out STREQUAL written OR NOT err MATCHES "100 bytes in [1-9][0-9]? passes")
        message(FATAL_ERROR "with a draft it wrote another text, or no faster:\n${written}\n${out}\n${err}")
    endif()
endforeach()
expect_answer("train.*evaluate.*generate" ARGUMENTS --help)
expect_answer("--attention" ARGUMENTS train --help)
