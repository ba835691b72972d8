# SPDX-License-Identifier: Apache-2.0
# A training that is killed, wherever it is, goes on from its last checkpoint to the same model and the same losses; a
# disk that is full ends it, and leaves that checkpoint.
include("${CMAKE_CURRENT_LIST_DIR}/small.cmake")

find_program(bash bash)
if(NOT bash)
    message(FATAL_ERROR "this test needs bash")
endif()

# train_and_kill(<lines> <model>): kills a training when its log has so many lines.
set(training --text "${text_file}" --save_every 10)
function(train_and_kill lines model)
    file(WRITE "${model}.csv" "")
    execute_process(
        COMMAND
            "${bash}" -c
            "\"$@\" & until [[ $(wc -l <'${model}.csv') -ge ${lines} ]]; do sleep 0.01; done; kill -9 $!" bash
                "${PROGRAM}" train ${training} ${small} --steps ${steps} --checkpoint "${model}" --log "${model}.csv"
        OUTPUT_QUIET ERROR_QUIET)
endfunction()

set(steps 2000)
expect_answer("the model is in"
              ARGUMENTS train ${training} ${small} --steps ${steps} --checkpoint "${own}/whole" --log "${own}/whole.csv")

foreach(lines IN ITEMS 5 40)
    set(model "${own}/killed_${lines}")
    train_and_kill(${lines} "${model}")
    expect_answer("going on after step [1-9]"
                  ARGUMENTS train ${training} --resume --checkpoint "${model}" --log "${model}.csv")
    file(SHA256 "${own}/whole" whole)
    file(SHA256 "${model}" resumed)
    if(NOT whole STREQUAL resumed)
        message(FATAL_ERROR "the model of a training that was killed after ${lines} reports is another one")
    endif()
    # Without the seconds. The resumed training may have written lines a second time that the killed one had.
    foreach(log IN ITEMS "${own}/whole.csv" "${model}.csv")
        file(STRINGS "${log}" losses)
        list(TRANSFORM losses REPLACE ",[^,]*$" "")
        list(REMOVE_DUPLICATES losses)
        string(SHA256 hash "${losses}")
        list(APPEND hashes ${hash})
    endforeach()
    list(REMOVE_DUPLICATES hashes)
    list(LENGTH hashes different)
    if(NOT different EQUAL 1)
        message(FATAL_ERROR "the losses of a training that was killed after ${lines} reports are other ones")
    endif()
endforeach()

# A training that cannot write: no file of more than 4 KiB, as on a full disk. The signal that says so first is ignored.
set(model "${own}/full")
train_and_kill(5 "${model}")
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
