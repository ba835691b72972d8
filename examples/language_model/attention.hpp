// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>
#include <variant>

#include <castle/layer.hpp>

#include "../model/matrices.hpp"
#include "config.hpp"

namespace language_model {

using model::Matrix;

/// The attention layer that a configuration asks for, of numbers of T.
template <class T>
castle::Layer<T> attention_layer(const Config& config, std::uint64_t seed) {
    return castle::Layer<T>({.d_model = config.d_model,
                             .heads = config.attention_heads(),
                             .kv_heads = config.attention_kv_heads(),
                             .d_head = config.d_head,
                             .rotary = castle::Rotary{},
                             .seed = seed},
                            config.options());
}

/// The same between matrices of float: where the configuration's precision is another, they are rounded to what the
/// layer reads, and the layer's weights are copies of masters in float, rounded as well.
class Attention {
    template <template <class> class Of>
    using OfAny = std::variant<Of<float>, Of<castle::bfloat16>>;
    template <class T>
    using LayerOf = castle::Layer<T>;
    template <class T>
    using CacheOf = castle::LayerCache<T>;
    template <class T>
    struct KeptOf {
        castle::LayerWorkspace<T> workspace;
        castle::Matrix<T> x;  // rounded, unless it is of float
    };

  public:
    using Cache = OfAny<CacheOf>;
    using Workspace = OfAny<KeptOf>;

    Attention(const Config& config, std::uint64_t seed) : layer_(layer_of(config, seed)) {}

    void set_weights(const castle::LayerWeights<float>& masters) {
        std::visit([&](auto& layer) { layer.set_weights(masters); }, layer_);
    }

    Cache make_cache() const {
        return std::visit([](const auto& layer) { return Cache(layer.make_cache()); }, layer_);
    }
    Workspace make_workspace() const {
        return std::visit(
            []<class T>(const castle::Layer<T>& layer) {
                return Workspace(KeptOf<T>{.workspace = layer.make_workspace(), .x = {}});
            },
            layer_);
    }

    Matrix forward(const Matrix& x) const {
        return std::visit(
            [&]<class T>(const castle::Layer<T>& layer) {
                return with_rounded<T>(x, [&](const auto& rounded) { return widened(layer.forward(rounded)); });
            },
            layer_);
    }
    Matrix extend(Cache& cache, const Matrix& x) const {
        return std::visit(
            [&]<class T>(const castle::Layer<T>& layer) {
                return with_rounded<T>(x, [&](const auto& rounded) {
                    return widened(layer.extend(std::get<castle::LayerCache<T>>(cache), rounded));
                });
            },
            layer_);
    }

    void forward(Workspace& workspace, const Matrix& x, Matrix& y) const {
        std::visit(
            [&]<class T>(const castle::Layer<T>& layer) {
                auto& kept = std::get<KeptOf<T>>(workspace);
                if constexpr (std::is_same_v<T, float>) {
                    layer.forward(kept.workspace, x, y);
                } else {
                    kept.x = x.cast<T>();
                    castle::Matrix<T> narrow(y.rows(), y.cols());
                    layer.forward(kept.workspace, kept.x, narrow);
                    y = widened(narrow);
                }
            },
            layer_);
    }
    /// From the gradient of y to that of x; those of the weights are added.
    void backward(Workspace& workspace, const Matrix& x, const Matrix& d_y, Matrix& d_x,
                  castle::LayerWeights<float>& d_weights) const {
        std::visit(
            [&]<class T>(const castle::Layer<T>& layer) {
                auto& kept = std::get<KeptOf<T>>(workspace);
                if constexpr (std::is_same_v<T, float>) {
                    layer.backward(kept.workspace, x, d_y, d_x, d_weights);
                } else {
                    layer.backward(kept.workspace, kept.x, d_y, d_x, d_weights);
                }
            },
            layer_);
    }

  private:
    static OfAny<LayerOf> layer_of(const Config& config, std::uint64_t seed) {
        if (config.precision == "bfloat16") return attention_layer<castle::bfloat16>(config, seed);
        return attention_layer<float>(config, seed);
    }

    template <class T, class F>
    static Matrix with_rounded(const Matrix& x, const F& f) {
        if constexpr (std::is_same_v<T, float>) {
            return f(x);
        } else {
            const castle::Matrix<T> rounded = x.cast<T>();
            return f(rounded);
        }
    }
    template <class M>
    static Matrix widened(const M& y) {
        return y.template cast<float>();
    }

    OfAny<LayerOf> layer_;
};

}  // namespace language_model
