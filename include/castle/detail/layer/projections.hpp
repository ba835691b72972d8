// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/layer/layer_kind.hpp>
#include <castle/detail/layer/layer_rows.hpp>
#include <castle/detail/layer/packed_matrix.hpp>
#include <castle/detail/layer/weight_gradient.hpp>
#include <castle/detail/layer/weight_shapes.hpp>
#include <castle/executor.hpp>
#include <castle/layer_weights.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The weights of a layer, or of a share of one, all 0 at first, and the products with them: into the attention, the
// projections side by side, and out of it. Sums and gradients are in the scalar that is computed in.
template <Scalar T>
class Projections {
    using C = Compute<T>;

  public:
    explicit Projections(const LayerKind& kind) : Projections(kind, WeightShapes(kind)) {}
    // Of a share of a layer.
    Projections(const LayerKind& kind, const WeightShapes& shapes)
        : kind_(kind),
          shapes_(shapes),
          in_(shapes.d_model, shapes.widths.projected()),
          out_(shapes.out_rows, shapes.out_cols) {}

    const LayerKind& kind() const { return kind_; }
    // Of the same shape.
    void set_attention(AttentionKind attention) { kind_.attention = std::move(attention); }
    const WeightShapes& shapes() const { return shapes_; }
    const LayerWidths& widths() const { return shapes_.widths; }
    Index parameters() const { return in_.rows() * in_.cols() + out_.rows() * out_.cols(); }

    // The projections side by side, and W_O.
    const PackedMatrix<T>& in() const { return in_; }
    const PackedMatrix<T>& out() const { return out_; }

    // By name.
    LayerWeights<T> weights() const {
        LayerWeights<T> w;
        const auto parts = projections_of(w);
        for (Index i = 0; i < shapes_.widths.projections; ++i) {
            *parts[std::size_t(i)] = in_.cols_at(shapes_.widths.first_column(i), shapes_.widths.width(i));
        }
        w.w_out = out_.cols_at(0, out_.cols());
        return w;
    }

    // Of weights whose shapes have been checked.
    template <Scalar From>
    void set(const LayerWeightsView<From>& w, WeightOrder order) {
        const auto set = [&](PackedMatrix<T>& matrix, Index first_column, const ConstMatrixView<From>& m) {
            if (order == WeightOrder::in_out) {
                matrix.set_cols(first_column, m);
            } else {
                matrix.set_cols_transposed(first_column, m);
            }
        };
        const auto parts = projections_of(w);
        for (Index i = 0; i < shapes_.widths.projections; ++i) {
            set(in_, shapes_.widths.first_column(i), *parts[std::size_t(i)]);
        }
        set(out_, 0, w.w_out);
    }

    // projected = x W_in and y = attended W_out, in runs: for_runs(f) calls f(x, projected) or f(attended, y) for each.
    template <class ForRuns>
    void project(const ForRuns& for_runs, const Executor& executor) const {
        multiply(in_, for_runs, executor);
    }
    template <class ForRuns>
    void project_out(const ForRuns& for_runs, const Executor& executor) const {
        multiply(out_, for_runs, executor);
    }

    // The gradients of project: that of x, and those of the weights, which are added.
    void project_back(ConstMatrixView<C> d_projected, MatrixView<C> d_x, const Executor& executor) const {
        multiply_transposed(in_, d_projected, d_x, executor);
    }
    void add_gradient(ConstMatrixView<T> x, ConstMatrixView<C> d_projected, LayerWeights<C>& d_w,
                      const Executor& executor) const {
        add_gradient(in_, x, d_projected, projections_of(d_w), executor);
    }
    // The same of project_out.
    void project_out_back(ConstMatrixView<C> d_y, MatrixView<C> d_attended, const Executor& executor) const {
        multiply_transposed(out_, d_y, d_attended, executor);
    }
    void add_out_gradient(ConstMatrixView<C> attended, ConstMatrixView<C> d_y, LayerWeights<C>& d_w,
                          const Executor& executor) const {
        add_gradient(out_, attended, d_y, std::array{&d_w.w_out}, executor);
    }

  private:
    template <class ForRuns>
    static void multiply(const PackedMatrix<T>& w, const ForRuns& for_runs, const Executor& executor) {
        run(executor, w.panels(),
            [&](Index p) { for_runs([&](const auto& x, const auto& y) { w.multiply_panel(x, p, y); }); });
    }

    // d_w += x^T d_y, of matrices side by side, of which there may be none.
    template <Scalar X, std::size_t N>
    static void add_gradient(const PackedMatrix<T>& w, ConstMatrixView<X> x, ConstMatrixView<C> d_y,
                             const std::array<Matrix<C>*, N>& d_w, const Executor& executor) {
        run(executor, w.panels(), [&](Index p) { add_weight_gradient<C>(x, d_y, p, weight_runs(d_w, p)); });
    }
    // Where the columns of panel p are in each of them.
    template <std::size_t N>
    static std::array<WeightRun<C>, N> weight_runs(const std::array<Matrix<C>*, N>& side_by_side, Index p) {
        std::array<WeightRun<C>, N> runs{};
        const Index first = p * panel_size, end = first + panel_size;
        Index left = 0;  // edge of the matrix
        for (std::size_t i = 0; i < N; ++i) {
            Matrix<C>& m = *side_by_side[i];
            const Index begin = (std::max)(first, left), stop = (std::min)(end, left + m.cols());
            if (begin < stop) runs[i] = {m.data() + (begin - left), m.cols(), begin - first, stop - begin};
            left += m.cols();
        }
        return runs;
    }

    LayerKind kind_;
    WeightShapes shapes_;
    PackedMatrix<T> in_;   // the projections side by side
    PackedMatrix<T> out_;  // W_O
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
