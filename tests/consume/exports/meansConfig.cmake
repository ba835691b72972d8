# SPDX-License-Identifier: Apache-2.0
include(CMakeFindDependencyMacro)
find_dependency(castle)
include("${CMAKE_CURRENT_LIST_DIR}/meansTargets.cmake")
