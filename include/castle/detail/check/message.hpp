// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdio>
#include <stdexcept>
#include <string>
#include <string_view>

#include <castle/detail/simd/scalar.hpp>

// The sentences that say what is wrong with an argument.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The shape of a matrix, within a sentence.
struct Extents {
    Index rows;
    Index cols;
};

template <class View>
Extents extents_of(const View& m) {
    return {m.rows(), m.cols()};
}

inline void append(std::string& sentence, std::string_view part) { sentence.append(part); }
inline void append(std::string& sentence, Index part) { sentence.append(std::to_string(part)); }
inline void append(std::string& sentence, double part) {
    char digits[32];
    std::snprintf(digits, sizeof digits, "%g", part);
    sentence.append(digits);
}
inline void append(std::string& sentence, Extents part) {
    sentence.append("[");
    append(sentence, part.rows);
    sentence.append(", ");
    append(sentence, part.cols);
    sentence.append("]");
}

// One string of words, numbers and shapes.
template <class... Parts>
std::string text(const Parts&... parts) {
    std::string sentence;
    (append(sentence, parts), ...);
    return sentence;
}

template <class... Parts>
[[noreturn]] void fail(std::string_view where, const Parts&... what) {
    throw std::invalid_argument(text("castle::", where, ": ", what...));
}

inline void check_size(std::string_view where, std::string_view name, Index value, Index least) {
    if (value < least) fail(where, name, " is ", value, " but must be at least ", least);
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
