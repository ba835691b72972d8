# SPDX-License-Identifier: Apache-2.0
# Several ranks train the model of one, and say and log the same; whichever fails, all end with 2 and a line each.
include("${CMAKE_CURRENT_LIST_DIR}/small.cmake")

# Without what depends on time.
function(without_times result text)
    string(REGEX REPLACE " +[0-9]+ tokens/s +[0-9:]+ left" "" text "${text}")
    set(${result} "${text}" PARENT_SCOPE)
endfunction()
function(read_log result path)
    file(STRINGS "${path}" lines)
    list(TRANSFORM lines REPLACE ",[^,]*$" "")
    set(${result} "${lines}" PARENT_SCOPE)
endfunction()

# run_ranks(<ranks> <arguments>...) sets code, out and err.
macro(run_ranks ranks)
    execute_process(COMMAND "${MPIEXEC}" ${NUMBER} ${ranks} "${PROGRAM}" ${ARGN} RESULT_VARIABLE code OUTPUT_VARIABLE out
                    ERROR_VARIABLE err)
endmacro()

# expect_same_as_one(<ranks> <arguments>...): what is printed, the checkpoint "${own}/model", and the log.
function(expect_same_as_one ranks)
    run_ranks(${ranks} ${ARGN})
    without_times(out "${out}")
    if(NOT code STREQUAL "0" OR NOT out STREQUAL expected_out)
        complain("${ranks} ranks should have printed:\n${expected_out}" ${ARGN})
    endif()
    file(SHA256 "${own}/model" hash)
    if(NOT hash STREQUAL expected_hash)
        complain("the checkpoint of ${ranks} ranks is another one" ${ARGN})
    endif()
    read_log(log "${own}/model.csv")
    if(NOT log STREQUAL expected_log)
        complain("the log of ${ranks} ranks should have had:\n${expected_log}\nbut has:\n${log}" ${ARGN})
    endif()
endfunction()

# A batch of 3: no number of ranks but 1 and 3 divides it, and 4 are more.
set(tiny --layers 1 --d_model 16 --heads 4 --d_head 4 --context 24 --batch 3 --steps 45 --warm_up 5)
set(files --text "${text_file}" --checkpoint "${own}/model" --log "${own}/model.csv" --save_every 30)
foreach(kind IN ITEMS castle causal)
    file(REMOVE "${own}/model" "${own}/model.csv")
    expect_answer("the model is in" ARGUMENTS train ${files} ${tiny} --attention ${kind})
    without_times(expected_out "${out}")
    file(SHA256 "${own}/model" expected_hash)
    read_log(expected_log "${own}/model.csv")
    foreach(ranks RANGE 1 4)
        file(REMOVE "${own}/model" "${own}/model.csv")
        expect_same_as_one(${ranks} train ${files} ${tiny} --attention ${kind})
    endforeach()
endforeach()

# Resumed after it was killed, on another number of ranks.
find_program(bash bash)
if(NOT bash)
    message(FATAL_ERROR "this test needs bash")
endif()
list(TRANSFORM tiny REPLACE "^45$" "3000" OUTPUT_VARIABLE long)
file(REMOVE "${own}/model" "${own}/model.csv")
expect_answer("the model is in" ARGUMENTS train ${files} ${long})
file(SHA256 "${own}/model" whole)
file(REMOVE "${own}/model")
file(WRITE "${own}/model.csv" "")
execute_process(
    COMMAND
        "${bash}" -c
        "\"$@\" & until [[ $(wc -l <'${own}/model.csv') -ge 5 ]]; do sleep 0.01; done; kill -TERM $!; wait $!" bash
        "${MPIEXEC}" ${NUMBER} 3 "${PROGRAM}" train ${files} ${long}
    OUTPUT_QUIET ERROR_QUIET)
run_ranks(2 train --resume ${files})
if(NOT code STREQUAL "0" OR NOT out MATCHES "^castle attention[^\n]+\ngoing on after step [1-9]")
    complain("should have gone on" train --resume)
endif()
file(SHA256 "${own}/model" resumed)
if(NOT whole STREQUAL resumed)
    message(FATAL_ERROR "the model of ranks that were killed and resumed is another one")
endif()

# What only one of them says.
foreach(arguments IN ITEMS "evaluate;--text;${text_file};--checkpoint;${own}/model"
                           "generate;--checkpoint;${own}/model;--bytes;50" "train;--help")
    run(${arguments})
    set(out_of_one "${out}")
    run_ranks(3 ${arguments})
    if(NOT code STREQUAL "0" OR NOT out STREQUAL out_of_one)
        complain("3 ranks should have printed:\n${out_of_one}" ${arguments})
    endif()
endforeach()

# expect_failure(<ranks that fail> <regex> <command>...): of three ranks, each says why in one line; none waits.
function(expect_failure failing regex)
    file(REMOVE "${own}/new")
    execute_process(COMMAND "${MPIEXEC}" ${ARGN} TIMEOUT 60 RESULT_VARIABLE code OUTPUT_VARIABLE out ERROR_VARIABLE err)
    string(REPLACE ";" "," lines "${err}")
    string(REGEX MATCHALL "(^|\n)${NAME}: [^\n]*" lines "${lines}")
    list(TRANSFORM lines STRIP)
    set(own_lines "${lines}")
    list(FILTER own_lines INCLUDE REGEX "^${NAME}: [^\n]*${regex}")
    list(FILTER own_lines EXCLUDE REGEX "^${NAME}: rank [0-9]+ failed: ")
    set(other_lines "${lines}")
    list(FILTER other_lines INCLUDE REGEX "^${NAME}: rank [0-9]+ failed: [^\n]*${regex}")
    list(LENGTH lines all)
    list(LENGTH own_lines fail)
    list(LENGTH other_lines learn)
    math(EXPR expected_learn "3 - ${failing}")
    if(NOT code STREQUAL "2" OR NOT out STREQUAL "" OR NOT all EQUAL 3 OR NOT fail EQUAL failing
       OR NOT learn EQUAL expected_learn)
        complain("of 3 ranks ${failing} should have said ${regex}, the others that it did, and nothing else" ${ARGN})
    endif()
endfunction()

set(train "${PROGRAM}" train --checkpoint "${own}/new" ${tiny})
file(WRITE "${own}/short" "too short")
string(REPLACE "Every" "Some " other "${text}")
file(WRITE "${own}/other" "${other}")
expect_failure(3 "cannot open" ${NUMBER} 3 ${train} --text "${own}/nothing")
expect_failure(3 "--layers" ${NUMBER} 3 ${train} --text "${text_file}" --layers 0)
expect_failure(3 "not enough memory for 3 ranks" ${NUMBER} 3 "${PROGRAM}" train --text "${text_file}" --checkpoint
               "${own}/new" --layers 1000 --d_model 65536)
expect_failure(1 "model\" is there already" ${NUMBER} 3 "${PROGRAM}" train --text "${text_file}" --checkpoint
               "${own}/model" ${tiny})
expect_failure(1 "could not be written" ${NUMBER} 3 "${PROGRAM}" train --text "${text_file}" --checkpoint
               "${own}/no/such/folder" ${tiny})
expect_failure(1 "log \"${own}/no/such/folder\" could not be written" ${NUMBER} 3 ${train} --text "${text_file}" --log
               "${own}/no/such/folder")
# expect_failure_of_one(<regex> <arguments>...): where rank 0 has them, or the last one.
function(expect_failure_of_one regex)
    set(right ${train} --text "${text_file}")
    expect_failure(1 "${regex}" ${NUMBER} 1 ${ARGN} : ${NUMBER} 2 ${right})
    expect_failure(1 "${regex}" ${NUMBER} 2 ${right} : ${NUMBER} 1 ${ARGN})
endfunction()
expect_failure_of_one("cannot open \"${own}/nothing\"" ${train} --text "${own}/nothing")
expect_failure_of_one("short\" has 9 bytes" ${train} --text "${own}/short")
set(right ${train} --text "${text_file}")
expect_failure(1 "other\" is not that of rank 0" ${NUMBER} 2 ${right} : ${NUMBER} 1 ${train} --text "${own}/other")
expect_failure(1 "how it is trained, is not that of rank 0" ${NUMBER} 2 ${right} : ${NUMBER} 1 ${right} --seed 2)
expect_failure(1 "--save_every is not that of rank 0" ${NUMBER} 2 ${right} : ${NUMBER} 1 ${right} --save_every 7)
expect_failure(1 "the subcommand is not that of rank 0" ${NUMBER} 2 ${right} : ${NUMBER} 1 "${PROGRAM}" generate
               --checkpoint "${own}/model")
