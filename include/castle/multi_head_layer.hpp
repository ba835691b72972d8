// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include <castle/detail/checks.hpp>
#include <castle/detail/extension.hpp>
#include <castle/detail/packed_matrix.hpp>
#include <castle/detail/random_weights.hpp>
#include <castle/multi_head_cache.hpp>
#include <castle/multi_head_config.hpp>
#include <castle/multi_head_weights.hpp>
#include <castle/options.hpp>
#include <castle/rope.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// What MultiHeadCastle and MultiHeadCausal have in common (eq. 14): projections, rotation, the sweep over all heads,
/// output projection. Standard attention has three projections and a lookahead window of 0.
///
/// Running a layer does not change it: it may serve several threads at once, with a cache each.
template <Scalar T>
class MultiHeadLayer {
  public:
    using value_type = T;

    const MultiHeadConfig& config() const { return config_; }
    const Options& options() const { return options_; }

    /// Trained numbers in the layer.
    Index parameters() const { return (projections_ + 1) * width() * config_.d_model; }

    /// The weights by name; a copy, since the layer keeps them in an order of its own.
    MultiHeadWeights<T> weights() const {
        const auto part = [&](Index i) { return in_.cols_at(i * width(), width()); };
        MultiHeadWeights<T> w{.causal = {.q = part(0), .k = part(1), .v = part(2)},
                              .w_out = out_.cols_at(0, d_model())};
        if (has_lookahead()) w.lookahead = {.q = part(3), .k = part(4), .v = part(5)};
        return w;
    }

    /// Replaces the weights. Throws std::invalid_argument, and changes nothing then, if a shape does not fit.
    void set_weights(const MultiHeadWeights<T>& w) {
        const auto because = [&] {
            return detail::text("for d_model ", d_model(), " and ", config_.heads, " heads of size ", config_.d_head);
        };
        const std::array<const Matrix<T>*, 6> parts{&w.causal.q,    &w.causal.k,    &w.causal.v,
                                                    &w.lookahead.q, &w.lookahead.k, &w.lookahead.v};
        constexpr std::array<std::string_view, 6> names{"causal.q",    "causal.k",    "causal.v",
                                                        "lookahead.q", "lookahead.k", "lookahead.v"};
        for (std::size_t i = 0; i < 6; ++i) {
            const bool used = Index(i) < projections_;
            detail::check_shape(where_, "weights.", names[i], ConstMatrixView<T>(*parts[i]), used ? d_model() : 0,
                                used ? width() : 0, because);
        }
        detail::check_shape(where_, "weights.", "w_out", ConstMatrixView<T>(w.w_out), width(), d_model(), because);
        for (Index i = 0; i < projections_; ++i) in_.set_cols(i * width(), *parts[std::size_t(i)]);
        out_.set_cols(0, w.w_out);
    }

    /// An empty cache for this layer. Layers of the same kind and sizes make caches that cannot be told apart: take
    /// care not to swap those of two layers of a stack.
    MultiHeadCache<T> make_cache() const {
        std::vector<detail::HeadState<T>> heads;
        heads.reserve(std::size_t(config_.heads));
        for (Index h = 0; h < config_.heads; ++h) {
            heads.emplace_back(HeadShape{.d = config_.d_head, .dv = config_.d_head}, scale_, options_.lookahead_window);
        }
        return {kind(), std::move(heads), scratch_numbers(1)};
    }

    /// Puts the `m >= 0` tokens `x`, `[m, d_model]`, onto the cache and writes the layer's output for them, eq. 14, to
    /// `y`, `[m, d_model]`. Positions of the rotary embedding go on from the cache's size. The bits are the same
    /// however tokens are cut into calls and whatever the executor. Allocates nothing for a single token within the
    /// cache's capacity. `y` must not overlap `x`.
    ///
    /// Throws std::invalid_argument if a shape does not fit or the cache belongs to a layer of another kind, and
    /// std::bad_alloc if memory runs out; the tokens in the cache are as they were then.
    void extend(MultiHeadCache<T>& cache, std::type_identity_t<ConstMatrixView<T>> x,
                std::type_identity_t<MatrixView<T>> y) const {
        const Index rows = x.rows();
        check_tokens("x", x, rows);
        check_tokens("y", y, rows);
        check_cache(cache);
        if (rows == 0) return;

        const auto state = [&](Index h) -> detail::HeadState<T>& { return cache.heads_[std::size_t(h)]; };
        detail::AlignedBuffer<T> memory;
        if (rows > 1) memory = detail::AlignedBuffer<T>(scratch_numbers(std::min(rows, detail::group_size)));
        const Rows scratch(*this, rows > 1 ? memory.data() : cache.row_.data(), std::min(rows, detail::group_size));
        detail::Extension<T, decltype(state)> extension(config_.heads, rows, state, options_.executor);
        extension.for_groups([&](const detail::Group& group) {
            project(x.middle_rows(group.call_row, group.rows()), group.first, scratch);
            const detail::Group own{.first = group.first, .end = group.end, .call_row = 0};
            extension.run(
                own, [&](Index h) { return scratch.input(h); },
                [&](Index h) { return detail::OutputRows<T>{.out = scratch.output(h)}; });
            const ConstMatrixView<T> attended = scratch.attended.middle_rows(0, group.rows());
            const MatrixView<T> out = y.middle_rows(group.call_row, group.rows());
            detail::run(options_.executor, out_.panels(), [&](Index p) { out_.multiply_panel(attended, p, out); });
        });
    }

    /// As above, but allocates the output, `[m, d_model]`, and returns it.
    Matrix<T> extend(MultiHeadCache<T>& cache, std::type_identity_t<ConstMatrixView<T>> x) const {
        check_tokens("x", x, x.rows());
        Matrix<T> y(x.rows(), d_model());
        extend(cache, x, y);
        return y;
    }

    /// The layer over a whole sequence `x`, `[L, d_model]`, into `y`, `[L, d_model]`: `extend` of an empty cache.
    void forward(std::type_identity_t<ConstMatrixView<T>> x, std::type_identity_t<MatrixView<T>> y) const {
        MultiHeadCache<T> cache = make_cache();
        extend(cache, x, y);
    }

    /// As above; returns the output, `[L, d_model]`.
    [[nodiscard]] Matrix<T> forward(std::type_identity_t<ConstMatrixView<T>> x) const {
        check_tokens("x", x, x.rows());
        Matrix<T> y(x.rows(), d_model());
        forward(x, y);
        return y;
    }

  protected:
    // `projections` is 6, or 3 for standard attention. All weights are 0 at first.
    MultiHeadLayer(std::string_view where, Index projections, const MultiHeadConfig& config, Options options)
        : where_(where),
          projections_(projections),
          config_(checked(where, config, options)),
          options_(std::move(options)),
          scale_(static_cast<T>(detail::scale_for(options_, config.d_head))),
          in_(config.d_model, projections * width()),
          out_(width(), config.d_model) {
        if (config_.rotary) table_.emplace(config_.d_head, config_.rotary->base);
    }

    void set_random_weights() { set_weights(detail::random_weights<T>(config_, projections_)); }

  private:
    // Where the numbers of a group of tokens are between the steps.
    struct Rows {
        Rows(const MultiHeadLayer& layer, T* memory, Index rows)
            : width(layer.width()),
              d_head(layer.config_.d_head),
              projected(memory, rows, layer.projections_ * width),
              attended(memory + rows * projected.cols(), rows, width),
              angles(attended.data() + rows * width) {}

        // Head h of projection i.
        MatrixView<T> projection(Index i, Index h) const {
            return projected.middle_cols(i * width + h * d_head, d_head);
        }
        MatrixView<T> output(Index h) const { return attended.middle_cols(h * d_head, d_head); }

        HeadInput<T> input(Index h) const {
            HeadInput<T> head{.causal = {.q = projection(0, h), .k = projection(1, h), .v = projection(2, h)}};
            if (projected.cols() > 3 * width) {
                head.lookahead = {.q = projection(3, h), .k = projection(4, h), .v = projection(5, h)};
            }
            return head;
        }

        Index width;
        Index d_head;
        MatrixView<T> projected;  // [rows, projections * heads * d_head]
        MatrixView<T> attended;   // [rows, heads * d_head]
        T* angles;                // [rows, table row]
    };

    Index d_model() const { return config_.d_model; }
    Index width() const { return config_.heads * config_.d_head; }
    bool has_lookahead() const { return projections_ == 6; }

    Index scratch_numbers(Index rows) const {
        return rows * ((projections_ + 1) * width() + (table_ ? table_->row_size() : 0));
    }

    static const MultiHeadConfig& checked(std::string_view where, const MultiHeadConfig& config,
                                          const Options& options) {
        detail::check_size(where, "d_model", config.d_model, 1);
        detail::check_size(where, "heads", config.heads, 1);
        detail::check_size(where, "d_head", config.d_head, 1);
        constexpr Index most = Index(1) << 24;
        if (config.d_model > most || config.heads > most / config.d_head) {
            detail::fail(where, "d_model is ", config.d_model, " with ", config.heads, " heads of size ", config.d_head,
                         " but neither d_model nor heads * d_head may exceed ", most);
        }
        detail::check_options<T>(where, options);
        if (config.rotary) {
            if (config.d_head % 2 != 0) {
                detail::fail(where, "d_head is ", config.d_head, " but must be even for rotary embedding");
            }
            detail::check_rotary_base(where, config.rotary->base);
        }
        return config;
    }

    template <class View>
    void check_tokens(std::string_view name, const View& m, Index rows) const {
        detail::check_shape(where_, "", name, m, rows, d_model(), [&] {
            return detail::text("for ", rows, " tokens (the rows of x) and a layer of d_model ", d_model());
        });
    }

    detail::LayerKind kind() const {
        return {.projections = projections_,
                .heads = config_.heads,
                .d_head = config_.d_head,
                .lookahead_window = options_.lookahead_window,
                .scale = scale_,
                .rotary = config_.rotary};
    }

    void check_cache(const MultiHeadCache<T>& cache) const {
        eigen_assert(!cache.heads_.empty() && "a cache that was moved from");
        const detail::LayerKind& made_for = cache.kind_;
        if (made_for.heads != config_.heads || made_for.d_head != config_.d_head) {
            detail::fail(where_, "cache has ", made_for.heads, " heads of size ", made_for.d_head,
                         " but the layer has ", config_.heads, " heads of size ", config_.d_head);
        }
        if (made_for != kind()) {
            detail::fail(
                where_, "cache belongs to a layer with other projections, lookahead window, scale or rotary embedding");
        }
    }

    // The projections of x, whose first row is at `position`, rotated where they are to be.
    void project(ConstMatrixView<T> x, Index position, const Rows& scratch) const {
        const MatrixView<T> projected = scratch.projected.middle_rows(0, x.rows());
        detail::run(options_.executor, in_.panels(), [&](Index p) { in_.multiply_panel(x, p, projected); });
        if (!table_) return;

        const Rotary& rotary = *config_.rotary;
        const std::array<bool, 6> rotated{rotary.causal_q,    rotary.causal_k,    rotary.causal_v,
                                          rotary.lookahead_q, rotary.lookahead_k, rotary.lookahead_v};
        table_->fill(position, x.rows(), scratch.angles);
        const auto rotate_head = [&](Index h) {
            for (Index i = 0; i < projections_; ++i) {
                if (!rotated[std::size_t(i)]) continue;
                const MatrixView<T> head = scratch.projection(i, h);
                for (Index row = 0; row < x.rows(); ++row) {
                    table_->rotate(head.row(row), scratch.angles + row * table_->row_size());
                }
            }
        };
        detail::run(detail::executor_for_rows(options_.executor, x.rows()), config_.heads, rotate_head);
    }

    std::string_view where_;
    Index projections_;
    MultiHeadConfig config_;
    Options options_;
    T scale_;
    std::optional<detail::RotaryTable<T>> table_;
    detail::PackedMatrix<T> in_;   // the projections side by side, [d_model, projections * heads * d_head]
    detail::PackedMatrix<T> out_;  // [heads * d_head, d_model]
};

}  // namespace CASTLE_ABI
}  // namespace castle
