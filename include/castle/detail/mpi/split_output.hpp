// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string_view>

#include <castle/detail/forward/group_steps.hpp>
#include <castle/detail/layer/projections.hpp>
#include <castle/detail/mpi/columns.hpp>
#include <castle/detail/mpi/layer_shares.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/executor.hpp>
#include <castle/mpi/communicator.hpp>
#include <castle/output.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Memory of what ranks exchange for some rows of a call, and of what all heads attend.
template <Scalar T>
struct OutputMemory {
    AlignedBuffer<Compute<T>> all_attended = {};
    AlignedBuffer<Compute<T>> attended = {};
    AlignedBuffer<Compute<T>> log_sum_exp = {};
    AlignedBuffer<Compute<T>> mass = {};
    AlignedBuffer<T> y = {};

    Index bytes() const {
        return (all_attended.size() + attended.size() + log_sum_exp.size() + mass.size()) * Index(sizeof(Compute<T>)) +
               y.size() * Index(sizeof(T));
    }
    // [rows, heads d_head].
    MatrixView<Compute<T>> all_attended_in(Index rows, Index queries) {
        if (all_attended.size() < rows * queries) all_attended = AlignedBuffer<Compute<T>>(rows * queries);
        return {all_attended.data(), rows, queries};
    }
};

// How a forward pass of a split layer ends: from what each rank has attended with its own heads to the output of all of
// them. Nothing but the constructor throws, unless MPI does.
template <Scalar T>
class SplitOutput {
    using C = Compute<T>;

  public:
    SplitOutput(std::string_view where, const mpi::Communicator& communicator, const LayerShares& shares,
                const Output<T>& output, OutputMemory<T>& memory)
        : all_attended_(memory.all_attended_in(output.out.rows(), shares.widths.queries)),
          y_(output.out),
          by_products_(detail::by_products(output)),
          attended_(where, communicator, shares.queries, output.out.rows(), memory_for(all_attended_, memory.attended)),
          gathered_y_(where, communicator, shares.outputs, output.out.rows(), memory_for(output.out, memory.y)) {
        const auto prepare = [&](const MatrixView<C>& all, AlignedBuffer<C>& buffer, auto& gather) {
            if (all.data() == nullptr) return;
            gather.emplace(where, communicator, shares.heads, all.rows(), memory_for(all, buffer));
        };
        prepare(by_products_.whole_log_sum_exp, memory.log_sum_exp, log_sum_exp_);
        prepare(by_products_.mass, memory.mass, mass_);
    }

    // Where this rank's heads are to write what they attend, and their by-products, those that are wanted.
    OutputRows<C> own() const {
        OutputRows<C> own{.out = attended_.own()};
        if (log_sum_exp_) own.whole_log_sum_exp = log_sum_exp_->own();
        if (mass_) own.mass = mass_->own();
        return own;
    }

    // Collective, once all rows are there.
    void finish(const Projections<T>& projections, const Executor& executor) const {
        gather(attended_, all_attended_);
        projections.project_out([&](const auto& f) { f(all_attended_, gathered_y_.own()); }, executor);
        gather(gathered_y_, y_);
        if (log_sum_exp_) gather(*log_sum_exp_, by_products_.whole_log_sum_exp);
        if (mass_) gather(*mass_, by_products_.mass);
    }

  private:
    template <Scalar S>
    static S* memory_for(const MatrixView<S>& all, AlignedBuffer<S>& buffer) {
        return ColumnGather<S>::memory_for(all, buffer);
    }
    template <Scalar S>
    static void gather(const ColumnGather<S>& columns, const MatrixView<S>& all) {
        columns.run();
        columns.copy_to(all);
    }

    MatrixView<C> all_attended_;
    MatrixView<T> y_;
    OutputRows<C> by_products_;
    ColumnGather<C> attended_;
    ColumnGather<T> gathered_y_;
    std::optional<ColumnGather<C>> log_sum_exp_;
    std::optional<ColumnGather<C>> mass_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
