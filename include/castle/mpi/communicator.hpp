// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <new>

#include <mpi.h>

#include <castle/detail/mpi/calls.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

namespace detail {
struct Identifiers;
}

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
    /// Collective. Throws std::runtime_error where MPI cannot duplicate it, and
    /// std::bad_alloc on all ranks if memory runs out on one.
    explicit Communicator(MPI_Comm communicator) {
        // What is MPI's comes first, so that all ranks get as far as agreeing about the rest.
        MPI_Comm own = MPI_COMM_NULL;
        detail::check_mpi("Communicator", MPI_Comm_dup(communicator, &own));
        MPI_Comm_set_errhandler(own, MPI_ERRORS_RETURN);
        int has_memory = 1;
        try {
            handle_ = std::make_shared<Handle>(own);
        } catch (const std::bad_alloc&) {
            has_memory = 0;
        }
        const int result = MPI_Allreduce(MPI_IN_PLACE, &has_memory, 1, MPI_INT, MPI_MIN, own);
        if (handle_ == nullptr) MPI_Comm_free(&own);
        detail::check_mpi("Communicator", result);
        if (has_memory == 0) throw std::bad_alloc();
    }

    MPI_Comm handle() const { return handle_->communicator; }
    int rank() const { return handle_->rank; }
    int size() const { return handle_->size; }

    bool operator==(const Communicator&) const = default;

  private:
    friend detail::Identifiers;

    struct Handle {
        explicit Handle(MPI_Comm own) : communicator(own) {
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
        Index made = 0;  // objects that have got a number
    };

    std::shared_ptr<Handle> handle_;
};

}  // namespace mpi

namespace detail {

// Numbers for the caches of a communicator, the same on all ranks, which make theirs in the same order: by them ranks
// tell whether they mean the same one.
struct Identifiers {
    static Index next(const mpi::Communicator& communicator) { return ++communicator.handle_->made; }
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
