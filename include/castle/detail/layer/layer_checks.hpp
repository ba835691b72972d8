// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <span>
#include <string_view>

#include <castle/detail/check/checks.hpp>
#include <castle/detail/check/message.hpp>
#include <castle/detail/forward/group_steps.hpp>
#include <castle/detail/layer/layer_kind.hpp>
#include <castle/mask.hpp>
#include <castle/output.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The checks of the arguments of a layer's calls.
struct LayerChecks {
    std::string_view where;
    const LayerKind& kind;

    // A row a token: x, y, their gradients.
    template <class View>
    void tokens(std::string_view name, const View& m, Index rows) const {
        const Call call{
            .where = where, .rows = rows, .rows_of = "the rows of x", .object = "a layer", .d_model = kind.d_model};
        call.check_argument("", name, m, kind.d_model);
    }

    template <Scalar T>
    void output(Index rows, const Output<T>& output, Index sequences) const {
        tokens("y", output.out, rows);
        call_of_heads(rows).check_by_products("", output);
        call_of_heads(rows).check_mass_over("", output, sequences);
    }

    // A cache or a workspace.
    void made_for(std::string_view name, const LayerKind& made_for) const {
        if (made_for != kind) fail(where, name, " is for a layer with ", made_for.difference(kind));
    }

    // A call on packed sequences, each from nothing.
    template <Scalar T>
    void packed(std::span<const Index> counts, ConstMatrixView<T> x, const Output<T>& y, const Masks& masks) const {
        tokens("x", x, x.rows());
        output(x.rows(), y, Index(counts.size()));
        check_counts(where, counts, "x", x.rows());
        check_masks(where, "masks", masks, Index(counts.size()));
        for (std::size_t i = 0; i < counts.size(); ++i) {
            check_sight(where, masks[Index(i)], kind.attention.terms.get(), 0, counts[i], mass_over(y)[Index(i)]);
        }
    }

    // Counts that are said again, against those of the forward pass, if one waits for its backward pass.
    template <class Record>
    void counts_of(const Record& record, std::span<const Index> counts) const {
        const std::span<const Index> own = record.counts();
        if (record.size() == 0 || std::ranges::equal(own, counts)) return;
        std::size_t i = 0;
        while (i < own.size() && i < counts.size() && own[i] == counts[i]) ++i;
        if (i == own.size() || i == counts.size()) {
            fail(where, "counts has ", Index(counts.size()), " elements but the forward pass had ", Index(own.size()));
        }
        fail(where, "counts[", Index(i), "] is ", counts[i], " but the forward pass had ", own[i]);
    }

    // A backward pass.
    template <Scalar T, ComputeScalar C>
    void gradients(ConstMatrixView<T> x, const OutputGradient<C>& d_output, MatrixView<C> d_x, bool has_mass) const {
        tokens("x", x, x.rows());
        tokens("d_y", d_output.out, x.rows());
        call_of_heads(x.rows()).check_by_products("d_", d_output);
        check_mass_gradient(where, d_output, has_mass);
        tokens("d_x", d_x, x.rows());
    }

  private:
    Call call_of_heads(Index rows) const {
        const Shape& shape = kind.attention.shape;
        return {.where = where,
                .rows = rows,
                .rows_of = "the rows of x",
                .object = "a layer",
                .shape = {.d = 0, .dv = 0, .heads = shape.heads, .kv_heads = shape.kv_heads}};
    }
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
