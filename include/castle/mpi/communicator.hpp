// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include <mpi.h>

#include <castle/detail/mpi/calls.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

namespace mpi {

/// The ranks that hold a cache or a layer together. It has messages of its own, apart from all others of the program:
/// MPI's communicator is duplicated. Copies are the same communicator: make one, and give a copy to every cache and
/// layer. The last copy frees it, which is collective; after `MPI_Finalize` it does nothing.
///
/// The program initialises and finalises MPI. Where a rank has other threads, those of an executor for example, it
/// initialises MPI with `MPI_THREAD_FUNNELED` and makes all calls from the thread that did so, or with
/// `MPI_THREAD_SERIALIZED` and makes them from any, one at a time. All ranks make their calls in the same order.
///
/// Where MPI itself reports an error, a call throws std::runtime_error, and what is on other ranks is unknown from then
/// on: a rank that is gone cannot be recovered from. Most MPI libraries end the program themselves where that happens.
class Communicator {
  public:
    /// Collective. Throws std::runtime_error where MPI cannot duplicate it.
    explicit Communicator(MPI_Comm communicator) : handle_(std::make_shared<const Handle>(communicator)) {}

    MPI_Comm handle() const { return handle_->communicator; }
    int rank() const { return handle_->rank; }
    int size() const { return handle_->size; }

    bool operator==(const Communicator&) const = default;

  private:
    struct Handle {
        explicit Handle(MPI_Comm from) {
            detail::check_mpi("Communicator", MPI_Comm_dup(from, &communicator));
            MPI_Comm_set_errhandler(communicator, MPI_ERRORS_RETURN);
            MPI_Comm_rank(communicator, &rank);
            MPI_Comm_size(communicator, &size);
        }
        Handle(const Handle&) = delete;
        Handle& operator=(const Handle&) = delete;
        ~Handle() {
            int is_over = 0;
            MPI_Finalized(&is_over);
            if (is_over == 0) MPI_Comm_free(&communicator);
        }

        MPI_Comm communicator = MPI_COMM_NULL;
        int rank = 0;
        int size = 1;
    };

    std::shared_ptr<const Handle> handle_;
};

}  // namespace mpi
}  // namespace CASTLE_ABI
}  // namespace castle
