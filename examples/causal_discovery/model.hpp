// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <castle/backward.hpp>
#include <castle/mask.hpp>
#include <castle/workspace.hpp>

#include "../model/matrices.hpp"
#include "../model/rms_norm.hpp"
#include "../model/swiglu.hpp"

// A transformer that forecasts every variable from the pasts of all, and keeps them apart: what a forecast depends on
// is what its attention sees, in every layer.
namespace causal_discovery {

using model::Index;
using model::Matrix;

/// A window is a sequence of tokens: first the inputs, each the value of one cause at one lag, then a stream for every
/// effect, which becomes its forecast.
struct Size {
    Index inputs = 0;
    Index effects = 0;
    Index width = 16;
    Index hidden = 32;
    Index heads = 2;
    Index layers = 2;

    Index tokens() const { return inputs + effects; }
};

/// Of one effect in one layer.
struct StreamWeights {
    Matrix attention_norm;     // [1, width]
    Matrix out;                // [heads width, width]
    Matrix feed_forward_norm;  // [1, width]
    model::SwiGluWeights feed_forward;
};

struct LayerWeights {
    Matrix query;  // [width, heads inputs]
    Matrix bias;   // [effects, heads inputs]
    std::vector<StreamWeights> streams;
};

struct Weights {
    Matrix slope, offset;  // [inputs, width]: the features of an input x are silu(x slope + offset)
    Matrix start;          // [effects, width]: where a stream begins
    std::vector<LayerWeights> layers;
    Matrix head;    // [effects, width]
    Matrix centre;  // [1, effects]

    model::NamedMatrices matrices() {
        model::NamedMatrices all = {{"slope", &slope},
                                    {"offset", &offset, false},
                                    {"start", &start, false},
                                    {"head", &head},
                                    {"centre", &centre, false}};
        for (std::size_t l = 0; l < layers.size(); ++l) {
            const std::string layer = "layers." + std::to_string(l);
            all.push_back({layer + ".query", &layers[l].query});
            all.push_back({layer + ".bias", &layers[l].bias, false});
            for (std::size_t i = 0; i < layers[l].streams.size(); ++i) {
                StreamWeights& own = layers[l].streams[i];
                const std::string stream = layer + ".streams." + std::to_string(i);
                all.push_back({stream + ".attention_norm", &own.attention_norm, false});
                all.push_back({stream + ".out", &own.out});
                all.push_back({stream + ".feed_forward_norm", &own.feed_forward_norm, false});
                all.push_back({stream + ".feed_forward.gate", &own.feed_forward.gate});
                all.push_back({stream + ".feed_forward.up", &own.feed_forward.up});
                all.push_back({stream + ".feed_forward.down", &own.feed_forward.down});
            }
        }
        return all;
    }
};

inline Weights initial_weights(const Size& size, std::uint64_t seed) {
    std::mt19937_64 bits(seed);
    const auto matrix = [&](Index rows, Index cols, double deviation) {
        return model::normal_matrix(rows, cols, deviation, bits);
    };
    const auto linear = [&](Index rows, Index cols, double factor) {
        return matrix(rows, cols, factor / std::sqrt(double(rows)));
    };
    const Index width = size.width;
    Weights w{.slope = matrix(size.inputs, width, 1),
              .offset = matrix(size.inputs, width, 0.5),
              .start = matrix(size.effects, width, 0.5),
              .layers = {},
              .head = matrix(size.effects, width, 1 / std::sqrt(double(width))),
              .centre = Matrix::Zero(1, size.effects)};
    for (Index l = 0; l < size.layers; ++l) {
        LayerWeights layer{.query = linear(width, size.heads * size.inputs, 0.5),
                           .bias = Matrix::Zero(size.effects, size.heads * size.inputs),
                           .streams = {}};
        for (Index i = 0; i < size.effects; ++i) {
            layer.streams.push_back({.attention_norm = Matrix::Ones(1, width),
                                     .out = linear(size.heads * width, width, 1),
                                     .feed_forward_norm = Matrix::Ones(1, width),
                                     .feed_forward = {.gate = linear(width, size.hidden, 1),
                                                      .up = linear(width, size.hidden, 1),
                                                      .down = linear(size.hidden, width, 0.5)}});
        }
        w.layers.push_back(std::move(layer));
    }
    return w;
}

/// For every layer and effect i: z_i += attention(norm(z_i)) out_i, z_i += feed_forward_i(norm(z_i)); the forecast is
/// z_i head_i + centre_i.
///
/// A stream sees inputs and nothing else, and values are their features alone. A key names its token, and the query has
/// a score for every name: so a score does not depend on the input that it is for.
class Forecaster {
  public:
    Weights weights;

    /// `sees` says which stream sees which input.
    template <class Sees>
    Forecaster(const Size& size, std::uint64_t seed, const Sees& sees)
        : weights(initial_weights(size, seed)),
          size_(size),
          mask_(castle::masks::packed(size.tokens(), size.tokens(), [&](Index row, Index key) {
                    return row >= size.inputs && key < size.inputs && sees(row - size.inputs, key);
                }).allowing_empty_rows()) {}

    void update() {}  // all of it is in the weights

    /// What a pass over windows leaves for the pass back.
    class Tape {
      public:
        explicit Tape(const Forecaster& forecaster) {
            for (Index l = 0; l < forecaster.size_.layers; ++l) layers.emplace_back(forecaster);
        }

      private:
        friend Forecaster;
        struct Stream {
            model::RmsNorm attention_norm;
            Matrix attention_input;
            Matrix attended;
            model::RmsNorm feed_forward_norm;
            Matrix feed_forward_input;
            model::SwiGlu feed_forward;
        };
        struct Layer {
            explicit Layer(const Forecaster& forecaster)
                : attention(forecaster.heads(), forecaster.options()), streams(std::size_t(forecaster.size_.effects)) {}

            castle::Workspace<float> attention;
            Matrix q;
            castle::Gradient<float> gradient;
            std::vector<Stream> streams;
        };
        std::vector<Layer> layers;
        std::vector<Index> counts;
        // Kept from pass to pass, as all that is large: asking for that much memory takes longer than filling it.
        Matrix inputs, sigmoid, keys, values, attended, d_attended;
        std::vector<Matrix> streams;  // what the last layer leaves, [windows, width] each
    };

    /// The forecasts of some windows, `[windows, effects]`, from their inputs, `[windows, inputs]`.
    Matrix forward(const Matrix& inputs, Tape& tape) const {
        const Index windows = inputs.rows(), tokens = size_.tokens();
        embed(inputs, tape);
        std::vector<Matrix>& z = tape.streams;
        z.clear();
        for (Index i = 0; i < size_.effects; ++i) z.push_back(weights.start.row(i).replicate(windows, 1));
        tape.attended.resize(windows * tokens, size_.heads * size_.width);
        for (std::size_t l = 0; l < tape.layers.size(); ++l) {
            Tape::Layer& own = tape.layers[l];
            const LayerWeights& w = weights.layers[l];
            become_zeros(own.q, windows * tokens, size_.heads * size_.inputs);
            for_streams([&](std::size_t i, Index row) {
                Tape::Stream& s = own.streams[i];
                s.attention_input = s.attention_norm.forward(z[i], w.streams[i].attention_norm);
                own.q(every(row, windows), Eigen::all) = (s.attention_input * w.query).rowwise() + w.bias.row(Index(i));
            });
            castle::forward(own.attention, tape.counts, input_of(tape, own),
                            castle::Output<float>{.out = tape.attended}, mask_);
            for_streams([&](std::size_t i, Index row) {
                Tape::Stream& s = own.streams[i];
                s.attended = tape.attended(every(row, windows), Eigen::all);
                z[i].noalias() += s.attended * w.streams[i].out;
                s.feed_forward_input = s.feed_forward_norm.forward(z[i], w.streams[i].feed_forward_norm);
                z[i] += s.feed_forward.forward(s.feed_forward_input, w.streams[i].feed_forward);
            });
        }
        Matrix forecasts(windows, size_.effects);
        for (Index i = 0; i < size_.effects; ++i) {
            forecasts.col(i) = (z[std::size_t(i)] * weights.head.row(i).transpose()).array() + weights.centre(0, i);
        }
        return forecasts;
    }

    /// From the gradient of the forecasts to that of the inputs; those of the weights are added.
    Matrix backward(const Matrix& d_forecasts, Tape& tape, Weights& gradient) const {
        const Index windows = d_forecasts.rows(), tokens = size_.tokens();
        std::vector<Matrix> d_z;
        for (Index i = 0; i < size_.effects; ++i) {
            const Eigen::VectorXf d = d_forecasts.col(i);
            d_z.push_back(d * weights.head.row(i));
            gradient.head.row(i) += d.transpose() * tape.streams[std::size_t(i)];
            gradient.centre(0, i) += d.sum();
        }
        Matrix d_values = Matrix::Zero(windows * tokens, size_.width);
        become_zeros(tape.d_attended, windows * tokens, size_.heads * size_.width);
        for (std::size_t l = tape.layers.size(); l-- > 0;) {
            Tape::Layer& own = tape.layers[l];
            const LayerWeights& w = weights.layers[l];
            LayerWeights& g = gradient.layers[l];
            for_streams([&](std::size_t i, Index row) {
                const Tape::Stream& s = own.streams[i];
                const StreamWeights& w_i = w.streams[i];
                StreamWeights& g_i = g.streams[i];
                const Matrix d_feed =
                    s.feed_forward.backward(s.feed_forward_input, d_z[i], w_i.feed_forward, g_i.feed_forward);
                d_z[i] += s.feed_forward_norm.backward(d_feed, w_i.feed_forward_norm, g_i.feed_forward_norm);
                g_i.out.noalias() += s.attended.transpose() * d_z[i];
                tape.d_attended(every(row, windows), Eigen::all) = d_z[i] * w_i.out.transpose();
            });
            castle::Gradient<float>& d = own.gradient;
            if (d.causal.q.rows() != windows * tokens) d = castle::Gradient<float>(windows * tokens, heads(), false);
            castle::backward(own.attention, input_of(tape, own), tape.d_attended, d.view());
            d_values += d.causal.v;
            for_streams([&](std::size_t i, Index row) {
                const Tape::Stream& s = own.streams[i];
                const Matrix d_q = d.causal.q(every(row, windows), Eigen::all);
                g.bias.row(Index(i)) += d_q.colwise().sum();
                g.query.noalias() += s.attention_input.transpose() * d_q;
                d_z[i] += s.attention_norm.backward(d_q * w.query.transpose(), w.streams[i].attention_norm,
                                                    g.streams[i].attention_norm);
            });
        }
        for (Index i = 0; i < size_.effects; ++i) gradient.start.row(i) += d_z[std::size_t(i)].colwise().sum();
        return back_to_inputs(d_values, tape, gradient);
    }

  private:
    castle::Shape heads() const { return {.d = size_.inputs, .dv = size_.width, .heads = size_.heads, .kv_heads = 1}; }
    static castle::Options options() { return {.scale = 1, .lookahead_window = 0}; }

    // The rows of one token in all windows.
    Eigen::ArithmeticSequence<Index, Index, Index> every(Index token, Index windows) const {
        return {token, windows, size_.tokens()};
    }
    template <class F>
    void for_streams(const F& f) const {
        for (Index i = 0; i < size_.effects; ++i) f(std::size_t(i), size_.inputs + i);
    }
    static castle::Input<float> input_of(const Tape& tape, const Tape::Layer& own) {
        return {.causal = {.q = own.q, .k = tape.keys, .v = tape.values}, .lookahead = {}};
    }

    // Some of the rows are written in every pass, and the others never: these are filled once.
    static void become_zeros(Matrix& m, Index rows, Index cols) {
        if (m.rows() != rows) m.setZero(rows, cols);
    }

    void embed(const Matrix& inputs, Tape& tape) const {
        const Index windows = inputs.rows(), tokens = size_.tokens();
        tape.counts.assign(std::size_t(windows), tokens);
        tape.inputs = inputs;
        if (tape.keys.rows() != windows * tokens) {
            tape.keys = Matrix::Identity(tokens, size_.inputs).replicate(windows, 1);
        }
        become_zeros(tape.values, windows * tokens, size_.width);
        tape.sigmoid.resize(windows * size_.inputs, size_.width);
        for (Index b = 0; b < windows; ++b) {
            const Matrix x = affine(inputs, b);
            auto sigmoid = tape.sigmoid.middleRows(b * size_.inputs, size_.inputs).array();
            sigmoid = (1 + (-x.array()).exp()).inverse();
            tape.values.middleRows(b * tokens, size_.inputs) = x.array() * sigmoid;
        }
    }
    Matrix affine(const Matrix& inputs, Index window) const {
        return (weights.slope.array().colwise() * inputs.row(window).transpose().array()).matrix() + weights.offset;
    }
    Matrix back_to_inputs(const Matrix& d_values, const Tape& tape, Weights& gradient) const {
        Matrix d_inputs(tape.inputs.rows(), size_.inputs);
        for (Index b = 0; b < d_inputs.rows(); ++b) {
            const Matrix x = affine(tape.inputs, b);
            const auto s = tape.sigmoid.middleRows(b * size_.inputs, size_.inputs).array();
            const Matrix d_x =
                d_values.middleRows(b * size_.tokens(), size_.inputs).array() * s * (1 + x.array() * (1 - s));
            gradient.offset += d_x;
            gradient.slope.array() += d_x.array().colwise() * tape.inputs.row(b).transpose().array();
            d_inputs.row(b) = d_x.cwiseProduct(weights.slope).rowwise().sum().transpose();
        }
        return d_inputs;
    }

    Size size_;
    castle::Mask mask_;
};

}  // namespace causal_discovery
