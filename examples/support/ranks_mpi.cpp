// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include <mpi.h>

#include <castle/mpi/communicator.hpp>

#include "ranks.hpp"

namespace {

// MPI while the program uses it. Another may have initialised it, who then finalises it.
class MpiMessages : public Messages {
  public:
    MpiMessages() {
        int is_initialised = 0;
        MPI_Initialized(&is_initialised);
        if (is_initialised == 0) {
            int threads = 0;
            MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &threads);
            finalises_ = true;
        }
        world_.emplace(MPI_COMM_WORLD);
        MPI_Comm here = MPI_COMM_NULL;
        check(MPI_Comm_split_type(handle(), MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &here));
        MPI_Comm_size(here, &size_here_);
        MPI_Comm_free(&here);
        offsets_.resize(std::size_t(size()));
        in_offsets_.resize(std::size_t(size()));
    }
    MpiMessages(const MpiMessages&) = delete;
    MpiMessages& operator=(const MpiMessages&) = delete;
    ~MpiMessages() override {
        // Others may wait for what has failed here.
        if (is_broken_) MPI_Abort(MPI_COMM_WORLD, 2);
        if (!finalises_) return;
        // What a rank has printed before is seen, whichever ends first.
        MPI_Barrier(handle());
        world_.reset();
        MPI_Finalize();
    }

    int rank() const override { return world_->rank(); }
    int size() const override { return world_->size(); }
    int size_here() const override { return size_here_; }

    std::uint64_t least(std::uint64_t own) override {
        check(MPI_Allreduce(MPI_IN_PLACE, &own, 1, MPI_UINT64_T, MPI_MIN, handle()));
        return own;
    }
    void broadcast(void* bytes, int count, int from) override {
        check(MPI_Bcast(bytes, count, MPI_BYTE, from, handle()));
    }
    void gather(float* all, const std::vector<int>& counts) override { gather(all, counts, MPI_FLOAT); }
    void gather(double* all, const std::vector<int>& counts) override { gather(all, counts, MPI_DOUBLE); }
    void exchange(const float* out, const std::vector<int>& out_counts, float* in,
                  const std::vector<int>& in_counts) override {
        set_offsets(offsets_, out_counts);
        set_offsets(in_offsets_, in_counts);
        check(MPI_Alltoallv(out, out_counts.data(), offsets_.data(), MPI_FLOAT, in, in_counts.data(),
                            in_offsets_.data(), MPI_FLOAT, handle()));
    }

  private:
    MPI_Comm handle() const { return world_->handle(); }

    void gather(void* all, const std::vector<int>& counts, MPI_Datatype type) {
        set_offsets(offsets_, counts);
        check(MPI_Allgatherv(MPI_IN_PLACE, 0, type, all, counts.data(), offsets_.data(), type, handle()));
    }

    static void set_offsets(std::vector<int>& offsets, const std::vector<int>& counts) {
        int offset = 0;
        for (std::size_t r = 0; r < counts.size(); ++r) {
            offsets[r] = offset;
            offset += counts[r];
        }
    }

    void check(int result) {
        if (result == MPI_SUCCESS) return;
        is_broken_ = true;
        std::array<char, MPI_MAX_ERROR_STRING> words{};
        int length = 0;
        MPI_Error_string(result, words.data(), &length);
        throw RanksFailed(fmt::format("MPI reports {}", std::string_view(words.data(), std::size_t(length))));
    }

    bool finalises_ = false;
    bool is_broken_ = false;
    std::optional<castle::mpi::Communicator> world_;
    int size_here_ = 1;
    std::vector<int> offsets_, in_offsets_;
};

}  // namespace

std::unique_ptr<Messages> connect_ranks() {
    const Launch launch = Launch::of_this_process();
    if (!launch.by_mpirun) return nullptr;
    auto messages = std::make_unique<MpiMessages>();
    if (messages->size() > 1) return messages;
    // As when the mpirun of one MPI starts a program of another: each would do all of the work, and write the same
    // files.
    if (launch.one_of_several)
        throw BadInput("it was started several times, by the mpirun of another MPI than its own");
    return messages;
}
