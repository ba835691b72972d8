// SPDX-License-Identifier: Apache-2.0
#include "counted.hpp"

namespace {

using castle::Index;
using castle_bench::sent;

Index size_of(MPI_Datatype type) {
    int size = 0;
    PMPI_Type_size(type, &size);
    return size;
}
int rank_in(MPI_Comm communicator) {
    int rank = 0;
    PMPI_Comm_rank(communicator, &rank);
    return rank;
}
int ranks_of(MPI_Comm communicator) {
    int ranks = 0;
    PMPI_Comm_size(communicator, &ranks);
    return ranks;
}

}  // namespace

int MPI_Alltoallv(const void* from, const int* counts, const int* places, MPI_Datatype type, void* to,
                  const int* to_counts, const int* to_places, MPI_Datatype to_type, MPI_Comm communicator) {
    ++sent.calls;
    for (int rank = 0; rank < ranks_of(communicator); ++rank) {
        if (rank != rank_in(communicator)) sent.states += Index(counts[rank]) * size_of(type);
    }
    return PMPI_Alltoallv(from, counts, places, type, to, to_counts, to_places, to_type, communicator);
}

int MPI_Allgatherv(const void* from, int count, MPI_Datatype type, void* to, const int* counts, const int* places,
                   MPI_Datatype to_type, MPI_Comm communicator) {
    ++sent.calls;
    const Index own = counts[rank_in(communicator)] * size_of(to_type);
    sent.outputs += own * (ranks_of(communicator) - 1);
    return PMPI_Allgatherv(from, count, type, to, counts, places, to_type, communicator);
}

int MPI_Allreduce(const void* from, void* to, int count, MPI_Datatype type, MPI_Op op, MPI_Comm communicator) {
    ++sent.calls;
    return PMPI_Allreduce(from, to, count, type, op, communicator);
}
