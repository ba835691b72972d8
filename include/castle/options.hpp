// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <limits>
#include <optional>

#include <castle/executor.hpp>
#include <castle/terms.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// A lookahead window without limit.
inline constexpr Index unlimited = (std::numeric_limits<Index>::max)();

/// What every form of the attention takes besides its input.
struct Options {
    /// Factor on every query-key product, causal and lookahead alike; `1 / sqrt(d)` unless given. It multiplies `Q^C`
    /// and `K^U`, which must not overflow.
    std::optional<double> scale = std::nullopt;

    /// `W` of eq. 9: the lookahead key of token `i` absorbs the tokens `i + 1` to `i + W`. `0` is standard causal
    /// attention, which reads no lookahead inputs. This is no window on attention, as in sliding-window attention:
    /// every token attends to all tokens before it whatever `W` is, through causal keys, which are never windowed, and
    /// lookahead keys.
    Index lookahead_window = unlimited;

    /// Parts of the scores of eq. 7, `s^C - SiLU(s^U)`, that experiments may leave out: with `silu` off they are
    /// `s^C - s^U`, with `causal_keys` off `s^C` counts as 0.
    bool silu = true;
    bool causal_keys = true;

    /// Tables over the distance, a soft cap, sinks.
    ScoreTerms terms = {};

    /// Where work runs; in the calling thread unless given. A call may be given another one.
    Executor executor = {};
};

namespace detail {

inline double scale_for(const Options& options, Index d) {
    return options.scale.value_or(1.0 / std::sqrt(static_cast<double>(d)));
}

// The executor of a call: the one that it is given, or that of the options.
inline const Executor& executor_for(const Executor& given, const Options& options) {
    return given ? given : options.executor;
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
