// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include <castle/causal.hpp>
#include <castle/detail/multi_head_base.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// The multi-head layer of eq. 14: `heads` CASTLE heads over six projections of the input, concatenated and multiplied
/// by `W_O`. Has `7 heads d_head d_model` parameters and begins with random weights from `config.seed`.
///
/// `forward(x)` runs a whole sequence; `make_cache()` and `extend(cache, x)` run it in pieces, with the same bits. The
/// layer itself does not change in either and may serve several threads at once, one cache a thread.
template <Scalar T>
class MultiHeadCastle : public detail::MultiHeadBase<T> {
  public:
    /// Throws std::invalid_argument if a size is below 1, an option does not fit, or `d_head` is odd with rotary
    /// embedding.
    explicit MultiHeadCastle(const MultiHeadConfig& config, Options options = {})
        : detail::MultiHeadBase<T>("MultiHeadCastle", 6, config, std::move(options)) {}
};

/// The baseline with the same interface: standard causal attention over three projections, `4 heads d_head d_model`
/// parameters. As many parameters as CASTLE has it with 7/4 of the heads, 14 for 8.
template <Scalar T>
class MultiHeadCausal : public detail::MultiHeadBase<T> {
  public:
    /// As for MultiHeadCastle.
    explicit MultiHeadCausal(const MultiHeadConfig& config, CausalOptions options = {})
        : detail::MultiHeadBase<T>("MultiHeadCausal", 3, config, detail::without_lookahead(std::move(options))) {}
};

}  // namespace CASTLE_ABI
}  // namespace castle
