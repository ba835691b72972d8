// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sstream>
#include <string>

#include <castle/cache.hpp>

// Caches as bytes, there and back.
namespace support {

using castle::Index;

template <class Cache>
std::string saved(const Cache& cache) {
    std::ostringstream out;
    cache.save(out);
    return out.str();
}

template <class T>
castle::UqKvCache<T> loaded(const std::string& bytes, Index rollback = castle::default_rollback) {
    std::istringstream in(bytes);
    return castle::UqKvCache<T>::load(in, {}, rollback);
}

}  // namespace support
