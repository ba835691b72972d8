// SPDX-License-Identifier: Apache-2.0
#include <new>
#include <stdexcept>
#include <string>

#include <gtest/gtest.h>
#include <mpi.h>

#include <castle/detail/mpi/agreement.hpp>

#include "support/message.hpp"

// A collective call happens on all ranks or on none.
namespace {

using castle::detail::agree;
using castle::detail::Fingerprint;
using support::message;

const castle::mpi::Communicator& ranks() {
    static const castle::mpi::Communicator all(MPI_COMM_WORLD);
    return all;
}

Fingerprint fingerprint_of(int x) {
    Fingerprint fingerprint;
    fingerprint.add(x);
    return fingerprint;
}

TEST(Agreement, OfAllRanksThrowsNothing) {
    int calls = 0;
    agree("test", ranks(), fingerprint_of(1), [&] { ++calls; });
    EXPECT_EQ(calls, 1);
}

TEST(Agreement, WhatOneRankThrowsAllThrow) {
    const int last = ranks().size() - 1;
    const auto thrown_by = [&](int rank, const auto& error) {
        return [&ranks = ranks(), rank, error] {
            agree("test", ranks, fingerprint_of(1), [&] {
                if (ranks.rank() == rank) throw error;
            });
        };
    };
    for (int rank = 0; rank <= last; ++rank) {
        const std::string suffix = ranks().rank() == rank ? "" : " (on rank " + std::to_string(rank) + ")";
        EXPECT_EQ(message<std::invalid_argument>(thrown_by(rank, std::invalid_argument("d is 0"))), "d is 0" + suffix);
        EXPECT_THROW(thrown_by(rank, std::bad_alloc())(), std::bad_alloc);
        EXPECT_EQ(message<std::runtime_error>(thrown_by(rank, std::runtime_error("no such file"))),
                  "no such file" + suffix);
    }
}

TEST(Agreement, WhatAllThrowIsTheirOwn) {
    const std::string own = "rank " + std::to_string(ranks().rank());
    EXPECT_EQ(message<std::runtime_error>(
                  [&] { agree("test", ranks(), fingerprint_of(1), [&] { throw std::runtime_error(own); }); }),
              own);
}

TEST(Agreement, OtherArgumentsOnOneRankAreFound) {
    if (ranks().size() == 1) return;
    const auto differ = [&] { agree("test", ranks(), fingerprint_of(ranks().rank() == 0 ? 1 : 2), [] {}); };
    EXPECT_EQ(message<std::invalid_argument>(differ), "castle::test: the arguments are not the same on all ranks");
}

}  // namespace
