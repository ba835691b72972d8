// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <istream>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <castle/cache.hpp>
#include <castle/detail/backward/training_record.hpp>
#include <castle/detail/cache/saved_cache.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/forward/append.hpp>
#include <castle/detail/forward/whole_sequence.hpp>
#include <castle/detail/layer/layer_append.hpp>
#include <castle/detail/layer/layer_checks.hpp>
#include <castle/detail/layer/layer_heads.hpp>
#include <castle/detail/layer/layer_kind.hpp>
#include <castle/detail/layer/layer_rows.hpp>
#include <castle/detail/layer/projections.hpp>
#include <castle/detail/layer/random_weights.hpp>
#include <castle/executor.hpp>
#include <castle/layer_cache.hpp>
#include <castle/layer_weights.hpp>
#include <castle/layer_workspace.hpp>
#include <castle/mask.hpp>
#include <castle/options.hpp>
#include <castle/output.hpp>
#include <castle/rotary.hpp>
#include <castle/terms.hpp>
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
/// With a 16-bit scalar the weights, `x`, `y` and what a cache stores are of it; projections, everything between them
/// and the gradients are in float, but for attention's factors where the build has dot products of bfloat16.
///
/// A layer moves but does not copy; one that was moved from may only be assigned to or destroyed. A move to itself
/// changes nothing.
template <Scalar T>
class Layer {
    using C = Compute<T>;

  public:
    using value_type = T;

    /// A layer with random weights from `config.seed`: uniform, with variance 1 over the number of inputs. Throws
    /// std::invalid_argument if a size is below 1 or too large (`d_model`, `d_head` or `heads d_head` above 2^24,
    /// `heads` above 2^12), `heads` is no multiple of `kv_heads`, an option does not fit, or `d_head` is odd with
    /// rotary embedding, and std::bad_alloc if memory runs out.
    explicit Layer(const LayerConfig& config, Options options = {}) : Layer(config, std::move(options), Unset()) {
        set_weights(detail::random_weights<C>(config_, kind().attention.has_lookahead()));
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
        heads_ = std::move(other.heads_);
        return *this;
    }
    ~Layer() = default;

    /// As it was made, with the number of key-value heads in place of 0.
    const LayerConfig& config() const { return config_; }
    const Options& options() const { return options_; }

    /// Trained elements in the layer.
    Index parameters() const { return projections().parameters(); }

    /// The weights by name; a copy, since the layer keeps them in an order of its own.
    LayerWeights<T> weights() const { return projections().weights(); }

    /// Replaces the weights by copies of these; all of them are `[out, in]` if `order` says so. Throws
    /// std::invalid_argument, and changes nothing then, if a shape does not fit.
    void set_weights(const LayerWeightsView<T>& w, WeightOrder order = WeightOrder::in_out) {
        projections().shapes().check_weights(where, "weights.", w, order);
        heads_.projections().set(w, order);
    }
    /// The same of weights of float, rounded, for a layer of 16-bit scalars, whose masters in float are what is
    /// trained.
    template <ComputeScalar Master>
    requires(!ComputeScalar<T>) void set_weights(const LayerWeightsView<Master>& w,
                                                 WeightOrder order = WeightOrder::in_out) {
        projections().shapes().check_weights(where, "weights.", w, order);
        heads_.projections().set(w, order);
    }
    template <ComputeScalar Master>
    requires(!ComputeScalar<T>) void set_weights(const LayerWeights<Master>& w,
                                                 WeightOrder order = WeightOrder::in_out) {
        set_weights(LayerWeightsView<Master>(w), order);
    }

    /// Other score terms, for tables and sinks that are trained. Caches and workspaces that were made before are for
    /// another layer then; a workspace is told by its own `set_terms`. Throws std::invalid_argument, and changes
    /// nothing then, if they do not fit.
    void set_terms(ScoreTerms terms) {
        Options options = options_;
        options.terms = std::move(terms);
        heads_.projections().set_attention(detail::AttentionKind::checked<T>(where, shape_of(config_), options));
        options_ = std::move(options);
    }

    /// Zeros in the shapes of the weights, for `backward` to add to.
    LayerWeights<C> zero_gradient() const { return projections().shapes().template zeros<C>(); }

    /// An empty cache for this layer. Layers of the same kind and sizes make caches that cannot be told apart: take
    /// care not to swap those of two layers of a stack.
    ///
    /// It can roll back the last `rollback` tokens, see UqKvCache, which costs `d_head` elements a token and key-value
    /// head for every 32 of them: `2 d_head` with the default of 64, nothing with 0. With a `sliding_window` its rows
    /// see so many tokens, and it lets go of keys behind them, see UqKvCache as well. Throws std::invalid_argument if
    /// `rollback` is negative or above 2^24, or `sliding_window` below 1.
    LayerCache<T> make_cache(Index rollback = default_rollback, Index sliding_window = unlimited) const {
        const detail::Keeping keeping{.rollback = detail::checked_rollback(where, rollback),
                                      .sliding_window = detail::checked_sliding_window(where, sliding_window)};
        return {kind(), detail::SequenceState<T>(kind().attention, keeping), heads_.row_elements()};
    }

    /// The cache that `LayerCache::save` has written. Throws std::runtime_error if the stream holds no cache of a layer
    /// like this one, rotary settings included, or one that is truncated or corrupted; otherwise as `UqKvCache::load`.
    LayerCache<T> load_cache(std::istream& in, Index rollback = default_rollback) const {
        detail::checked_rollback(where, rollback);
        detail::SavedReader reader(in);
        const auto saved = detail::read_identity<T>(reader);
        if (saved.kind != kind().attention || saved.layer != kind().to_words()) {
            const auto other = detail::LayerKind::from_words(saved.kind, saved.layer);
            detail::reject_cache(detail::text("has ", other.difference(kind())));
        }
        LayerCache<T> cache = make_cache(rollback, saved.sliding_window);
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
        extend(cache, x, Output<T>{.out = y}, Masks(), executor);
    }

    /// The same under a mask, whose rows and keys are positions in the sequence, and with all that an Output has, `out`
    /// being `y`; see `extend` of a UqKvCache, which says when a mask is rejected.
    void extend(LayerCache<T>& cache, std::type_identity_t<ConstMatrixView<T>> x, const Output<T>& output,
                const Masks& mask = {}, const Executor& executor = {}) const {
        checks().tokens("x", x, x.rows());
        checks().output(x.rows(), output, 1);
        eigen_assert(!cache.state_.is_moved_from() && "a cache that was moved from");
        checks().made_for("cache", cache.kind_);
        detail::check_masks(where, "mask", mask, 1);
        detail::check_sight(where, cache.state_, mask[0], x.rows(), detail::mass_over(output)[0]);
        append(cache.state_, std::array{x.rows()}, mask, x, output, cache.row_, executor);
    }

    /// As above, but allocates the output, `[m, d_model]`, and returns it.
    Matrix<T> extend(LayerCache<T>& cache, std::type_identity_t<ConstMatrixView<T>> x) const {
        checks().tokens("x", x, x.rows());
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
        extend(caches, counts, x, Output<T>{.out = y}, Masks(), executor);
    }

    /// The same under one mask for all sequences, or one for each, and with all that an Output has.
    void extend(std::span<LayerCache<T>* const> caches, std::span<const Index> counts,
                std::type_identity_t<ConstMatrixView<T>> x, const Output<T>& output, const Masks& masks = {},
                const Executor& executor = {}) const {
        detail::check_batch(where, caches, counts);
        checks().tokens("x", x, x.rows());
        checks().output(x.rows(), output, Index(caches.size()));
        detail::check_counts(where, counts, "x", x.rows());
        detail::check_masks(where, "masks", masks, Index(caches.size()));
        for (std::size_t i = 0; i < caches.size(); ++i) {
            const auto& made_for = caches[i]->kind_;
            if (made_for != kind()) checks().made_for(detail::text("caches[", Index(i), "]"), made_for);
            detail::check_sight(where, caches[i]->state_, masks[Index(i)], counts[i],
                                detail::mass_over(output)[Index(i)]);
        }
        if (caches.empty()) return;
        const auto state = [&](Index i) -> auto& { return caches[std::size_t(i)]->state_; };
        append(detail::Sequences<T>(state), counts, masks, x, output, caches.front()->row_, executor);
    }

    /// The layer over a whole sequence `x`, `[L, d_model]`, into `y`, `[L, d_model]`: `extend` of an empty cache.
    void forward(std::type_identity_t<ConstMatrixView<T>> x, std::type_identity_t<MatrixView<T>> y,
                 const Executor& executor = {}) const {
        forward(x, Output<T>{.out = y}, Masks(), executor);
    }

    /// The same under a mask, and with all that an Output has. Documents of the mask are sequences of their own, whose
    /// positions begin anew.
    void forward(std::type_identity_t<ConstMatrixView<T>> x, const Output<T>& output, const Masks& mask = {},
                 const Executor& executor = {}) const {
        checks().tokens("x", x, x.rows());
        checks().output(x.rows(), output, 1);
        const detail::WholeSequence whole(where, x.rows(), mask, output.mass_over);
        whole.check_sights(where, kind().attention.terms.get());
        const auto terms = detail::SequenceState<T>::terms_of(kind().attention);
        std::vector<detail::SequenceState<T>> states;
        states.reserve(whole.counts().size());
        for (std::size_t i = 0; i < whole.counts().size(); ++i) {
            states.emplace_back(kind().attention, detail::Keeping(), terms);
        }
        const auto state = [&](Index i) -> auto& { return states[std::size_t(i)]; };
        detail::AlignedBuffer<C> row;
        append(detail::Sequences<T>(state), whole.counts(), whole.masks().seen, x, whole.output(output), row, executor);
    }

    /// As above; returns the output, `[L, d_model]`.
    [[nodiscard]] Matrix<T> forward(std::type_identity_t<ConstMatrixView<T>> x) const {
        checks().tokens("x", x, x.rows());
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
        forward(workspace, counts, x, Output<T>{.out = y}, Masks(), executor);
    }

    /// The same under one mask for all sequences, or one for each, and with all that an Output has; `backward`
    /// remembers them.
    void forward(LayerWorkspace<T>& workspace, std::span<const Index> counts,
                 std::type_identity_t<ConstMatrixView<T>> x, const Output<T>& output, const Masks& masks = {},
                 const Executor& executor = {}) const {
        checks().packed(counts, x, output, masks);
        checks().made_for("workspace", workspace.kind_);
        const Index rows = x.rows();
        const Executor& threads = detail::executor_for(executor, options_);
        workspace.start(counts, {.seen = masks, .mass_over = detail::mass_over(output)}, rows * heads_.row_elements(),
                        rows * Rows::padded(queries()), threads);
        if (rows == 0) return;
        const Rows kept = heads_.rows_in(workspace.rows_, rows);
        detail::OutputRows<C> attended = detail::by_products(output);
        attended.out = kept.attended();
        attended = workspace.record_.output(attended);
        typename detail::TrainingRecord<T>::ForwardPass pass(workspace.record_, /*together=*/true, threads);
        if (pass.looks_ahead()) heads_.project(workspace.record_.whole(), x, kept, threads);
        pass.for_steps([&](const auto& step) {
            if (!pass.looks_ahead()) heads_.project(step, x, kept, threads);
            step.attend(kept.input(), attended);
            project_out(step, kept, output.out, threads);
        });
    }

    /// The same of one sequence.
    void forward(LayerWorkspace<T>& workspace, std::type_identity_t<ConstMatrixView<T>> x,
                 std::type_identity_t<MatrixView<T>> y, const Executor& executor = {}) const {
        forward(workspace, std::array{x.rows()}, x, y, executor);
    }
    void forward(LayerWorkspace<T>& workspace, std::type_identity_t<ConstMatrixView<T>> x, const Output<T>& output,
                 const Masks& mask = {}, const Executor& executor = {}) const {
        const detail::WholeSequence whole(where, x.rows(), mask, output.mass_over);
        forward(workspace, whole.counts(), x, whole.output(output), whole.masks().seen, executor);
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
                  std::type_identity_t<ConstMatrixView<C>> d_y, std::type_identity_t<MatrixView<C>> d_x,
                  LayerWeights<C>& d_weights, const Executor& executor = {}) const {
        backward(workspace, x, OutputGradient<C>{.out = d_y}, d_x, d_weights, TermsGradientView<C>(), executor);
    }

    /// The same from the gradients of all that the forward pass's Output had, and with the gradients of the score
    /// terms, which are not added to what is there; see `backward` of a Workspace.
    void backward(LayerWorkspace<T>& workspace, std::type_identity_t<ConstMatrixView<T>> x,
                  const OutputGradient<C>& d_output, std::type_identity_t<MatrixView<C>> d_x,
                  LayerWeights<C>& d_weights, const TermsGradientView<C>& d_terms = {},
                  const Executor& executor = {}) const {
        const Index rows = x.rows();
        checks().gradients(x, d_output, d_x, workspace.record_.has_mass());
        detail::check_terms_gradient(where, options_.terms, d_terms);
        projections().shapes().check_weights(where, "d_weights.", LayerWeightsView<C>(d_weights), WeightOrder::in_out);
        checks().made_for("workspace", workspace.kind_);
        detail::check_forward_pass(where, "x", rows, workspace.size());
        if (rows == 0) return;

        const Executor& threads = detail::executor_for(executor, options_);
        workspace.record_.reserve_backward(threads);
        const Rows kept = heads_.rows_in(workspace.rows_, rows);
        const MatrixView<C> d_attended(workspace.d_attended_.data(), rows, queries(), Rows::padded(queries()));
        projections().project_out_back(d_output.out, d_attended, threads);
        projections().add_out_gradient(kept.attended(), d_output.out, d_weights, threads);
        // Of the projections nothing is needed once their gradients are known, which take their places.
        workspace.record_.backward(kept.input(), kept.attended(),
                                   {.out = d_attended, .log_sum_exp = d_output.log_sum_exp, .mass = d_output.mass},
                                   kept.gradient(), d_terms, threads);
        heads_.rotate_back(workspace.record_.whole(), kept, threads);
        projections().add_gradient(x, kept.projected(), d_weights, threads);
        projections().project_back(kept.projected(), d_x, threads);
    }

    /// As above; returns the gradients.
    [[nodiscard]] LayerGradient<C> backward(LayerWorkspace<T>& workspace, std::type_identity_t<ConstMatrixView<T>> x,
                                            std::type_identity_t<ConstMatrixView<C>> d_y) const {
        checks().tokens("x", x, x.rows());
        LayerGradient<C> g{.x = Matrix<C>(x.rows(), d_model()), .weights = zero_gradient()};
        backward(workspace, x, d_y, g.x, g.weights);
        return g;
    }

    /// The same two with the counts of the forward pass said again. Throws std::invalid_argument, too, if they are
    /// others.
    void backward(LayerWorkspace<T>& workspace, std::span<const Index> counts,
                  std::type_identity_t<ConstMatrixView<T>> x, std::type_identity_t<ConstMatrixView<C>> d_y,
                  std::type_identity_t<MatrixView<C>> d_x, LayerWeights<C>& d_weights,
                  const Executor& executor = {}) const {
        checks().counts_of(workspace.record_, counts);
        backward(workspace, x, d_y, d_x, d_weights, executor);
    }
    [[nodiscard]] LayerGradient<C> backward(LayerWorkspace<T>& workspace, std::span<const Index> counts,
                                            std::type_identity_t<ConstMatrixView<T>> x,
                                            std::type_identity_t<ConstMatrixView<C>> d_y) const {
        checks().counts_of(workspace.record_, counts);
        return backward(workspace, x, d_y);
    }

  private:
    using Rows = detail::LayerRows<C>;
    struct Unset {};

    static constexpr std::string_view where = "Layer";

    // All weights are 0 at first.
    Layer(const LayerConfig& config, Options options, Unset)
        : config_(detail::completed(where, config)),
          options_(std::move(options)),
          heads_({.attention = detail::AttentionKind::checked<T>(where, shape_of(config_), options_),
                  .d_model = config_.d_model,
                  .rotary = config_.rotary}) {}

    Index d_model() const { return config_.d_model; }
    const detail::LayerKind& kind() const { return heads_.kind(); }
    const detail::Projections<T>& projections() const { return heads_.projections(); }
    Index queries() const { return heads_.widths().queries; }
    detail::LayerChecks checks() const { return {.where = where, .kind = kind()}; }

    static Shape shape_of(const LayerConfig& config) {
        return {.d = config.d_head, .dv = config.d_head, .heads = config.heads, .kv_heads = config.kv_heads};
    }

    // New tokens x onto the states of some sequences. `row_scratch` is kept for one token of each of them.
    void append(const detail::Sequences<T>& sequences, std::span<const Index> counts, const Masks& masks,
                ConstMatrixView<T> x, const Output<T>& output, detail::AlignedBuffer<C>& row_scratch,
                const Executor& executor) const {
        if (x.rows() == 0) return;
        const Executor& threads = detail::executor_for(executor, options_);
        detail::LayerAppend<T> append(heads_, sequences, counts,
                                      {.seen = masks, .mass_over = detail::mass_over(output)},
                                      detail::by_products(output), row_scratch, threads);
        append.run(x, [&](const auto& step, const Rows& rows) { project_out(step, rows, output.out, threads); });
    }

    // The output projection of a step's rows.
    template <class Step>
    void project_out(const Step& step, const Rows& rows, MatrixView<T> y, const Executor& executor) const {
        projections().project_out(
            [&](const auto& f) {
                step.for_runs([&](const detail::RowRun& run) {
                    f(rows.attended().middle_rows(run.row, run.count), y.middle_rows(run.call_row, run.count));
                });
            },
            executor);
    }

    LayerConfig config_;
    Options options_;
    detail::LayerHeads<T> heads_;
};

}  // namespace CASTLE_ABI
}  // namespace castle
