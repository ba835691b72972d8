// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include <castle/detail/backward/backward_pass.hpp>
#include <castle/detail/forward/append.hpp>
#include <castle/detail/forward/pieces.hpp>
#include <castle/detail/state/aligned_buffer.hpp>
#include <castle/detail/state/sequence_state.hpp>
#include <castle/executor.hpp>
#include <castle/input.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Some sequences from their forward to their backward pass: what the former leaves beside its output, and the memory
// that both work in. It keeps its memory from step to step.
template <Scalar T>
class TrainingRecord {
  public:
    explicit TrainingRecord(const AttentionKind& kind) : kind_(kind) {}

    const AttentionKind& kind() const { return kind_; }

    // Tokens of the forward pass that waits for its backward pass, and of each of its sequences.
    Index size() const { return size_; }
    std::span<const Index> counts() const { return counts_; }

    Index bytes() const {
        Index bytes = (log_sum_exp_.size() + memory_.size()) * Index(sizeof(T)) +
                      Index(last_bad_blocks_.size() * sizeof(LastBadBlocks)) +
                      Index((counts_.capacity() + places_.capacity() + order_.capacity()) * sizeof(Index));
        for (const auto& state : states_) bytes += state.bytes();
        return bytes;
    }

    // Before a forward pass of sequences of so many tokens: makes room for both passes. Where it throws, the record
    // holds no forward pass.
    void start(std::span<const Index> counts, const Executor& executor) {
        size_ = 0;
        counts_.assign(counts.begin(), counts.end());
        place();
        Index tokens = 0;
        for (const Index count : counts) tokens += count;
        const Index sums = 2 * kind_.shape.heads * tokens;
        if (sums > log_sum_exp_.size()) log_sum_exp_ = AlignedBuffer<T>(sums);
        reserve_backward(executor);
        size_ = tokens;
    }
    void finish() { size_ = 0; }

    // The forward pass; outputs go with output(out). See AppendTransaction.
    template <class RunStep>
    void forward(bool together, bool packed, const Executor& executor, const RunStep& run_step) {
        const auto sequence = [&](Index i) -> SequenceState<T>& { return state(i); };
        const auto count = [&](Index i) { return counts_[std::size_t(i)]; };
        // Where this throws, there is no forward pass.
        const Index tokens = std::exchange(size_, 0);
        AppendTransaction<T, decltype(sequence), decltype(count)> append(sequences(), sequence, count, together,
                                                                         memory_, executor);
        size_ = tokens;
        append.for_steps(packed, run_step);
    }

    OutputRows<T> output(MatrixView<T> out) {
        return {.out = out,
                .log_sum_exp = {log_sum_exp_.data(), log_sum_exp_.data() + kind_.shape.heads * size_},
                .log_sum_exp_stride = size_};
    }

    // Makes room for a backward pass by this executor, if the forward pass has not.
    void reserve_backward(const Executor& executor) {
        Index elements = 0, panels = 0;
        for_batches(executor, [&](Index first, Index end) {
            Index batch_elements = 0, batch_panels = 0;
            for (Index i = first; i < end; ++i) {
                batch_elements += heads_together(executor) * head_elements(i);
                batch_panels += heads_together(executor) * BackwardPass<T>::panels(counts_[std::size_t(i)]);
            }
            elements = (std::max)(elements, batch_elements);
            panels = (std::max)(panels, batch_panels);
        });
        if (elements > memory_.size()) memory_ = AlignedBuffer<T>(elements);
        if (panels > Index(last_bad_blocks_.size())) last_bad_blocks_.resize(std::size_t(panels));
    }

    // The backward pass, for which there is room; the record is used up. `out` is the forward pass's output. Gradients
    // may go to where the input is: every element of it is read before.
    void backward(const Input<T>& input, ConstMatrixView<T> out, ConstMatrixView<T> d_out,
                  const GradientView<T>& gradient, const Executor& executor) {
        const LogSumExp<T> log_sum_exp = output({}).log_sum_exp;
        Index row = 0;
        for (Index i = 0; i < sequences(); ++i) {
            state(i).work() = {.call_row = row};
            row += counts_[std::size_t(i)];
        }
        // What head h of sequence i goes from and to.
        const auto part = [&](Index i, Index h) {
            const Index first = state(i).work().call_row, count = counts_[std::size_t(i)];
            const Index group = kind_.group(), dv = kind_.shape.dv;
            const auto rows = [&](const auto& m, Index first_col, Index cols) {
                return std::remove_cvref_t<decltype(m)>(m.row(first) + first_col, count, cols, m.outer_stride());
            };
            const auto columns = [&](const auto& m, Index cols) { return rows(m, h * cols, cols); };
            const auto all = [&](const auto& x, auto& own) {
                own.causal = {.q = columns(x.causal.q, group * kind_.shape.d),
                              .k = columns(x.causal.k, kind_.shape.d),
                              .v = columns(x.causal.v, dv)};
                if (x.lookahead.q.rows() == 0) return;
                own.lookahead = {.q = columns(x.lookahead.q, kind_.shape.d),
                                 .k = columns(x.lookahead.k, kind_.shape.d),
                                 .v = columns(x.lookahead.v, kind_.shape.d)};
            };
            BackwardInput<T> one{.input = {},
                                 .out = columns(out, group * dv),
                                 .log_sum_exp = log_sum_exp.from(h * group * size_ + first),
                                 .log_sum_exp_stride = size_,
                                 .d_out = columns(d_out, group * dv),
                                 .gradient = {}};
            all(input, one.input);
            all(gradient, one.gradient);
            return one;
        };
        if (size_ > 0) {
            for_batches(executor, [&](Index first, Index end) { run_batch(first, end, part, executor); });
        }
        finish();
    }

  private:
    Index sequences() const { return Index(counts_.size()); }
    SequenceState<T>& state(Index i) { return states_[std::size_t(places_[std::size_t(i)])]; }

    // Gives the longest sequence the first state, and so on, so that states need not grow where sequences of other
    // steps come in another order. Makes room in them.
    void place() {
        order_.resize(counts_.size());
        places_.resize(counts_.size());
        std::iota(order_.begin(), order_.end(), Index(0));
        std::sort(order_.begin(), order_.end(), [&](Index a, Index b) {
            const Index of_a = counts_[std::size_t(a)], of_b = counts_[std::size_t(b)];
            return of_a != of_b ? of_a > of_b : a < b;
        });
        for (std::size_t place = 0; place < order_.size(); ++place) {
            places_[std::size_t(order_[place])] = Index(place);
            if (place == states_.size()) states_.emplace_back(kind_, Keeping{.every_query = true});
            states_[place].clear();
            states_[place].make_room(counts_[std::size_t(order_[place])]);
        }
    }

    Index head_elements(Index i) { return BackwardPass<T>::elements(state(i).head(0), kind_, counts_[std::size_t(i)]); }

    // Heads whose memory is in use at the same time: with threads, all of some sequences, otherwise one.
    Index heads_together(const Executor& executor) const { return executor ? kind_.shape.kv_heads : 1; }
    template <class F>
    void for_batches(const Executor& executor, const F& f) const {
        for (Index first = 0; first < sequences();) {
            Index end = first, rows = 0;
            for (; end < sequences(); ++end) {
                const Index more = counts_[std::size_t(end)];
                if (end > first && (!executor || rows + more > batch_rows)) break;
                rows += more;
            }
            f(first, end);
            first = end;
        }
    }

    template <class Part>
    void run_batch(Index first, Index end, const Part& part, const Executor& executor) {
        if (!executor) {
            for (Index h = 0; counts_[std::size_t(first)] > 0 && h < kind_.shape.kv_heads; ++h) {
                const BackwardInput<T> input = part(first, h);
                BackwardPass<T>(state(first).head(h), kind_, input, memory_.data(), last_bad_blocks_.data()).run();
            }
            return;
        }
        Index used = 0, panels = 0;
        for (Index i = first; i < end; ++i) {
            auto& work = state(i).work();
            work.scratch = memory_.data() + used;
            work.first_panel = panels;
            used += kind_.shape.kv_heads * head_elements(i);
            panels += kind_.shape.kv_heads * BackwardPass<T>::panels(counts_[std::size_t(i)]);
        }
        const auto sequence = [&](Index i) -> SequenceState<T>& { return state(i); };
        const auto count = [&](Index i) { return counts_[std::size_t(i)]; };
        // f(pass, k) for the k-th of n(i) parts of every head.
        const auto for_parts = [&](const auto& n, const auto& f) {
            Pieces(first, end, kind_.shape.kv_heads, sequence, n).run(executor, [&](Index i, Index h, Index k) {
                const BackwardInput<T> input = part(i, h);
                const auto& work = state(i).work();
                BackwardPass<T> pass(
                    state(i).head(h), kind_, input, work.scratch + h * head_elements(i),
                    last_bad_blocks_.data() + work.first_panel + h * BackwardPass<T>::panels(counts_[std::size_t(i)]));
                f(pass, i, k);
            });
        };
        const auto panels_of = [&](Index i) { return BackwardPass<T>::panels(count(i)); };
        Index most = 0;
        for (Index i = first; i < end; ++i) most = (std::max)(most, BackwardPass<T>::groups(count(i)));
        for_parts(panels_of, [](auto& pass, Index, Index p) { pass.start_panel(p); });
        for (Index g = most - 1; g >= 0; --g) {
            const auto group = [&](Index i) {
                return g < BackwardPass<T>::groups(count(i)) ? BackwardPass<T>::group(count(i), g) : Group();
            };
            const auto blocks = [&](Index i) { return group(i).blocks(); };
            const auto spans = [&](Index i) { return group(i).spans(); };
            for_parts(blocks, [&](auto& pass, Index i, Index b) { pass.pack_block(group(i), b); });
            for_parts(spans, [&](auto& pass, Index i, Index span) { pass.sweep_span(group(i), span); });
            for_parts(blocks, [&](auto& pass, Index i, Index b) { pass.finish_block(group(i), b); });
        }
        for_parts(panels_of, [](auto& pass, Index, Index p) { pass.finish_panel(p); });
    }

    AttentionKind kind_;
    SelfMovable<std::vector<SequenceState<T>>> states_{std::vector<SequenceState<T>>()};
    SelfMovable<std::vector<Index>> counts_{std::vector<Index>()};
    SelfMovable<std::vector<Index>> places_{std::vector<Index>()};  // sequence i has state places_[i]
    SelfMovable<std::vector<Index>> order_{std::vector<Index>()};
    AlignedBuffer<T> log_sum_exp_;
    AlignedBuffer<T> memory_;
    SelfMovable<std::vector<LastBadBlocks>> last_bad_blocks_{std::vector<LastBadBlocks>()};
    Index size_ = 0;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
