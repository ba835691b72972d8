// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>

#include <castle/rotary.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// The sizes of a multi-head layer, and how it begins.
struct MultiHeadConfig {
    Index d_model = 0;                            ///< of the layer's input and output
    Index heads = 0;                              ///< `n` of eq. 14
    Index d_head = 0;                             ///< `d` of every head, of its values as well
    std::optional<Rotary> rotary = std::nullopt;  ///< rotary position embedding; none unless given
    std::uint64_t seed = 0;                       ///< of the weights that the layer has until others are set
};

}  // namespace CASTLE_ABI
}  // namespace castle
