# SPDX-License-Identifier: Apache-2.0
# All of it runs, and prints what it is there to show. What the figures are to be takes minutes, and is not tested.
include("${CMAKE_CURRENT_LIST_DIR}/../expect.cmake")

set(models teacher "student, alone" distilled "LeaF, spans one by one" "LeaF, all spans at once" "random spans"
           "the true spurious spans" "misled teacher" "LeaF with the misled teacher")
list(TRANSFORM models PREPEND "\\| ")
list(TRANSFORM models APPEND " +\\| +[0-9.]+ \\| +[0-9.]+ \\|")
expect_answer(${models}
              "Of the removed tokens [0-9]+ % are spurious, [0-9]+ % causes" "-> (Low|Middle|High) Risk"
              ARGUMENTS --seeds 1 --epochs 2 --examples 200)
expect_answer("--threshold" ARGUMENTS --help)
