// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include <castle/causal.hpp>
#include <castle/multi_head_config.hpp>
#include <castle/multi_head_layer.hpp>
#include <castle/multi_head_weights.hpp>
#include <castle/options.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// The multi-head layer of eq. 14: `heads` CASTLE heads over six projections of the input, concatenated and multiplied
/// by `W_O`; `7 heads d_head d_model` parameters. What it does is in MultiHeadLayer: `forward(x)` runs a whole
/// sequence, `x` and its result `[L, d_model]`; `make_cache()` and `extend(cache, x)` run it in pieces, with the same
/// bits; `weights()` and `set_weights(w)` reach the weights by name. A layer moves but does not copy; one that was
/// moved from may only be assigned to or destroyed. A move to itself changes nothing.
template <Scalar T>
class MultiHeadCastle : public MultiHeadLayer<T> {
  public:
    /// A layer with random weights from `config.seed`: uniform, with variance 1 over the number of inputs. Throws
    /// std::invalid_argument if a size is below 1, `d_model` or `heads d_head` above 2^24, an option does not fit, or
    /// `d_head` is odd with rotary embedding, and std::bad_alloc if memory runs out.
    explicit MultiHeadCastle(const MultiHeadConfig& config, Options options = {})
        : MultiHeadLayer<T>("MultiHeadCastle", 6, config, std::move(options)) {
        this->set_random_weights();
    }

    /// A layer with these weights. Throws as above, and if a weight's shape does not fit.
    MultiHeadCastle(const MultiHeadConfig& config, const MultiHeadWeights<T>& weights, Options options)
        : MultiHeadLayer<T>("MultiHeadCastle", 6, config, std::move(options)) {
        this->set_weights(weights);
    }

    MultiHeadCastle(MultiHeadCastle&&) = default;
    MultiHeadCastle& operator=(MultiHeadCastle&& other) noexcept {
        if (this != &other) MultiHeadLayer<T>::operator=(std::move(other));
        return *this;
    }
    ~MultiHeadCastle() = default;
};

/// The baseline with the same interface: standard causal attention over three projections, `4 heads d_head d_model`
/// parameters. As many parameters as CASTLE has it with 7/4 of the heads, 14 for 8.
template <Scalar T>
class MultiHeadCausal : public MultiHeadLayer<T> {
  public:
    /// As for MultiHeadCastle.
    explicit MultiHeadCausal(const MultiHeadConfig& config, CausalOptions options = {})
        : MultiHeadLayer<T>("MultiHeadCausal", 3, config, detail::without_lookahead(std::move(options))) {
        this->set_random_weights();
    }

    /// As for MultiHeadCastle; `weights.lookahead` has to be empty.
    MultiHeadCausal(const MultiHeadConfig& config, const MultiHeadWeights<T>& weights, CausalOptions options)
        : MultiHeadLayer<T>("MultiHeadCausal", 3, config, detail::without_lookahead(std::move(options))) {
        this->set_weights(weights);
    }

    MultiHeadCausal(MultiHeadCausal&&) = default;
    MultiHeadCausal& operator=(MultiHeadCausal&& other) noexcept {
        if (this != &other) MultiHeadLayer<T>::operator=(std::move(other));
        return *this;
    }
    ~MultiHeadCausal() = default;
};

}  // namespace CASTLE_ABI
}  // namespace castle
