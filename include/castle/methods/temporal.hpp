// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

#include <castle/detail/check/attention_kind.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/check/message.hpp>
#include <castle/detail/methods/wide_heads.hpp>
#include <castle/input.hpp>
#include <castle/mask.hpp>
#include <castle/options.hpp>
#include <castle/terms.hpp>
#include <castle/types.hpp>

// Dynamic windowed attention with adaptive temporal encoding (AutoHFormer, arXiv:2506.16001, Algorithm 1), for time
// series. Row `t` sees the rows from `t - W / 2` to itself:
//
//     out_t = softmax(scale q_t (k_t' + R_{t - t'})^T exp(-gamma (t - t'))) v
//     R_k[2i] = sin(k / base^(2i/d)),   R_k[2i + 1] = cos(k / base^(2i/d))
//
// A sinusoid of a difference is a sum of products of sinusoids of its two terms. So `q_t R_{t - t'}^T` is a product of
// a vector of row `t` and a vector of row `t'`, and all of it an ordinary attention of twice as many elements, under a
// sliding window, with a table over the distance.
namespace castle {
inline namespace CASTLE_ABI {
namespace methods {

/// What the distance between two tokens does to a score.
enum class Decay {
    multiplied,  ///< `exp(-gamma k)` times the score, as in the paper
    added,       ///< `-gamma k` beside it, which lets weights fade whatever the sign of the score
    none
};

struct Temporal {
    Index window = 32;  ///< `W`: a row sees itself and the `W / 2` before it. Even, at least 0.
    Decay decay = Decay::multiplied;
    std::vector<double> gammas = {0.5};  ///< of each query head, or one for all
    double base = 10000;                 ///< of the wavelengths
};

/// Dynamic windowed attention as an ordinary one, of heads with twice the `d`. So all forms take it, with or without
/// lookahead keys: pass `input()`, `options()` and `mask()` to `parallel`, `extend`, `forward` and `backward` with
/// heads of `shape()`, and the gradient that comes out to `gradient`. Caches for it are made with `shape()` and
/// `options()`.
template <ComputeScalar T>
class TemporalInput {
  public:
    /// Of the rows of `input`, which are the positions from `position` on. Refers to the values of `input`, and copies
    /// the rest: `O(L d)` time and memory a head. Throws std::invalid_argument if a shape or an option does not fit,
    /// `position` is negative, `d` is odd, the window is odd or negative, there are neither one nor `heads` gammas,
    /// `base` is not above 0, or the options have a table over the distance already.
    TemporalInput(const Shape& shape, const Input<T>& input, const Temporal& temporal, const Options& options = {},
                  Index position = 0)
        : TemporalInput(Unfinished(), shape, input, temporal, options) {
        detail::check_tokens(where, "position", position);
        for (Index t = 0; t < rows(); ++t) places_.push_back(t);
        longest_ = rows();
        make_waves(position);
        widen();
    }
    /// Of packed sequences: the first `counts[0]` rows are one, the next `counts[1]` another, and so on. Positions
    /// begin anew with each. Throws, too, if the counts do not come to the rows.
    TemporalInput(const Shape& shape, std::span<const Index> counts, const Input<T>& input, const Temporal& temporal,
                  const Options& options = {})
        : TemporalInput(Unfinished(), shape, input, temporal, options) {
        detail::check_counts(where, counts, "input.causal.q", rows());
        for (const Index count : counts) {
            for (Index t = 0; t < count; ++t) places_.push_back(t);
            longest_ = (std::max)(longest_, count);
        }
        make_waves(0);
        widen();
    }
    TemporalInput(TemporalInput&&) = default;
    TemporalInput& operator=(TemporalInput&&) = default;

    /// The same for as many rows of another input, which allocates nothing: at the same positions or, of one sequence,
    /// from `position` on. A long series that is extended some hundred rows at a time stays in the processor's caches.
    /// Throws std::invalid_argument if a shape is not that of the first input, or `position` is negative; nothing has
    /// changed then.
    void set_input(const Input<T>& input) {
        check_input(input);
        input_ = input;
        widen();
    }
    void set_input(const Input<T>& input, Index position) {
        check_input(input);
        detail::check_tokens(where, "position", position);
        input_ = input;
        make_waves(position);
        widen();
    }
    /// Other gammas, as after a step of training. Throws std::invalid_argument if there are not as many as before;
    /// nothing has changed then.
    void set_gammas(std::span<const double> gammas) {
        if (gammas.size() != temporal_.gammas.size()) {
            detail::fail(where, "gammas has ", Index(gammas.size()), " elements but must have ",
                         Index(temporal_.gammas.size()), ", as before");
        }
        make_table(gammas);
        std::copy(gammas.begin(), gammas.end(), temporal_.gammas.begin());
    }

    /// Of the heads that attend.
    Shape shape() const { return detail::wider(kind_.shape, kind_.shape.d); }
    /// With the scale of the heads as they were, and the table of the decay.
    const Options& options() const { return options_; }
    /// A row and the `W / 2` before it.
    Mask mask() const { return masks::sliding_window(distances()); }
    Input<T> input() const {
        return {.causal = {.q = wide_.causal.q, .k = wide_.causal.k, .v = input_.causal.v},
                .lookahead = {.q = wide_.lookahead.q, .k = wide_.lookahead.k, .v = wide_.lookahead.v}};
    }

    /// The gradient of the heads as they were, from that of `input()`. Throws std::invalid_argument if a shape does not
    /// fit.
    Gradient<T> gradient(const Gradient<T>& of_input) const {
        Gradient<T> g(rows(), kind_.shape, wide_.lookahead.q.rows() > 0);
        gradient(of_input, g.view());
        return g;
    }
    /// The same into views of yours, which must not overlap `of_input`.
    void gradient(const Gradient<T>& of_input, const GradientView<T>& to) const {
        const Shape& own = kind_.shape;
        const Index d = own.d, half = d / 2;
        detail::narrow(where, of_input, own, d, rows(), wide_.lookahead.q.rows() > 0, to);
        for (Index t = 0; t < rows(); ++t) {
            const T *cosines = waves(t), *sines = cosines + half;
            for (Index h = 0; h < own.heads; ++h) {
                const T *first = &of_input.causal.q(t, 2 * h * d + d), *second = first + half;
                T* q = to.causal.q.row(t) + h * d;
                for (Index i = 0; i < half; ++i) {
                    q[2 * i] = std::fma(sines[i], first[i], std::fma(-cosines[i], second[i], q[2 * i]));
                    q[2 * i + 1] = std::fma(cosines[i], first[i], std::fma(sines[i], second[i], q[2 * i + 1]));
                }
            }
        }
    }

    /// The gradients of the gammas, from that of the table: `d_terms.factor` of `backward` where the decay is
    /// multiplied, `d_terms.bias` where it is added, `[gammas, W / 2 + 1]`. Empty without decay.
    std::vector<double> gamma_gradient(ConstMatrixView<T> of_table) const {
        std::vector<double> gradient;
        if (temporal_.decay == Decay::none) return gradient;
        const detail::Extents expected{Index(temporal_.gammas.size()), distances()};
        if (of_table.rows() != expected.rows || of_table.cols() != expected.cols) {
            detail::fail(where, "of_table is ", detail::extents_of(of_table), " but must be ", expected,
                         ", as the table");
        }
        for (Index h = 0; h < of_table.rows(); ++h) {
            double& sum = gradient.emplace_back(0);
            for (Index k = 0; k < distances(); ++k) {
                const double factor = temporal_.decay == Decay::added ? 1 : options_.terms.factor(h, k);
                sum -= double(k) * factor * double(of_table.row(h)[k]);
            }
        }
        return gradient;
    }

  private:
    static constexpr std::string_view where = "methods::TemporalInput";

    // Without positions.
    struct Unfinished {};
    TemporalInput(Unfinished, const Shape& shape, const Input<T>& input, const Temporal& temporal,
                  const Options& options)
        : kind_(detail::checked_kind(where, shape, input, options)),
          input_(input),
          temporal_(temporal),
          options_(options) {
        check_options();
        options_.scale = kind_.scale;
        make_table(temporal_.gammas);
    }
    void make_table(std::span<const double> gammas) {
        if (temporal_.decay == Decay::multiplied) options_.terms.factor = tables::decay(gammas, distances());
        if (temporal_.decay == Decay::added) options_.terms.bias = tables::linear(gammas, distances());
    }

    Index rows() const { return input_.causal.q.rows(); }
    Index distances() const { return temporal_.window / 2 + 1; }

    // Of a row: the cosines of all pairs of a head's elements, and then their sines.
    const T* waves(Index row) const { return waves_.row(places_[std::size_t(row)]).data(); }

    void check_options() const {
        const Index d = kind_.shape.d, gammas = Index(temporal_.gammas.size());
        if (d % 2 != 0) detail::fail(where, "shape.d is ", d, " but must be even");
        detail::check_size(where, "temporal.window", temporal_.window, 0);
        if (temporal_.window % 2 != 0) {
            detail::fail(where, "temporal.window is ", temporal_.window, " but must be even");
        }
        if (!(temporal_.base > 0 && std::isfinite(temporal_.base))) {
            detail::fail(where, "temporal.base is ", temporal_.base, " but must be above 0 and finite");
        }
        if (temporal_.decay == Decay::none) return;
        if (gammas != 1 && gammas != kind_.shape.heads) {
            detail::fail(where, "temporal.gammas has ", gammas, " elements but must have 1 or ", kind_.shape.heads,
                         ", as heads");
        }
        if (options_.terms.has_tables()) detail::fail(where, "options.terms has a table but the decay is one");
    }

    void check_input(const Input<T>& input) const {
        const detail::Call call{.where = where,
                                .rows = rows(),
                                .rows_of = "the rows of the first input",
                                .object = "a head",
                                .shape = kind_.shape};
        call.check_input(input, input_.has_lookahead());
    }

    // Of the positions from `position` on. Few sines and cosines are computed as such, of every `stride`-th position
    // and of the positions before the first of these; the others are sums of two angles. So they depend on nothing but
    // the position.
    struct Wave {
        double cosine, sine;
    };
    static constexpr Index stride = 64;

    void make_waves(Index position) {
        const Index half = kind_.shape.d / 2;
        const auto wave = [&](Index place, Index i) {
            const double angle = double(place) * frequencies_[std::size_t(i)];
            return Wave{std::cos(angle), std::sin(angle)};
        };
        if (steps_.empty()) {
            for (Index i = 0; i < half; ++i) {
                frequencies_.push_back(std::pow(temporal_.base, -double(2 * i) / double(2 * half)));
            }
            for (Index k = 0; k < stride; ++k) {
                for (Index i = 0; i < half; ++i) steps_.push_back(wave(k, i));
            }
            anchors_.resize(std::size_t(half));
            waves_.resize(longest_, 2 * half);
        }
        for (Index t = 0; t < waves_.rows(); ++t) {
            const Index k = (position + t) % stride;
            for (Index i = 0; (t == 0 || k == 0) && i < half; ++i) {
                anchors_[std::size_t(i)] = wave(position + t - k, i);
            }
            T* cosines = waves_.row(t).data();
            for (Index i = 0; i < half; ++i) {
                const Wave a = anchors_[std::size_t(i)], b = steps_[std::size_t(k * half + i)];
                cosines[i] = static_cast<T>(std::fma(a.cosine, b.cosine, -(a.sine * b.sine)));
                cosines[half + i] = static_cast<T>(std::fma(a.sine, b.cosine, a.cosine * b.sine));
            }
        }
    }

    // q' = [q, q turned by the position], k' = [k, the position's waves], so that q' k'^T = q (k + R)^T:
    // with q = (a, b) a sin(w (t - s)) + b cos(w (t - s))
    //         = cos(w s) (a sin(w t) + b cos(w t)) + sin(w s) (b sin(w t) - a cos(w t)).
    void widen() {
        const Index d = kind_.shape.d, half = d / 2;
        detail::widen(
            input_, kind_.shape, d,
            [&](Index t, Index, const T* q, T* to) {
                const T *cosines = waves(t), *sines = cosines + half;
                for (Index i = 0; i < half; ++i) {
                    const T a = q[2 * i], b = q[2 * i + 1];
                    to[i] = std::fma(b, cosines[i], a * sines[i]);
                    to[half + i] = std::fma(b, sines[i], -(a * cosines[i]));
                }
            },
            [&](Index t, Index, const T*, T* to) { std::copy_n(waves(t), d, to); }, wide_);
    }

    detail::AttentionKind kind_;
    Input<T> input_;
    Temporal temporal_;
    Options options_;
    std::vector<Index> places_;  // of each row, its row of waves_
    Index longest_ = 0;
    std::vector<double> frequencies_;  // of the pairs
    std::vector<Wave> steps_;          // of the positions up to the first anchor, [stride, d / 2]
    std::vector<Wave> anchors_;        // of the last one that was passed
    Matrix<T> waves_;                  // [longest sequence, d]
    Gradient<T> wide_;
};

}  // namespace methods
}  // namespace CASTLE_ABI
}  // namespace castle
