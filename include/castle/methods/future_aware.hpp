// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string_view>
#include <utility>
#include <vector>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/check/attention_kind.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/check/message.hpp>
#include <castle/detail/methods/wide_heads.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/detail/simd/product.hpp>
#include <castle/detail/simd/simd.hpp>
#include <castle/detail/simd/transpose.hpp>
#include <castle/executor.hpp>
#include <castle/input.hpp>
#include <castle/mask.hpp>
#include <castle/options.hpp>
#include <castle/types.hpp>

// Future-aware attention (arXiv:2505.18605) for prompts of visual tokens and text. In its full form a visual token also
// sees later tokens of the prompt: `masks::modality(visual, future)`, whose three kinds are the paper's `M^f`, `M^v2v`
// and `M^v2t`.
//
// In its light form the final mask stays causal, so that decoding is ordinary. Of each row the logits `B = scale Q K^T`
// of the later tokens that it would see are pooled and reduced to one number `s_i`, which is added to its logits of the
// first `p` tokens. No later value is read:
//
//     out = softmax(B + C + M^c) V,    C[i, j] = s_i for j < p, otherwise 0
namespace castle {
inline namespace CASTLE_ABI {
namespace methods {

/// How a row's logits of later tokens become one number.
enum class Pooling { max, mean };

/// The light form, for a prompt in which `visual[t]` says of which kind token `t` is.
struct LightFuture {
    std::vector<bool> visual = {};
    Future future = Future::all;  ///< which later tokens of the prompt the row of a visual one looks at
    Pooling pooling = Pooling::max;
    /// `k`: logits are pooled over as many neighbours, with stride 1, before the same is done with all of them; at the
    /// ends over those that are there. Of no effect on the largest, and on the mean only through the ends. Odd.
    Index kernel = 1;
    Index prefix = 1;  ///< `p`: of the tokens whose logits are changed
};

/// Light future-aware attention as an ordinary one, with one more element in every query and key: `s_i / scale` and 1
/// for the first `p` keys, 0 elsewhere. So all forms take it, with or without lookahead keys: pass `input()` and
/// `options()` to `parallel`, `extend`, `forward` and `backward` with heads of `shape()`, and the gradient that comes
/// out to `gradient`. Caches for it are made with `shape()` and `options()` too; they cost `1 / d` more.
template <ComputeScalar T>
class LightFutureInput {
  public:
    /// Of the rows of `input`, which are the positions from `position` on. At position 0 they are the whole prompt, and
    /// maybe more; later ones are after it, and get zeros. Refers to the values of `input`, and copies the rest.
    ///
    /// `O(visual^2 d)` time and `O(L d)` memory a head, in pieces on the executor of the options. Throws
    /// std::invalid_argument if a shape or an option does not fit, `kernel` is not odd, `prefix` is below 1, or the
    /// prompt is not in one call.
    LightFutureInput(const Shape& shape, const Input<T>& input, const LightFuture& light, const Options& options = {},
                     Index position = 0)
        : kind_(detail::checked_kind(where, shape, input, options)),
          rows_(input.causal.q.rows()),
          is_smallest_(kind_.scale < 0),
          light_(light),
          input_(input),
          options_(options) {
        check_options(position);
        options_.scale = kind_.scale;
        const bool has_prompt = position == 0;
        if (has_prompt) find_later_tokens();
        pool();
        widen(has_prompt ? light_.prefix : std::clamp<Index>(light_.prefix - position, 0, rows_));
    }
    LightFutureInput(LightFutureInput&&) = default;
    LightFutureInput& operator=(LightFutureInput&&) = default;

    /// Of the heads that attend: with a `d` that is larger by one.
    Shape shape() const { return detail::wider(kind_.shape, 1); }
    /// With the scale of the heads as they were.
    const Options& options() const { return options_; }
    Input<T> input() const {
        return {.causal = {.q = wide_.causal.q, .k = wide_.causal.k, .v = input_.causal.v},
                .lookahead = {.q = wide_.lookahead.q, .k = wide_.lookahead.k, .v = wide_.lookahead.v}};
    }

    /// `s`, `[L, heads]`; 0 where a row looks at no later token.
    Matrix<T> future_logits() const { return pooled_ * static_cast<T>(kind_.scale); }

    /// The gradient of the heads as they were, from that of `input()`: a row's `s` passes its own to the logit that was
    /// the largest, the first of equals, or to all of them. Throws std::invalid_argument if a shape does not fit.
    Gradient<T> gradient(const Gradient<T>& of_input) const {
        const Shape& own = kind_.shape;
        const bool has_lookahead = wide_.lookahead.q.rows() > 0;
        Gradient<T> g(rows_, own, has_lookahead);
        detail::narrow(where, of_input, own, 1, rows_, has_lookahead, g.view());
        if (light_.pooling == Pooling::max) {
            pass_largest_gradient(of_input.causal.q, g);
            return g;
        }
        for (Index kv = 0; kv < own.kv_heads; ++kv) pass_mean_gradient(of_input.causal.q, kv, g);
        return g;
    }

  private:
    static constexpr std::string_view where = "methods::LightFutureInput";
    using RowOf = Eigen::Map<const Eigen::Matrix<T, 1, Eigen::Dynamic>>;
    using RowVector = Eigen::Matrix<double, 1, Eigen::Dynamic>;

    void check_options(Index position) const {
        const Index prompt = Index(light_.visual.size());
        detail::check_size(where, "light.prefix", light_.prefix, 1);
        detail::check_size(where, "light.kernel", light_.kernel, 1);
        if (light_.kernel % 2 == 0) detail::fail(where, "light.kernel is ", light_.kernel, " but must be odd");
        detail::check_tokens(where, "position", position);
        if (position == 0 && rows_ < prompt) {
            detail::fail(where, "input has ", rows_, " rows but light.visual has ", prompt,
                         ": the prompt has to come in one call");
        }
        if (position > 0 && position < prompt) {
            detail::fail(where, "position is ", position, " but must be 0 or at least ", prompt,
                         ": the prompt has to come in one call");
        }
    }

    Index group() const { return kind_.group(); }
    RowOf query(Index row, Index h) const { return RowOf(input_.causal.q.row(row) + h * kind_.shape.d, kind_.shape.d); }
    RowOf key(Index row, Index kv) const { return RowOf(input_.causal.k.row(row) + kv * kind_.shape.d, kind_.shape.d); }

    // Which tokens may be looked at, and which rows look at how many of them: all from the first that is later.
    void find_later_tokens() {
        for (Index t = 0; t < Index(light_.visual.size()); ++t) {
            const bool visual = light_.visual[std::size_t(t)];
            if (visual ? light_.future != Future::text : light_.future != Future::visual) later_.push_back(t);
        }
        for (Index t = 0; t < Index(light_.visual.size()); ++t) {
            if (!light_.visual[std::size_t(t)]) continue;
            const Index first = Index(std::upper_bound(later_.begin(), later_.end(), t) - later_.begin());
            if (first == Index(later_.size())) continue;
            rows_with_future_.push_back(t);
            first_later_.push_back(first);
        }
    }

    // pooled_ = s / scale, of all rows and heads.
    void pool() {
        const Index rows = Index(rows_with_future_.size()), heads = kind_.shape.heads;
        pooled_ = Matrix<T>::Zero(rows_, heads);
        if (rows == 0) return;
        if (light_.pooling == Pooling::mean) {
            for (Index kv = 0; kv < kind_.shape.kv_heads; ++kv) {
                for_mean_keys(kv, [&](Index row, const RowVector& mean) {
                    for (Index h = kv * group(); h < (kv + 1) * group(); ++h) {
                        pooled_(row, h) = static_cast<T>(query(row, h).template cast<double>().dot(mean));
                    }
                });
            }
            return;
        }
        largest_at_.assign(std::size_t(rows * heads), Index(-1));
        const Index blocks = detail::ceil_div(rows, detail::block_size);
        for (Index kv = 0; kv < kind_.shape.kv_heads; ++kv) {
            const detail::AlignedBuffer<T> panels = packed_keys(kv);
            detail::run(options_.executor, blocks * group(), [&](Index piece) {
                find_largest(kv * group() + piece % group(), piece / group() * detail::block_size, panels.data());
            });
        }
    }

    // The keys that may be looked at, [d][panel_size] each, one panel after the other.
    detail::AlignedBuffer<T> packed_keys(Index kv) const {
        const Index d = kind_.shape.d, count = Index(later_.size());
        const Index panels = detail::ceil_div(count, detail::panel_size);
        detail::AlignedBuffer<T> packed(panels * d * detail::panel_size), rows(detail::panel_size * d);
        for (Index p = 0; p < panels; ++p) {
            const Index first = p * detail::panel_size, n = (std::min)(detail::panel_size, count - first);
            for (Index j = 0; j < n; ++j) {
                std::copy_n(key(later_[std::size_t(first + j)], kv).data(), d, rows.data() + j * d);
            }
            detail::transpose(rows.data(), d, n, d, T(1), packed.data() + first * d, detail::panel_size);
        }
        return packed;
    }

    // For a block of the rows that have a future. With a negative scale the largest logit is that of the smallest
    // product.
    void find_largest(Index h, Index first_row, const T* panels) {
        using detail::block_size, detail::panel_size;
        const Index d = kind_.shape.d, count = Index(later_.size());
        const Index n = (std::min)(block_size, Index(rows_with_future_.size()) - first_row);
        detail::AlignedBuffer<T> rows(block_size * d), queries(d * block_size);
        for (Index i = 0; i < n; ++i) {
            std::copy_n(query(rows_with_future_[std::size_t(first_row + i)], h).data(), d, rows.data() + i * d);
        }
        detail::transpose(rows.data(), d, n, d, T(is_smallest_ ? -1 : 1), queries.data(), block_size);
        std::array<T, std::size_t(block_size)> largest;
        largest.fill(-std::numeric_limits<T>::infinity());
        alignas(64) T products[block_size * panel_size];
        // Rows look at the tokens from one on, later rows at fewer.
        for (Index p = first_later_[std::size_t(first_row)] / panel_size; p * panel_size < count; ++p) {
            detail::multiply<panel_size>(n, d, detail::Operand<T>{queries.data(), 1, block_size},
                                         panels + p * d * panel_size, panel_size, products, panel_size);
            for (Index i = 0; i < n; ++i) {
                const Index begin = (std::max)(first_later_[std::size_t(first_row + i)] - p * panel_size, Index(0));
                const Index end = (std::min)(panel_size, count - p * panel_size);
                const T* product = products + i * panel_size;
                T& best = largest[std::size_t(i)];
                Index& at = largest_at_[std::size_t((first_row + i) * kind_.shape.heads + h)];
                if (end - begin == panel_size) {
                    const T of_panel = largest_of(product);
                    if (of_panel <= best) continue;  // as of most panels
                    if (of_panel > best) {
                        best = of_panel;
                        at = p * panel_size + (std::find(product, product + panel_size, best) - product);
                        continue;
                    }
                }
                for (Index j = begin; j < end; ++j) {
                    if (!(product[j] > best) && !(std::isnan(product[j]) && !std::isnan(best))) continue;
                    best = product[j];
                    at = p * panel_size + j;
                }
            }
        }
        for (Index i = 0; i < n; ++i) {
            const T best = largest[std::size_t(i)];
            pooled_(rows_with_future_[std::size_t(first_row + i)], h) = is_smallest_ ? -best : best;
        }
    }

    // The largest of a panel's products; NaN where one is not finite, for no sum with such a one is. A sum that
    // overflows gives NaN as well, which costs time only.
    static T largest_of(const T* products) {
        using S = detail::Simd<T>;
        auto largest = S::load(products), sum = S::zero();
        detail::for_packets<T, detail::panel_size>([&](Index j) CASTLE_INLINE_LAMBDA {
            const auto packet = S::load(products + j);
            largest = S::larger(packet, largest);
            sum = S::add(sum, packet);
        });
        return std::isfinite(S::sum(sum)) ? S::largest(largest) : std::numeric_limits<T>::quiet_NaN();
    }

    // The mean of the means over `kernel` neighbours has equal parts of all n tokens but for those at the ends: calls
    // f(j, factor) for these, where token j has 1 + factor of such a part.
    template <class F>
    void for_ends(Index n, const F& f) const {
        const Index half = light_.kernel / 2, reach = 2 * half;
        const auto call = [&](Index j) {
            double parts = 0;
            for (Index m = (std::max)(j - half, Index(0)); m <= (std::min)(j + half, n - 1); ++m) {
                parts += 1.0 / double((std::min)(m + half, n - 1) - (std::max)(m - half, Index(0)) + 1);
            }
            f(j, parts - 1);
        };
        for (Index j = 0; j < (std::min)(reach, n); ++j) call(j);
        for (Index j = (std::max)(n - reach, (std::min)(reach, n)); j < n; ++j) call(j);
    }

    // Calls f(row, mean) for the rows that have a future: the mean of the keys, of one head, that they look at. Sums
    // over all later tokens, from the last one back.
    template <class F>
    void for_mean_keys(Index kv, const F& f) const {
        RowVector sum = RowVector::Zero(kind_.shape.d);
        Index summed = Index(later_.size());
        for (Index i = Index(rows_with_future_.size()) - 1; i >= 0; --i) {
            const Index first = first_later_[std::size_t(i)], n = Index(later_.size()) - first;
            while (summed > first) sum += later_key(--summed, kv);
            RowVector mean = sum;
            for_ends(n, [&](Index j, double factor) { mean += factor * later_key(first + j, kv); });
            f(rows_with_future_[std::size_t(i)], RowVector(mean / double(n)));
        }
    }
    RowVector later_key(Index j, Index kv) const { return key(later_[std::size_t(j)], kv).template cast<double>(); }

    // The gradient of the pooled logits, as it comes with the queries of input(), to queries and keys.
    void pass_mean_gradient(const Matrix<T>& d_queries, Index kv, Gradient<T>& g) const {
        const Index d = kind_.shape.d;
        const auto d_pooled = [&](Index row, Index h) { return double(d_queries(row, h * (d + 1) + d)); };
        const auto heads = [&](const auto& each) {
            for (Index h = kv * group(); h < (kv + 1) * group(); ++h) each(h);
        };
        for_mean_keys(kv, [&](Index row, const RowVector& mean) {
            heads([&](Index h) {
                g.causal.q.row(row).segment(h * d, d) += (d_pooled(row, h) * mean).template cast<T>();
            });
        });
        const auto add_to_key = [&](Index j, const RowVector& x) {
            g.causal.k.row(later_[std::size_t(j)]).segment(kv * d, d) += x.template cast<T>();
        };
        // What all tokens from here on get.
        RowVector sum = RowVector::Zero(d);
        std::size_t i = 0;
        for (Index j = 0; j < Index(later_.size()); ++j) {
            for (; i < rows_with_future_.size() && first_later_[i] <= j; ++i) {
                const Index row = rows_with_future_[i], n = Index(later_.size()) - first_later_[i];
                RowVector part = RowVector::Zero(d);
                heads([&](Index h) { part += d_pooled(row, h) / double(n) * query(row, h).template cast<double>(); });
                sum += part;
                for_ends(n, [&](Index end, double factor) { add_to_key(first_later_[i] + end, factor * part); });
            }
            add_to_key(j, sum);
        }
    }
    void pass_largest_gradient(const Matrix<T>& d_queries, Gradient<T>& g) const {
        const Index d = kind_.shape.d, heads = kind_.shape.heads;
        for (std::size_t i = 0; i < rows_with_future_.size(); ++i) {
            for (Index h = 0; h < heads; ++h) {
                const Index at = largest_at_[i * std::size_t(heads) + std::size_t(h)], row = rows_with_future_[i];
                if (at < 0) continue;
                const Index later = later_[std::size_t(at)], kv = h / group();
                const T d_pooled = d_queries(row, h * (d + 1) + d);
                g.causal.q.row(row).segment(h * d, d) += d_pooled * key(later, kv);
                g.causal.k.row(later).segment(kv * d, d) += d_pooled * query(row, h);
            }
        }
    }

    // With the additional element; `prefix` of the keys have a 1 there.
    void widen(Index prefix) {
        detail::widen(
            input_, kind_.shape, 1, [&](Index t, Index h, const T*, T* to) { *to = pooled_(t, h); },
            [&](Index t, Index, const T*, T* to) { *to = T(t < prefix ? 1 : 0); }, wide_);
    }

    detail::AttentionKind kind_;  // of the heads as they were
    Index rows_;
    bool is_smallest_;
    LightFuture light_;
    Input<T> input_;
    Options options_;
    std::vector<Index> later_;             // positions that may be looked at
    std::vector<Index> rows_with_future_;  // positions of the rows that do, and from which of `later_` on
    std::vector<Index> first_later_;
    std::vector<Index> largest_at_;  // of those rows and every head, in `later_`
    Matrix<T> pooled_;
    Gradient<T> wide_;
};

}  // namespace methods
}  // namespace CASTLE_ABI
}  // namespace castle
