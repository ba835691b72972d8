# SPDX-License-Identifier: Apache-2.0
# Every kind of bad input ends with 2 and one line that names what is wrong.
include("${CMAKE_CURRENT_LIST_DIR}/../expect.cmake")

set(text "${FOLDER}/short.txt")
file(WRITE "${text}" "the old man the boat")

# Files.
expect_refusal("no_such_file.txt" --file "${FOLDER}/no_such_file.txt")
expect_refusal("is a directory" --file "${FOLDER}")
file(WRITE "${FOLDER}/empty.txt" "")
expect_refusal("empty.txt.* is empty" --file "${FOLDER}/empty.txt")
file(WRITE "${FOLDER}/unreadable.txt" "text")
file(CHMOD "${FOLDER}/unreadable.txt" PERMISSIONS OWNER_WRITE)
execute_process(COMMAND "${CMAKE_COMMAND}" -E cat "${FOLDER}/unreadable.txt" RESULT_VARIABLE denied OUTPUT_QUIET
                ERROR_QUIET)
if(denied) # nothing is unreadable to root
    expect_refusal("cannot open" --file "${FOLDER}/unreadable.txt")
endif()

# Sizes: none, negative, not whole, no numbers, beyond any range.
foreach(option IN ITEMS --length --heads --d_model --d_head --chunk)
    foreach(value IN ITEMS 0 -1 2.5 many 1e3 99999999999999999999999)
        expect_refusal("${option}" --file "${text}" ${option} ${value})
    endforeach()
endforeach()
foreach(option IN ITEMS --window --threads --seed)
    foreach(value IN ITEMS -1 2.5 many 99999999999999999999999)
        expect_refusal("${option}" --file "${text}" ${option} ${value})
    endforeach()
endforeach()

# Sizes that do not go together, or into memory.
expect_refusal("--heads is 6 but must be a multiple of 4" --file "${text}" --heads 6)
expect_refusal("--d_head is 7 but must be even" --file "${text}" --d_head 7)
expect_refusal("memory" --file "${text}" --heads 65536 --d_head 65536 --d_model 65536)

# The command line itself.
expect_refusal("--length" --length)
expect_refusal("--size" --size 3)
expect_refusal("surplus" surplus)
expect_refusal("--file" --file "${text}" --file "${text}")
expect_refusal("rotary" --file "${text}" --rotary=7)

# A message is one line whatever the argument that it quotes.
expect_refusal("--length" --file "${text}" --length "4\n5")
expect_refusal("cannot open|no such|does not exist|No such" --file "${FOLDER}/a\nb")

# A table that nobody gets is no success.
if(EXISTS /dev/full)
    execute_process(COMMAND "${PROGRAM}" --file "${text}" --heads 4 --d_model 4 --d_head 2 OUTPUT_FILE /dev/full
                    RESULT_VARIABLE code ERROR_VARIABLE message)
    if(NOT code EQUAL 2 OR NOT message MATCHES "could not be written")
        message(FATAL_ERROR "a full disk gave exit code ${code} and \"${message}\"")
    endif()
endif()
