// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <istream>
#include <optional>
#include <ostream>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>

#include <mpi.h>

#include <castle/cache.hpp>
#include <castle/detail/cache/lookahead_keys.hpp>
#include <castle/detail/check/attention_kind.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/mpi/agreement.hpp>
#include <castle/detail/mpi/calls.hpp>
#include <castle/detail/mpi/fingerprint.hpp>
#include <castle/detail/mpi/ranked_state.hpp>
#include <castle/detail/mpi/sharded_append.hpp>
#include <castle/detail/mpi/sharded_save.hpp>
#include <castle/detail/mpi/span_exchange.hpp>
#include <castle/detail/state/sequence_state.hpp>
#include <castle/executor.hpp>
#include <castle/extend.hpp>
#include <castle/input.hpp>
#include <castle/mpi/communicator.hpp>
#include <castle/options.hpp>
#include <castle/output.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

namespace detail {
struct ShardedAccess;
}

namespace mpi {

/// A UqKvCache whose keys are spread over several machines, for a context that is too large or too slow for one. Keys
/// are dealt out in spans of 512: span `s` belongs to rank `s mod n`. Work and memory are even only where a context has
/// many more than `512 n` tokens; the first span of every sequence lies on rank 0, so keep short ones in a UqKvCache.
/// What `extend` writes, lookahead keys and saved files are bitwise those of a UqKvCache, for any number of ranks, as
/// long as all of them compute with the same instruction set, which is checked.
///
/// Calls are collective, but for getters, `bytes`, `bytes_for` and `clear`: every rank makes the same calls in the same
/// order, with the same tokens, and gets all outputs; executors may differ. `clear` sends nothing, but is to be called
/// on all ranks too. Where a call throws on one rank, it throws on all, and the caches are as they were.
/// std::invalid_argument and std::bad_alloc keep their type; anything else is std::runtime_error on the others, which
/// add "(on rank r)". Sizes of arguments are compared in every call, and their elements in builds with assertions;
/// masks are not compared.
///
/// A step, of up to 128 tokens of a sequence and 512 in all, takes two exchanges: the states of its rows over the spans
/// go to the ranks that merge them, `(dv + 17) 4` bytes each in float with AVX-512, and outputs come back to all. See
/// docs/machines.md for what that costs, and for how many machines it pays.
///
/// A cache moves but does not copy; one that was moved from may only be assigned to or destroyed.
template <Scalar T>
class ShardedCache {
  public:
    using value_type = T;

    /// An empty cache on the ranks of `communicator`; see UqKvCache for the rest. Collective. Throws
    /// std::invalid_argument as UqKvCache does, and if arguments or instruction sets are not the same on all ranks.
    ShardedCache(const Shape& shape, Options options, Communicator communicator, Index rollback = default_rollback,
                 Index sliding_window = unlimited)
        : communicator_(std::move(communicator)),
          options_(std::move(options)),
          state_(checked_state(communicator_, shape, options_, rollback, sliding_window)),
          identifier_(detail::Identifiers::next(communicator_)) {}

    ShardedCache(ShardedCache&&) = default;
    ShardedCache& operator=(ShardedCache&& other) noexcept {
        if (this == &other) return *this;
        communicator_ = std::move(other.communicator_);
        options_ = std::move(other.options_);
        state_ = std::move(other.state_);
        identifier_ = other.identifier_;
        memory_ = std::move(other.memory_);
        return *this;
    }
    ~ShardedCache() = default;

    const Communicator& communicator() const { return communicator_; }
    /// Tokens in the cache, those of all ranks.
    Index size() const { return state_.size(); }
    /// Tokens for which this rank has the memory of its share; it differs from rank to rank. See UqKvCache.
    Index capacity() const { return state_.capacity(); }
    const Shape& shape() const { return state_.kind().shape; }
    const Options& options() const { return options_; }
    /// How many tokens a row sees at most; `unlimited` without a window.
    Index sliding_window() const { return state_.head(0).sliding_window(); }

    /// Makes room on all ranks for `tokens` tokens in all; see UqKvCache. Collective.
    void reserve(Index tokens) {
        detail::reserve_on_all(communicator_, identifier_, state_, tokens, [&] {
            if (communicator_.size() == 1) return;
            exchange("reserve").reserve(1, most_spans(tokens, state_.head(0).share()), most_spans(tokens, {}));
        });
    }

    /// Forgets every token and keeps the memory, but for what it shares with forks. On all ranks, without a message.
    void clear() { state_.clear(); }

    /// Removes the last `tokens` tokens; see UqKvCache. Collective.
    void rollback(Index tokens) { detail::rollback_on_all(communicator_, identifier_, state_, tokens); }
    Index max_rollback() const { return state_.max_rollback(); }

    /// A second cache with the same tokens on the same ranks; see UqKvCache. Collective.
    ShardedCache fork() const {
        Options options;
        auto state = detail::fork_on_all(communicator_, identifier_, state_, [&] { options = options_; });
        return ShardedCache(communicator_, std::move(options), std::move(state));
    }

    /// What this rank holds: its spans, and a block. It differs from rank to rank; take the largest, by
    /// `MPI_Allreduce`, before all of them decide on a call by it.
    CacheBytes bytes() const {
        const Index shared = state_.shared_bytes();
        return {.owned = memory_.bytes() + state_.bytes() - shared, .shared = shared};
    }
    /// What `bytes().total()` of this rank is going to be after `reserve(tokens)`, if nothing is shared with a fork,
    /// but for memory of exchanges. Throws std::invalid_argument as `reserve`.
    Index bytes_for(Index tokens) const { return memory_.bytes() + state_.bytes_for(tokens); }

    /// Writes the cache to the stream of rank 0, as UqKvCache does; other ranks may pass any stream, one that is not
    /// open too. Collective. Takes memory for one panel of keys. Throws std::runtime_error on all ranks if it cannot be
    /// written.
    void save(std::ostream& out) const { detail::save_sharded("mpi::ShardedCache::save", communicator_, out, state_); }

    /// The cache that `save` of this class, on any number of ranks, or of UqKvCache has written to the stream of rank
    /// 0, onto the ranks of `communicator`; other ranks may pass any stream. Collective. Throws on all ranks what
    /// `UqKvCache::load` throws; up to three times the bytes of its share stand in the memory of a rank meanwhile.
    static ShardedCache load(std::istream& in, Communicator communicator, Executor executor = {},
                             Index rollback = default_rollback) {
        constexpr std::string_view where = "mpi::ShardedCache::load";
        detail::agree_on(
            where, communicator, [&] { detail::checked_rollback(where, rollback); }, rollback);
        Options options;
        auto state = detail::load_sharded<T>(where, communicator, in, [&](const auto& identity) {
            if (identity.layer != detail::SavedIdentity::LayerWords()) detail::reject_cache("is that of a layer");
            options = identity.kind.options(std::move(executor));
            return detail::Keeping{
                .rollback = rollback, .sliding_window = identity.sliding_window, .share = share_of(communicator)};
        });
        return ShardedCache(std::move(communicator), std::move(options), std::move(state));
    }

    /// See UqKvCache; the keys of all ranks, on all ranks. Collective.
    Matrix<Compute<T>> lookahead_keys(Index kv_head = 0) const {
        constexpr std::string_view where = "mpi::ShardedCache::lookahead_keys";
        Matrix<Compute<T>> keys;
        const auto work = [&] { keys = detail::lookahead_keys(where, state_, kv_head); };
        detail::agree_on(where, communicator_, work, identifier_, size(), kv_head);
        // Keys of other ranks are zeros here: of each element the bits are on one rank.
        auto* const bytes = reinterpret_cast<unsigned char*>(keys.data());
        const Index count = keys.size() * Index(sizeof(Compute<T>));
        constexpr Index most = Index(1) << 30;
        for (Index first = 0; first < count; first += most) {
            detail::check_mpi(where, MPI_Allreduce(MPI_IN_PLACE, bytes + first, int((std::min)(most, count - first)),
                                                   MPI_BYTE, MPI_BOR, communicator_.handle()));
        }
        return keys;
    }

  private:
    friend detail::CacheAccess;
    friend detail::ShardedAccess;
    friend detail::BatchMark;

    ShardedCache(Communicator communicator, Options options, detail::SequenceState<T> state)
        : communicator_(std::move(communicator)),
          options_(std::move(options)),
          state_(std::move(state)),
          identifier_(detail::Identifiers::next(communicator_)) {}

    static base::SpanShare share_of(const Communicator& communicator) {
        return {.rank = communicator.rank(), .ranks = communicator.size()};
    }
    static detail::SequenceState<T> checked_state(const Communicator& communicator, const Shape& shape,
                                                  const Options& options, Index rollback, Index sliding_window) {
        constexpr std::string_view where = "mpi::ShardedCache";
        detail::Fingerprint arguments;
        arguments.add_build<T>();
        arguments.add(shape);
        arguments.add(options);
        arguments.add(rollback);
        arguments.add(sliding_window);
        std::optional<detail::SequenceState<T>> state;
        detail::agree(where, communicator, arguments, [&] {
            state.emplace(detail::AttentionKind::checked<T>(where, shape, options),
                          detail::Keeping{.rollback = detail::checked_rollback(where, rollback),
                                          .sliding_window = detail::checked_sliding_window(where, sliding_window),
                                          .share = share_of(communicator)});
        });
        return std::move(*state);
    }

    Index most_spans(Index tokens, const base::SpanShare& share) const {
        return state_.head(0).most_spans((std::max)(tokens, size()), share);
    }
    detail::SpanExchange<T, T> exchange(std::string_view where) {
        return {where, communicator_, shape(), detail::OutputRows<T>(), memory_};
    }

    Communicator communicator_;
    Options options_;
    detail::SequenceState<T> state_;
    Index identifier_;                           // the same on all ranks
    detail::ExchangeMemory<Compute<T>> memory_;  // of exchanges, also of those of batches that it leads
    Index batch_mark_ = 0;                       // means something only within check_batch
};

}  // namespace mpi

namespace detail {

struct ShardedAccess {
    template <Scalar T>
    static auto& memory(mpi::ShardedCache<T>& cache) {
        return cache.memory_;
    }
    template <Scalar T>
    static Index identifier(const mpi::ShardedCache<T>& cache) {
        return cache.identifier_;
    }
};

template <Scalar T, Scalar In>
void extend_sharded(std::span<mpi::ShardedCache<T>* const> caches, std::span<const Index> counts, bool is_batch,
                    const Input<In>& input, const Output<In>& output, const Masks& masks, const Executor& executor) {
    const auto known = std::ranges::find_if(caches, [](const auto* cache) { return cache != nullptr; });
    if (known == caches.end()) {
        check_extend(caches, counts, input, output, masks);  // no ranks are known that could agree
        return;
    }
    const mpi::Communicator& communicator = (*known)->communicator();
    mpi::ShardedCache<T>& first = **known;
    const auto state = [&](Index i) -> auto& { return CacheAccess::state(*caches[std::size_t(i)]); };
    const Masks of_mass = mass_over(output);
    const auto start = [&](Fingerprint& arguments) {
        if (is_batch) {
            check_extend(caches, counts, input, output, masks);
        } else {
            check_extend(state(0), input, output, masks);
        }
        for (std::size_t i = 0; i < caches.size(); ++i) {
            if (caches[i]->communicator() != communicator) {
                fail("extend", "caches[", Index(i),
                     "] has another communicator than caches[0]; give all caches copies ", "of one");
            }
            arguments.add(ShardedAccess::identifier(*caches[i]));
            arguments.add(caches[i]->size());
            for (const Mask* mask : {masks[Index(i)], of_mass[Index(i)]}) {
                arguments.add(mask != nullptr && mask->rule() != nullptr);
            }
        }
        arguments.add_each(counts);
        arguments.add_rows(input);
        arguments.add(sizeof(In));
        arguments.add(output.log_sum_exp.rows());
        arguments.add(output.mass.rows());
    };
    append_sharded("extend", communicator, Sequences<T>(state), counts, {.seen = masks, .mass_over = of_mass}, input,
                   output_rows(output), ShardedAccess::memory(first), executor_for(executor, first.options()), start);
}
template <Scalar T, Scalar In>
void extend_sharded(mpi::ShardedCache<T>& cache, const Input<In>& input, const Output<In>& output, const Masks& mask,
                    const Executor& executor) {
    mpi::ShardedCache<T>* const only = &cache;
    const Index rows = input.causal.q.rows();
    extend_sharded<T, In>(std::span(&only, 1), std::span(&rows, 1), /*is_batch=*/false, input, output, mask, executor);
}

}  // namespace detail

namespace mpi {

/// Appends tokens to a cache, as castle::extend does to a UqKvCache: collective, every rank brings all tokens and gets
/// all outputs. A prompt takes memory for the states of a step's rows until the call ends; a single token, after
/// `reserve`, takes none.
template <Scalar T>
void extend(ShardedCache<T>& cache, const std::type_identity_t<Input<T>>& input,
            std::type_identity_t<MatrixView<T>> out, const Executor& executor = {}) {
    detail::extend_sharded(cache, input, Output<T>{.out = out}, Masks(), executor);
}
template <Scalar T>
void extend(ShardedCache<T>& cache, const std::type_identity_t<Input<T>>& input,
            const std::type_identity_t<Output<T>>& output, const Masks& mask = {}, const Executor& executor = {}) {
    detail::extend_sharded(cache, input, output, mask, executor);
}
template <Scalar T>
void extend(ShardedCache<T>& cache, const std::type_identity_t<Input<T>>& input,
            std::type_identity_t<MatrixView<T>> out, const Masks& mask, const Executor& executor = {}) {
    detail::extend_sharded(cache, input, Output<T>{.out = out}, mask, executor);
}
/// Input and output of float onto a cache of 16-bit scalars.
template <Scalar T>
requires(!ComputeScalar<T>) void extend(ShardedCache<T>& cache, const std::type_identity_t<Input<Compute<T>>>& input,
                                        std::type_identity_t<MatrixView<Compute<T>>> out,
                                        const Executor& executor = {}) {
    detail::extend_sharded(cache, input, Output<Compute<T>>{.out = out}, Masks(), executor);
}
template <Scalar T>
requires(!ComputeScalar<T>) void extend(ShardedCache<T>& cache, const std::type_identity_t<Input<Compute<T>>>& input,
                                        const std::type_identity_t<Output<Compute<T>>>& output, const Masks& mask = {},
                                        const Executor& executor = {}) {
    detail::extend_sharded(cache, input, output, mask, executor);
}

/// As above, but allocates the outputs, `[m, heads dv]`, and returns them. Agrees once more, about that.
template <Scalar T>
Matrix<T> extend(ShardedCache<T>& cache, const std::type_identity_t<Input<T>>& input) {
    Matrix<T> out;
    detail::agree("extend", cache.communicator(), {},
                  [&] { out.resize(input.causal.q.rows(), cache.shape().heads * cache.shape().dv); });
    extend(cache, input, out);
    return out;
}

/// Appends tokens to several caches in one call, `counts[i]` rows to `*caches[i]`, as castle::extend does: decoding of
/// up to 512 sequences takes the two exchanges of one. The caches have copies of one communicator.
template <Scalar T>
void extend(std::type_identity_t<std::span<ShardedCache<T>* const>> caches, std::span<const Index> counts,
            const Input<T>& input, const std::type_identity_t<Output<T>>& output, const Masks& masks = {},
            const Executor& executor = {}) {
    detail::extend_sharded<T, T>(caches, counts, /*is_batch=*/true, input, output, masks, executor);
}
template <Scalar T>
void extend(std::type_identity_t<std::span<ShardedCache<T>* const>> caches, std::span<const Index> counts,
            const Input<T>& input, std::type_identity_t<MatrixView<T>> out, const Executor& executor = {}) {
    detail::extend_sharded<T, T>(caches, counts, /*is_batch=*/true, input, Output<T>{.out = out}, Masks(), executor);
}

/// The same for input and output of float onto caches of 16-bit scalars.
template <Scalar T>
requires(!ComputeScalar<T>) void extend(std::type_identity_t<std::span<ShardedCache<T>* const>> caches,
                                        std::span<const Index> counts,
                                        const std::type_identity_t<Input<Compute<T>>>& input,
                                        const std::type_identity_t<Output<Compute<T>>>& output, const Masks& masks = {},
                                        const Executor& executor = {}) {
    detail::extend_sharded<T, Compute<T>>(caches, counts, /*is_batch=*/true, input, output, masks, executor);
}

}  // namespace mpi
}  // namespace CASTLE_ABI
}  // namespace castle
