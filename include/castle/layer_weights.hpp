// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

#include <castle/input.hpp>
#include <castle/rotary.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// The sizes of a layer, and how it begins.
struct LayerConfig {
    Index d_model = 0;                            ///< of the layer's input and output
    Index heads = 0;                              ///< `n` of eq. 14, query heads
    Index kv_heads = 0;                           ///< key-value heads, which divide `heads`; 0: as many
    Index d_head = 0;                             ///< `d` of every head, of its values as well
    std::optional<Rotary> rotary = std::nullopt;  ///< rotary position embedding; none unless given
    std::uint64_t seed = 0;                       ///< of the weights that the layer has until others are set
};

/// Which side of a weight matrix is which. Shapes cannot tell a square one from its transpose.
enum class WeightOrder {
    in_out,  ///< `[in, out]`: tokens are rows, `x W`
    out_in,  ///< `[out, in]`, as in PyTorch's `Linear.weight`
};

namespace detail {

inline constexpr std::array<std::string_view, 6> projection_names{"causal.q",    "causal.k",    "causal.v",
                                                                  "lookahead.q", "lookahead.k", "lookahead.v"};

// The six projections of weights, of views of them, or of their gradients.
template <class Weights>
auto projections_of(Weights& w) {
    return std::array{&w.causal.q, &w.causal.k, &w.causal.v, &w.lookahead.q, &w.lookahead.k, &w.lookahead.v};
}

}  // namespace detail

/// Views of a layer's weights: a mapped file's, for example. See LayerWeights.
template <Scalar T>
struct LayerWeightsView {
    Qkv<ConstMatrixView<T>> causal = {};
    Qkv<ConstMatrixView<T>> lookahead = {};
    ConstMatrixView<T> w_out = {};
};

/// The weights of a layer by name; no biases (eq. 14). Head `h` owns the columns from `h d_head` on. A row is an input,
/// a column an output.
template <Scalar T>
struct LayerWeights {
    /// `q` `[d_model, heads d_head]`; `k, v` `[d_model, kv_heads d_head]`.
    Qkv<Matrix<T>> causal = {};
    /// `[d_model, kv_heads d_head]`; left empty for standard attention.
    Qkv<Matrix<T>> lookahead = {};
    /// `W_O`, `[heads d_head, d_model]`.
    Matrix<T> w_out = {};

    operator LayerWeightsView<T>() const {
        return {.causal = {.q = causal.q, .k = causal.k, .v = causal.v},
                .lookahead = {.q = lookahead.q, .k = lookahead.k, .v = lookahead.v},
                .w_out = w_out};
    }

    /// Calls `f(name, matrix)` for every weight that is there, in a fixed order: `"causal.q"`, `"causal.k"`, ...,
    /// `"lookahead.v"`, `"w_out"`. For optimizers, checkpoints, and whatever else treats all of them alike.
    template <class F>
    void for_each(const F& f) {
        walk(*this, f);
    }
    template <class F>
    void for_each(const F& f) const {
        walk(*this, f);
    }

  private:
    template <class Weights, class F>
    static void walk(Weights& w, const F& f) {
        const auto projections = detail::projections_of(w);
        for (std::size_t i = 0; i < projections.size(); ++i) {
            if (projections[i]->size() > 0) f(detail::projection_names[i], *projections[i]);
        }
        f(std::string_view("w_out"), w.w_out);
    }
};

/// The gradients of a layer: with respect to its input, `[L, d_model]`, and to its weights, in their shapes.
template <Scalar T>
struct LayerGradient {
    Matrix<T> x;
    LayerWeights<T> weights;
};

}  // namespace CASTLE_ABI
}  // namespace castle
