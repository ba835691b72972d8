// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <iostream>

#include <gtest/gtest.h>
#include <mpi.h>

// Every rank runs every test; rank 0 reports them.
namespace {

// Other ranks say only what fails. Whatever fails ends all ranks, which would wait for this one otherwise.
class EndsAllRanks : public testing::EmptyTestEventListener {
    void OnTestPartResult(const testing::TestPartResult& result) override {
        if (!result.failed()) return;
        int rank = 0;
        MPI_Comm_rank(MPI_COMM_WORLD, &rank);
        std::cerr << "rank " << rank << ": " << result.file_name() << ":" << result.line_number() << "\n"
                  << result.message() << "\n";
        std::cerr.flush();
        MPI_Abort(MPI_COMM_WORLD, EXIT_FAILURE);
    }
};

}  // namespace

int main(int argc, char** argv) {
    testing::InitGoogleTest(&argc, argv);
    int threads = 0, rank = 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &threads);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    auto& listeners = testing::UnitTest::GetInstance()->listeners();
    if (rank != 0) delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new EndsAllRanks);
    const int result = RUN_ALL_TESTS();
    MPI_Finalize();
    return result;
}
