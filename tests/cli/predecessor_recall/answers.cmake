# SPDX-License-Identifier: Apache-2.0
# What the example is there to show: CASTLE learns the task, and standard attention goes on guessing, which is right in
# one of six.
include("${CMAKE_CURRENT_LIST_DIR}/../expect.cmake")

set(picture "${FOLDER}/predecessor_recall.svg")
file(REMOVE "${picture}")
expect_answer("Answered right: (9[0-9]|100)\\.[0-9] % with CASTLE after 500 steps, (1[0-9]|2[0-5])\\.[0-9] % with"
              ARGUMENTS --causal_steps 300 --picture "${picture}")
expect_picture("${picture}")
expect_answer("--castle_steps" ARGUMENTS --help)
