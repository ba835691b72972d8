# SPDX-License-Identifier: Apache-2.0
# Every kind of bad input ends with 2 and one line that names what is wrong, before any training.
include("${CMAKE_CURRENT_LIST_DIR}/../expect.cmake")

expect_counts(--castle_steps --causal_steps)
expect_counts_from_0(--seed)
expect_rejection("surplus" surplus)
expect_rejection("cannot be written" --picture "${FOLDER}")
expect_rejection("cannot be written" --picture "${FOLDER}/no_such_folder/picture.svg")
