// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>
#include <utility>

#include <castle/detail/check/checks.hpp>
#include <castle/detail/layer/layer_kind.hpp>
#include <castle/detail/layer/layer_rows.hpp>
#include <castle/input.hpp>
#include <castle/layer_weights.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The shapes of a layer's weights, or of a share of them: the projections of some heads, and some columns of W_O.
struct WeightShapes {
    Shape heads;  // whose projections they are
    Index d_model;
    LayerWidths widths;  // of the projections
    Index out_rows;      // of W_O
    Index out_cols;

    explicit WeightShapes(const LayerKind& kind) : WeightShapes(kind, LayerWidths(kind).queries, kind.d_model) {}
    WeightShapes(const LayerKind& kind, Index rows_of_out, Index cols_of_out)
        : heads(kind.attention.shape),
          d_model(kind.d_model),
          widths(kind),
          out_rows(rows_of_out),
          out_cols(cols_of_out) {}

    template <ComputeScalar C>
    LayerWeights<C> zeros() const {
        LayerWeights<C> w;
        const auto parts = projections_of(w);
        for (Index i = 0; i < widths.projections; ++i) parts[std::size_t(i)]->setZero(d_model, widths.width(i));
        w.w_out.setZero(out_rows, out_cols);
        return w;
    }

    template <Scalar From>
    void check_weights(std::string_view where, std::string_view group, const LayerWeightsView<From>& w,
                       WeightOrder order) const {
        const Call call{
            .where = where, .rows = 0, .rows_of = "", .object = "a layer", .shape = heads, .d_model = d_model};
        const auto check_one = [&](std::string_view name, const ConstMatrixView<From>& m, Index in, Index out) {
            if (order == WeightOrder::out_in) std::swap(in, out);
            call.check_argument(group, name, m, in, out);
        };
        const auto parts = projections_of(w);
        for (Index i = 0; i < Index(parts.size()); ++i) {
            const bool used = i < widths.projections;
            check_one(projection_names[std::size_t(i)], *parts[std::size_t(i)], used ? d_model : 0,
                      used ? widths.width(i) : 0);
        }
        check_one("w_out", w.w_out, out_rows, out_cols);
    }
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
