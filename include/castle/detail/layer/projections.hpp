// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <string_view>
#include <utility>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/layer/layer_kind.hpp>
#include <castle/detail/layer/layer_rows.hpp>
#include <castle/detail/layer/packed_matrix.hpp>
#include <castle/detail/layer/weight_gradient.hpp>
#include <castle/executor.hpp>
#include <castle/layer_weights.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The weights of a layer, all 0 at first, and the products with them: into the attention, the projections side by side,
// and out of it. Sums and gradients are in the scalar that is computed in.
template <Scalar T>
class Projections {
    using C = Compute<T>;

  public:
    explicit Projections(const LayerKind& kind)
        : kind_(kind), widths_(kind), in_(kind.d_model, widths_.projected()), out_(widths_.queries, kind.d_model) {}

    const LayerKind& kind() const { return kind_; }
    // Of the same shape.
    void set_attention(AttentionKind attention) { kind_.attention = std::move(attention); }
    const LayerWidths& widths() const { return widths_; }
    Index parameters() const { return kind_.d_model * (widths_.projected() + widths_.queries); }

    // By name; in their shapes, of zeros.
    LayerWeights<T> weights() const {
        LayerWeights<T> w;
        const auto parts = projections_of(w);
        for (Index i = 0; i < widths_.projections; ++i) {
            *parts[std::size_t(i)] = in_.cols_at(widths_.first_column(i), widths_.width(i));
        }
        w.w_out = out_.cols_at(0, kind_.d_model);
        return w;
    }
    LayerWeights<C> zeros() const {
        LayerWeights<C> w;
        const auto parts = projections_of(w);
        for (Index i = 0; i < widths_.projections; ++i) {
            parts[std::size_t(i)]->setZero(kind_.d_model, widths_.width(i));
        }
        w.w_out.setZero(widths_.queries, kind_.d_model);
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
        for (Index i = 0; i < widths_.projections; ++i) {
            set(in_, widths_.first_column(i), *parts[std::size_t(i)]);
        }
        set(out_, 0, w.w_out);
    }

    template <Scalar From>
    void check_weights(std::string_view where, std::string_view group, const LayerWeightsView<From>& w,
                       WeightOrder order) const {
        const Call call{.where = where,
                        .rows = 0,
                        .rows_of = "",
                        .object = "a layer",
                        .shape = kind_.attention.shape,
                        .d_model = kind_.d_model};
        const auto check_one = [&](std::string_view name, const ConstMatrixView<From>& m, Index in, Index out) {
            if (order == WeightOrder::out_in) std::swap(in, out);
            call.check_argument(group, name, m, in, out);
        };
        const auto parts = projections_of(w);
        for (Index i = 0; i < Index(parts.size()); ++i) {
            const bool used = i < widths_.projections;
            check_one(projection_names[std::size_t(i)], *parts[std::size_t(i)], used ? kind_.d_model : 0,
                      used ? widths_.width(i) : 0);
        }
        check_one("w_out", w.w_out, widths_.queries, kind_.d_model);
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

    // The gradients of project: d_x, and those of the weights, which are added.
    void project_back(ConstMatrixView<T> x, ConstMatrixView<C> d_projected, MatrixView<C> d_x, LayerWeights<C>& d_w,
                      const Executor& executor) const {
        add_gradient(in_, x, d_projected, projections_of(d_w), executor);
        run(executor, in_.transposed_panels(), [&](Index p) { in_.multiply_transposed_panel(d_projected, p, d_x); });
    }
    // The same of project_out.
    void project_out_back(ConstMatrixView<C> attended, ConstMatrixView<C> d_y, MatrixView<C> d_attended,
                          LayerWeights<C>& d_w, const Executor& executor) const {
        run(executor, out_.transposed_panels(), [&](Index p) { out_.multiply_transposed_panel(d_y, p, d_attended); });
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
    LayerWidths widths_;
    PackedMatrix<T> in_;   // the projections side by side
    PackedMatrix<T> out_;  // [heads d_head, d_model]
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
