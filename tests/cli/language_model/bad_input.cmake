# SPDX-License-Identifier: Apache-2.0
# Every kind of bad input ends with 2 and one line that names what is wrong, and leaves the checkpoint as it was.
include("${CMAKE_CURRENT_LIST_DIR}/small.cmake")

expect_rejection("subcommand")
expect_rejection("--text" train --checkpoint "${own}/new")
expect_rejection("--checkpoint" train --text "${text_file}")
foreach(option IN ITEMS --layers --d_model --heads --kv_heads --d_head --context --steps --batch --save_every)
    foreach(value IN ITEMS 0 -1 2.5 many 99999999999999999999999)
        expect_rejection("${option}" train --text "${text_file}" --checkpoint "${own}/new" ${option} ${value})
    endforeach()
endforeach()
foreach(value IN ITEMS 0 -1 2 nan inf many)
    expect_rejection("--learning_rate" train --text "${text_file}" --checkpoint "${own}/new" --learning_rate ${value})
endforeach()
expect_rejection("--heads is 6 but must be a multiple of 4" train --text "${text_file}" --checkpoint "${own}/new"
                 --heads 6)
foreach(attention IN ITEMS castle castle-swl causal)
    foreach(kv_heads IN ITEMS 3 5 16)
        expect_rejection("--kv_heads is ${kv_heads} but must divide the number of heads, 8" train --text "${text_file}"
                         --checkpoint "${own}/new" --attention ${attention} --heads 8 --kv_heads ${kv_heads})
    endforeach()
endforeach()
expect_rejection("--d_head is 5 but must be even" train --text "${text_file}" --checkpoint "${own}/new" --d_head 5)
expect_rejection("--attention" train --text "${text_file}" --checkpoint "${own}/new" --attention dense)
foreach(attention IN ITEMS castle causal)
    expect_rejection("--window is for --attention castle-swl" train --text "${text_file}" --checkpoint "${own}/new"
                     --attention ${attention} --window 3)
endforeach()
foreach(option IN ITEMS --no-silu --no-causal_keys)
    expect_rejection("${option} is for --attention castle" train --text "${text_file}" --checkpoint "${own}/new"
                     --attention causal ${option})
endforeach()
expect_rejection("not enough memory" train --text "${text_file}" --checkpoint "${own}/new" --layers 1000
                 --d_model 65536)
expect_rejection("surplus" train --text "${text_file}" --checkpoint "${own}/new" surplus)

expect_rejection("cannot open" train --text "${own}/nothing" --checkpoint "${own}/new")
expect_rejection("is a directory" train --text "${own}" --checkpoint "${own}/new")
expect_rejection("2940 bytes but a context of 294 needs at least 2950" train --text "${text_file}"
                 --checkpoint "${own}/new" --context 294)
expect_rejection("could not be written" train --text "${text_file}" --checkpoint "${own}/no/such/folder" ${small})
expect_rejection("log \"${own}/no/such/folder\" could not be written" train --text "${text_file}"
                 --checkpoint "${own}/new" ${small} --log "${own}/no/such/folder")
if(EXISTS "${own}/new")
    message(FATAL_ERROR "a training that did not begin left a checkpoint")
endif()
foreach(subcommand IN ITEMS "evaluate;--text;${text_file}" "generate" "train;--resume;--text;${text_file}")
    expect_rejection("cannot open \"${own}/new\"" ${subcommand} --checkpoint "${own}/new")
endforeach()

reject_and_keep("would be written over" "${text_file}" train --text "${text_file}" --checkpoint "${own}/new" ${small}
                --log "${text_file}")
file(WRITE "${own}/log" "step")
reject_and_keep("is there already" "${own}/log" train --text "${text_file}" --checkpoint "${own}/new" ${small}
                --log "${own}/log")

set(model "${own}/model")
expect_answer("the model is in" ARGUMENTS train --text "${text_file}" --checkpoint "${model}" ${small} --steps 2)
reject_and_keep("is there already" "${model}" train --text "${text_file}" --checkpoint "${model}" ${small} --steps 2)
reject_and_keep("would be written over" "${model}" train --resume --text "${text_file}" --checkpoint "${model}"
                --log "${model}")
reject_and_keep("--layers" "${model}" train --resume --text "${text_file}" --checkpoint "${model}" --layers 3)
reject_and_keep("--kv_heads" "${model}" train --resume --text "${text_file}" --checkpoint "${model}" --kv_heads 2)
file(WRITE "${own}/other" "${text}and another end")
reject_and_keep("other\" is not the text" "${model}" train --resume --text "${own}/other" --checkpoint "${model}")
expect_rejection("--prompt" generate --checkpoint "${model}" --prompt=)
foreach(value IN ITEMS -1 nan many)
    expect_rejection("--temperature" generate --checkpoint "${model}" --temperature ${value})
endforeach()

# What is no checkpoint, or no longer a whole one.
file(WRITE "${own}/empty" "")
file(WRITE "${own}/foreign" "${text}")
file(WRITE "${own}/json" "{\"__metadata__\": {}}")
execute_process(COMMAND head -c 3000 "${model}" OUTPUT_FILE "${own}/truncated")
execute_process(COMMAND sh -c "cat '${model}' '${text_file}'" OUTPUT_FILE "${own}/longer")
foreach(file IN ITEMS empty foreign json truncated longer)
    foreach(subcommand IN ITEMS "evaluate;--text;${text_file}" "generate" "train;--resume;--text;${text_file}")
        reject_and_keep("the checkpoint \"${own}/${file}\" " "${own}/${file}" ${subcommand} --checkpoint "${own}/${file}")
    endforeach()
endforeach()
