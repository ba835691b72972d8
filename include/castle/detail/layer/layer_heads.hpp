// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <optional>

#include <castle/detail/forward/append.hpp>
#include <castle/detail/layer/layer_kind.hpp>
#include <castle/detail/layer/layer_rows.hpp>
#include <castle/detail/layer/projections.hpp>
#include <castle/detail/layer/weight_shapes.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/executor.hpp>
#include <castle/rotary.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The heads of a layer, or a share of them, up to their attention: projections of the input, rotated by position.
template <Scalar T>
class LayerHeads {
    using C = Compute<T>;

  public:
    using Rows = LayerRows<C>;

    explicit LayerHeads(const LayerKind& kind) : LayerHeads(kind, WeightShapes(kind)) {}
    LayerHeads(const LayerKind& kind, const WeightShapes& shapes) : projections_(kind, shapes) {
        if (kind.rotary) table_.emplace(kind.attention.shape.d, kind.rotary->base);
    }

    const LayerKind& kind() const { return projections_.kind(); }
    const LayerWidths& widths() const { return projections_.widths(); }
    Projections<T>& projections() { return projections_; }
    const Projections<T>& projections() const { return projections_; }

    // What lies between the layer's steps, of one row, and of some rows in memory of so many.
    Index row_elements() const { return Rows::elements(widths(), angles()); }
    Rows rows_in(AlignedBuffer<C>& memory, Index rows) const { return {widths(), angles(), memory.data(), rows}; }

    // Queries, keys and values of the rows of a step, or of the whole call, rotated.
    template <class Step>
    void project(const Step& step, ConstMatrixView<T> x, const Rows& rows, const Executor& executor) const {
        projections_.project(
            [&](const auto& f) {
                step.for_runs([&](const RowRun& run) {
                    f(x.middle_rows(run.call_row, run.count), rows.projected().middle_rows(run.row, run.count));
                });
            },
            executor);
        if (table_) {
            step.for_sequences([&](const RowRun& run) {
                for (Index i = 0; i < run.count; ++i) table_->fill(run.position + i, rows.angles(run.row + i));
            });
        }
        rotate(step, rows, executor, [&](C* head, const C* angles) { table_->rotate_row(head, angles); });
    }

    // Gradients of what was rotated, by the angles that are there, become those of what was not.
    template <class Step>
    void rotate_back(const Step& step, const Rows& rows, const Executor& executor) const {
        rotate(step, rows, executor, [&](C* head, const C* angles) { table_->rotate_row_back(head, angles); });
    }

  private:
    Index angles() const { return table_ ? table_->row_size() : 0; }

    // turn(x, angles) for every row x of a head and projection that is rotated.
    template <class Step, class Turn>
    void rotate(const Step& step, const Rows& rows, const Executor& executor, const Turn& turn) const {
        if (!table_) return;
        const auto rotated = rotated_projections(*kind().rotary);
        const Shape& shape = kind().attention.shape;
        const auto rotate_head = [&](Index h) {
            for (Index i = 0; i < widths().projections; ++i) {
                if (!rotated[std::size_t(i)] || h * shape.d >= widths().width(i)) continue;
                const MatrixView<C> head = rows.projected(i).middle_cols(h * shape.d, shape.d);
                step.for_sequences([&](const RowRun& run) {
                    for (Index row = run.row; row < run.row + run.count; ++row) turn(head.row(row), rows.angles(row));
                });
            }
        };
        run(executor_for_rows(executor, step.rows()), shape.heads, rotate_head);
    }

    std::optional<RotaryTable<C>> table_;
    Projections<T> projections_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
