// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>
#include <vector>

#include <castle/backward.hpp>
#include <castle/layer_weights.hpp>
#include <castle/methods/temporal.hpp>
#include <castle/workspace.hpp>

#include "../model/matrices.hpp"
#include "../model/projections.hpp"

namespace forecasting {

using castle::methods::Decay;
using castle::methods::TemporalInput;
using model::Index;
using model::Matrix;

/// What a token sees of those before it, and how.
struct Kind {
    Decay decay = Decay::multiplied;
    Index window = 6;        ///< a token sees the `window / 2` before it; 0 for all of them
    bool lookahead = false;  ///< CASTLE attention, with lookahead keys

    bool operator==(const Kind&) const = default;
};

/// Dynamic windowed attention of some heads, between projections of its own, over packed sequences. Keeps of one
/// forward pass what the backward pass needs.
class Attention {
  public:
    /// Of sequences of at most `longest` tokens.
    Attention(const castle::Shape& heads, const Kind& kind, Index longest)
        : heads_(heads),
          temporal_{.window = kind.window > 0 ? kind.window : 2 * (longest - 1), .decay = kind.decay, .gammas = {}},
          options_{.scale = 1 / std::sqrt(double(heads.d)),
                   .lookahead_window = kind.lookahead ? castle::unlimited : 0} {}

    /// y = attention(x) of sequences, one after the other; gammas is [1, heads], or empty where there is no decay.
    void forward(const castle::LayerWeights<float>& w, const Matrix& gammas, const Matrix& x,
                 std::span<const Index> counts, Matrix& y) {
        projected_.causal = model::project(w.causal, x);
        if (has_lookahead()) projected_.lookahead = model::project(w.lookahead, x);
        castle::Input<float> input{
            .causal = {.q = projected_.causal.q, .k = projected_.causal.k, .v = projected_.causal.v}, .lookahead = {}};
        if (has_lookahead()) {
            input.lookahead = {.q = projected_.lookahead.q, .k = projected_.lookahead.k, .v = projected_.lookahead.v};
        }
        temporal_.gammas.assign(gammas.data(), gammas.data() + gammas.size());
        wide_.emplace(heads_, counts, input, temporal_, options_);
        if (workspace_) {
            workspace_->set_terms(wide_->options().terms);
        } else {
            workspace_.emplace(wide_->shape(), wide_->options());
        }
        attended_.resize(x.rows(), heads_.heads * heads_.dv);
        castle::forward(*workspace_, counts, wide_->input(), castle::Output<float>{.out = attended_}, wide_->mask());
        y.noalias() = attended_ * w.w_out;
    }

    /// From the gradient of y to that of x; those of the weights are added.
    void backward(const castle::LayerWeights<float>& w, const Matrix& x, const Matrix& d_y, Matrix& d_x,
                  castle::LayerWeights<float>& d_w, Matrix& d_gammas) {
        d_w.w_out.noalias() += attended_.transpose() * d_y;
        const Matrix d_attended = d_y * w.w_out.transpose();
        castle::Gradient<float> d_wide(x.rows(), wide_->shape(), has_lookahead());
        Matrix d_table = Matrix::Zero(d_gammas.size(), temporal_.window / 2 + 1);
        castle::TermsGradientView<float> d_terms;
        if (temporal_.decay == Decay::multiplied) d_terms.factor = d_table;
        if (temporal_.decay == Decay::added) d_terms.bias = d_table;
        castle::backward(*workspace_, wide_->input(), castle::OutputGradient<float>{.out = d_attended}, d_wide.view(),
                         d_terms);
        const std::vector<double> of_gammas = wide_->gamma_gradient(d_table);
        for (std::size_t h = 0; h < of_gammas.size(); ++h) d_gammas(0, Index(h)) += float(of_gammas[h]);

        const castle::Gradient<float> d = wide_->gradient(d_wide);
        d_x.setZero();
        model::add_projection_gradients(w.causal, x, d.causal, d_x, d_w.causal);
        if (has_lookahead()) model::add_projection_gradients(w.lookahead, x, d.lookahead, d_x, d_w.lookahead);
    }

  private:
    bool has_lookahead() const { return options_.lookahead_window != 0; }

    castle::Shape heads_;
    castle::methods::Temporal temporal_;
    castle::Options options_;
    castle::Gradient<float> projected_;
    std::optional<TemporalInput<float>> wide_;
    std::optional<castle::Workspace<float>> workspace_;
    Matrix attended_;
};

}  // namespace forecasting
