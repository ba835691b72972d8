// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

// The sizes that decide where elements live and in which order they are summed. All of them are aligned to the start of
// the sequence, never to a call, which is why the bits of a result do not depend on how calls cut the sequence.
//
// Knows neither Eigen nor instruction sets, and so lives outside of the namespace that is named after them. Every unit
// of a program has the same copy of these functions: always inlined, none of them is left for the linker.
namespace castle::base {

using Index = std::ptrdiff_t;

// Tokens in a block: the lookahead keys of the cache have every finished block folded in.
inline constexpr Index block_size = 32;

// Keys in a panel, the unit in which keys are stored, transposed: [d][panel_size].
inline constexpr Index panel_size = 64;

// Panels in a span: every query row has one softmax state a span, and merges them in order.
inline constexpr Index span_panels = 8;
inline constexpr Index span_size = span_panels * panel_size;

// Blocks in a group: how many rows of a sequence go through the sweep between two barriers.
inline constexpr Index group_blocks = 4;
inline constexpr Index group_size = group_blocks * block_size;

static_assert(panel_size % block_size == 0, "a block lies within one panel");

// In bytes.
inline constexpr Index cache_line = 64;

[[gnu::always_inline]] inline constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }
[[gnu::always_inline]] inline constexpr Index round_up(Index a, Index b) { return (a + b - 1) / b * b; }
[[gnu::always_inline]] inline constexpr Index round_down(Index a, Index b) { return a / b * b; }

}  // namespace castle::base
