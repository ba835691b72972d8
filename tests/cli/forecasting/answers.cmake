# SPDX-License-Identifier: Apache-2.0
# All of it runs, and prints and writes what it is there to show. What the figures are to be takes minutes, and is not
# tested.
include("${CMAKE_CURRENT_LIST_DIR}/../expect.cmake")
include("${CMAKE_CURRENT_LIST_DIR}/rows.cmake")

set(picture "${FOLDER}/forecasting.svg")
set(csv "${FOLDER}/forecasting_forecasts.csv")
file(REMOVE "${picture}" "${csv}")
expect_answer(
    "2 variables, 150 rows for training, 50 for validation, 60 for tests" "Ridge regression: lambda" "chooses the number of steps"
    "mean squared error +\\| +8 \\| +20 \\| +mean \\|" "mean absolute error" "last value  " "last 8 values again  "
    "ridge regression  " "attention  " "attention, refined  " "average of attention and ridge  "
    "the same, weighted by validation" "attention, mean of all seeds  " "average of that and ridge  " " ± "
    ARGUMENTS "${rows}" ${small} --seeds 2 --decay added --refine --picture "${picture}" --csv "${csv}")
expect_picture("${picture}")
file(STRINGS "${csv}" lines)
list(LENGTH lines count)
# A title, and 20 points of two variables.
if(NOT count EQUAL 41)
    message(FATAL_ERROR "${csv} has ${count} lines")
endif()
list(GET lines 0 1 heads)
if(NOT heads MATCHES "^file,variable,date,truth,attention,ridge regression;\"[^;]*\",\"load\",\"day 201\",[-0-9.]+,[-0-9.]+,[-0-9.]+$")
    message(FATAL_ERROR "${csv} begins with ${heads}")
endif()

# The figures do not depend on the threads.
foreach(threads IN ITEMS 1 3)
    expect_answer("mean squared error" ARGUMENTS "${rows}" ${small} --seeds 1 --threads ${threads} --lookahead)
    string(REGEX REPLACE "\n[0-9]+ s\n" "" figures${threads} "${out}")
endforeach()
if(NOT figures1 STREQUAL figures3)
    message(FATAL_ERROR "one thread:\n${figures1}\nthree threads:\n${figures3}")
endif()

expect_answer("decay multiplied  " "decay added  " "no decay  " "no window  " "neither window nor decay  " "CASTLE: "
              "attention, refined  " "the last 1 subtracted alone  " "the last 32 subtracted alone" "window of 32  "
              "full causal attention"
              ARGUMENTS "${rows}" ${small} --seeds 1 --ablations --hourly)
expect_answer("--horizons" ARGUMENTS --help)
