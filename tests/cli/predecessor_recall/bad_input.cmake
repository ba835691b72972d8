# SPDX-License-Identifier: Apache-2.0
# Every kind of bad input ends with 2 and one line that names what is wrong, before any training.
include("${CMAKE_CURRENT_LIST_DIR}/../expect.cmake")

foreach(option IN ITEMS --castle_steps --causal_steps)
    foreach(value IN ITEMS 0 -1 2.5 many 99999999999999999999999)
        expect_refusal("${option}" ${option} ${value})
    endforeach()
endforeach()
foreach(value IN ITEMS -1 2.5 many)
    expect_refusal("--seed" --seed ${value})
endforeach()
expect_refusal("surplus" surplus)
expect_refusal("cannot be written" --picture "${FOLDER}")
expect_refusal("cannot be written" --picture "${FOLDER}/no_such_folder/picture.svg")
