// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <span>
#include <type_traits>

#include <castle/cache.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/forward/append.hpp>
#include <castle/detail/state/sequence_state.hpp>
#include <castle/detail/state/sequences.hpp>
#include <castle/executor.hpp>
#include <castle/input.hpp>
#include <castle/mask.hpp>
#include <castle/output.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

namespace detail {

template <Scalar In>
Call call_of_extend(const Shape& shape, const Input<In>& input) {
    return {.where = "extend",
            .rows = input.causal.q.rows(),
            .rows_of = "the rows of input.causal.q",
            .object = "a cache",
            .shape = shape};
}

// What a call onto a cache of any kind brings.
template <Scalar T, Scalar In>
void check_extend(const SequenceState<T>& state, const Input<In>& input, const Output<In>& output, const Masks& mask) {
    const Call call = call_of_extend(state.kind().shape, input);
    call.check_input(input, state.kind().has_lookahead());
    call.check_output("", output, 1);
    check_masks("extend", "mask", mask, 1);
    check_sight("extend", state, mask[0], call.rows, mass_over(output)[0]);
}
// The same of a batch. Input and output may be of another scalar than the caches.
template <class Cache, Scalar In>
void check_extend(std::span<Cache* const> caches, std::span<const Index> counts, const Input<In>& input,
                  const Output<In>& output, const Masks& masks) {
    check_batch("extend", caches, counts);
    check_counts("extend", counts, "input.causal.q", input.causal.q.rows());
    if (caches.empty()) {
        if (output.out.rows() != 0) {
            fail("extend", "out is ", extents_of(output.out), " but there are no caches");
        }
        return;
    }
    const auto state = [&](Index i) -> const auto& { return CacheAccess::state(*caches[std::size_t(i)]); };
    const Shape& first = caches.front()->shape();
    bool has_lookahead = false;
    for (Index i = 0; i < Index(caches.size()); ++i) {
        const Shape& shape = state(i).kind().shape;
        if (shape != first) {
            fail("extend", "caches[", i, "] has ",
                 AttentionKind{.shape = shape}.difference({.shape = first}, "caches[0]"));
        }
        has_lookahead = has_lookahead || state(i).kind().has_lookahead();
    }
    const Call call = call_of_extend(first, input);
    call.check_input(input, has_lookahead);
    call.check_output("", output, Index(caches.size()));
    check_masks("extend", "masks", masks, Index(caches.size()));
    for (Index i = 0; i < Index(caches.size()); ++i) {
        check_sight("extend", state(i), masks[i], counts[std::size_t(i)], mass_over(output)[i]);
    }
}

template <Scalar T, Scalar In>
void extend_cache(UqKvCache<T>& cache, const Input<In>& input, const Output<In>& output, const Masks& mask,
                  const Executor& executor) {
    SequenceState<T>& state = CacheAccess::state(cache);
    check_extend(state, input, output, mask);
    append<T>(state, std::array{input.causal.q.rows()}, {.seen = mask, .mass_over = mass_over(output)}, input,
              output_rows(output), executor_for(executor, cache.options()));
}
template <Scalar T, Scalar In>
void extend_caches(std::span<UqKvCache<T>* const> caches, std::span<const Index> counts, const Input<In>& input,
                   const Output<In>& output, const Masks& masks, const Executor& executor) {
    check_extend(caches, counts, input, output, masks);
    if (caches.empty()) return;
    const auto state = [&](Index i) -> auto& { return CacheAccess::state(*caches[std::size_t(i)]); };
    append(Sequences<T>(state), counts, {.seen = masks, .mass_over = mass_over(output)}, input, output_rows(output),
           executor_for(executor, caches.front()->options()));
}

}  // namespace detail

/// Appends the `m >= 0` tokens of `input` to the cache and writes their outputs `o_t` (eqs. 5 to 8 and 13) to `out`,
/// `[m, heads dv]`. Row `i` sees the tokens of the cache and the rows up to `i`. One token is a step of decoding, all
/// tokens on an empty cache are the parallel form, anything between is chunked prefill: outputs and
/// `cache.lookahead_keys()` are bitwise identical however the tokens are cut into calls, on any executor.
///
/// `executor` is used in place of that of the cache's options. `O(m (size + m) heads (4 d + dv))` time, less where
/// query heads share a key-value head. Allocates nothing for a single token within the cache's capacity, unless it has
/// to copy what the cache shares with a fork. Logits of any finite size give finite outputs as long as the products
/// `scale q^C . v^U` of tokens within a block, and the sum of the values' sizes over the tokens, are finite as well.
/// `out` must not overlap the input, which is not checked. Throws std::invalid_argument if a shape does not fit and
/// std::bad_alloc if memory runs out; the tokens in the cache are as they were then.
template <Scalar T>
void extend(UqKvCache<T>& cache, const std::type_identity_t<Input<T>>& input, std::type_identity_t<MatrixView<T>> out,
            const Executor& executor = {}) {
    extend(cache, input, Output<T>{.out = out}, Masks(), executor);
}

/// The same under a mask, whose rows and keys are positions in the sequence, and with all that an Output has. A row may
/// see keys after it if this call brings them; where it does, results are bitwise those of other calls that bring them
/// together. In a cache of lookahead keys the first call with a mask takes memory for what keys have absorbed under it:
/// `16 + rollback / 8` bytes a key, of the keys within the window, and key-value head.
///
/// Throws as above, and if the mask does not know a row, shows it a key that is not there, or shows it none without
/// saying that this may be, or if a table of the options' terms is too short for a distance.
template <Scalar T>
void extend(UqKvCache<T>& cache, const std::type_identity_t<Input<T>>& input,
            const std::type_identity_t<Output<T>>& output, const Masks& mask = {}, const Executor& executor = {}) {
    detail::extend_cache(cache, input, output, mask, executor);
}
template <Scalar T>
void extend(UqKvCache<T>& cache, const std::type_identity_t<Input<T>>& input, std::type_identity_t<MatrixView<T>> out,
            const Masks& mask, const Executor& executor = {}) {
    extend(cache, input, Output<T>{.out = out}, mask, executor);
}

/// Input and output of float onto a cache of 16-bit scalars: keys, queries and values are rounded where they are
/// stored, as factors of products where the processor has dot products of the scalar, and outputs are not.
template <Scalar T>
requires(!ComputeScalar<T>) void extend(UqKvCache<T>& cache, const std::type_identity_t<Input<Compute<T>>>& input,
                                        const std::type_identity_t<Output<Compute<T>>>& output, const Masks& mask = {},
                                        const Executor& executor = {}) {
    detail::extend_cache(cache, input, output, mask, executor);
}
template <Scalar T>
requires(!ComputeScalar<T>) void extend(UqKvCache<T>& cache, const std::type_identity_t<Input<Compute<T>>>& input,
                                        std::type_identity_t<MatrixView<Compute<T>>> out,
                                        const Executor& executor = {}) {
    detail::extend_cache(cache, input, Output<Compute<T>>{.out = out}, Masks(), executor);
}

/// As above, but allocates the outputs, `[m, heads dv]`, and returns them.
template <Scalar T>
Matrix<T> extend(UqKvCache<T>& cache, const std::type_identity_t<Input<T>>& input) {
    const Shape& shape = cache.shape();
    detail::call_of_extend(shape, input).check_input(input, detail::CacheAccess::state(cache).kind().has_lookahead());
    Matrix<T> out(input.causal.q.rows(), shape.heads * shape.dv);
    extend(cache, input, out);
    return out;
}

/// Appends tokens to several caches in one call: the first `counts[0]` rows of `input` to `*caches[0]`, the next
/// `counts[1]` to `*caches[1]`, and so on; a count may be 0. Outputs go to the same rows of `out`, `[m, heads dv]`. The
/// prefill of one sequence, the decoding of others and the verification of a draft of another go together. Caches have
/// one shape, and any sizes and options. Bitwise identical to `extend` of each cache alone.
///
/// The work of all of them is shared over the threads of `executor` or, if it is empty, of the executor of the first
/// cache's options. With counts of 0 and 1 it allocates nothing within what has been reserved.
///
/// Throws std::invalid_argument if a cache is null or there twice, counts do not come to the rows of `input`, or a
/// shape does not fit, and std::bad_alloc if memory runs out; the tokens in the caches are as they were then. `out`
/// must not overlap the input.
template <Scalar T>
void extend(std::type_identity_t<std::span<UqKvCache<T>* const>> caches, std::span<const Index> counts,
            const Input<T>& input, std::type_identity_t<MatrixView<T>> out, const Executor& executor = {}) {
    extend<T>(caches, counts, input, Output<T>{.out = out}, Masks(), executor);
}

/// The same under one mask for all sequences, or one for each, and with all that an Output has; see `extend` of one
/// cache.
template <Scalar T>
void extend(std::type_identity_t<std::span<UqKvCache<T>* const>> caches, std::span<const Index> counts,
            const Input<T>& input, const std::type_identity_t<Output<T>>& output, const Masks& masks = {},
            const Executor& executor = {}) {
    detail::extend_caches<T>(caches, counts, input, output, masks, executor);
}

/// The same for input and output of float onto caches of 16-bit scalars.
template <Scalar T>
requires(!ComputeScalar<T>) void extend(std::type_identity_t<std::span<UqKvCache<T>* const>> caches,
                                        std::span<const Index> counts,
                                        const std::type_identity_t<Input<Compute<T>>>& input,
                                        const std::type_identity_t<Output<Compute<T>>>& output, const Masks& masks = {},
                                        const Executor& executor = {}) {
    detail::extend_caches<T>(caches, counts, input, output, masks, executor);
}

}  // namespace CASTLE_ABI
}  // namespace castle
