# SPDX-License-Identifier: Apache-2.0
# A training that is killed, wherever it is, goes on from its last checkpoint to the same model and the same losses; a
# disk that is full ends it, and leaves that checkpoint.
include("${CMAKE_CURRENT_LIST_DIR}/small.cmake")

set(steps 3000)
set(training --text "${text_file}" --save_every 10)
expect_answer("the model is in"
              ARGUMENTS train ${training} ${small} --steps ${steps} --checkpoint "${own}/whole" --log "${own}/whole.csv")

foreach(seconds IN ITEMS 0.2 0.4)
    set(model "${own}/killed_${seconds}")
    execute_process(
        COMMAND "${PROGRAM}" train ${training} ${small} --steps ${steps} --checkpoint "${model}" --log "${model}.csv"
        TIMEOUT ${seconds} RESULT_VARIABLE code OUTPUT_VARIABLE out ERROR_VARIABLE err)
    if(code STREQUAL "0")
        message(FATAL_ERROR "${steps} steps are too few to be interrupted after ${seconds} seconds")
    endif()
    expect_answer("going on after step" ARGUMENTS train ${training} --resume --checkpoint "${model}" --log "${model}.csv")
    file(SHA256 "${own}/whole" whole)
    file(SHA256 "${model}" resumed)
    if(NOT whole STREQUAL resumed)
        message(FATAL_ERROR "the model of a training that was killed after ${seconds} seconds is another one")
    endif()
    # Without the seconds. The resumed training may have written lines a second time that the killed one had.
    foreach(log IN ITEMS "${own}/whole.csv" "${model}.csv")
        file(STRINGS "${log}" lines)
        list(TRANSFORM lines REPLACE ",[^,]*$" "")
        list(REMOVE_DUPLICATES lines)
        list(APPEND logs "${lines}")
        string(SHA256 hash "${lines}")
        list(APPEND hashes ${hash})
    endforeach()
    list(REMOVE_DUPLICATES hashes)
    list(LENGTH hashes different)
    if(NOT different EQUAL 1)
        message(FATAL_ERROR "the losses of a training that was killed after ${seconds} seconds are other ones")
    endif()
endforeach()

# A training that cannot write: no file of more than 4 KiB, as on a full disk. The signal that says so first is ignored.
find_program(bash bash)
if(NOT bash)
    message(WARNING "without bash nothing makes the disk full")
    return()
endif()
set(model "${own}/full")
execute_process(
    COMMAND "${PROGRAM}" train ${training} ${small} --steps ${steps} --checkpoint "${model}"
    TIMEOUT 0.2 OUTPUT_QUIET ERROR_QUIET)
file(SHA256 "${model}" before)
execute_process(
    COMMAND "${bash}" -c "trap '' XFSZ; ulimit -f 4; exec \"$@\"" bash "${PROGRAM}" train ${training} --resume --checkpoint
            "${model}" RESULT_VARIABLE code OUTPUT_VARIABLE out ERROR_VARIABLE err)
file(SHA256 "${model}" after)
if(NOT code STREQUAL "2" OR NOT err MATCHES "^language_model: [^\n]+ could not be written[^\n]+\n$")
    complain("should have said that the disk is full" train)
endif()
if(NOT before STREQUAL after OR EXISTS "${model}.part")
    message(FATAL_ERROR "a full disk changed the checkpoint, or left something beside it")
endif()
