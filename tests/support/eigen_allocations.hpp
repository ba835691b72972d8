// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdio>
#include <cstdlib>

// Eigen takes memory from malloc, and lets nobody count that but through an assertion, which has to be there before
// anything of Eigen, and the same in all of a program.
#ifdef EIGEN_CORE_H
#error "support/eigen_allocations.hpp has to come before Eigen"
#endif
#define EIGEN_RUNTIME_NO_MALLOC
#define eigen_assert(condition) ((condition) ? void() : support::failed_eigen_assertion(#condition))

namespace support {

/// Called for every allocation of Eigen's while it is allowed none.
inline void (*on_eigen_allocation)() = nullptr;

void failed_eigen_assertion(const char* condition);

}  // namespace support

#include <Eigen/Core>

namespace support {

inline void failed_eigen_assertion(const char* condition) {
    if (Eigen::internal::is_malloc_allowed() || on_eigen_allocation == nullptr) {
        std::fprintf(stderr, "Assertion failed: %s\n", condition);  // one about something else
        std::abort();
    }
    on_eigen_allocation();
}

}  // namespace support
