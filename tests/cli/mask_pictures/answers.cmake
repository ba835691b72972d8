# SPDX-License-Identifier: Apache-2.0
# A picture is drawn, and the program says where.
include("${CMAKE_CURRENT_LIST_DIR}/../expect.cmake")

set(picture "${FOLDER}/masks.svg")
file(REMOVE "${picture}")
expect_answer("Ten masks of 24 tokens are drawn in" ARGUMENTS --picture "${picture}")
expect_picture("${picture}")
expect_answer("--picture" ARGUMENTS --help)
