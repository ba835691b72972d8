# SPDX-License-Identifier: Apache-2.0
# Every kind of bad input ends with 2 and one line that names what is wrong.
include("${CMAKE_CURRENT_LIST_DIR}/../expect.cmake")

set(text "${FOLDER}/short.txt")
file(WRITE "${text}" "the old man the boat")

# Files.
expect_rejection("no_such_file.txt" --file "${FOLDER}/no_such_file.txt")
expect_rejection("is a directory" --file "${FOLDER}")
file(WRITE "${FOLDER}/empty.txt" "")
expect_rejection("empty.txt.* is empty" --file "${FOLDER}/empty.txt")
file(WRITE "${FOLDER}/unreadable.txt" "text")
file(CHMOD "${FOLDER}/unreadable.txt" PERMISSIONS OWNER_WRITE)
execute_process(COMMAND "${CMAKE_COMMAND}" -E cat "${FOLDER}/unreadable.txt" RESULT_VARIABLE denied OUTPUT_QUIET
                ERROR_QUIET)
if(denied) # nothing is unreadable to root
    expect_rejection("cannot open" --file "${FOLDER}/unreadable.txt")
endif()

# Sizes: none, negative, not whole, no numbers, beyond any range.
foreach(option IN ITEMS --length --heads --d_model --d_head --chunk)
    foreach(value IN ITEMS 0 -1 2.5 many 1e3 99999999999999999999999)
        expect_rejection("${option}" --file "${text}" ${option} ${value})
    endforeach()
endforeach()
foreach(option IN ITEMS --window --threads --seed)
    foreach(value IN ITEMS -1 2.5 many 99999999999999999999999)
        expect_rejection("${option}" --file "${text}" ${option} ${value})
    endforeach()
endforeach()

# Sizes that do not go together, or into memory.
expect_rejection("--heads is 6 but must be a multiple of 4" --file "${text}" --heads 6)
expect_rejection("--d_head is 7 but must be even" --file "${text}" --d_head 7)
expect_rejection("memory" --file "${text}" --heads 65536 --d_head 65536 --d_model 65536)

# The command line itself.
expect_rejection("--length" --length)
expect_rejection("--size" --size 3)
expect_rejection("surplus" surplus)
expect_rejection("--file" --file "${text}" --file "${text}")
expect_rejection("rotary" --file "${text}" --rotary=7)

# A message is one line whatever the argument that it quotes.
expect_rejection("--length" --file "${text}" --length "4\n5")
expect_rejection("cannot open|no such|does not exist|No such" --file "${FOLDER}/a\nb")

# A table that nobody gets is no success.
if(EXISTS /dev/full)
    execute_process(COMMAND "${PROGRAM}" --file "${text}" --heads 4 --d_model 4 --d_head 2 OUTPUT_FILE /dev/full
                    RESULT_VARIABLE code ERROR_VARIABLE message)
    if(NOT code EQUAL 2 OR NOT message MATCHES "could not be written")
        message(FATAL_ERROR "a full disk gave exit code ${code} and \"${message}\"")
    endif()
endif()
