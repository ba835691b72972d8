// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <string_view>

#include <castle/detail/layer/packed_matrix.hpp>
#include <castle/detail/layer/projections.hpp>
#include <castle/detail/mpi/columns.hpp>
#include <castle/detail/mpi/layer_shares.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/executor.hpp>
#include <castle/mpi/communicator.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The gradients of a split layer's products with respect to what goes into them. They are sums along the columns of the
// weights, each of which is one chain over the columns of all ranks: so each rank gets some rows of the weights, whole,
// in place of its columns, for the time of the call. Nothing but the constructor throws, unless MPI does.
template <Scalar T>
class SplitBackward {
    using C = Compute<T>;

  public:
    SplitBackward(std::string_view where, const mpi::Communicator& communicator, const LayerShares& shares,
                  const Projections<T>& projections, const MatrixView<C>& d_x)
        : where_(where),
          communicator_(communicator),
          shares_(shares),
          projections_(projections),
          out_rows_(shares.queries.count(communicator.rank()), shares.whole.d_model),
          in_rows_(shares.outputs.count(communicator.rank()), shares.widths.projected()),
          exchange_((std::max)(exchange_elements(communicator, shares.queries, shares.outputs),
                               exchange_elements(communicator, shares.outputs, shares.projected))),
          blocks_(d_x.rows() * shares.widths.projected()),
          all_projected_(d_x.rows() * shares.widths.projected()),
          d_projected_(where, communicator, shares.projected, d_x.rows(), blocks_.data()),
          d_x_(where, communicator, shares.outputs, d_x.rows(), ColumnGather<C>::memory_for(d_x, d_x_blocks_)) {}
    SplitBackward(const SplitBackward&) = delete;
    SplitBackward& operator=(const SplitBackward&) = delete;

    // d_attended, of this rank's heads, = d_y W_O^T.
    void differentiate_out(ConstMatrixView<C> d_y, MatrixView<C> d_attended, const Executor& executor) {
        exchange(shares_.queries, shares_.outputs, projections_.out(), [&](int from, const ConstMatrixView<T>& block) {
            out_rows_.set_cols(shares_.outputs.first(from), block);
        });
        multiply_transposed(out_rows_, d_y, d_attended, executor);
    }

    // d_x, of all ranks, = d_projected W_in^T, from that of this rank's heads.
    void differentiate_in(ConstMatrixView<C> d_projected, MatrixView<C> d_x, const Executor& executor) {
        exchange(shares_.outputs, shares_.projected, projections_.in(), [&](int from, const ConstMatrixView<T>& block) {
            shares_.for_projections(from, [&](Index own, Index first, Index count) {
                in_rows_.set_cols(first, block.middle_cols(own, count));
            });
        });
        copy_elements<C, C>(d_projected, d_projected_.own());
        d_projected_.run();
        const MatrixView<C> all(all_projected_.data(), d_x.rows(), shares_.widths.projected());
        for (int rank = 0; rank < communicator_.size(); ++rank) {
            const ConstMatrixView<C> block = d_projected_.block(rank);
            shares_.for_projections(rank, [&](Index own, Index first, Index count) {
                copy_elements<C, C>(block.middle_cols(own, count), all.middle_cols(first, count));
            });
        }
        multiply_transposed(in_rows_, all, d_x_.own(), executor);
        d_x_.run();
        d_x_.copy_to(d_x);
    }

  private:
    template <class Take>
    void exchange(const DealtColumns& rows, const DealtColumns& columns, const PackedMatrix<T>& own, const Take& take) {
        exchange_blocks<T>(
            where_, communicator_, rows, columns, exchange_.data(),
            [&](int to, const MatrixView<T>& block) { own.copy_block(rows.first(to), 0, block); }, take);
    }

    std::string_view where_;
    const mpi::Communicator& communicator_;
    const LayerShares& shares_;
    const Projections<T>& projections_;
    PackedMatrix<T> out_rows_;  // of this rank's heads
    PackedMatrix<T> in_rows_;   // of its columns of x
    AlignedBuffer<T> exchange_;
    AlignedBuffer<C> blocks_;
    AlignedBuffer<C> all_projected_;
    AlignedBuffer<C> d_x_blocks_;
    ColumnGather<C> d_projected_;
    ColumnGather<C> d_x_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
