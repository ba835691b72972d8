// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include <castle/detail/aligned_buffer.hpp>
#include <castle/detail/backward_pass.hpp>
#include <castle/detail/gradient_state.hpp>
#include <castle/detail/group_steps.hpp>
#include <castle/detail/head_state.hpp>
#include <castle/gradient.hpp>
#include <castle/input.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// One head from its forward to its backward pass: what the former leaves, and the memory that the latter works in. It
// keeps its memory from sequence to sequence.
template <Scalar T>
class HeadRecord {
  public:
    HeadRecord(HeadShape shape, T scale, Index window)
        : state_(shape, scale, window), gradients_(shape, state_.has_lookahead()) {}

    HeadState<T>& state() { return state_; }
    HeadShape shape() const { return state_.shape(); }

    // Tokens of the forward pass that waits for its backward pass.
    Index size() const { return size_; }

    Index bytes() const {
        const Index numbers = out_.size() + log_sum_exp_.size() + scratch_.size();
        return state_.bytes() + gradients_.bytes() + numbers * Index(sizeof(T));
    }

    // Room for `tokens` tokens, for both passes. Where it throws, no tokens and no outputs have changed.
    void reserve(Index tokens) {
        const Index dv = shape().dv;
        AlignedBuffer<T> out, log_sum_exp, scratch;
        if (tokens > log_sum_exp_.size()) {
            out = AlignedBuffer<T>(tokens * dv);
            log_sum_exp = AlignedBuffer<T>(tokens);
            scratch = AlignedBuffer<T>(BackwardPass<T>::numbers(state_, tokens));
        }
        gradients_.reserve(tokens);
        state_.reserve(tokens);
        if (out.size() == 0) return;
        out_ = std::move(out);
        log_sum_exp_ = std::move(log_sum_exp);
        scratch_ = std::move(scratch);
        size_ = 0;
    }

    // Before a forward pass of `tokens` tokens, which there is room for; and what it writes.
    void start(Index tokens) {
        state_.clear();
        size_ = tokens;
    }
    MatrixView<T> out() { return {out_.data(), size_, shape().dv}; }
    OutputRows<T> output() { return {.out = out(), .log_sum_exp = log_sum_exp_.data()}; }

    // The backward pass of the tokens; to be run once.
    BackwardPass<T> backward(const HeadInput<T>& head, ConstMatrixView<T> d_out, const HeadGradientView<T>& d_head) {
        return {state_,
                gradients_,
                {.head = head, .out = out(), .log_sum_exp = log_sum_exp_.data(), .d_out = d_out},
                d_head,
                scratch_.data()};
    }
    void finish() { size_ = 0; }

  private:
    HeadState<T> state_;
    GradientState<T> gradients_;
    AlignedBuffer<T> out_;
    AlignedBuffer<T> log_sum_exp_;
    AlignedBuffer<T> scratch_;
    Index size_ = 0;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
