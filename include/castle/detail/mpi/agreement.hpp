// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <exception>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>

#include <mpi.h>

#include <castle/detail/check/message.hpp>
#include <castle/detail/mpi/calls.hpp>
#include <castle/detail/mpi/fingerprint.hpp>
#include <castle/mpi/communicator.hpp>

// Ranks bring the same arguments to a collective call, and all of it happens on all ranks or on none.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

enum class Failure : int { none, invalid_argument, bad_alloc, other };

// What an exception says, and of what kind it is: as a message, for which no memory is needed. Long words are cut.
struct FailureWords {
    Failure kind = Failure::none;
    char words[1020] = {};

    static FailureWords of(const std::exception_ptr& thrown) noexcept {
        const auto failure = [](Failure of, std::string_view sentence) {
            FailureWords all{.kind = of};
            sentence.copy(all.words, (std::min)(sentence.size(), sizeof all.words - 1));
            return all;
        };
        try {
            std::rethrow_exception(thrown);
        } catch (const std::invalid_argument& error) {
            return failure(Failure::invalid_argument, error.what());
        } catch (const std::bad_alloc& error) {
            return failure(Failure::bad_alloc, error.what());
        } catch (const std::exception& error) {
            return failure(Failure::other, error.what());
        } catch (...) {
            return failure(Failure::other, "an exception of another kind");
        }
    }
    // On another rank than that which threw.
    [[noreturn]] void rethrow(int rank) const {
        if (kind == Failure::bad_alloc) throw std::bad_alloc();
        const std::string sentence = text(std::string_view(words), " (on rank ", Index(rank), ")");
        if (kind == Failure::invalid_argument) throw std::invalid_argument(sentence);
        throw std::runtime_error(sentence);
    }
};

// Runs what may throw before a collective call begins: work() checks the arguments, may add them to their fingerprint,
// and makes room; nothing else of this allocates before all ranks know of each other. Where it throws on any rank,
// every rank throws: that rank what it threw, the others the same of the first such rank. Where the fingerprints of the
// arguments, or the calls, are not all equal, every rank throws std::invalid_argument. One exchange of 24 bytes.
template <class Work>
void agree(std::string_view where, const mpi::Communicator& communicator, const Fingerprint& arguments,
           const Work& work) {
    // Signed, for MPICH 4.0 takes the least of unsigned numbers as if they were.
    constexpr std::int64_t nobody = (std::numeric_limits<std::int64_t>::max)();
    std::exception_ptr thrown;
    try {
        work();
    } catch (...) {
        thrown = std::current_exception();
    }
    Fingerprint call = arguments;
    call.add(where.data(), Index(where.size()));
    const auto value = std::int64_t(call.value());
    std::array<std::int64_t, 3> least{value, ~value, thrown ? communicator.rank() : nobody};
    if (communicator.size() > 1) {
        check_mpi(where, MPI_Allreduce(MPI_IN_PLACE, least.data(), int(least.size()), MPI_INT64_T, MPI_MIN,
                                       communicator.handle()));
    }
    if (least[2] != nobody) {
        const int first = int(least[2]);
        FailureWords failure;
        if (thrown) failure = FailureWords::of(thrown);
        check_mpi(where, MPI_Bcast(&failure, int(sizeof failure), MPI_BYTE, first, communicator.handle()));
        if (thrown) std::rethrow_exception(thrown);
        failure.rethrow(first);
    }
    if (least[0] != ~least[1]) fail(where, "the arguments are not the same on all ranks");
}

// The same with arguments that are numbers.
template <class Work, class... Numbers>
void agree_on(std::string_view where, const mpi::Communicator& communicator, const Work& work,
              const Numbers&... numbers) {
    Fingerprint arguments;
    (arguments.add(numbers), ...);
    agree(where, communicator, arguments, work);
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
