# SPDX-License-Identifier: Apache-2.0
# What the example is there to show: out of distribution models are far better with the loss on their attention. And it
# reads files of the published form.
include("${CMAKE_CURRENT_LIST_DIR}/../expect.cmake")

set(picture "${FOLDER}/causal_tuning.svg")
file(REMOVE "${picture}")
expect_answer("standard, 1 layer, cross-entropy alone \\|[^|]*\\|[^|]*\\| +[5-8][0-9]\\.[0-9] ± "
              "standard, 1 layer, alpha 20 +\\|[^|]*\\|[^|]*\\| +9[0-9]\\.[0-9] ± +[0-9.]+ \\| +9[0-9]\\.[0-9] ± "
              ARGUMENTS --seeds 2 --epochs 12 --picture "${picture}")
expect_picture("${picture}")
expect_answer("--out_of_distribution" ARGUMENTS --help)

set(person "Room size: 2, Certain gene: 10, Clothing size: 9, Hormones: 10, Yellow fingers: 15, Smoking: 10, Exercise: 1, Weight: 1")
set(file "${FOLDER}/people.jsonl")
set(lines)
foreach(i RANGE 19)
    string(APPEND lines "{\"input\": \"A person. ${person} Answer: \", \"target\": \"High Risk\"}\n")
endforeach()
file(WRITE "${file}" "${lines}")
expect_answer("18 examples to train on" "the most frequent risk +\\| +\\| +100.0 \\| +100.0 "
              ARGUMENTS --seeds 1 --epochs 1 --train "${file}" --in_distribution "${file}" --out_of_distribution "${file}")
