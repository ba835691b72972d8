// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <istream>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>

#include <castle/cache.hpp>
#include <castle/detail/backward/training_record.hpp>
#include <castle/detail/cache/saved_cache.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/forward/append.hpp>
#include <castle/detail/layer/layer_kind.hpp>
#include <castle/detail/layer/layer_rows.hpp>
#include <castle/detail/layer/projections.hpp>
#include <castle/detail/layer/random_weights.hpp>
#include <castle/executor.hpp>
#include <castle/layer_cache.hpp>
#include <castle/layer_weights.hpp>
#include <castle/layer_workspace.hpp>
#include <castle/options.hpp>
#include <castle/rotary.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// The attention layer of eq. 14: `heads` CASTLE heads over six projections of the input, rotated by position if
/// wanted, concatenated and multiplied by `W_O`. With a lookahead window of 0 it is standard causal attention over
/// three projections; with 7/4 as many heads (14 for 8) that has CASTLE's parameter count.
///
/// `forward(x)` runs a whole sequence, `x` and its result `[L, d_model]`; `make_cache()` and `extend` run it in pieces,
/// bitwise identical; `make_workspace()`, `forward` and `backward` train it. Running a layer does not change it: it may
/// serve several threads at once, with a cache or a workspace each. An executor given with a call is used in place of
/// that of the options; calls that return a matrix of their own take none.
///
/// A layer moves but does not copy; one that was moved from may only be assigned to or destroyed. A move to itself
/// changes nothing.
template <Scalar T>
class Layer {
  public:
    using value_type = T;

    /// A layer with random weights from `config.seed`: uniform, with variance 1 over the number of inputs. Throws
    /// std::invalid_argument if a size is below 1 or too large (`d_model`, `d_head` or `heads d_head` above 2^24,
    /// `heads` above 2^12), `heads` is no multiple of `kv_heads`, an option does not fit, or `d_head` is odd with
    /// rotary embedding, and std::bad_alloc if memory runs out.
    explicit Layer(const LayerConfig& config, Options options = {}) : Layer(config, std::move(options), Unset()) {
        set_weights(detail::random_weights<T>(config_, kind().attention.has_lookahead()));
    }

    /// A layer with these weights. Throws as above, and if a weight's shape does not fit.
    Layer(const LayerConfig& config, const LayerWeightsView<T>& weights, Options options = {},
          WeightOrder order = WeightOrder::in_out)
        : Layer(config, std::move(options), Unset()) {
        set_weights(weights, order);
    }

    Layer(Layer&&) = default;
    Layer& operator=(Layer&& other) noexcept {
        if (this == &other) return *this;
        config_ = std::move(other.config_);
        options_ = std::move(other.options_);
        table_ = std::move(other.table_);
        projections_ = std::move(other.projections_);
        return *this;
    }
    ~Layer() = default;

    /// As it was made, with the number of key-value heads in place of 0.
    const LayerConfig& config() const { return config_; }
    const Options& options() const { return options_; }

    /// Trained elements in the layer.
    Index parameters() const { return projections_.parameters(); }

    /// The weights by name; a copy, since the layer keeps them in an order of its own.
    LayerWeights<T> weights() const { return projections_.weights(); }

    /// Replaces the weights by copies of these; all of them are `[out, in]` if `order` says so. Throws
    /// std::invalid_argument, and changes nothing then, if a shape does not fit.
    void set_weights(const LayerWeightsView<T>& w, WeightOrder order = WeightOrder::in_out) {
        projections_.check_weights(where, "weights.", w, order);
        projections_.set(w, order);
    }

    /// Zeros in the shapes of the weights, for `backward` to add to.
    LayerWeights<T> zero_gradient() const { return projections_.zeros(); }

    /// An empty cache for this layer. Layers of the same kind and sizes make caches that cannot be told apart: take
    /// care not to swap those of two layers of a stack.
    ///
    /// It can roll back the last `rollback` tokens, see UqKvCache, which costs `d_head` elements a token and key-value
    /// head for every 32 of them: `2 d_head` with the default of 64, nothing with 0. Throws std::invalid_argument if
    /// `rollback` is negative or above 2^24.
    LayerCache<T> make_cache(Index rollback = default_rollback) const {
        return {kind(),
                detail::SequenceState<T>(kind().attention, {.rollback = detail::checked_rollback(where, rollback)}),
                row_elements()};
    }

    /// The cache that `LayerCache::save` has written. Throws std::runtime_error if the stream holds no cache of a layer
    /// like this one, rotary settings included, or one that is truncated or corrupted; otherwise as `UqKvCache::load`.
    LayerCache<T> load_cache(std::istream& in, Index rollback = default_rollback) const {
        LayerCache<T> cache = make_cache(rollback);
        detail::SavedReader reader(in);
        const auto saved = detail::read_identity<T>(reader);
        if (saved.kind != kind().attention || saved.layer != kind().to_words()) {
            const auto other = detail::LayerKind::from_words(saved.kind, saved.layer);
            detail::reject_cache(detail::text("has ", other.difference(kind())));
        }
        detail::read_state(reader, saved, cache.state_);
        return cache;
    }

    /// Appends the `m >= 0` tokens `x`, `[m, d_model]`, to the cache and writes the layer's output for them, eq. 14, to
    /// `y`, `[m, d_model]`. Positions of the rotary embedding go on from the cache's size. Bitwise identical however
    /// tokens are cut into calls, on any executor. Allocates nothing for a single token within the cache's capacity,
    /// unless it has to copy what the cache shares with a fork. `y` must not overlap `x`.
    ///
    /// Throws std::invalid_argument if a shape does not fit or the cache belongs to a layer of another kind, and
    /// std::bad_alloc if memory runs out; the tokens in the cache are as they were then.
    void extend(LayerCache<T>& cache, std::type_identity_t<ConstMatrixView<T>> x, std::type_identity_t<MatrixView<T>> y,
                const Executor& executor = {}) const {
        check_tokens("x", x, x.rows());
        check_tokens("y", y, x.rows());
        eigen_assert(!cache.state_.is_moved_from() && "a cache that was moved from");
        check_made_for("cache", cache.kind_);
        append(cache.state_, std::array{x.rows()}, x, y, cache.row_, executor);
    }

    /// As above, but allocates the output, `[m, d_model]`, and returns it.
    Matrix<T> extend(LayerCache<T>& cache, std::type_identity_t<ConstMatrixView<T>> x) const {
        check_tokens("x", x, x.rows());
        Matrix<T> y(x.rows(), d_model());
        extend(cache, x, y);
        return y;
    }

    /// Appends tokens to several caches in one call: the first `counts[0]` rows of `x`, `[m, d_model]`, to
    /// `*caches[0]`, the next `counts[1]` to `*caches[1]`, and so on; a count may be 0. Outputs go to the same rows of
    /// `y`. The weights are read once for up to 512 rows, the work is shared over the executor's threads, and the
    /// results are bitwise those of `extend` on every cache alone. With counts of 0 and 1 it allocates nothing within
    /// what has been reserved, unless the first cache has not led as large a batch before, which it keeps the scratch
    /// for.
    ///
    /// Throws std::invalid_argument if a cache is null, or there twice, or belongs to a layer of another kind, counts
    /// do not come to `m`, or a shape does not fit, and std::bad_alloc if memory runs out; the tokens in the caches are
    /// as they were then. `y` must not overlap `x`.
    void extend(std::span<LayerCache<T>* const> caches, std::span<const Index> counts,
                std::type_identity_t<ConstMatrixView<T>> x, std::type_identity_t<MatrixView<T>> y,
                const Executor& executor = {}) const {
        detail::check_batch(where, caches, counts);
        check_tokens("x", x, x.rows());
        check_tokens("y", y, x.rows());
        detail::check_counts(where, counts, "x", x.rows());
        for (std::size_t i = 0; i < caches.size(); ++i) {
            const auto& made_for = caches[i]->kind_;
            if (made_for != kind()) check_made_for(detail::text("caches[", Index(i), "]"), made_for);
        }
        if (caches.empty()) return;
        const auto state = [&](Index i) -> auto& { return caches[std::size_t(i)]->state_; };
        append(detail::Sequences<T>(state), counts, x, y, caches.front()->row_, executor);
    }

    /// The layer over a whole sequence `x`, `[L, d_model]`, into `y`, `[L, d_model]`: `extend` of an empty cache.
    void forward(std::type_identity_t<ConstMatrixView<T>> x, std::type_identity_t<MatrixView<T>> y,
                 const Executor& executor = {}) const {
        check_tokens("x", x, x.rows());
        check_tokens("y", y, x.rows());
        detail::SequenceState<T> state(kind().attention, {});
        detail::AlignedBuffer<T> row;
        append(state, std::array{x.rows()}, x, y, row, executor);
    }

    /// As above; returns the output, `[L, d_model]`.
    [[nodiscard]] Matrix<T> forward(std::type_identity_t<ConstMatrixView<T>> x) const {
        check_tokens("x", x, x.rows());
        Matrix<T> y(x.rows(), d_model());
        forward(x, y);
        return y;
    }

    /// An empty workspace for training this layer.
    LayerWorkspace<T> make_workspace() const { return LayerWorkspace<T>(kind()); }

    /// The layer over packed sequences: the first `counts[0]` rows of `x`, `[L, d_model]`, are one sequence, the next
    /// `counts[1]` another, and so on, none of which attends to another, and whose positions begin anew; a count may be
    /// 0. Writes what `forward(x, y)` gives for each of them, bitwise, to its rows of `y`; `workspace` keeps what
    /// `backward` needs, in place of what it held before. `y` must not overlap `x`.
    ///
    /// Throws std::invalid_argument if a shape does not fit, the counts do not come to `L`, or the workspace belongs to
    /// a layer of another kind, and nothing has changed then; and std::bad_alloc if memory runs out: `y` is untouched
    /// then, but the workspace holds no forward pass.
    void forward(LayerWorkspace<T>& workspace, std::span<const Index> counts,
                 std::type_identity_t<ConstMatrixView<T>> x, std::type_identity_t<MatrixView<T>> y,
                 const Executor& executor = {}) const {
        const Index rows = x.rows();
        check_tokens("x", x, rows);
        check_tokens("y", y, rows);
        detail::check_counts(where, counts, "x", rows);
        check_made_for("workspace", workspace.kind_);
        const Executor& threads = detail::executor_for(executor, options_);
        workspace.start(counts, rows * row_elements(), rows * Rows::padded(queries()), threads);
        if (rows == 0) return;
        const Rows kept = rows_in(workspace.rows_, rows);
        const detail::OutputRows<T> output = workspace.record_.output(kept.attended());
        workspace.record_.forward(/*together=*/true, threads,
                                  [&](const auto& step) { run_step(step, x, kept, output, y, threads); });
    }

    /// The same of one sequence.
    void forward(LayerWorkspace<T>& workspace, std::type_identity_t<ConstMatrixView<T>> x,
                 std::type_identity_t<MatrixView<T>> y, const Executor& executor = {}) const {
        forward(workspace, std::array{x.rows()}, x, y, executor);
    }

    /// The gradients of a loss from `d_y`, `[L, d_model]`, its gradient with respect to the layer's output: that with
    /// respect to the input goes into `d_x`, `[L, d_model]`, those with respect to the weights are *added* to
    /// `d_weights`, so that a batch of sequences sums up. `workspace` and `x` are as the forward pass left and saw
    /// them, packed sequences included; and the weights as they were; the workspace is used up. `d_x` must not overlap
    /// `x`, but may be `d_y`.
    ///
    /// Bitwise identical on any executor. Throws std::invalid_argument if a shape does not fit, the workspace belongs
    /// to a layer of another kind or there was no forward pass, and std::bad_alloc if `executor` needs more memory than
    /// that of the forward pass, and there is none; nothing has changed then.
    void backward(LayerWorkspace<T>& workspace, std::type_identity_t<ConstMatrixView<T>> x,
                  std::type_identity_t<ConstMatrixView<T>> d_y, std::type_identity_t<MatrixView<T>> d_x,
                  LayerWeights<T>& d_weights, const Executor& executor = {}) const {
        const Index rows = x.rows();
        check_tokens("x", x, rows);
        check_tokens("d_y", d_y, rows);
        check_tokens("d_x", d_x, rows);
        projections_.check_weights(where, "d_weights.", d_weights, WeightOrder::in_out);
        check_made_for("workspace", workspace.kind_);
        detail::check_forward_pass(where, "x", rows, workspace.size());
        if (rows == 0) return;

        const Executor& threads = detail::executor_for(executor, options_);
        workspace.record_.reserve_backward(threads);
        const Rows kept = rows_in(workspace.rows_, rows);
        const MatrixView<T> d_attended(workspace.d_attended_.data(), rows, queries(), Rows::padded(queries()));
        projections_.project_out_back(kept.attended(), d_y, d_attended, d_weights, threads);
        const auto for_sequences = [&](const auto& f) {
            Index row = 0;
            for (const Index count : workspace.record_.counts()) {
                f(detail::RowRun{.call_row = row, .row = row, .count = count, .position = 0});
                row += count;
            }
        };
        // Of the projections nothing is needed once their gradients are known, which take their places.
        workspace.record_.backward(kept.input(), kept.attended(), d_attended, kept.gradient(), threads);
        rotate(kept, rows, for_sequences, threads,
               [&](T* head, const T* angles) { table_->rotate_row_back(head, angles); });
        projections_.project_back(x, kept.projected(), d_x, d_weights, threads);
    }

    /// As above; returns the gradients.
    [[nodiscard]] LayerGradient<T> backward(LayerWorkspace<T>& workspace, std::type_identity_t<ConstMatrixView<T>> x,
                                            std::type_identity_t<ConstMatrixView<T>> d_y) const {
        check_tokens("x", x, x.rows());
        LayerGradient<T> g{.x = Matrix<T>(x.rows(), d_model()), .weights = zero_gradient()};
        backward(workspace, x, d_y, g.x, g.weights);
        return g;
    }

    /// The same two with the counts of the forward pass said again. Throws std::invalid_argument, too, if they are
    /// others.
    void backward(LayerWorkspace<T>& workspace, std::span<const Index> counts,
                  std::type_identity_t<ConstMatrixView<T>> x, std::type_identity_t<ConstMatrixView<T>> d_y,
                  std::type_identity_t<MatrixView<T>> d_x, LayerWeights<T>& d_weights,
                  const Executor& executor = {}) const {
        check_counts_of(workspace, counts);
        backward(workspace, x, d_y, d_x, d_weights, executor);
    }
    [[nodiscard]] LayerGradient<T> backward(LayerWorkspace<T>& workspace, std::span<const Index> counts,
                                            std::type_identity_t<ConstMatrixView<T>> x,
                                            std::type_identity_t<ConstMatrixView<T>> d_y) const {
        check_counts_of(workspace, counts);
        return backward(workspace, x, d_y);
    }

  private:
    using Rows = detail::LayerRows<T>;
    struct Unset {};

    static constexpr std::string_view where = "Layer";

    // All weights are 0 at first.
    Layer(const LayerConfig& config, Options options, Unset)
        : config_(complete(config)),
          options_(std::move(options)),
          projections_({.attention = detail::AttentionKind::checked<T>(where, shape_of(config_), options_),
                        .d_model = config_.d_model,
                        .rotary = config_.rotary}) {
        if (config_.rotary) table_.emplace(config_.d_head, config_.rotary->base);
    }

    Index d_model() const { return config_.d_model; }
    const detail::LayerKind& kind() const { return projections_.kind(); }
    Index queries() const { return widths().queries; }
    const detail::LayerWidths& widths() const { return projections_.widths(); }

    // What lies between the layer's steps, of one row, and of some rows in memory of so many.
    Index angles() const { return table_ ? table_->row_size() : 0; }
    Index row_elements() const { return Rows::elements(widths(), angles()); }
    Rows rows_in(detail::AlignedBuffer<T>& memory, Index rows) const {
        return {widths(), angles(), memory.data(), rows};
    }

    static Shape shape_of(const LayerConfig& config) {
        return {.d = config.d_head, .dv = config.d_head, .heads = config.heads, .kv_heads = config.kv_heads};
    }

    // The config with its number of key-value heads, if it fits; AttentionKind checks what is left.
    static LayerConfig complete(LayerConfig config) {
        if (config.kv_heads == 0) config.kv_heads = config.heads;
        constexpr Index most = detail::most_size;
        detail::check_size(where, "d_model", config.d_model, 1);
        detail::check_size(where, "heads", config.heads, 1);
        detail::check_size(where, "kv_heads", config.kv_heads, 1);
        detail::check_size(where, "d_head", config.d_head, 1);
        if (config.d_model > most || config.heads > most / config.d_head) {
            detail::fail(where, "d_model is ", config.d_model, " with ", config.heads, " heads of size ", config.d_head,
                         " but neither d_model nor heads * d_head may exceed ", most);
        }
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
        const detail::Call call{
            .where = where, .rows = rows, .rows_of = "the rows of x", .object = "a layer", .d_model = d_model()};
        call.check_argument("", name, m, d_model());
    }

    // A cache or a workspace.
    void check_made_for(std::string_view name, const detail::LayerKind& made_for) const {
        if (made_for != kind()) detail::fail(where, name, " is for a layer with ", made_for.difference(kind()));
    }

    static void check_counts_of(const LayerWorkspace<T>& workspace, std::span<const Index> counts) {
        const std::span<const Index> own = workspace.record_.counts();
        if (workspace.size() == 0 || std::ranges::equal(own, counts)) return;
        std::size_t i = 0;
        while (i < own.size() && i < counts.size() && own[i] == counts[i]) ++i;
        if (i == own.size() || i == counts.size()) {
            detail::fail(where, "counts has ", Index(counts.size()), " elements but the forward pass had ",
                         Index(own.size()));
        }
        detail::fail(where, "counts[", Index(i), "] is ", counts[i], " but the forward pass had ", own[i]);
    }

    // New tokens x onto the states of some sequences. `row_scratch` is kept for one token of each of them.
    void append(const detail::Sequences<T>& sequences, std::span<const Index> counts, ConstMatrixView<T> x,
                MatrixView<T> y, detail::AlignedBuffer<T>& row_scratch, const Executor& executor) const {
        if (x.rows() == 0) return;
        const Executor& threads = detail::executor_for(executor, options_);
        detail::AlignedBuffer<T> memory, many_rows;
        detail::AppendTransaction<T> transaction(sequences, counts, /*together=*/true, memory, threads);
        const Index rows = transaction.most_rows();
        auto& row_memory = transaction.is_one_each() ? row_scratch : many_rows;
        if (row_memory.size() < rows * row_elements()) row_memory = detail::AlignedBuffer<T>(rows * row_elements());
        const Rows scratch = rows_in(row_memory, rows);
        transaction.for_steps(/*packed=*/true, [&](const auto& step) {
            run_step(step, x, scratch, {.out = scratch.attended()}, y, threads);
        });
    }

    // The layer over the rows of one step; what lies between is in the step's rows of `rows`.
    template <class Step>
    void run_step(const Step& step, ConstMatrixView<T> x, const Rows& rows, const detail::OutputRows<T>& output,
                  MatrixView<T> y, const Executor& executor) const {
        projections_.project(
            [&](const auto& f) {
                step.for_runs([&](const detail::RowRun& run) {
                    f(x.middle_rows(run.call_row, run.count), rows.projected().middle_rows(run.row, run.count));
                });
            },
            executor);
        const auto for_sequences = [&](const auto& f) { step.for_sequences(f); };
        if (table_) {
            for_sequences([&](const detail::RowRun& run) {
                for (Index i = 0; i < run.count; ++i) table_->fill(run.position + i, rows.angles(run.row + i));
            });
        }
        rotate(rows, step.rows(), for_sequences, executor,
               [&](T* head, const T* angles) { table_->rotate_row(head, angles); });
        step.attend(rows.input(), output);
        projections_.project_out(
            [&](const auto& f) {
                step.for_runs([&](const detail::RowRun& run) {
                    f(rows.attended().middle_rows(run.row, run.count), y.middle_rows(run.call_row, run.count));
                });
            },
            executor);
    }

    // turn(x, angles) for every row x of a head and projection that is rotated.
    template <class Sequences, class Turn>
    void rotate(const Rows& rows, Index count, const Sequences& for_sequences, const Executor& executor,
                const Turn& turn) const {
        if (!table_) return;
        const auto rotated = detail::rotated_projections(*config_.rotary);
        const auto rotate_head = [&](Index h) {
            for (Index i = 0; i < widths().projections; ++i) {
                if (!rotated[std::size_t(i)] || h * config_.d_head >= widths().width(i)) continue;
                const MatrixView<T> head = rows.projected(i).middle_cols(h * config_.d_head, config_.d_head);
                for_sequences([&](const detail::RowRun& run) {
                    for (Index row = run.row; row < run.row + run.count; ++row) turn(head.row(row), rows.angles(row));
                });
            }
        };
        detail::run(detail::executor_for_rows(executor, count), config_.heads, rotate_head);
    }

    LayerConfig config_;
    Options options_;
    std::optional<RotaryTable<T>> table_;
    detail::Projections<T> projections_;
};

}  // namespace CASTLE_ABI
}  // namespace castle
