// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include <castle/castle.hpp>

// A cache moves but does not copy: a copy would be an expensive accident.
castle::UqKvCache<float> hand_over(castle::UqKvCache<float>& cache) {
#ifdef CASTLE_COMPILE_FAIL
    return cache;  // error: UqKvCache
#else
    return std::move(cache);
#endif
}
