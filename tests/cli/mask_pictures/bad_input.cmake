# SPDX-License-Identifier: Apache-2.0
# Bad input ends with 2 and one line that names what is wrong.
include("${CMAKE_CURRENT_LIST_DIR}/../expect.cmake")

expect_rejection("surplus" surplus)
expect_rejection("cannot be written" --picture "${FOLDER}")
expect_rejection("cannot be written" --picture "${FOLDER}/no_such_folder/picture.svg")
