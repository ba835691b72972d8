# SPDX-License-Identifier: Apache-2.0
# Every kind of bad input ends with 2 and one line that names what is wrong, before any training.
include("${CMAKE_CURRENT_LIST_DIR}/../expect.cmake")

expect_counts(--seeds --steps --kernel --prefix)
expect_counts_from_0(--seed --threads --time_tokens)
expect_rejection("--kernel is 4 but must be odd" --kernel 4)
expect_rejection("--prefix" --prefix 13)
expect_rejection("--pooling" --pooling median)
expect_rejection("surplus" surplus)
expect_rejection("cannot be written" --picture "${FOLDER}")
