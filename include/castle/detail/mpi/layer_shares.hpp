// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/check/message.hpp>
#include <castle/detail/layer/layer_kind.hpp>
#include <castle/detail/layer/layer_rows.hpp>
#include <castle/detail/layer/weight_shapes.hpp>
#include <castle/detail/mpi/columns.hpp>
#include <castle/layer_weights.hpp>
#include <castle/terms.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// How a layer is dealt to ranks: whole key-value heads, with the query heads on them, and columns of its output in
// whole panels, which cost as much as parts of them. There are no fewer key-value heads than ranks.
struct LayerShares {
    LayerKind whole;
    LayerWidths widths;      // of the whole layer
    DealtColumns heads;      // as columns of by-products
    DealtColumns kv_heads;   // the same of key-value heads
    DealtColumns queries;    // of the first projection, and of what is attended
    DealtColumns keys;       // of each other projection
    DealtColumns projected;  // all projections of one rank side by side
    DealtColumns outputs;    // of W_O and the layer's output, and rows of the projections' weights

    LayerShares(std::string_view where, const LayerKind& kind, int ranks)
        : whole(kind),
          widths(kind),
          heads(where, shape().heads, kind.attention.group(), ranks),
          kv_heads(where, shape().kv_heads, 1, ranks),
          queries(where, widths.queries, kind.attention.group() * shape().d, ranks),
          keys(where, widths.keys, shape().d, ranks),
          projected(where, widths.projected(), widths.projected() / shape().kv_heads, ranks),
          outputs(where, kind.d_model, panel_size, ranks) {
        if (shape().kv_heads < ranks) {
            fail(where, "there are ", Index(ranks), " ranks but kv_heads is ", shape().kv_heads,
                 "; every rank takes one key-value head at least");
        }
    }

    // The columns of a projection.
    const DealtColumns& of_projection(Index i) const { return i == 0 ? queries : keys; }

    // The layer of a rank's heads.
    LayerKind kind(int rank) const {
        LayerKind share = whole;
        share.attention.shape.heads = heads.count(rank);
        share.attention.shape.kv_heads = kv_heads.count(rank);
        if (whole.attention.terms != nullptr) {
            share.attention.terms = std::make_shared<const ScoreTerms>(terms(rank, *whole.attention.terms));
        }
        return share;
    }
    WeightShapes weight_shapes(int rank) const { return {kind(rank), widths.queries, outputs.count(rank)}; }

    // What a rank has of the weights of the whole layer.
    template <Scalar T>
    LayerWeightsView<T> weights(int rank, const LayerWeightsView<T>& all, WeightOrder order) const {
        const auto cut = [&](const DealtColumns& columns, const ConstMatrixView<T>& m) {
            return order == WeightOrder::in_out ? columns.of(rank, m)
                                                : m.middle_rows(columns.first(rank), columns.count(rank));
        };
        LayerWeightsView<T> share;
        const auto from = projections_of(all);
        const auto to = projections_of(share);
        for (Index i = 0; i < widths.projections; ++i) {
            *to[std::size_t(i)] = cut(of_projection(i), *from[std::size_t(i)]);
        }
        share.w_out = cut(outputs, all.w_out);
        return share;
    }

    // Calls copy(own column, column of all, count) for what a rank has of every projection.
    template <class Copy>
    void for_projections(int rank, const Copy& copy) const {
        LayerWidths own = widths;
        own.queries = queries.count(rank);
        own.keys = keys.count(rank);
        for (Index i = 0; i < widths.projections; ++i) {
            copy(own.first_column(i), widths.first_column(i) + of_projection(i).first(rank), own.width(i));
        }
    }

  private:
    const Shape& shape() const { return whole.attention.shape; }

    // Tables and sinks of the rank's heads; a table of one row is that of all heads.
    ScoreTerms terms(int rank, const ScoreTerms& all) const {
        ScoreTerms own = all;
        for (Matrix<double>* table : {&own.factor, &own.bias}) {
            if (table->rows() > 1) *table = Matrix<double>(table->middleRows(heads.first(rank), heads.count(rank)));
        }
        if (!all.sinks.empty()) {
            const auto first = all.sinks.begin() + heads.first(rank);
            own.sinks = std::vector<double>(first, first + heads.count(rank));
        }
        return own;
    }
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
