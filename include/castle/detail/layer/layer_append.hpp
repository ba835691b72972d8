// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include <castle/detail/forward/append.hpp>
#include <castle/detail/forward/group_steps.hpp>
#include <castle/detail/layer/layer_heads.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/detail/state/sequences.hpp>
#include <castle/executor.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The tokens, one at least, that one call of a layer appends to the states of some sequences. The constructor makes
// room and is the only part that throws; no token has changed then.
template <Scalar T>
class LayerAppend {
    using C = Compute<T>;

  public:
    // `row_scratch` is kept for one token of each sequence. Attended rows go to scratch, by-products to `output`.
    LayerAppend(const LayerHeads<T>& heads, const Sequences<T>& sequences, std::span<const Index> counts,
                const CallMasks& masks, const OutputRows<C>& output, AlignedBuffer<C>& row_scratch,
                const Executor& executor)
        : heads_(heads),
          output_(output),
          executor_(executor),
          transaction_(sequences, counts, masks, /*together=*/true, memory_, executor),
          at_once_(transaction_.looks_ahead() || output.has_by_products()),
          row_memory_(transaction_.is_one_each() ? row_scratch : many_rows_),
          rows_(at_once_ ? transaction_.whole().rows() : transaction_.most_rows()) {
        const Index elements = rows_ * heads.row_elements();
        if (row_memory_.size() < elements) row_memory_ = AlignedBuffer<C>(elements);
    }
    LayerAppend(const LayerAppend&) = delete;
    LayerAppend& operator=(const LayerAppend&) = delete;

    // Calls finish(step, rows) for every step, once its rows have been attended.
    template <class Finish>
    void run(ConstMatrixView<T> x, const Finish& finish) {
        const LayerRows<C> rows = heads_.rows_in(row_memory_, rows_);
        output_.out = rows.attended();
        if (at_once_) heads_.project(transaction_.whole(), x, rows, executor_);
        transaction_.for_steps(/*packed=*/!at_once_, [&](const auto& step) {
            if (!at_once_) heads_.project(step, x, rows, executor_);
            step.attend(rows.input(), output_);
            finish(step, rows);
        });
    }

  private:
    const LayerHeads<T>& heads_;
    OutputRows<C> output_;
    const Executor& executor_;
    AlignedBuffer<C> memory_;
    AlignedBuffer<C> many_rows_;
    AppendTransaction<T> transaction_;
    // Keys that earlier rows see have to be there before these are attended, and by-products have a row for every row
    // of the call: all of them together then.
    bool at_once_;
    AlignedBuffer<C>& row_memory_;
    Index rows_;  // that there is scratch for
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
