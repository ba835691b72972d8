// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <span>
#include <string_view>
#include <type_traits>

#include <castle/detail/backward/training_record.hpp>
#include <castle/detail/check/attention_kind.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/forward/whole_sequence.hpp>
#include <castle/executor.hpp>
#include <castle/input.hpp>
#include <castle/mask.hpp>
#include <castle/options.hpp>
#include <castle/output.hpp>
#include <castle/terms.hpp>
#include <castle/types.hpp>
#include <castle/workspace.hpp>

// Training: the gradients of a loss with respect to all inputs of an attention, from its gradient with respect to the
// output, in `O(L^2 d)` time and `O(L d)` memory a head.
//
//     forward(workspace, input, out);                         // bitwise identical to parallel(shape, input)
//     ...                                                     // the rest of the model, and its backward pass: d_out
//     backward(workspace, input, d_out, {.causal = ..., .lookahead = ...});
//
// What float costs, stated for inputs and d_out that are standard normal and held against double precision up to 8192
// tokens: the error of a gradient, root mean square, is within (32 + n / 8) u of the gradient's, where u = 2^-24 and n
// is the most tokens that a key absorbs, min(W, L). A lookahead key is a sum of n numbers of mean square 0.29, each
// addition rounds the sum so far, and the backward pass takes the additions back one by one: off by
// 0.54 n u sqrt(2/6) at the end, 0.41 times that on average over all pairs of tokens, and a weight is off, relatively,
// by as much as its score. Measured errors are just over half this bound.
//
// Large scores. A weight is exp(score - largest - log_sum), with the three kept apart, so equal scores have exact
// weights however large they are. A score itself is rounded, in the forward as in the backward pass: it is off by
// (d + n + 3) u times the sum of the sizes of its terms, at most, and its weight by as much, relatively. With scores
// of size s in float a gradient thus has some log10(1 / (s u)) digits: five for 100, three for 10^4, none from 10^7
// on. The scores of the backward pass may differ by that much from those of the forward pass, since U is recovered by
// subtraction, and a row's weights then no longer sum to 1; but none exceeds 1, and gradients stay finite.
//
// What a block of tokens added to U is subtracted, unless less than half of the digits would be left, or an infinity or
// a NaN: U is then summed up anew. So a token with lookahead values far larger than those before it, or one that is not
// finite, does not spoil the gradients of tokens before it. Rebuilding costs one pass over gates and U, once or
// twice a sequence as a rule.
//
// Of inputs in 16 bits gradients are in float, and so is d_out; they are those of the numbers that float widens the
// inputs to. What the forward pass has rounded, gates and lookahead keys, passes its gradient on as if it were not.
// Where the build has dot products of bfloat16, both factors of most products are rounded to it in this pass too, d_out
// among them: a gradient is then off by some roundings of bfloat16.
//
// What is masked is left out, as in the forward pass: an infinity or a NaN in an input or in d_out reaches the
// gradients that depend on it and no other.
namespace castle {
inline namespace CASTLE_ABI {

namespace detail {

template <Scalar T>
Call call_of_training(std::string_view where, const Workspace<T>& workspace, const Input<T>& input) {
    return {.where = where,
            .rows = input.causal.q.rows(),
            .rows_of = "the rows of input.causal.q",
            .object = "a workspace",
            .shape = workspace.shape()};
}

// The shapes of a backward pass's input and output gradient, and whether the workspace has seen such an input.
template <Scalar T>
void check_backward(Workspace<T>& workspace, const Input<T>& input, const OutputGradient<Compute<T>>& d_output) {
    const TrainingRecord<T>& record = WorkspaceAccess::record(workspace);
    Call call = call_of_training("backward", workspace, input);
    call.cross_keys = record.cross_keys();
    call.check_input(input, record.kind().has_lookahead());
    check_forward_pass("backward", "input", call.rows, workspace.size());
    call.check_outputs("d_", d_output);
    check_mass_gradient("backward", d_output, record.has_mass());
}

}  // namespace detail

/// CASTLE over packed sequences: the first `counts[0]` rows of `input` are one sequence, the next `counts[1]` another,
/// and so on, none of which attends to another; a count may be 0. Writes what `parallel` gives for each of them,
/// bitwise, to its rows of `out`, `[L, heads dv]`; `workspace` keeps what `backward` needs, in place of what it held
/// before. `executor` is used in place of that of the workspace's options. `out` must not overlap the input.
///
/// Throws std::invalid_argument if a shape does not fit or the counts do not come to `L`, and nothing has changed then;
/// and std::bad_alloc if memory runs out: `out` is untouched then, but the workspace holds no forward pass.
template <Scalar T>
void forward(Workspace<T>& workspace, std::span<const Index> counts, const std::type_identity_t<Input<T>>& input,
             std::type_identity_t<MatrixView<T>> out, const Executor& executor = {}) {
    forward(workspace, counts, input, Output<T>{.out = out}, Masks(), executor);
}

/// The same under one mask for all sequences, or one for each, and with all that an Output has; `backward` remembers
/// them. Positions begin anew with every sequence. One sequence may have keys and values of another one, see
/// `parallel`. Throws, too, if a mask does not fit; see `extend`.
template <Scalar T>
void forward(Workspace<T>& workspace, std::span<const Index> counts, const std::type_identity_t<Input<T>>& input,
             const std::type_identity_t<Output<T>>& output, const Masks& masks = {}, const Executor& executor = {}) {
    detail::TrainingRecord<T>& record = detail::WorkspaceAccess::record(workspace);
    detail::Call call = detail::call_of_training("forward", workspace, input);
    detail::check_masks("forward", "masks", masks, Index(counts.size()));
    if (counts.size() == 1) call.cross_keys = detail::cross_keys(input, record.kind().has_lookahead(), masks);
    call.check_input(input, record.kind().has_lookahead());
    call.check_output("", output, Index(counts.size()));
    detail::check_counts("forward", counts, "input.causal.q", call.rows);
    for (Index i = 0; i < Index(counts.size()); ++i) {
        detail::check_sight("forward", masks[i], record.kind().terms.get(), 0, counts[std::size_t(i)],
                            detail::mass_over(output)[i], call.cross_keys);
    }
    const Executor& threads = detail::executor_for(executor, workspace.options());
    detail::WorkspaceAccess::start(
        workspace, counts, {.seen = masks, .mass_over = detail::mass_over(output), .cross_keys = call.cross_keys},
        call.rows, threads);
    if (call.rows == 0) return;
    const MatrixView<Compute<T>> kept = detail::WorkspaceAccess::out(workspace);
    auto rows = detail::by_products(output);
    rows.out = kept;
    rows = record.output(rows);
    typename detail::TrainingRecord<T>::ForwardPass pass(record, /*together=*/false, threads);
    pass.for_steps([&](const auto& step) { step.attend(input, rows); });
    detail::copy_elements<Compute<T>, T>(kept, output.out);
}

/// The same of one sequence; under a mask of documents each of them is a sequence.
template <Scalar T>
void forward(Workspace<T>& workspace, const std::type_identity_t<Input<T>>& input,
             const std::type_identity_t<Output<T>>& output, const Masks& mask = {}, const Executor& executor = {}) {
    const bool has_lookahead = detail::WorkspaceAccess::record(workspace).kind().has_lookahead();
    const detail::WholeSequence whole("forward", input.causal.q.rows(), mask, output.mass_over,
                                      detail::cross_keys(input, has_lookahead, mask));
    forward(workspace, whole.counts(), input, whole.output(output), whole.masks().seen, executor);
}
template <Scalar T>
void forward(Workspace<T>& workspace, const std::type_identity_t<Input<T>>& input,
             std::type_identity_t<MatrixView<T>> out, const Executor& executor = {}) {
    forward(workspace, std::array{input.causal.q.rows()}, input, out, executor);
}

/// The gradients of a loss with respect to the inputs of an attention, in their shapes, into `gradient`, from `d_out`,
/// `[L, heads dv]`, its gradient with respect to the output. `workspace` and `input` are as the forward pass left and
/// saw them, packed sequences included; the workspace is used up. Gradients of what a group of query heads shares are
/// sums over the group. With a lookahead window of 0 the gradients of lookahead inputs, where there are any, are 0.
/// `gradient` must not overlap the input.
///
/// `14 L^2 d` operations a head where `dv = d`, `8 L^2 d` beyond the window, `5 L^2 d` for standard attention; six of
/// the fourteen are shared within a group. Bitwise identical on any executor. Throws std::invalid_argument, and changes
/// nothing then, if a shape does not fit or there was no forward pass, and std::bad_alloc if `executor` needs more
/// memory than that of the forward pass, and there is none.
template <Scalar T>
void backward(Workspace<T>& workspace, const std::type_identity_t<Input<T>>& input,
              std::type_identity_t<ConstMatrixView<Compute<T>>> d_out,
              const std::type_identity_t<GradientView<Compute<T>>>& gradient, const Executor& executor = {}) {
    backward(workspace, input, OutputGradient<Compute<T>>{.out = d_out}, gradient, TermsGradientView<Compute<T>>(),
             executor);
}

/// The same from the gradients of all that the forward pass's Output had, and with the gradients of the score terms,
/// sums over all rows and sequences. A row that sees no key has no gradient. Throws, too, if there is a gradient of
/// masses but the forward pass was asked for none, or of terms that the options do not have.
template <Scalar T>
void backward(Workspace<T>& workspace, const std::type_identity_t<Input<T>>& input,
              const std::type_identity_t<OutputGradient<Compute<T>>>& d_output,
              const std::type_identity_t<GradientView<Compute<T>>>& gradient,
              const std::type_identity_t<TermsGradientView<Compute<T>>>& d_terms = {}, const Executor& executor = {}) {
    detail::TrainingRecord<T>& record = detail::WorkspaceAccess::record(workspace);
    detail::check_backward(workspace, input, d_output);
    detail::Call call = detail::call_of_training("backward", workspace, input);
    call.cross_keys = record.cross_keys();
    call.check_gradient(gradient, input.has_lookahead());
    detail::check_terms_gradient<Compute<T>>("backward", workspace.options().terms, d_terms);
    const Executor& threads = detail::executor_for(executor, workspace.options());
    record.reserve_backward(threads);
    record.backward(input, detail::WorkspaceAccess::out(workspace), d_output, gradient, d_terms, threads);
}

/// As above; returns the gradients.
template <Scalar T>
[[nodiscard]] Gradient<Compute<T>> backward(Workspace<T>& workspace, const std::type_identity_t<Input<T>>& input,
                                            std::type_identity_t<ConstMatrixView<Compute<T>>> d_out) {
    detail::check_backward(workspace, input, {.out = d_out});
    const bool has_lookahead = detail::WorkspaceAccess::record(workspace).kind().has_lookahead();
    Gradient<Compute<T>> gradient(input.causal.q.rows(), workspace.shape(), has_lookahead || input.has_lookahead());
    gradient.causal.k.resize(input.causal.k.rows(), gradient.causal.k.cols());
    gradient.causal.v.resize(input.causal.k.rows(), gradient.causal.v.cols());
    backward(workspace, input, d_out, gradient.view());
    return gradient;
}

/// The gradients in one call, which runs the forward pass itself.
template <Scalar T>
[[nodiscard]] Gradient<Compute<T>> backward(const Shape& shape, const Input<T>& input,
                                            std::type_identity_t<ConstMatrixView<Compute<T>>> d_out,
                                            const Options& options = {}) {
    detail::checked_kind("backward", shape, input, options);
    detail::call_of_whole("backward", shape, input).check_out("d_out", d_out);
    Workspace<T> workspace(shape, options);
    Matrix<T> out(input.causal.q.rows(), shape.heads * shape.dv);
    forward(workspace, input, out);
    return backward(workspace, input, d_out);
}

/// The same for one head, whose sizes are those of the views.
template <Scalar T>
[[nodiscard]] Gradient<Compute<T>> backward(const Input<T>& input,
                                            std::type_identity_t<ConstMatrixView<Compute<T>>> d_out,
                                            const Options& options = {}) {
    return backward(detail::own_shape("backward", input), input, d_out, options);
}

}  // namespace CASTLE_ABI
}  // namespace castle
