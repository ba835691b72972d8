# SPDX-License-Identifier: Apache-2.0
# --help explains every option; --version says the version.
include("${CMAKE_CURRENT_LIST_DIR}/../expect.cmake")

expect_answer("--file" "--length" "--heads" "--d_model" "--d_head" "--window" "--chunk" "--threads" "--rotary"
              "--no-rotary" "--seed" "--version" ARGUMENTS --help)
expect_answer("^text_attention, castle [0-9]+\\.[0-9]+\\.[0-9]+\n$" ARGUMENTS --version)
