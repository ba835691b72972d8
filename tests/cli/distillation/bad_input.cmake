# SPDX-License-Identifier: Apache-2.0
# Every kind of bad input ends with 2 and one line that names what is wrong, before any training.
include("${CMAKE_CURRENT_LIST_DIR}/../expect.cmake")

expect_counts(--examples --epochs --seeds)
foreach(option IN ITEMS --threshold --lambda)
    foreach(value IN ITEMS -0.1 1.5 many)
        expect_rejection("${option}" ${option} ${value})
    endforeach()
endforeach()
expect_counts_from_0(--seed --threads)
expect_rejection("surplus" surplus)
