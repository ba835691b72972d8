// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <istream>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include <castle/detail/backward/backward_pass.hpp>
#include <castle/detail/backward/head_record.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/forward/append.hpp>
#include <castle/detail/layer/layer_rows.hpp>
#include <castle/detail/layer/packed_matrix.hpp>
#include <castle/detail/layer/random_weights.hpp>
#include <castle/detail/layer/weight_gradient.hpp>
#include <castle/gradient.hpp>
#include <castle/head_cache.hpp>
#include <castle/multi_head_cache.hpp>
#include <castle/multi_head_config.hpp>
#include <castle/multi_head_weights.hpp>
#include <castle/multi_head_workspace.hpp>
#include <castle/options.hpp>
#include <castle/rotary.hpp>

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

    MultiHeadLayer(MultiHeadLayer&&) = default;
    ~MultiHeadLayer() = default;

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
        check_weights("weights.", w);
        const auto parts = projections_of(w);
        for (Index i = 0; i < projections_; ++i) in_.set_cols(i * width(), *parts[std::size_t(i)]);
        out_.set_cols(0, w.w_out);
    }

    /// An empty cache for this layer. Layers of the same kind and sizes make caches that cannot be told apart: take
    /// care not to swap those of two layers of a stack.
    ///
    /// It can roll back the last `rollback` tokens, as UqKvCache, which costs `d_head` elements a token and head for
    /// every 32 of them: `2 d_head` with the default of 64, nothing with 0. Throws std::invalid_argument if `rollback`
    /// is negative or above 2^24.
    MultiHeadCache<T> make_cache(Index rollback = default_rollback) const {
        detail::checked_rollback(where_, rollback);
        std::vector<detail::HeadState<T>> heads;
        heads.reserve(std::size_t(config_.heads));
        for (Index h = 0; h < config_.heads; ++h) {
            heads.emplace_back(head_shape(), options_, detail::Keeping{.rollback = rollback});
        }
        return {kind(), std::move(heads), widths().numbers()};
    }

    /// The cache that `MultiHeadCache::save` has written. Throws std::runtime_error if the stream holds no cache of a
    /// layer like this one, rotary settings included, or one that is truncated or corrupted; otherwise as
    /// `UqKvCache::load`.
    MultiHeadCache<T> load_cache(std::istream& in, Index rollback = default_rollback) const {
        MultiHeadCache<T> cache = make_cache(rollback);
        detail::SavedReader reader(in);
        const auto saved = detail::read_identity<T>(reader);
        if (!saved.is_kind_of(cache.identity())) {
            detail::refuse_cache(
                detail::text("has ", detail::LayerKind::of(saved).difference(detail::LayerKind::of(cache.identity()))));
        }
        auto next = cache.heads_.begin();
        cache.heads_ = detail::read_states<T>(reader, saved, [&] { return std::move(*next++); });
        return cache;
    }

    /// Puts the `m >= 0` tokens `x`, `[m, d_model]`, onto the cache and writes the layer's output for them, eq. 14, to
    /// `y`, `[m, d_model]`. Positions of the rotary embedding go on from the cache's size. The bits are the same
    /// however tokens are cut into calls and whatever the executor. Allocates nothing for a single token within the
    /// cache's capacity, unless it has to copy what the cache shares with a fork. `y` must not overlap `x`.
    ///
    /// Throws std::invalid_argument if a shape does not fit or the cache belongs to a layer of another kind, and
    /// std::bad_alloc if memory runs out; the tokens in the cache are as they were then.
    void extend(MultiHeadCache<T>& cache, std::type_identity_t<ConstMatrixView<T>> x,
                std::type_identity_t<MatrixView<T>> y) const {
        const Index rows = x.rows();
        check_tokens("x", x, rows);
        check_tokens("y", y, rows);
        eigen_assert(!cache.heads_.empty() && "a cache that was moved from");
        check_made_for("cache", cache.kind_);
        if (rows == 0) return;

        const Index kept = (std::min)(rows, detail::group_size);
        const Index numbers = detail::extension_numbers(cache.heads_.front(), cache.size(), rows);
        detail::AlignedBuffer<T> memory(rows > 1 ? kept * widths().numbers() : 0), scratch(config_.heads * numbers);
        run(
            x, y, Rows(widths(), rows > 1 ? memory.data() : cache.row_.data(), kept),
            [&](Index h) -> auto& { return cache.heads_[std::size_t(h)]; },
            [&](Index h) { return scratch.data() + h * numbers; }, [](Index) { return detail::LogSumExp<T>(); });
    }

    /// As above, but allocates the output, `[m, d_model]`, and returns it.
    Matrix<T> extend(MultiHeadCache<T>& cache, std::type_identity_t<ConstMatrixView<T>> x) const {
        check_tokens("x", x, x.rows());
        Matrix<T> y(x.rows(), d_model());
        extend(cache, x, y);
        return y;
    }

    /// Puts one token onto each of `caches`, which may hold texts of different lengths: row `i` of `x`,
    /// `[caches, d_model]`, goes onto cache `i`, and its output to row `i` of `y`, `[caches, d_model]`. The weights are
    /// read once for all of them, the work is shared over the executor's threads, and the bits are those of `extend` on
    /// every cache alone. Allocates nothing within what has been reserved, unless the first one has not led as large a
    /// batch before, which it keeps the scratch for.
    ///
    /// Throws std::invalid_argument if a cache is missing, or there twice, or belongs to a layer of another kind, or a
    /// shape does not fit, and std::bad_alloc if memory runs out; the tokens in the caches are as they were then. `y`
    /// must not overlap `x`.
    void extend(std::span<MultiHeadCache<T>* const> caches, std::type_identity_t<ConstMatrixView<T>> x,
                std::type_identity_t<MatrixView<T>> y) const {
        const Index count = Index(caches.size());
        detail::check_batch(where_, caches);
        const auto because = [&] { return detail::text("for ", count, " caches and a layer of d_model ", d_model()); };
        detail::check_shape(where_, "", "x", x, count, d_model(), because);
        detail::check_shape(where_, "", "y", y, count, d_model(), because);
        for (Index i = 0; i < count; ++i) {
            const auto& made_for = caches[std::size_t(i)]->kind_;
            if (made_for != kind()) check_made_for(detail::text("caches[", i, "]"), made_for);
        }
        if (count == 0) return;

        auto& memory = caches.front()->row_;
        if (memory.size() < count * widths().numbers()) memory = detail::AlignedBuffer<T>(count * widths().numbers());
        const Rows rows(widths(), memory.data(), count);
        const auto state = [&](Index i) -> auto& {
            return caches[std::size_t(i / config_.heads)]->heads_[std::size_t(i % config_.heads)];
        };
        for (Index i = 0; i < count * config_.heads; ++i) state(i).make_room(state(i).size() + 1);
        project(
            x, [&](Index i) { return caches[std::size_t(i)]->size(); }, rows);
        detail::extend_by_one_each<T>(
            count * config_.heads, state, [&](Index i) { return i / config_.heads; },
            [&](Index i) { return rows.input(i % config_.heads); },
            [&](Index i) { return detail::OutputRows<T>{.out = rows.attended(i % config_.heads)}; }, options_.executor);
        detail::run(options_.executor, out_.panels(), [&](Index p) { out_.multiply_panel(rows.attended(), p, y); });
    }

    /// The layer over a whole sequence `x`, `[L, d_model]`, into `y`, `[L, d_model]`: `extend` of an empty cache.
    void forward(std::type_identity_t<ConstMatrixView<T>> x, std::type_identity_t<MatrixView<T>> y) const {
        MultiHeadCache<T> cache = make_cache(/*rollback=*/0);
        extend(cache, x, y);
    }

    /// As above; returns the output, `[L, d_model]`.
    [[nodiscard]] Matrix<T> forward(std::type_identity_t<ConstMatrixView<T>> x) const {
        check_tokens("x", x, x.rows());
        Matrix<T> y(x.rows(), d_model());
        forward(x, y);
        return y;
    }

    /// An empty workspace for training this layer.
    MultiHeadWorkspace<T> make_workspace() const {
        std::vector<detail::HeadRecord<T>> heads;
        heads.reserve(std::size_t(config_.heads));
        for (Index h = 0; h < config_.heads; ++h) heads.emplace_back(head_shape(), options_);
        return {kind(), std::move(heads)};
    }

    /// The layer over a whole sequence, with the bits of `forward(x, y)`; `workspace` keeps what `backward` needs, in
    /// place of what it held before. `y` must not overlap `x`.
    ///
    /// Throws std::invalid_argument if a shape does not fit or the workspace belongs to a layer of another kind, and
    /// nothing has changed then; and std::bad_alloc if memory runs out: `y` is untouched then, but the workspace holds
    /// no forward pass.
    void forward(MultiHeadWorkspace<T>& workspace, std::type_identity_t<ConstMatrixView<T>> x,
                 std::type_identity_t<MatrixView<T>> y) const {
        const Index rows = x.rows();
        check_tokens("x", x, rows);
        check_tokens("y", y, rows);
        check_made_for("workspace", workspace.kind_);
        workspace.start(rows, rows * widths().numbers(), rows * widths().padded_attended());
        if (rows == 0) return;
        const auto record = [&](Index h) -> auto& { return workspace.heads_[std::size_t(h)]; };
        run(
            x, y, Rows(widths(), workspace.rows_.data(), rows), [&](Index h) -> auto& { return record(h).state(); },
            [&](Index h) { return record(h).scratch(); }, [&](Index h) { return record(h).log_sum_exp(); });
    }

    /// The gradients of a loss from `d_y`, `[L, d_model]`, its gradient with respect to the layer's output: that with
    /// respect to the input goes into `d_x`, `[L, d_model]`, those with respect to the weights are *added* to
    /// `d_weights`, so that a batch of sequences sums up. `workspace` and `x` are as the forward pass left and saw
    /// them, and the weights as they were; the workspace is used up. `d_x` must not overlap `x`, but may be `d_y`.
    ///
    /// The bits do not depend on the executor. Throws std::invalid_argument, and changes nothing then, if a shape does
    /// not fit, the workspace belongs to a layer of another kind, or there was no forward pass.
    void backward(MultiHeadWorkspace<T>& workspace, std::type_identity_t<ConstMatrixView<T>> x,
                  std::type_identity_t<ConstMatrixView<T>> d_y, std::type_identity_t<MatrixView<T>> d_x,
                  MultiHeadWeights<T>& d_weights) const {
        const Index rows = x.rows();
        check_tokens("x", x, rows);
        check_tokens("d_y", d_y, rows);
        check_tokens("d_x", d_x, rows);
        check_weights("d_weights.", d_weights);
        check_made_for("workspace", workspace.kind_);
        detail::check_forward_pass(where_, "x", rows, workspace.size());
        if (rows == 0) return;

        const Executor& executor = options_.executor;
        const Rows kept(widths(), workspace.rows_.data(), rows);
        const MatrixView<T> d_attended(workspace.d_attended_.data(), rows, width(), widths().padded_attended());
        detail::run(executor, out_.transposed_panels(),
                    [&](Index p) { out_.multiply_transposed_panel(d_y, p, d_attended); });
        detail::run(executor, out_.panels(), [&](Index p) {
            detail::add_weight_gradient<T>(kept.attended(), d_y, p, weight_runs(std::array{&d_weights.w_out}, p));
        });
        // Of the projections nothing is needed once their gradients are known, which take their places.
        detail::run_backward(
            config_.heads, rows,
            [&](Index h) {
                return workspace.heads_[std::size_t(h)].backward(
                    kept.input(h), kept.attended(h), d_attended.middle_cols(h * config_.d_head, config_.d_head),
                    kept.gradient(h));
            },
            executor);
        for (auto& head : workspace.heads_) head.finish();
        rotate(kept, rows, [&](T* head, const T* angles) { table_->rotate_row_back(head, angles); });
        detail::run(executor, in_.panels(), [&](Index p) {
            detail::add_weight_gradient<T>(x, kept.projected(), p, weight_runs(projections_of(d_weights), p));
        });
        detail::run(executor, in_.transposed_panels(),
                    [&](Index p) { in_.multiply_transposed_panel(kept.projected(), p, d_x); });
    }

    /// As above; returns the gradients.
    [[nodiscard]] MultiHeadGradient<T> backward(MultiHeadWorkspace<T>& workspace,
                                                std::type_identity_t<ConstMatrixView<T>> x,
                                                std::type_identity_t<ConstMatrixView<T>> d_y) const {
        check_tokens("x", x, x.rows());
        MultiHeadGradient<T> g{.x = Matrix<T>(x.rows(), d_model()), .weights = {}};
        for (Index i = 0; i < projections_; ++i) {
            projections_of(g.weights)[std::size_t(i)]->setZero(d_model(), width());
        }
        g.weights.w_out.setZero(width(), d_model());
        backward(workspace, x, d_y, g.x, g.weights);
        return g;
    }

  protected:
    // Of another layer; MultiHeadCastle and MultiHeadCausal see to it that it is another one.
    MultiHeadLayer& operator=(MultiHeadLayer&&) = default;

    // `projections` is 6, or 3 for standard attention. All weights are 0 at first.
    MultiHeadLayer(std::string_view where, Index projections, const MultiHeadConfig& config, Options options)
        : where_(where),
          projections_(projections),
          config_(checked(where, config, options)),
          options_(std::move(options)),
          in_(config.d_model, projections * width()),
          out_(width(), config.d_model) {
        if (config_.rotary) table_.emplace(config_.d_head, config_.rotary->base);
    }

    void set_random_weights() { set_weights(detail::random_weights<T>(config_, projections_)); }

  private:
    using Rows = detail::LayerRows<T>;

    Index d_model() const { return config_.d_model; }
    Index width() const { return config_.heads * config_.d_head; }
    bool has_lookahead() const { return projections_ == 6; }

    HeadShape head_shape() const { return {.d = config_.d_head, .dv = config_.d_head}; }
    detail::LayerWidths widths() const {
        return {.projections = projections_,
                .heads = config_.heads,
                .d_head = config_.d_head,
                .angles = table_ ? table_->row_size() : 0};
    }

    // The six projections of weights or of their gradients.
    template <class Weights>
    static auto projections_of(Weights& w) {
        return std::array{&w.causal.q, &w.causal.k, &w.causal.v, &w.lookahead.q, &w.lookahead.k, &w.lookahead.v};
    }

    // Where the columns of panel p of matrices side by side, of which there may be none, are in each of them.
    template <std::size_t N>
    static std::array<detail::WeightRun<T>, N> weight_runs(const std::array<Matrix<T>*, N>& side_by_side, Index p) {
        std::array<detail::WeightRun<T>, N> runs{};
        const Index first = p * detail::panel_size, end = first + detail::panel_size;
        Index left = 0;  // edge of the matrix
        for (std::size_t i = 0; i < N; ++i) {
            Matrix<T>& m = *side_by_side[i];
            const Index begin = (std::max)(first, left), stop = (std::min)(end, left + m.cols());
            if (begin < stop) runs[i] = {m.data() + (begin - left), m.cols(), begin - first, stop - begin};
            left += m.cols();
        }
        return runs;
    }

    void check_weights(std::string_view group, const MultiHeadWeights<T>& w) const {
        const auto because = [&] {
            return detail::text("for d_model ", d_model(), " and ", config_.heads, " heads of size ", config_.d_head);
        };
        constexpr std::array<std::string_view, 6> names{"causal.q",    "causal.k",    "causal.v",
                                                        "lookahead.q", "lookahead.k", "lookahead.v"};
        for (std::size_t i = 0; i < 6; ++i) {
            const bool used = Index(i) < projections_;
            detail::check_shape(where_, group, names[i], ConstMatrixView<T>(*projections_of(w)[i]),
                                used ? d_model() : 0, used ? width() : 0, because);
        }
        detail::check_shape(where_, group, "w_out", ConstMatrixView<T>(w.w_out), width(), d_model(), because);
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
        return {.d_model = config_.d_model,
                .projections = projections_,
                .heads = config_.heads,
                .d_head = config_.d_head,
                .lookahead_window = options_.lookahead_window,
                .silu = options_.silu,
                .causal_keys = options_.causal_keys,
                .scale = detail::scale_for(options_, config_.d_head),
                .rotary = config_.rotary};
    }

    // A cache or a workspace.
    void check_made_for(std::string_view name, const detail::LayerKind& made_for) const {
        if (made_for != kind()) {
            detail::fail(where_, name, " is for a layer with ", made_for.difference(kind()));
        }
    }

    // The layer over new tokens x onto the heads' states, in their scratch. `kept` has room for all rows, or for those
    // of one group if they need not be kept. log_sum_exp(h) is where those of head h go, if anywhere.
    template <class State, class Scratch, class LogSumExp>
    void run(ConstMatrixView<T> x, MatrixView<T> y, const Rows& kept, const State& state, const Scratch& scratch,
             const LogSumExp& log_sum_exp) const {
        detail::Extension<T, State, Scratch> extension(config_.heads, x.rows(), state, scratch, options_.executor);
        extension.for_groups([&](const detail::Group& group) {
            const Rows rows = kept.rows() < x.rows() ? kept : kept.from(group.call_row);
            project(
                x.middle_rows(group.call_row, group.rows()), [&](Index i) { return group.first + i; }, rows);
            const detail::Group own{.first = group.first, .end = group.end, .call_row = 0};
            extension.run(
                own, [&](Index h) { return rows.input(h); },
                [&](Index h) {
                    return detail::OutputRows<T>{.out = rows.attended(h),
                                                 .log_sum_exp = log_sum_exp(h).from(group.call_row)};
                });
            const ConstMatrixView<T> attended = rows.attended().middle_rows(0, group.rows());
            const MatrixView<T> out = y.middle_rows(group.call_row, group.rows());
            detail::run(options_.executor, out_.panels(), [&](Index p) { out_.multiply_panel(attended, p, out); });
        });
    }

    // The projections of x, whose row i is at position(i), rotated where they are to be.
    template <class Position>
    void project(ConstMatrixView<T> x, const Position& position, const Rows& scratch) const {
        const MatrixView<T> projected = scratch.projected().middle_rows(0, x.rows());
        detail::run(options_.executor, in_.panels(), [&](Index p) { in_.multiply_panel(x, p, projected); });
        if (table_) {
            for (Index i = 0; i < x.rows(); ++i) table_->fill(position(i), scratch.angles(i));
        }
        rotate(scratch, x.rows(), [&](T* head, const T* angles) { table_->rotate_row(head, angles); });
    }

    // turn(x, angles) for every row x of a head and projection that is rotated.
    template <class Turn>
    void rotate(const Rows& scratch, Index count, const Turn& turn) const {
        if (!table_) return;
        const Rotary& rotary = *config_.rotary;
        const std::array<bool, 6> rotated{rotary.causal_q,    rotary.causal_k,    rotary.causal_v,
                                          rotary.lookahead_q, rotary.lookahead_k, rotary.lookahead_v};
        const auto rotate_head = [&](Index h) {
            for (Index i = 0; i < projections_; ++i) {
                if (!rotated[std::size_t(i)]) continue;
                const MatrixView<T> head = scratch.projected(i, h);
                for (Index row = 0; row < count; ++row) turn(head.row(row), scratch.angles(row));
            }
        };
        detail::run(detail::executor_for_rows(options_.executor, count), config_.heads, rotate_head);
    }

    std::string_view where_;
    Index projections_;
    MultiHeadConfig config_;
    Options options_;
    std::optional<RotaryTable<T>> table_;
    detail::PackedMatrix<T> in_;   // the projections side by side, [d_model, projections * heads * d_head]
    detail::PackedMatrix<T> out_;  // [heads * d_head, d_model]
};

}  // namespace CASTLE_ABI
}  // namespace castle
