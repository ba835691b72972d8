# SPDX-License-Identifier: Apache-2.0
# Toolchain file: 64-bit ARM with Debian's cross compiler; what is built runs under user-mode emulation.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)

set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc) # GoogleTest's project asks for C as well
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)

# Programs are this machine's and libraries the other's. Packages and headers may be either's, for Eigen, which has no
# library, is found where this machine has it.
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
# An installed GoogleTest, though, is a library of this machine's: it is built from its sources instead.
set(CMAKE_DISABLE_FIND_PACKAGE_GTest ON)
