# SPDX-License-Identifier: Apache-2.0
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

# Nothing that is installed depends on the architecture, hence share/ and not lib/.
set(package_dir "${CMAKE_INSTALL_DATADIR}/cmake/castle")
set(pkgconfig_dir "${CMAKE_INSTALL_DATADIR}/pkgconfig")

target_include_directories(castle INTERFACE "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>")

install(
    DIRECTORY "${PROJECT_SOURCE_DIR}/include/castle"
    DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
    FILES_MATCHING
    PATTERN "*.hpp")

install(TARGETS castle EXPORT castleTargets)
install(EXPORT castleTargets NAMESPACE castle:: DESTINATION "${package_dir}")
# The same from the build tree: castle_DIR may be the build folder, and export() of a target that links castle works.
export(EXPORT castleTargets NAMESPACE castle:: FILE "${PROJECT_BINARY_DIR}/castleTargets.cmake")

configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/castleConfig.cmake.in"
                              "${PROJECT_BINARY_DIR}/castleConfig.cmake" INSTALL_DESTINATION "${package_dir}")
# Before 1.0 a minor version may break what compiled with the one before.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/castleConfigVersion.cmake" COMPATIBILITY SameMinorVersion
                                 ARCH_INDEPENDENT)
install(FILES "${PROJECT_BINARY_DIR}/castleConfig.cmake" "${PROJECT_BINARY_DIR}/castleConfigVersion.cmake"
        DESTINATION "${package_dir}")

# Relative to the file itself, so that an installed tree may be moved.
file(RELATIVE_PATH prefix_from_pc "${CMAKE_INSTALL_FULL_DATADIR}/pkgconfig" "${CMAKE_INSTALL_PREFIX}")
file(RELATIVE_PATH includedir_from_prefix "${CMAKE_INSTALL_PREFIX}" "${CMAKE_INSTALL_FULL_INCLUDEDIR}")
configure_file("${PROJECT_SOURCE_DIR}/cmake/castle.pc.in" "${PROJECT_BINARY_DIR}/castle.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/castle.pc" DESTINATION "${pkgconfig_dir}")
