# SPDX-License-Identifier: Apache-2.0
# Toolchain file: another processor's programs with Debian's cross compiler, run under QEMU's user-mode emulation.
# CASTLE_EMULATED names the processor: aarch64, ppc64le, riscv64 or s390x. Each is compiled for the compiler's default
# instruction set: NEON on aarch64 and VSX on ppc64le; on riscv64 and s390x Eigen has no vector instructions then.
set(CASTLE_EMULATED "" CACHE STRING "The processor to compile for: aarch64, ppc64le, riscv64 or s390x")
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES CASTLE_EMULATED) # CMake's own checks read this file as well

# Debian and QEMU name one of them differently.
if(CASTLE_EMULATED STREQUAL "ppc64le")
    set(triple powerpc64le-linux-gnu)
elseif(CASTLE_EMULATED MATCHES "^(aarch64|riscv64|s390x)$")
    set(triple ${CASTLE_EMULATED}-linux-gnu)
else()
    message(FATAL_ERROR "CASTLE_EMULATED is \"${CASTLE_EMULATED}\"; it may be aarch64, ppc64le, riscv64 or s390x")
endif()

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR ${CASTLE_EMULATED})

set(CMAKE_C_COMPILER ${triple}-gcc) # GoogleTest's project asks for C as well
set(CMAKE_CXX_COMPILER ${triple}-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-${CASTLE_EMULATED} -L /usr/${triple})

# Programs are this machine's and libraries the other's. Packages and headers may be either's, for Eigen, which has no
# library, is found where this machine has it.
set(CMAKE_FIND_ROOT_PATH /usr/${triple})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
# An installed GoogleTest, though, is a library of this machine's: it is built from its sources instead.
set(CMAKE_DISABLE_FIND_PACKAGE_GTest ON)
