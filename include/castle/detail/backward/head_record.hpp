// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <utility>

#include <castle/detail/backward/backward_pass.hpp>
#include <castle/detail/backward/gradient_state.hpp>
#include <castle/detail/forward/append.hpp>
#include <castle/detail/state/aligned_buffer.hpp>
#include <castle/detail/state/head_state.hpp>
#include <castle/gradient.hpp>
#include <castle/input.hpp>
#include <castle/options.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// One head from its forward to its backward pass: what the former leaves beside its output, and the memory that the
// latter works in. It keeps its memory from sequence to sequence.
template <Scalar T>
class HeadRecord {
  public:
    HeadRecord(HeadShape shape, const Options& options)
        : state_(shape, options, {.every_query = true}), gradients_(shape, state_.has_lookahead()) {}

    HeadState<T>& state() { return state_; }
    HeadShape shape() const { return state_.shape(); }

    // Tokens of the forward pass that waits for its backward pass.
    Index size() const { return size_; }

    Index bytes() const {
        const Index numbers = log_sum_exp_.size() + scratch_.size();
        return state_.bytes() + gradients_.bytes() + numbers * Index(sizeof(T));
    }

    // Room for `tokens` tokens, for both passes of a sequence that is to come. May throw.
    void reserve(Index tokens) {
        gradients_.reserve(tokens);
        state_.reserve(tokens);
        const Index numbers =
            (std::max)(extension_numbers(state_, 0, tokens), BackwardPass<T>::numbers(state_, tokens));
        if (numbers > scratch_.size()) scratch_ = AlignedBuffer<T>(numbers);
        if (2 * tokens > log_sum_exp_.size()) log_sum_exp_ = AlignedBuffer<T>(2 * tokens);
    }

    // Before a forward pass of `tokens` tokens, which there is room for.
    void start(Index tokens) {
        state_.clear();
        size_ = tokens;
    }
    LogSumExp<T> log_sum_exp() { return {log_sum_exp_.data(), log_sum_exp_.data() + size_}; }
    // For either pass.
    T* scratch() { return scratch_.data(); }

    // The backward pass of the tokens, whose output was `out`; to be run once. The gradients may go to where the input
    // is: every number of it is read before.
    BackwardPass<T> backward(const HeadInput<T>& head, ConstMatrixView<T> out, ConstMatrixView<T> d_out,
                             const HeadGradientView<T>& d_head) {
        return {state_,
                gradients_,
                {.head = head, .out = out, .log_sum_exp = log_sum_exp(), .d_out = d_out},
                d_head,
                scratch()};
    }
    void finish() { size_ = 0; }

  private:
    HeadState<T> state_;
    GradientState<T> gradients_;
    AlignedBuffer<T> log_sum_exp_;
    AlignedBuffer<T> scratch_;
    Index size_ = 0;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
