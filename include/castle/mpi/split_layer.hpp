// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <castle/detail/backward/training_record.hpp>
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
#include <castle/detail/mpi/agreement.hpp>
#include <castle/detail/mpi/columns.hpp>
#include <castle/detail/mpi/fingerprint.hpp>
#include <castle/detail/mpi/layer_shares.hpp>
#include <castle/detail/mpi/split_backward.hpp>
#include <castle/detail/mpi/split_output.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/executor.hpp>
#include <castle/layer_weights.hpp>
#include <castle/mask.hpp>
#include <castle/mpi/communicator.hpp>
#include <castle/mpi/split_layer_cache.hpp>
#include <castle/mpi/split_layer_workspace.hpp>
#include <castle/options.hpp>
#include <castle/output.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

namespace mpi {

/// A layer whose heads are dealt to ranks: of `K` key-value heads rank `r` of `R` has those from `r K / R`, rounded
/// down, up to `(r + 1) K / R`, with their query heads, their projections' weights and their part of every cache. `W_O`
/// is dealt by columns, in whole panels of 64; a rank may have none of them. Use it where the weights, the caches or
/// the time of one layer are too much for one machine. No sum changes its order: whatever the number of ranks,
/// everything is bitwise identical to a Layer.
///
/// Calls are collective unless they say otherwise: every rank makes the same calls in the same order, brings the same
/// arguments, all rows and columns of `x` among them, and gets all of `y`. Executors may differ. Where a call throws on
/// one rank it throws on all of them, and no cache and no weight has changed; std::bad_alloc stays what it is on all
/// ranks. Where arguments differ in shapes, counts or caches, all throw std::invalid_argument. Builds with assertions
/// compare the elements of `x` as well; in others a rank that brings different ones goes unnoticed.
///
/// A forward pass of `m` rows exchanges twice, beside 24 bytes for agreement: `m heads d_head` elements of what is
/// attended, in the scalar that is computed in, and `m d_model` elements of `y`; log-sum-exps and masses, where asked
/// for, take one exchange more each, of `m heads`. Every rank receives what it does not have. All of it is in memory at
/// once: cut a long prompt into several calls of `extend`. There is no `set_terms` and no gradient of score terms, and
/// a cache cannot be saved.
///
/// A layer moves but does not copy; one that was moved from may only be assigned to or destroyed.
template <Scalar T>
class SplitLayer {
    using C = Compute<T>;

  public:
    using value_type = T;

    /// A layer with random weights from `config.seed`, those of a Layer; the whole layer's are in memory for a moment.
    /// Throws std::invalid_argument as a Layer, or if there are more ranks than key-value heads.
    SplitLayer(const LayerConfig& config, Options options, const Communicator& communicator)
        : SplitLayer(config, std::move(options), communicator, [](Parts& own, detail::Fingerprint&) {
              const auto all = detail::random_weights<C>(own.config, own.shares.whole.attention.has_lookahead());
              own.set_weights(LayerWeightsView<C>(all), WeightOrder::in_out);
          }) {}

    /// A layer with these weights: views of the whole layer's on every rank, of which each copies its share. Throws as
    /// above, and if a weight's shape does not fit.
    SplitLayer(const LayerConfig& config, const LayerWeightsView<T>& weights, Options options,
               const Communicator& communicator, WeightOrder order = WeightOrder::in_out)
        : SplitLayer(config, std::move(options), communicator, [&](Parts& own, detail::Fingerprint& arguments) {
              own.check_weights(weights, order);
              arguments.add(static_cast<int>(order));
              own.set_weights(weights, order);
          }) {}

    SplitLayer(SplitLayer&&) = default;
    SplitLayer& operator=(SplitLayer&&) = default;
    ~SplitLayer() = default;

    /// As it was made, with the number of key-value heads in place of 0. None of the functions down to
    /// `own_parameters` communicates.
    const LayerConfig& config() const { return own_.config; }
    const Options& options() const { return own_.options; }
    const Communicator& communicator() const { return communicator_; }
    /// This rank's heads; the first of them, its first key-value head, and its first column of `W_O`.
    const Shape& own_shape() const { return own_.heads.kind().attention.shape; }
    Index first_head() const { return shares().heads.first(rank()); }
    Index first_kv_head() const { return shares().kv_heads.first(rank()); }
    Index first_column() const { return shares().outputs.first(rank()); }

    /// Trained elements in the whole layer, and on this rank.
    Index parameters() const { return config().d_model * (shares().widths.projected() + shares().widths.queries); }
    Index own_parameters() const { return own_.heads.projections().parameters(); }

    /// The weights of the whole layer, on every rank. Exchanges all of them.
    LayerWeights<T> weights() const {
        LayerWeights<T> own;
        agree(CallId::weights, [&](detail::Fingerprint&) { own = own_weights(); });
        return gathered(own);
    }

    /// This rank's share, by name: the columns of the projections that belong to its heads, and its columns of `W_O`,
    /// `[heads d_head, own columns]`, of all heads. Exchanges nothing.
    LayerWeights<T> own_weights() const { return own_.heads.projections().weights(); }

    /// Replaces the weights by those of a whole layer, of which every rank copies its share. Throws
    /// std::invalid_argument, and changes nothing then, if a shape does not fit.
    void set_weights(const LayerWeightsView<T>& all, WeightOrder order = WeightOrder::in_out) { set_whole(all, order); }
    /// The same of weights of float, rounded, for a layer of 16-bit scalars.
    template <ComputeScalar Master>
    requires(!ComputeScalar<T>) void set_weights(const LayerWeightsView<Master>& all,
                                                 WeightOrder order = WeightOrder::in_out) {
        set_whole(all, order);
    }
    template <ComputeScalar Master>
    requires(!ComputeScalar<T>) void set_weights(const LayerWeights<Master>& all,
                                                 WeightOrder order = WeightOrder::in_out) {
        set_whole(LayerWeightsView<Master>(all), order);
    }

    /// Replaces this rank's share, in the shapes of `own_weights()`: after a step of the optimizer. Exchanges 24 bytes.
    /// Throws std::invalid_argument, and changes nothing on any rank then, if a shape does not fit.
    void set_own_weights(const LayerWeightsView<T>& own) { set_own(own); }
    /// The same of masters, as above.
    template <ComputeScalar Master>
    requires(!ComputeScalar<T>) void set_own_weights(const LayerWeights<Master>& own) {
        set_own(LayerWeightsView<Master>(own));
    }

    /// Zeros in the shapes of this rank's share, for `backward` to add to. Exchanges nothing.
    LayerWeights<C> zero_gradient() const { return own_.heads.projections().shapes().template zeros<C>(); }

    /// Gathers matrices in the shapes of `own_weights()`, gradients for example, into the whole layer's, on every rank.
    /// Throws std::invalid_argument if a shape does not fit, and std::bad_alloc if memory runs out.
    template <Scalar S>
    LayerWeights<S> gathered(const LayerWeights<S>& own) const {
        LayerWeights<S> all;
        detail::AlignedBuffer<S> memory;
        agree(CallId::gathered, [&](detail::Fingerprint& arguments) {
            own_.heads.projections().shapes().check_weights(where, "own.", LayerWeightsView<S>(own),
                                                            WeightOrder::in_out);
            arguments.add(sizeof(S));
            const auto parts = detail::projections_of(all);
            for (Index i = 0; i < shares().widths.projections; ++i) {
                parts[std::size_t(i)]->resize(config().d_model, shares().widths.width(i));
            }
            all.w_out.resize(shares().widths.queries, config().d_model);
            Index most = all.w_out.size();
            for (const Matrix<S>* part : parts) most = (std::max)(most, Index(part->size()));
            memory = detail::AlignedBuffer<S>(most);
        });
        const auto gather = [&](const detail::DealtColumns& columns, const Matrix<S>& from, Matrix<S>& to) {
            const detail::ColumnGather<S> block(where, communicator_, columns, to.rows(),
                                                detail::ColumnGather<S>::memory_for(to, memory));
            detail::copy_elements<S, S>(from, block.own());
            block.run();
            block.copy_to(to);
        };
        const auto from = detail::projections_of(own);
        const auto to = detail::projections_of(all);
        for (Index i = 0; i < shares().widths.projections; ++i) {
            gather(shares().of_projection(i), *from[std::size_t(i)], *to[std::size_t(i)]);
        }
        gather(shares().outputs, own.w_out, all.w_out);
        return all;
    }

    /// An empty cache of this rank's heads, see Layer. Collective; exchanges 24 bytes.
    SplitLayerCache<T> make_cache(Index rollback = default_rollback, Index sliding_window = unlimited) const {
        std::optional<detail::SequenceState<T>> state;
        agree(CallId::make_cache, [&](detail::Fingerprint& arguments) {
            const detail::Keeping keeping{.rollback = detail::checked_rollback(where, rollback),
                                          .sliding_window = detail::checked_sliding_window(where, sliding_window)};
            arguments.add(rollback);
            arguments.add(sliding_window);
            state.emplace(own_kind(), keeping);
        });
        return {kind(), communicator_, std::move(*state)};
    }

    /// Appends the `m >= 0` tokens `x`, `[m, d_model]`, to the cache and writes the layer's output for them to `y`,
    /// `[m, d_model]`; see `Layer::extend`. `y` must not overlap `x`. Throws std::invalid_argument if a shape does not
    /// fit, the cache belongs to a layer of another kind or to other ranks, and std::bad_alloc if memory runs out.
    void extend(SplitLayerCache<T>& cache, std::type_identity_t<ConstMatrixView<T>> x,
                std::type_identity_t<MatrixView<T>> y, const Executor& executor = {}) const {
        extend(cache, x, Output<T>{.out = y}, Masks(), executor);
    }
    /// The same under a mask, and with all that an Output has.
    void extend(SplitLayerCache<T>& cache, std::type_identity_t<ConstMatrixView<T>> x, const Output<T>& output,
                const Masks& mask = {}, const Executor& executor = {}) const {
        const std::array counts{x.rows()};
        append(CallId::extend, x, output, executor, cache.state_, [&](detail::Fingerprint& arguments) {
            checks().output(x.rows(), output, 1);
            detail::check_masks(where, "mask", mask, 1);
            eigen_assert(!cache.state_.is_moved_from() && "a cache that was moved from");
            check_made_for("cache", cache);
            detail::check_sight(where, cache.state_, mask[0], x.rows(), detail::mass_over(output)[0]);
            arguments.add(cache.identifier_);
            arguments.add(cache.size());
            return NewTokens{counts, {.seen = mask, .mass_over = detail::mass_over(output)}, &cache};
        });
    }
    /// As above; allocates the output, `[m, d_model]`, and returns it.
    Matrix<T> extend(SplitLayerCache<T>& cache, std::type_identity_t<ConstMatrixView<T>> x) const {
        Matrix<T> y = output_for(x);
        extend(cache, x, y);
        return y;
    }

    /// Appends tokens to several caches in one call, with the two exchanges of one: the first `counts[0]` rows of
    /// `x` to `*caches[0]`, and so on; see `Layer::extend`.
    void extend(std::span<SplitLayerCache<T>* const> caches, std::span<const Index> counts,
                std::type_identity_t<ConstMatrixView<T>> x, std::type_identity_t<MatrixView<T>> y,
                const Executor& executor = {}) const {
        extend(caches, counts, x, Output<T>{.out = y}, Masks(), executor);
    }
    /// The same under one mask for all sequences, or one for each, and with all that an Output has.
    void extend(std::span<SplitLayerCache<T>* const> caches, std::span<const Index> counts,
                std::type_identity_t<ConstMatrixView<T>> x, const Output<T>& output, const Masks& masks = {},
                const Executor& executor = {}) const {
        const auto state = [&](Index i) -> auto& { return caches[std::size_t(i)]->state_; };
        append(CallId::extend_many, x, output, executor, detail::Sequences<T>(state),
               [&](detail::Fingerprint& arguments) {
                   detail::check_batch(where, caches, counts);
                   checks().output(x.rows(), output, Index(caches.size()));
                   detail::check_counts(where, counts, "x", x.rows());
                   detail::check_masks(where, "masks", masks, Index(caches.size()));
                   for (std::size_t i = 0; i < caches.size(); ++i) {
                       if (!is_for_this(*caches[i])) {
                           check_made_for(detail::text("caches[", Index(i), "]"), *caches[i]);
                       }
                       detail::check_sight(where, caches[i]->state_, masks[Index(i)], counts[i],
                                           detail::mass_over(output)[Index(i)]);
                       arguments.add(caches[i]->identifier_);
                       arguments.add(caches[i]->size());
                   }
                   return NewTokens{counts,
                                    {.seen = masks, .mass_over = detail::mass_over(output)},
                                    caches.empty() ? nullptr : caches.front()};
               });
    }

    /// The layer over a whole sequence `x`, `[L, d_model]`, into `y`, `[L, d_model]`: `extend` of an empty cache.
    void forward(std::type_identity_t<ConstMatrixView<T>> x, std::type_identity_t<MatrixView<T>> y,
                 const Executor& executor = {}) const {
        forward(x, Output<T>{.out = y}, Masks(), executor);
    }
    /// The same under a mask, and with all that an Output has; see `Layer::forward`.
    void forward(std::type_identity_t<ConstMatrixView<T>> x, const Output<T>& output, const Masks& mask = {},
                 const Executor& executor = {}) const {
        std::optional<detail::WholeSequence> whole;
        std::vector<detail::SequenceState<T>> states;
        const auto state = [&](Index i) -> auto& { return states[std::size_t(i)]; };
        append(CallId::forward, x, output, executor, detail::Sequences<T>(state), [&](detail::Fingerprint&) {
            checks().output(x.rows(), output, 1);
            whole.emplace(where, x.rows(), mask, output.mass_over);
            whole->check_sights(where, own_kind().terms.get());
            const auto terms = detail::SequenceState<T>::terms_of(own_kind());
            states.reserve(whole->counts().size());
            for (std::size_t i = 0; i < whole->counts().size(); ++i) {
                states.emplace_back(own_kind(), detail::Keeping(), terms);
            }
            return NewTokens{whole->counts(),
                             {.seen = whole->masks().seen, .mass_over = detail::mass_over(whole->output(output))},
                             nullptr};
        });
    }
    /// As above; returns the output, `[L, d_model]`.
    [[nodiscard]] Matrix<T> forward(std::type_identity_t<ConstMatrixView<T>> x) const {
        Matrix<T> y = output_for(x);
        forward(x, y);
        return y;
    }

    /// An empty workspace for training this rank's share. Exchanges nothing; every rank makes one.
    SplitLayerWorkspace<T> make_workspace() const { return {kind(), communicator_, own_kind()}; }

    /// The layer over packed sequences, for a backward pass; see `Layer::forward`. Where it throws, the workspaces hold
    /// no forward pass.
    void forward(SplitLayerWorkspace<T>& workspace, std::span<const Index> counts,
                 std::type_identity_t<ConstMatrixView<T>> x, std::type_identity_t<MatrixView<T>> y,
                 const Executor& executor = {}) const {
        forward(workspace, counts, x, Output<T>{.out = y}, Masks(), executor);
    }
    /// The same under one mask for all sequences, or one for each, and with all that an Output has; `backward`
    /// remembers them.
    void forward(SplitLayerWorkspace<T>& workspace, std::span<const Index> counts,
                 std::type_identity_t<ConstMatrixView<T>> x, const Output<T>& output, const Masks& masks = {},
                 const Executor& executor = {}) const {
        using Pass = typename detail::TrainingRecord<T>::ForwardPass;
        const Executor& threads = detail::executor_for(executor, options());
        const Index rows = x.rows();
        std::optional<detail::SplitOutput<T>> to_output;
        std::optional<Pass> pass;
        try {
            agree(CallId::training, [&](detail::Fingerprint& arguments) {
                checks().packed(counts, x, output, masks);
                check_made_for("workspace", workspace);
                add_rows(arguments, x, output, masks);
                arguments.add_each(counts);
                workspace.start(counts, {.seen = masks, .mass_over = detail::mass_over(output)},
                                rows * own_.heads.row_elements(), threads);
                if (rows == 0) return;
                to_output.emplace(where, communicator_, shares(), output, workspace.output_memory_);
                pass.emplace(workspace.record_, /*together=*/true, threads);
            });
        } catch (...) {
            workspace.record_.finish();
            throw;
        }
        if (rows == 0) return;
        const Rows kept = own_.heads.rows_in(workspace.rows_, rows);
        const detail::OutputRows<C> attended = workspace.record_.output(to_output->own());
        if (pass->looks_ahead()) own_.heads.project(workspace.record_.whole(), x, kept, threads);
        pass->for_steps([&](const auto& step) {
            if (!pass->looks_ahead()) own_.heads.project(step, x, kept, threads);
            step.attend(kept.input(), attended);
        });
        to_output->finish(own_.heads.projections(), threads);
    }
    /// The same of one sequence.
    void forward(SplitLayerWorkspace<T>& workspace, std::type_identity_t<ConstMatrixView<T>> x,
                 std::type_identity_t<MatrixView<T>> y, const Executor& executor = {}) const {
        forward(workspace, std::array{x.rows()}, x, y, executor);
    }

    /// The gradients of a loss from `d_y`, `[L, d_model]`, all of it on every rank: that with respect to the input goes
    /// into `d_x`, `[L, d_model]`, all of it on every rank; those with respect to this rank's share of the weights are
    /// *added* to `d_weights`, in the shapes of `own_weights()`. Otherwise as `Layer::backward`.
    ///
    /// Each rank receives the gradients of all projections for `L` tokens, `d_x`, and the rows of the weights that it
    /// needs, which other ranks hold as columns. During the call this takes as much memory again.
    void backward(SplitLayerWorkspace<T>& workspace, std::type_identity_t<ConstMatrixView<T>> x,
                  std::type_identity_t<ConstMatrixView<C>> d_y, std::type_identity_t<MatrixView<C>> d_x,
                  LayerWeights<C>& d_weights, const Executor& executor = {}) const {
        backward(workspace, x, OutputGradient<C>{.out = d_y}, d_x, d_weights, executor);
    }
    /// The same from the gradients of all that the forward pass's Output had.
    void backward(SplitLayerWorkspace<T>& workspace, std::type_identity_t<ConstMatrixView<T>> x,
                  const OutputGradient<C>& d_output, std::type_identity_t<MatrixView<C>> d_x,
                  LayerWeights<C>& d_weights, const Executor& executor = {}) const {
        const Executor& threads = detail::executor_for(executor, options());
        const Index rows = x.rows();
        const detail::Projections<T>& projections = own_.heads.projections();
        std::optional<detail::SplitBackward<T>> exchange;
        agree(CallId::backward, [&](detail::Fingerprint& arguments) {
            checks().gradients(x, d_output, d_x, workspace.record_.has_mass());
            projections.shapes().check_weights(where, "d_weights.", LayerWeightsView<C>(d_weights),
                                               WeightOrder::in_out);
            check_made_for("workspace", workspace);
            detail::check_forward_pass(where, "x", rows, workspace.size());
            arguments.add_rows(x);
            arguments.add_rows(d_output.out);
            arguments.add(d_output.log_sum_exp.rows());
            arguments.add(d_output.mass.rows());
            arguments.add_each(workspace.record_.counts());
            if (rows == 0) return;
            workspace.record_.reserve_backward(threads);
            exchange.emplace(where, communicator_, shares(), projections, d_x);
        });
        if (rows == 0) return;

        const Rows kept = own_.heads.rows_in(workspace.rows_, rows);
        const detail::DealtColumns& queries = shares().queries;
        const ConstMatrixView<C> attended = workspace.output_memory_.all_attended_in(rows, queries.total());
        // The forward pass has left what is attended with that of all ranks: its place is free for the gradient.
        const MatrixView<C> d_attended = kept.attended();
        exchange->differentiate_out(d_output.out, d_attended, threads);
        projections.add_out_gradient(attended, shares().outputs.of(rank(), d_output.out), d_weights, threads);
        const auto of_own_heads = [&](const ConstMatrixView<C>& m) {
            return m.rows() == 0 ? m : shares().heads.of(rank(), m);
        };
        workspace.record_.backward(
            kept.input(), queries.of(rank(), attended),
            {.out = d_attended, .log_sum_exp = of_own_heads(d_output.log_sum_exp), .mass = of_own_heads(d_output.mass)},
            kept.gradient(), {}, threads);
        own_.heads.rotate_back(workspace.record_.whole(), kept, threads);
        projections.add_gradient(x, kept.projected(), d_weights, threads);
        exchange->differentiate_in(kept.projected(), d_x, threads);
    }
    /// The same with the counts of the forward pass said again. Throws std::invalid_argument, too, if they are others.
    void backward(SplitLayerWorkspace<T>& workspace, std::span<const Index> counts,
                  std::type_identity_t<ConstMatrixView<T>> x, std::type_identity_t<ConstMatrixView<C>> d_y,
                  std::type_identity_t<MatrixView<C>> d_x, LayerWeights<C>& d_weights,
                  const Executor& executor = {}) const {
        agree(CallId::counts, [&](detail::Fingerprint&) { checks().counts_of(workspace.record_, counts); });
        backward(workspace, x, d_y, d_x, d_weights, executor);
    }
    /// As above; returns the gradients: of all of `x`, and of this rank's share of the weights.
    [[nodiscard]] LayerGradient<C> backward(SplitLayerWorkspace<T>& workspace,
                                            std::type_identity_t<ConstMatrixView<T>> x,
                                            std::type_identity_t<ConstMatrixView<C>> d_y) const {
        LayerGradient<C> g;
        agree(CallId::gradient, [&](detail::Fingerprint&) {
            checks().tokens("x", x, x.rows());
            g = {.x = Matrix<C>(x.rows(), config().d_model), .weights = zero_gradient()};
        });
        backward(workspace, x, d_y, g.x, g.weights);
        return g;
    }

  private:
    using Rows = detail::LayerRows<C>;

    static constexpr std::string_view where = "mpi::SplitLayer";

    // Calls that ranks must not take for each other.
    enum class CallId : int {
        make,
        make_cache,
        weights,
        set_weights,
        set_own_weights,
        gathered,
        output,
        extend,
        extend_many,
        forward,
        training,
        backward,
        counts,
        gradient
    };

    // What a rank has.
    struct Parts {
        LayerConfig config;
        Options options;
        detail::LayerShares shares;
        detail::LayerHeads<T> heads;
        int rank;

        Parts(const LayerConfig& completed, Options with, const Communicator& communicator)
            : config(completed),
              options(std::move(with)),
              shares(where,
                     {.attention = detail::AttentionKind::checked<T>(
                          where,
                          {.d = config.d_head, .dv = config.d_head, .heads = config.heads, .kv_heads = config.kv_heads},
                          options),
                      .d_model = config.d_model,
                      .rotary = config.rotary},
                     communicator.size()),
              heads(shares.kind(communicator.rank()), shares.weight_shapes(communicator.rank())),
              rank(communicator.rank()) {}

        template <Scalar From>
        void check_weights(const LayerWeightsView<From>& all, WeightOrder order) const {
            detail::WeightShapes(shares.whole).check_weights(where, "weights.", all, order);
        }
        template <Scalar From>
        void set_weights(const LayerWeightsView<From>& all, WeightOrder order) {
            heads.projections().set(shares.weights(rank, all, order), order);
        }
    };

    // The new tokens of a call: the rows of each sequence, and the cache that keeps scratch for one of each, if any.
    struct NewTokens {
        std::span<const Index> counts;
        detail::CallMasks masks;
        SplitLayerCache<T>* scratch;
    };

    template <class Fill>
    SplitLayer(const LayerConfig& config, Options options, const Communicator& communicator, const Fill& fill)
        : communicator_(communicator), own_(agreed_parts(config, std::move(options), communicator, fill)) {}

    // fill(parts, arguments) sets the weights.
    template <class Fill>
    static Parts agreed_parts(const LayerConfig& config, Options options, const Communicator& communicator,
                              const Fill& fill) {
        std::optional<Parts> parts;
        detail::Fingerprint arguments;
        detail::agree(where, communicator, arguments, [&] {
            parts.emplace(detail::completed(where, config), std::move(options), communicator);
            arguments.add(static_cast<int>(CallId::make));
            arguments.template add_build<T>();
            arguments.add(parts->shares.whole.attention);
            arguments.add_each(parts->shares.whole.to_words());
            arguments.add(config.seed);
            fill(*parts, arguments);
        });
        return std::move(*parts);
    }

    // work(arguments) is what may throw.
    template <class Work>
    void agree(CallId call, const Work& work) const {
        detail::Fingerprint arguments;
        detail::agree(where, communicator_, arguments, [&] {
            arguments.add(static_cast<int>(call));
            work(arguments);
        });
    }

    int rank() const { return own_.rank; }
    const detail::LayerShares& shares() const { return own_.shares; }
    // Of the whole layer, and of this rank's heads.
    const detail::LayerKind& kind() const { return shares().whole; }
    const detail::AttentionKind& own_kind() const { return own_.heads.kind().attention; }
    detail::LayerChecks checks() const { return {.where = where, .kind = kind()}; }

    // A cache or a workspace.
    template <class Made>
    bool is_for_this(const Made& made) const {
        return made.kind_ == kind() && made.communicator_ == communicator_;
    }
    template <class Made>
    void check_made_for(std::string_view name, const Made& made) const {
        if (is_for_this(made)) return;
        checks().made_for(name, made.kind_);
        detail::fail(where, name, " is for a layer of another communicator");
    }

    static void add_rows(detail::Fingerprint& arguments, ConstMatrixView<T> x, const Output<T>& output,
                         const Masks& masks) {
        arguments.add_rows(x);
        arguments.add(output.log_sum_exp.rows());
        arguments.add(output.mass.rows());
        arguments.add(masks.size());
    }

    Matrix<T> output_for(ConstMatrixView<T> x) const {
        Matrix<T> y;
        agree(CallId::output, [&](detail::Fingerprint&) {
            checks().tokens("x", x, x.rows());
            y.resize(x.rows(), x.cols());
        });
        return y;
    }

    template <Scalar From>
    void set_whole(const LayerWeightsView<From>& all, WeightOrder order) {
        agree(CallId::set_weights, [&](detail::Fingerprint& arguments) {
            own_.check_weights(all, order);
            arguments.add(static_cast<int>(order));
        });
        own_.set_weights(all, order);
    }
    template <Scalar From>
    void set_own(const LayerWeightsView<From>& own) {
        agree(CallId::set_own_weights, [&](detail::Fingerprint&) {
            own_.heads.projections().shapes().check_weights(where, "own.", own, WeightOrder::in_out);
        });
        own_.heads.projections().set(own, WeightOrder::in_out);
    }

    // New tokens x onto the states of some sequences. start(arguments) checks all but x, adds to the fingerprint what
    // is not the same in all calls of this kind, and says which tokens.
    template <class Start>
    void append(CallId call, ConstMatrixView<T> x, const Output<T>& output, const Executor& executor,
                const detail::Sequences<T>& sequences, const Start& start) const {
        const Executor& threads = detail::executor_for(executor, options());
        detail::AlignedBuffer<C> row_of_call;
        detail::OutputMemory<T> memory_of_call;
        std::optional<detail::SplitOutput<T>> to_output;
        std::optional<detail::LayerAppend<T>> append;
        agree(call, [&](detail::Fingerprint& arguments) {
            checks().tokens("x", x, x.rows());
            const NewTokens tokens = start(arguments);
            add_rows(arguments, x, output, tokens.masks.seen);
            arguments.add_each(tokens.counts);
            if (x.rows() == 0) return;
            const bool is_one_each = std::ranges::all_of(tokens.counts, [](Index count) { return count <= 1; });
            SplitLayerCache<T>* const kept = is_one_each ? tokens.scratch : nullptr;
            to_output.emplace(where, communicator_, shares(), output,
                              kept != nullptr ? kept->output_memory_ : memory_of_call);
            append.emplace(own_.heads, sequences, tokens.counts, tokens.masks, to_output->own(),
                           kept != nullptr ? kept->row_ : row_of_call, threads);
        });
        if (x.rows() == 0) return;
        const MatrixView<C> attended = to_output->own().out;
        append->run(x, [&](const auto& step, const Rows& rows) {
            step.for_runs([&](const detail::RowRun& run) {
                detail::copy_elements<C, C>(rows.attended().middle_rows(run.row, run.count),
                                            attended.middle_rows(run.call_row, run.count));
            });
        });
        to_output->finish(own_.heads.projections(), threads);
    }

    Communicator communicator_;
    Parts own_;
};

}  // namespace mpi
}  // namespace CASTLE_ABI
}  // namespace castle
