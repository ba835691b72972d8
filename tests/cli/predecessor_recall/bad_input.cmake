# SPDX-License-Identifier: Apache-2.0
# Every kind of bad input ends with 2 and one line that names what is wrong, before any training.
include("${CMAKE_CURRENT_LIST_DIR}/../expect.cmake")

foreach(option IN ITEMS --castle_steps --causal_steps)
    foreach(value IN ITEMS 0 -1 2.5 many 99999999999999999999999)
        expect_rejection("${option}" ${option} ${value})
    endforeach()
endforeach()
foreach(value IN ITEMS -1 2.5 many)
    expect_rejection("--seed" --seed ${value})
endforeach()
expect_rejection("surplus" surplus)
expect_rejection("cannot be written" --picture "${FOLDER}")
expect_rejection("cannot be written" --picture "${FOLDER}/no_such_folder/picture.svg")
