# SPDX-License-Identifier: Apache-2.0
cmake_minimum_required(VERSION 3.22)

# Searches for inputs and replaces those in a corpus that are named after their content by the fewest that reach as
# much. Arguments: program (a fuzz target), corpus (its folder), work (a folder for what is found), seconds.
file(REMOVE_RECURSE "${work}")
file(MAKE_DIRECTORY "${corpus}" "${work}/found" "${work}/kept")
set(options -max_len=400 -timeout=20)
execute_process(COMMAND "${program}" ${options} -seed=1 -max_total_time=${seconds} "${work}/found" "${corpus}"
                WORKING_DIRECTORY "${work}" COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND "${program}" ${options} -merge=1 "${work}/kept" "${corpus}" "${work}/found"
                WORKING_DIRECTORY "${work}" COMMAND_ERROR_IS_FATAL ANY)

# Inputs with a name of their own stay, once.
set(named)
file(GLOB old RELATIVE "${corpus}" "${corpus}/*")
foreach(name IN LISTS old)
    string(LENGTH "${name}" length)
    if(length EQUAL 40 AND name MATCHES "^[0-9a-f]+$")
        file(REMOVE "${corpus}/${name}")
    else()
        file(SHA1 "${corpus}/${name}" hash)
        list(APPEND named ${hash})
    endif()
endforeach()
file(GLOB kept "${work}/kept/*")
foreach(input IN LISTS kept)
    file(SHA1 "${input}" hash)
    if(NOT hash IN_LIST named)
        file(COPY_FILE "${input}" "${corpus}/${hash}")
    endif()
endforeach()
list(LENGTH kept count)
message(STATUS "${count} inputs in ${corpus}")
