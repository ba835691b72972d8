// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <string_view>
#include <vector>

#include <mpi.h>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/mpi/calls.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/mpi/communicator.hpp>
#include <castle/types.hpp>

// Matrices whose columns are dealt to ranks.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Which columns of a matrix each rank has: contiguous ranges, one rank after the other; a rank may have none.
class DealtColumns {
  public:
    // Units of so many columns stay whole: of n units rank r has [r n / ranks, (r + 1) n / ranks). The last one may be
    // cut short by the matrix.
    DealtColumns(std::string_view where, Index columns, Index unit, int ranks) {
        mpi_count(where, columns);
        const Index units = ceil_div(columns, unit);
        for (int rank = 0; rank <= ranks; ++rank) {
            firsts_.push_back(static_cast<int>((std::min)(columns, units * rank / ranks * unit)));
        }
        for (std::size_t rank = 0; rank < std::size_t(ranks); ++rank) {
            counts_.push_back(firsts_[rank + 1] - firsts_[rank]);
        }
    }

    Index first(int rank) const { return firsts_[std::size_t(rank)]; }
    Index count(int rank) const { return counts_[std::size_t(rank)]; }
    Index total() const { return firsts_.back(); }

    template <class View>
    View of(int rank, const View& all) const {
        return all.middle_cols(first(rank), count(rank));
    }

    // As MPI takes them.
    const int* firsts() const { return firsts_.data(); }
    const int* counts() const { return counts_.data(); }

  private:
    std::vector<int> firsts_;  // and the number of columns behind them
    std::vector<int> counts_;
};

// Gives every rank all columns of a matrix. Before it runs each has written its own to own(); afterwards those of every
// rank are in its block. Nothing but the constructor throws, unless MPI does.
template <Scalar T>
class ColumnGather {
  public:
    // In memory for all columns of these rows.
    ColumnGather(std::string_view where, const mpi::Communicator& communicator, const DealtColumns& columns, Index rows,
                 T* memory)
        : where_(where),
          communicator_(communicator),
          columns_(columns),
          rows_(rows),
          memory_(memory),
          column_(where, rows * Index(sizeof(T))) {}

    // The memory to gather `all` in: a single row lies there as the blocks do, others need `buffer`, which grows.
    static T* memory_for(const MatrixView<T>& all, AlignedBuffer<T>& buffer) {
        if (all.rows() <= 1) return all.data();
        const Index elements = all.rows() * all.cols();
        if (buffer.size() < elements) buffer = AlignedBuffer<T>(elements);
        return buffer.data();
    }

    MatrixView<T> block(int rank) const {
        return {memory_ + rows_ * columns_.first(rank), rows_, columns_.count(rank), columns_.count(rank)};
    }
    MatrixView<T> own() const { return block(communicator_.rank()); }

    void run() const {
        if (communicator_.size() == 1) return;
        check_mpi(where_, MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, memory_, columns_.counts(),
                                         columns_.firsts(), column_, communicator_.handle()));
    }

    // The blocks side by side.
    void copy_to(const MatrixView<T>& all) const {
        if (all.data() == memory_) return;
        for (int rank = 0; rank < communicator_.size(); ++rank) {
            copy_elements<T, T>(block(rank), columns_.of(rank, all));
        }
    }

  private:
    std::string_view where_;
    const mpi::Communicator& communicator_;
    const DealtColumns& columns_;
    Index rows_;
    T* memory_;
    ElementType column_;
};

// Turns a matrix by columns into one by rows: every rank has some columns, with all rows, and gets some rows, with all
// columns. One block after the other, in memory of exchange_elements().
//
// read(rank, block) writes to the block what that rank gets of the own columns; take(rank, block) is given what that
// rank has of the own rows. Nothing throws, unless MPI does.
template <Scalar T, class Read, class Take>
void exchange_blocks(std::string_view where, const mpi::Communicator& communicator, const DealtColumns& rows,
                     const DealtColumns& columns, T* memory, const Read& read, const Take& take) {
    const int ranks = communicator.size(), own = communicator.rank();
    const auto at = [](T* data, Index height, Index width) { return MatrixView<T>(data, height, width); };
    for (int i = 0; i < ranks; ++i) {
        const int to = (own + i) % ranks, from = (own + ranks - i) % ranks;
        const MatrixView<T> sent = at(memory, rows.count(to), columns.count(own));
        const MatrixView<T> received =
            i == 0 ? sent : at(memory + sent.rows() * sent.cols(), rows.count(own), columns.count(from));
        read(to, sent);
        if (i > 0) {
            const ElementType sent_row(where, sent.cols() * Index(sizeof(T)));
            const ElementType received_row(where, received.cols() * Index(sizeof(T)));
            check_mpi(where, MPI_Sendrecv(sent.data(), int(sent.rows()), sent_row, to, 0, received.data(),
                                          int(received.rows()), received_row, from, 0, communicator.handle(),
                                          MPI_STATUS_IGNORE));
        }
        take(from, received);
    }
}
inline Index exchange_elements(const mpi::Communicator& communicator, const DealtColumns& rows,
                               const DealtColumns& columns) {
    Index most_rows = 0, most_columns = 0;
    for (int rank = 0; rank < communicator.size(); ++rank) {
        most_rows = (std::max)(most_rows, rows.count(rank));
        most_columns = (std::max)(most_columns, columns.count(rank));
    }
    return most_rows * columns.count(communicator.rank()) + rows.count(communicator.rank()) * most_columns;
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
