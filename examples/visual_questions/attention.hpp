// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <span>
#include <utility>
#include <vector>

#include <castle/attention.hpp>
#include <castle/backward.hpp>
#include <castle/cache.hpp>
#include <castle/extend.hpp>
#include <castle/layer_weights.hpp>
#include <castle/mask.hpp>
#include <castle/methods/future_aware.hpp>
#include <castle/reference/dense.hpp>
#include <castle/workspace.hpp>

#include "../model/matrices.hpp"
#include "../model/projections.hpp"
#include "task.hpp"

namespace visual_questions {

using castle::methods::LightFutureInput;
using model::Matrix;

/// How the patches of a prompt look at what comes after them.
struct Sight {
    enum class Form {
        causal,  ///< not at all
        full,    ///< they see it: a mask
        light    ///< by one number a row, and the mask is causal
    };
    Form form = Form::causal;
    castle::methods::LightFuture light = {};  ///< but for the prompt

    castle::Mask mask(const Prompt& prompt) const {
        return form == Form::full ? castle::masks::modality(prompt.visual, light.future) : castle::Mask();
    }
    castle::methods::LightFuture light_of(const Prompt& prompt) const {
        castle::methods::LightFuture own = light;
        own.visual = prompt.visual;
        return own;
    }
};

/// Standard attention of some heads, with one of the ways to look ahead, between projections of its own. Keeps of one
/// forward pass what the backward pass needs.
class Attention {
  public:
    Attention(const castle::Shape& heads, const Sight& sight)
        : heads_(heads),
          sight_(sight),
          options_{.scale = 1 / std::sqrt(double(heads.d)), .lookahead_window = 0},
          workspace_(computed_heads(), options_) {}

    /// y = attention(x) of prompts, one after the other.
    void forward(const castle::LayerWeights<float>& w, const Matrix& x, std::span<const Prompt> prompts, Matrix& y) {
        begin(w, x, prompts);
        attended_.resize(x.rows(), heads_.heads * heads_.dv);
        castle::forward(workspace_, counts_, computed_input(), castle::Output<float>{.out = attended_}, masks_);
        y.noalias() = attended_ * w.w_out;
    }

    /// From the gradient of y to that of x; that of the weights is added.
    void backward(const castle::LayerWeights<float>& w, const Matrix& x, const Matrix& d_y, Matrix& d_x,
                  castle::LayerWeights<float>& d_w) {
        d_w.w_out.noalias() += attended_.transpose() * d_y;
        const Matrix d_attended = d_y * w.w_out.transpose();
        castle::Gradient<float> d = castle::backward(workspace_, computed_input(), d_attended);
        if (!light_.empty()) d = of_projected(d);
        d_x.setZero();
        model::add_projection_gradients(w.causal, x, d.causal, d_x, d_w.causal);
    }

    /// The weights of the attention, `[length, length]`, of the one prompt of the forward pass: the mean over heads.
    Matrix weights() const {
        Matrix mean = Matrix::Zero(attended_.rows(), attended_.rows());
        const castle::Mask mask = masks_.empty() ? castle::Mask() : masks_.front();
        for (const Matrix& of_head : castle::dense::weights(computed_heads(), computed_input(), options_, mask)) {
            mean += of_head / float(heads_.heads);
        }
        return mean;
    }

    castle::UqKvCache<float> make_cache(Index most) const {
        castle::UqKvCache<float> cache(computed_heads(), options_);
        cache.reserve(most);
        return cache;
    }

    /// The same for tokens that come after those of the cache: first the whole prompt, then others.
    void extend(const castle::LayerWeights<float>& w, const Matrix& x, const Prompt& prompt,
                castle::UqKvCache<float>& cache, Matrix& y) const {
        const Index position = cache.size();
        const castle::Qkv<Matrix> projected = model::project(w.causal, x);
        Matrix attended(x.rows(), heads_.heads * heads_.dv);
        if (sight_.form == Sight::Form::light) {
            const LightFutureInput<float> light(heads_, input_of(projected), sight_.light_of(prompt), options_,
                                                position);
            castle::extend(cache, light.input(), attended);
        } else {
            const bool is_prompt = position == 0;
            castle::extend(cache, input_of(projected), attended, is_prompt ? sight_.mask(prompt) : castle::Mask());
        }
        y.noalias() = attended * w.w_out;
    }

  private:
    // Of the light form, which has one more element in queries and keys.
    castle::Shape computed_heads() const {
        castle::Shape own = heads_;
        if (sight_.form == Sight::Form::light) ++own.d;
        return own;
    }
    castle::Input<float> computed_input() const { return input_of(light_.empty() ? projected_ : widened_); }

    static castle::Input<float> input_of(const castle::Qkv<Matrix>& x) {
        return {.causal = {.q = x.q, .k = x.k, .v = x.v}, .lookahead = {}};
    }

    void begin(const castle::LayerWeights<float>& w, const Matrix& x, std::span<const Prompt> prompts) {
        projected_ = model::project(w.causal, x);
        counts_.clear();
        masks_.clear();
        light_.clear();
        for (const Prompt& prompt : prompts) {
            counts_.push_back(prompt.size());
            if (sight_.form == Sight::Form::full) masks_.push_back(sight_.mask(prompt));
        }
        if (sight_.form != Sight::Form::light) return;
        for_prompts([&](std::size_t p, Index first, Index count) {
            light_.emplace_back(heads_, input_of(projected_).tokens(first, count), sight_.light_of(prompts[p]),
                                options_);
        });
        const Index d = computed_heads().d;
        widened_.q.resize(x.rows(), heads_.heads * d);
        widened_.k.resize(x.rows(), heads_.kv_heads * d);
        widened_.v = projected_.v;
        for_prompts([&](std::size_t p, Index first, Index count) {
            widened_.q.middleRows(first, count) = light_[p].input().causal.q.map();
            widened_.k.middleRows(first, count) = light_[p].input().causal.k.map();
        });
    }

    castle::Gradient<float> of_projected(const castle::Gradient<float>& of_widened) const {
        castle::Gradient<float> all(of_widened.causal.q.rows(), heads_, false);
        for_prompts([&](std::size_t p, Index first, Index count) {
            castle::Gradient<float> own;
            own.causal = {.q = of_widened.causal.q.middleRows(first, count),
                          .k = of_widened.causal.k.middleRows(first, count),
                          .v = of_widened.causal.v.middleRows(first, count)};
            own = light_[p].gradient(own);
            all.causal.q.middleRows(first, count) = own.causal.q;
            all.causal.k.middleRows(first, count) = own.causal.k;
            all.causal.v.middleRows(first, count) = own.causal.v;
        });
        return all;
    }

    template <class F>
    void for_prompts(const F& f) const {
        Index first = 0;
        for (std::size_t p = 0; p < counts_.size(); first += counts_[p++]) f(p, first, counts_[p]);
    }

    castle::Shape heads_;
    Sight sight_;
    castle::Options options_;
    castle::Workspace<float> workspace_;
    std::vector<Index> counts_;
    std::vector<castle::Mask> masks_;
    castle::Qkv<Matrix> projected_;
    std::vector<LightFutureInput<float>> light_;
    castle::Qkv<Matrix> widened_;
    Matrix attended_;
};

}  // namespace visual_questions
