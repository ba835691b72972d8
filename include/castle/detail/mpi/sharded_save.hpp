// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <istream>
#include <optional>
#include <ostream>
#include <string_view>
#include <utility>
#include <vector>

#include <mpi.h>

#include <castle/detail/base/span_share.hpp>
#include <castle/detail/cache/saved_cache.hpp>
#include <castle/detail/cache/saved_identity.hpp>
#include <castle/detail/cache/saved_layout.hpp>
#include <castle/detail/mpi/agreement.hpp>
#include <castle/detail/mpi/calls.hpp>
#include <castle/detail/mpi/fingerprint.hpp>
#include <castle/detail/state/sequence_state.hpp>
#include <castle/mpi/communicator.hpp>

// A cache of several ranks as the bytes of one. Rank 0 has the stream, and never more of the cache than its share and
// one array.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Arrays between rank 0 and the ranks that have them.
class ArrayMessages {
  public:
    ArrayMessages(std::string_view where, const mpi::Communicator& communicator)
        : where_(where), communicator_(communicator) {}

    void send(const std::vector<unsigned char>& bytes, int to) const {
        check_mpi(where_, MPI_Send(bytes.data(), mpi_count(where_, Index(bytes.size())), MPI_BYTE, to, tag,
                                   communicator_.handle()));
    }
    // What has come into `bytes`, which has room for an array: all of it, or nothing where there is no more to come.
    bool receive(std::vector<unsigned char>& bytes, int from) const {
        MPI_Status status;
        check_mpi(where_, MPI_Recv(bytes.data(), mpi_count(where_, Index(bytes.size())), MPI_BYTE, from, tag,
                                   communicator_.handle(), &status));
        int count = 0;
        MPI_Get_count(&status, MPI_BYTE, &count);
        return count > 0;
    }

  private:
    static constexpr int tag = 0;

    std::string_view where_;
    const mpi::Communicator& communicator_;
};

// Bytes of the longest array, if it is short enough for a message.
template <Scalar T>
std::size_t longest_array(std::string_view where, const SavedIdentity& saved) {
    Index most = 0;
    for_saved_arrays<T>(saved, saved.undoable,
                        [&](const SavedArrays& a) { most = (std::max)(most, a.rows * a.row_bytes()); });
    return std::size_t(mpi_count(where, most));
}

// Calls f(h, arrays, i, owner) for every array of the file, in order, while it returns true; the owner is rank 0 for
// those that all have.
template <Scalar T, class F>
void for_sharded_arrays(const SavedIdentity& saved, int ranks, const F& f) {
    bool goes_on = true;
    for (Index h = 0; h < saved.kind.shape.kv_heads && goes_on; ++h) {
        for_saved_arrays<T>(saved, saved.undoable, [&](const SavedArrays& arrays) {
            for (Index i = 0; i < arrays.count && goes_on; ++i) {
                const Index span = (arrays.first + i) / span_panels;
                goes_on = f(h, arrays, i, arrays.is_of_block() ? 0 : int(span % ranks));
            }
        });
    }
}

// An array as a message, as a writer takes it.
class ArrayBytes {
  public:
    explicit ArrayBytes(std::vector<unsigned char>& bytes) : bytes_(bytes) { bytes.clear(); }

    void bytes(const void* data, std::size_t count) {
        const auto* from = static_cast<const unsigned char*>(data);
        bytes_.insert(bytes_.end(), from, from + count);
    }
    void zeros(Index count) { bytes_.insert(bytes_.end(), std::size_t(count), 0); }

  private:
    std::vector<unsigned char>& bytes_;
};

// To the stream of rank 0. Throws std::runtime_error on all ranks if it cannot be written.
template <Scalar T>
void save_sharded(std::string_view where, const mpi::Communicator& communicator, std::ostream& out,
                  const SequenceState<T>& state) {
    const SavedIdentity identity = identity_of(state, {});
    const bool writes = communicator.rank() == 0;
    std::vector<unsigned char> array;
    Fingerprint arguments;
    arguments.add_each(identity.to_words<T>());
    agree(where, communicator, arguments, [&] { array.reserve(longest_array<T>(where, identity)); });

    // A stream may throw. What ranks still send is received all the same.
    std::exception_ptr thrown;
    const auto write = [&](const auto& some) {
        if (!writes || thrown) return;
        try {
            some();
        } catch (...) {
            thrown = std::current_exception();
        }
    };
    SavedWriter writer(out);
    write([&] { write_identity<T>(writer, identity); });
    const ArrayMessages messages(where, communicator);
    for_sharded_arrays<T>(identity, communicator.size(), [&](Index h, const SavedArrays& arrays, Index i, int owner) {
        auto& head = const_cast<HeadState<T>&>(state.head(h));  // to find where arrays are; only read
        if (owner == communicator.rank()) {
            const auto own = SavedArray::of(head, arrays, i);
            write([&] { write_array(writer, arrays, own); });
            if (!writes) {
                ArrayBytes message(array);
                write_array(message, arrays, own);
                messages.send(array, 0);
            }
        } else if (writes) {
            array.resize(std::size_t(arrays.rows * arrays.row_bytes()));
            messages.receive(array, owner);
            write([&] { writer.bytes(array.data(), array.size()); });
        }
        return true;
    });
    write([&] { finish_writing(writer, out); });
    agree(where, communicator, arguments, [&] {
        if (thrown) std::rethrow_exception(thrown);
    });
}

// What rank 0 has read, on all ranks.
template <Scalar T>
SavedIdentity broadcast(std::string_view where, const mpi::Communicator& communicator, const SavedIdentity& of_first) {
    SavedIdentity::Words words{};
    std::vector<double> numbers;
    agree(where, communicator, {}, [&] {
        if (communicator.rank() != 0) return;
        words = of_first.to_words<T>();
        if (of_first.kind.terms != nullptr) numbers = numbers_of(*of_first.kind.terms);
    });
    check_mpi(where, MPI_Bcast(words.data(), int(words.size()), MPI_UINT64_T, 0, communicator.handle()));
    SavedIdentity saved = SavedIdentity::from_words<T>(words);
    if (!saved.has_terms()) return saved;
    agree(where, communicator, {}, [&] { numbers.resize(saved.count_of_terms()); });
    check_mpi(where,
              MPI_Bcast(numbers.data(), mpi_count(where, Index(numbers.size())), MPI_DOUBLE, 0, communicator.handle()));
    agree(where, communicator, {}, [&] { saved.kind.terms = terms_of_numbers<T>(saved, numbers); });
    return saved;
}

// From the stream of rank 0: the state, of which keeping(saved) says what it keeps. Throws on all ranks what reading
// throws on rank 0.
template <Scalar T, class KeepingOf>
SequenceState<T> load_sharded(std::string_view where, const mpi::Communicator& communicator, std::istream& in,
                              const KeepingOf& keeping) {
    const bool reads = communicator.rank() == 0;
    const int ranks = communicator.size();
    SavedReader reader(in);
    SavedIdentity saved;
    Fingerprint arguments;
    arguments.add_build<T>();
    agree(where, communicator, arguments, [&] {
        if (reads) saved = read_identity<T>(reader);
    });
    saved = broadcast<T>(where, communicator, saved);

    // Arrays come one by one, and each rank keeps its own: memory grows with what has come, whatever is said to come.
    std::vector<unsigned char> array, own;
    agree(where, communicator, arguments, [&] {
        saved_bytes<T>(saved);
        array.reserve(longest_array<T>(where, saved));
    });
    std::exception_ptr thrown;
    const auto attempt = [&](const auto& some) {
        if (thrown) return;
        try {
            some();
        } catch (...) {
            thrown = std::current_exception();
        }
    };
    const auto keep = [&] { attempt([&] { own.insert(own.end(), array.begin(), array.end()); }); };
    const ArrayMessages messages(where, communicator);
    bool has_ended = false;
    for_sharded_arrays<T>(saved, ranks, [&](Index, const SavedArrays& arrays, Index, int owner) {
        const bool is_own = owner == communicator.rank() || arrays.is_of_block();
        const std::size_t bytes = std::size_t(arrays.rows * arrays.row_bytes());
        if (reads) {
            attempt([&] { array = reader.bytes(bytes); });
            if (is_own) keep();
            if (thrown) return false;
            for (int rank = 1; rank < ranks; ++rank) {
                if (rank == owner || arrays.is_of_block()) messages.send(array, rank);
            }
        } else if (is_own) {
            array.resize(bytes);
            has_ended = !messages.receive(array, 0);
            if (has_ended) return false;
            keep();
        }
        return true;
    });
    // An empty message says that there is no more, be it too early.
    array.clear();
    for (int rank = 1; rank < ranks && reads; ++rank) messages.send(array, rank);
    if (!reads && !has_ended) messages.receive(array, 0);
    std::optional<SequenceState<T>> state;
    agree(where, communicator, arguments, [&] {
        if (thrown) std::rethrow_exception(thrown);
        if (has_ended) return;  // rank 0 throws
        if (reads) reader.check_sum();
        state.emplace(saved.kind, keeping(saved));
        take_saved<T>(saved, own, *state);
    });
    return std::move(*state);
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
