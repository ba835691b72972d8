# SPDX-License-Identifier: Apache-2.0
# All of it runs, and prints what it is there to show. What the figures are to be takes minutes, and is not tested.
include("${CMAKE_CURRENT_LIST_DIR}/../expect.cmake")

set(picture "${FOLDER}/visual_questions.svg")
file(REMOVE "${picture}")
expect_answer("gone +\\| +new +\\| +unread +\\| +odd" "causal mask  " "mask all  " "mask v2v  " "mask v2t  " "light all  "
              "light v2v  " "light v2t  " "trained causal, run with light v2t" "for a prompt of 48 tokens" "mean with a kernel of 3"
              ARGUMENTS --seeds 1 --steps 2 --time_tokens 48 --pooling mean --kernel 3 --prefix 2 --picture "${picture}")
expect_picture("${picture}")
expect_answer("--time_tokens" ARGUMENTS --help)
