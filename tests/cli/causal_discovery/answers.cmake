# SPDX-License-Identifier: Apache-2.0
# The links of a small series are found, with their lags, and what is excluded is not; a graph that was written is prior
# knowledge.
include("${CMAKE_CURRENT_LIST_DIR}/../expect.cmake")
include("${CMAKE_CURRENT_LIST_DIR}/series.cmake")

set(truth "${FOLDER}/causal_discovery_truth.csv")
file(WRITE "${truth}" "wind,wind,1\nwind,rain,2\n")
set(graph "${FOLDER}/causal_discovery.svg")
set(json "${FOLDER}/causal_discovery.json")
file(REMOVE "${graph}" "${json}")
set(short --steps 120 --starts 2)
expect_answer("causal_discovery.csv: 3 variables, 400 times, lags 1 to 3, 0 links excluded; 2 forecasters, 120 steps"
              "wind +\\| +wind \\| +1 \\|" "wind +\\| +rain \\| +2 \\|" "attention +\\| +[23] \\| [01]\\.[0-9]+ \\|"
              "Granger  " "Granger, robust" "recall"
              ARGUMENTS "${series_file}" ${short} --truth "${truth}" --graph "${graph}" --json "${json}")
expect_picture("${graph}")

file(READ "${json}" written)
string(JSON lag GET "${written}" links 1 lag)
string(JSON effect GET "${written}" links 1 effect)
if(NOT "${effect} ${lag}" STREQUAL "rain 2")
    message(FATAL_ERROR "${json} should have wind -> rain with lag 2:\n${written}")
endif()
string(JSON written SET "${written}" excluded 0 "{\"cause\": \"wind\", \"effect\": \"rain\"}")
file(WRITE "${json}" "${written}")
expect_answer("2 links excluded" ARGUMENTS "${series_file}" ${short} --prior "${json}" --exclude "snow->wind"
              --json "${json}")
if(out MATCHES "wind +\\| +rain" OR out MATCHES "snow +\\| +wind")
    message(FATAL_ERROR "An excluded link was found:\n${out}")
endif()
file(READ "${json}" written)
string(JSON excluded LENGTH "${written}" excluded)
if(NOT excluded EQUAL 2)
    message(FATAL_ERROR "${json} should have what was excluded:\n${written}")
endif()

expect_answer("partial correlation and all self-links" "all self-links alone"
              ARGUMENTS "${series_file}" --first_lag 0 --lags 1 --steps 5 --starts 1 --strongest 1)
expect_answer("--benchmark" ARGUMENTS --help)
