// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

#include <castle/causal.hpp>
#include <castle/detail/backward/backward_pass.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/forward/append.hpp>
#include <castle/gradient.hpp>
#include <castle/input.hpp>
#include <castle/options.hpp>
#include <castle/workspace.hpp>

// Training: the gradients of a loss with respect to all inputs of a head, from its gradient with respect to the head's
// output, in `O(L^2 d)` time and `O(L d)` memory.
//
//     forward(workspace, head, out);                          // out has the bits of parallel(head)
//     ...                                                     // the rest of the model, and its backward pass: d_out
//     backward(workspace, head, d_out, {.causal = ..., .lookahead = ...});
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
// What is masked is left out, as in the forward pass: an infinity or a NaN in an input or in d_out reaches the
// gradients that depend on it and no other.
namespace castle {
inline namespace CASTLE_ABI {

namespace detail {

// What the arguments' shapes are held against.
template <Scalar T>
auto because_of(const HeadWorkspace<T>& workspace, Index rows) {
    return [&workspace, rows] {
        return text("for ", rows, " tokens and a workspace of d ", workspace.shape().d, ", dv ", workspace.shape().dv);
    };
}

template <Scalar T>
void run_forward(HeadWorkspace<T>& workspace, const HeadInput<T>& head, MatrixView<T> out) {
    const Index rows = head.causal.q.rows();
    WorkspaceAccess::start(workspace, rows);
    HeadRecord<T>& record = WorkspaceAccess::record(workspace);
    const MatrixView<T> kept = WorkspaceAccess::out(workspace);
    extend_head(record.state(), head, {.out = kept, .log_sum_exp = record.log_sum_exp()}, record.scratch(),
                WorkspaceAccess::executor(workspace));
    if (rows > 0) out.map() = kept.map();
}

// Whether the input is one that the workspace has seen, as far as shapes tell.
template <Scalar T>
void check_backward(const HeadWorkspace<T>& workspace, Index rows, ConstMatrixView<T> d_out) {
    check_forward_pass("backward", "head", rows, workspace.size());
    check_shape("backward", "", "d_out", d_out, rows, workspace.shape().dv, because_of(workspace, rows));
}

template <Scalar T>
void run_backward(HeadWorkspace<T>& workspace, const HeadInput<T>& head, ConstMatrixView<T> d_out,
                  const HeadGradientView<T>& d_head) {
    HeadRecord<T>& record = WorkspaceAccess::record(workspace);
    if (record.size() > 0) {
        run_backward(
            1, record.size(),
            [&](Index) { return record.backward(head, WorkspaceAccess::out(workspace), d_out, d_head); },
            WorkspaceAccess::executor(workspace));
    }
    record.finish();
}

}  // namespace detail

/// CASTLE over a whole sequence, as `parallel` computes it and with its bits, into `out`, `[L, dv]`; `workspace` keeps
/// what `backward` needs, in place of what it held before. `out` must not overlap the input.
///
/// Throws std::invalid_argument if a shape does not fit, and nothing has changed then; and std::bad_alloc if memory
/// runs out: `out` is untouched then, but the workspace holds no forward pass.
template <Scalar T>
void forward(Workspace<T>& workspace, const std::type_identity_t<HeadInput<T>>& head,
             std::type_identity_t<MatrixView<T>> out) {
    const Index rows = head.causal.q.rows();
    detail::check_head("forward", head, rows, workspace.shape(), detail::because_of(workspace, rows));
    detail::check_shape("forward", "", "out", out, rows, workspace.shape().dv, detail::because_of(workspace, rows));
    detail::run_forward(workspace, head, out);
}

/// The same for standard causal attention, with the bits of `causal_attention`.
template <Scalar T>
void forward(CausalWorkspace<T>& workspace, const std::type_identity_t<Qkv<T>>& head,
             std::type_identity_t<MatrixView<T>> out) {
    const Index rows = head.q.rows();
    detail::check_qkv("forward", "", head, rows, workspace.shape(), detail::because_of(workspace, rows));
    detail::check_shape("forward", "", "out", out, rows, workspace.shape().dv, detail::because_of(workspace, rows));
    detail::run_forward(workspace, HeadInput<T>{.causal = head}, out);
}

/// The gradients of a loss with respect to the six inputs of a head, in their shapes, into `d_head`, from `d_out`,
/// `[L, dv]`, its gradient with respect to the output. `workspace` and `head` are as the forward pass left and saw
/// them; the workspace is used up. `d_head` must not overlap the input.
///
/// `14 L^2 d` operations where `dv = d`, `8 L^2 d` beyond the window. The bits do not depend on the executor. Throws
/// std::invalid_argument, and changes nothing then, if a shape does not fit or there was no forward pass.
template <Scalar T>
void backward(Workspace<T>& workspace, const std::type_identity_t<HeadInput<T>>& head,
              std::type_identity_t<ConstMatrixView<T>> d_out, const std::type_identity_t<HeadGradientView<T>>& d_head) {
    const Index rows = head.causal.q.rows();
    const HeadShape shape = workspace.shape();
    detail::check_head("backward", head, rows, shape, detail::because_of(workspace, rows));
    detail::check_backward(workspace, rows, d_out);
    detail::check_qkv("backward", "d_head.causal.", d_head.causal, rows, shape, detail::because_of(workspace, rows));
    detail::check_qkv("backward", "d_head.lookahead.", d_head.lookahead, rows, {.d = shape.d, .dv = shape.d},
                      detail::because_of(workspace, rows));
    detail::run_backward(workspace, head, d_out, d_head);
}

/// The same for standard causal attention, in `5 L^2 d` operations.
template <Scalar T>
void backward(CausalWorkspace<T>& workspace, const std::type_identity_t<Qkv<T>>& head,
              std::type_identity_t<ConstMatrixView<T>> d_out, const std::type_identity_t<QkvGradientView<T>>& d_head) {
    const Index rows = head.q.rows();
    detail::check_qkv("backward", "", head, rows, workspace.shape(), detail::because_of(workspace, rows));
    detail::check_backward(workspace, rows, d_out);
    detail::check_qkv("backward", "d_head.", d_head, rows, workspace.shape(), detail::because_of(workspace, rows));
    detail::run_backward(workspace, HeadInput<T>{.causal = head}, d_out, HeadGradientView<T>{.causal = d_head});
}

/// As above; returns the gradients.
template <Scalar T>
[[nodiscard]] HeadGradient<T> backward(Workspace<T>& workspace, const std::type_identity_t<HeadInput<T>>& head,
                                       std::type_identity_t<ConstMatrixView<T>> d_out) {
    detail::check_head("backward", head, head.causal.q.rows(), workspace.shape(),
                       detail::because_of(workspace, head.causal.q.rows()));
    HeadGradient<T> d_head(head.causal.q.rows(), workspace.shape());
    backward(workspace, head, d_out, d_head.view());
    return d_head;
}
template <Scalar T>
[[nodiscard]] QkvGradient<T> backward(CausalWorkspace<T>& workspace, const std::type_identity_t<Qkv<T>>& head,
                                      std::type_identity_t<ConstMatrixView<T>> d_out) {
    detail::check_qkv("backward", "", head, head.q.rows(), workspace.shape(),
                      detail::because_of(workspace, head.q.rows()));
    QkvGradient<T> d_head(head.q.rows(), workspace.shape());
    backward(workspace, head, d_out, d_head.view());
    return d_head;
}

/// The gradients in one call, which runs the forward pass itself.
template <Scalar T>
[[nodiscard]] HeadGradient<T> backward(const HeadInput<T>& head, std::type_identity_t<ConstMatrixView<T>> d_out,
                                       const Options& options = {}) {
    Workspace<T> workspace(detail::checked_shape("backward", head, options), options);
    Matrix<T> out(head.causal.q.rows(), head.causal.v.cols());
    forward(workspace, head, out);
    return backward(workspace, head, d_out);
}
template <Scalar T>
[[nodiscard]] QkvGradient<T> backward(const Qkv<T>& head, std::type_identity_t<ConstMatrixView<T>> d_out,
                                      const CausalOptions& options = {}) {
    CausalWorkspace<T> workspace(detail::checked_shape("backward", head, detail::without_lookahead(options)), options);
    Matrix<T> out(head.q.rows(), head.v.cols());
    forward(workspace, head, out);
    return backward(workspace, head, d_out);
}

}  // namespace CASTLE_ABI
}  // namespace castle
