// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the machine can do at most, measured in the program that measures the library.
namespace castle_bench {

/// Floating-point operations a second of one core: fused multiply-adds (two operations each, where the instruction set
/// of this build has them) of packets of float between registers, as many chains at once as there are registers.
/// Measured at the first call, for long enough to meet with a moment in which nobody else has the core.
double peak();

/// Bytes a second that one core reads now from an array larger than the last cache, in memory of the same kind as the
/// caches'. It changes with what else uses the machine's memory, and so is measured at every call, over a time as long
/// as a repetition of what is held against it.
double bandwidth();

}  // namespace castle_bench
