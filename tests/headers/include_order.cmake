# SPDX-License-Identifier: Apache-2.0
cmake_minimum_required(VERSION 3.22)

# Fails unless every include of the library's own headers stays within its room or points to one further down, no header
# includes itself through others, every header has a room, and every folder of detail/ and reference/ has a README.md.
# Arguments: include (the folder that castle/ is in).
#
# The rooms, from the bottom up: files, and folders without what lies in folders below them.
set(rooms
    "detail/base/"
    "detail/simd/"
    "detail/check/message.hpp"
    "types.hpp"
    "version.hpp"
    "detail/mask/"
    "executor.hpp mask.hpp terms.hpp"
    "input.hpp output.hpp options.hpp wide_input.hpp"
    "detail/check/"
    "reference/"
    "detail/score/"
    "detail/state/"
    "rotary.hpp"
    "detail/forward/"
    "detail/cache/"
    "detail/backward/"
    "cache.hpp extend.hpp attention.hpp workspace.hpp backward.hpp"
    "layer_weights.hpp"
    "detail/layer/"
    "layer_cache.hpp layer_workspace.hpp layer.hpp"
    "detail/methods/"
    "methods/"
    "castle.hpp"
    "detail/mpi/calls.hpp"
    "mpi/communicator.hpp"
    "detail/mpi/"
    "mpi/")

# Sets <result> to the number of the room of a header, or to nothing if it has none.
function(room_of header result)
    cmake_path(GET header PARENT_PATH folder)
    set(number 0)
    foreach(room IN LISTS rooms)
        string(REPLACE " " ";" entries "${room}")
        if(header IN_LIST entries OR "${folder}/" IN_LIST entries)
            set(${result} ${number} PARENT_SCOPE)
            return()
        endif()
        math(EXPR number "${number} + 1")
    endforeach()
    set(${result} "" PARENT_SCOPE)
endfunction()

set(mistakes)
macro(mistake words)
    string(APPEND mistakes "  ${words}\n")
endmacro()

file(GLOB_RECURSE headers RELATIVE "${include}/castle" "${include}/castle/*.hpp")
if(NOT headers)
    message(FATAL_ERROR "no headers in ${include}/castle")
endif()

set(count 0)
foreach(header IN LISTS headers)
    room_of("${header}" room)
    if(room STREQUAL "")
        mistake("${header} belongs to no room")
    endif()
    file(STRINGS "${include}/castle/${header}" lines REGEX "^[ \t]*#[ \t]*include")
    set(includes_of_${header})
    foreach(line IN LISTS lines)
        if(line MATCHES "\"([^\"]*)\"")
            mistake("${header} includes \"${CMAKE_MATCH_1}\" in quotes")
        elseif(line MATCHES "<castle/([^>]+)>")
            set(included "${CMAKE_MATCH_1}")
            math(EXPR count "${count} + 1")
            list(APPEND includes_of_${header} "${included}")
            room_of("${included}" below)
            if(below STREQUAL "")
                mistake("${header} includes ${included}, which belongs to no room")
            elseif(NOT room STREQUAL "" AND below GREATER room)
                mistake("${header} includes ${included}, which is further up")
            endif()
        endif()
    endforeach()
endforeach()

# What includes none of the rest is taken away, until there is nothing left, or a cycle and what includes it.
set(rest ${headers})
while(rest)
    set(leaves)
    foreach(header IN LISTS rest)
        set(is_leaf TRUE)
        foreach(included IN LISTS includes_of_${header})
            if(included IN_LIST rest)
                set(is_leaf FALSE)
            endif()
        endforeach()
        if(is_leaf)
            list(APPEND leaves "${header}")
        endif()
    endforeach()
    if(NOT leaves)
        # Likewise what none of the rest includes: nothing but cycles and what lies between them stays.
        set(included_by_rest)
        foreach(header IN LISTS rest)
            list(APPEND included_by_rest ${includes_of_${header}})
        endforeach()
        foreach(header IN LISTS rest)
            if(NOT header IN_LIST included_by_rest)
                list(APPEND leaves "${header}")
            endif()
        endforeach()
    endif()
    if(NOT leaves)
        list(JOIN rest " " names)
        mistake("include one another: ${names}")
        break()
    endif()
    list(REMOVE_ITEM rest ${leaves})
endwhile()

file(GLOB folders RELATIVE "${include}/castle" "${include}/castle/detail/*")
foreach(folder IN LISTS folders ITEMS reference)
    if(IS_DIRECTORY "${include}/castle/${folder}" AND NOT EXISTS "${include}/castle/${folder}/README.md")
        mistake("${folder} has no README.md")
    endif()
endforeach()

if(mistakes)
    message(FATAL_ERROR "the rooms of ${include}/castle:\n${mistakes}")
endif()
list(LENGTH headers header_count)
message(STATUS "${count} includes of ${header_count} headers point down")
