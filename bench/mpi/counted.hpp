// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <mpi.h>

#include <castle/types.hpp>

// Counts what a rank sends to others, by MPI's profiling interface: the functions that the library sends with are
// defined in counted.cpp, and pass everything on. For programs, not for the library.
namespace castle_bench {

struct Sent {
    castle::Index states = 0;   // bytes of states of spans
    castle::Index outputs = 0;  // bytes of outputs, to every rank that gets them
    castle::Index calls = 0;    // exchanges of any kind
};

/// Of this rank, so far.
inline Sent sent = {};

}  // namespace castle_bench
