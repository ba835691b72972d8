# SPDX-License-Identifier: Apache-2.0
# The rest of every consumer project: a program that links the given target and is strict about warnings.
function(build_consumer target)
    add_executable(consumer "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/main.cpp")
    target_link_libraries(consumer PRIVATE ${target})
    if(NOT MSVC)
        target_compile_options(consumer PRIVATE -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror)
    endif()

    # The library may ask for a language standard and for nothing else.
    foreach(property INTERFACE_COMPILE_OPTIONS INTERFACE_COMPILE_DEFINITIONS INTERFACE_LINK_OPTIONS)
        get_target_property(value ${target} ${property})
        if(value)
            message(FATAL_ERROR "${target} forces ${property} on its consumers: ${value}")
        endif()
    endforeach()
    foreach(other gtest GTest::gtest benchmark benchmark::benchmark castle_program)
        if(TARGET ${other})
            message(FATAL_ERROR "${target} brings ${other} along")
        endif()
    endforeach()
endfunction()
