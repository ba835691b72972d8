// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the machine can do at most, measured in the program that measures the library.
namespace castle_bench {

/// Floating-point operations a second of one core: fused multiply-adds (two operations each, where the instruction set
/// of this build has them) of packets of float between registers, as many chains at once as a register tile has.
/// Measured at the first call.
double peak();

/// Bytes a second that one core reads from an array larger than the last cache. Measured at the first call.
double bandwidth();

}  // namespace castle_bench
