# SPDX-License-Identifier: Apache-2.0
# write_rows(<path> <rows>): a CSV of two variables, a wave of eight points and a slower one.
function(write_rows path rows)
    set(text "date,load,price\n")
    foreach(t RANGE 1 ${rows})
        math(EXPR wave "((${t} % 8 - 4) * (${t} % 8 - 4) * 10 + ${t} * 7919 % 13) % 1000")
        math(EXPR slow "(${t} / 5) % 11")
        string(APPEND text "day ${t},${wave}.5,-${slow}\n")
    endforeach()
    file(WRITE "${path}" "${text}")
endfunction()

set(rows "${FOLDER}/forecasting_rows.csv")
write_rows("${rows}" 260)
# A model that such a file is enough for.
set(small --training_rows 150 --validation_rows 50 --test_rows 60 --horizons 8,20 --period 8 --context 32 --patch 8
          --segment 16 --steps 2 --batch 16)
