// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/simd/scalar.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Rows that short sequences begin a step with together: enough for all threads, few enough for little scratch.
inline constexpr Index batch_rows = 4 * group_size;

// The tokens [first, end) of a sequence that go through the sweep together, at most group_blocks blocks, and in which
// row of the step's input and output they begin.
struct Group {
    Index first = 0;
    Index end = 0;
    Index row = 0;

    // The group that begins at token `first` of a sequence that ends at `end`. Groups end where blocks do.
    static Group next(Index first, Index end, Index row) {
        return {.first = first, .end = (std::min)(end, round_down(first, block_size) + group_size), .row = row};
    }

    Index origin() const { return round_down(first, block_size); }
    Index rows() const { return end - first; }
    Index blocks() const { return rows() > 0 ? ceil_div(end - origin(), block_size) : 0; }
    Index spans() const { return rows() > 0 ? ceil_div(end, span_size) : 0; }
    // Whether there is but one block, and not all of it.
    bool is_part_of_block() const { return blocks() == 1 && rows() < block_size; }
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
