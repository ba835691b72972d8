// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <istream>
#include <memory>
#include <ostream>
#include <stdexcept>
#include <utility>
#include <vector>

#include <castle/detail/cache/checksum.hpp>
#include <castle/detail/cache/rollback.hpp>
#include <castle/detail/cache/saved_identity.hpp>
#include <castle/detail/cache/saved_layout.hpp>
#include <castle/detail/state/sequence_state.hpp>
#include <castle/terms.hpp>

// A cache as bytes: eight that say what it is, the identity, a checksum, the elements, a checksum. Each checksum is of
// all before it but checksums. Words are little endian; elements are as in memory, and the identity says in which order
// their bytes are.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

class SavedWriter {
  public:
    explicit SavedWriter(std::ostream& out) : out_(out) {}

    void bytes(const void* data, std::size_t count) {
        out_.write(static_cast<const char*>(data), static_cast<std::streamsize>(count));
        checksum_.add(data, count);
    }
    void word(std::uint64_t x) {
        std::array<unsigned char, 8> little{};
        for (unsigned i = 0; i < 8; ++i) little[i] = static_cast<unsigned char>(x >> (8 * i));
        bytes(little.data(), little.size());
    }
    // Excluded from the running CRC: data followed by its CRC always leaves the same residue.
    void checksum() {
        const Checksum so_far = checksum_;
        word(checksum_.value());
        checksum_ = so_far;
    }
    void zeros(Index count) {
        static constexpr std::array<unsigned char, 256> some{};
        for (; count > 0; count -= Index(some.size())) bytes(some.data(), (std::min)(std::size_t(count), some.size()));
    }

  private:
    std::ostream& out_;
    Checksum checksum_;
};

inline std::uint64_t read_word(const unsigned char* bytes) {
    std::uint64_t x = 0;
    for (unsigned i = 0; i < 8; ++i) x |= std::uint64_t(bytes[i]) << (8 * i);
    return x;
}

class SavedReader {
  public:
    explicit SavedReader(std::istream& in) : in_(in) {}

    // Memory grows with what has come, whatever is said to come.
    std::vector<unsigned char> bytes(std::size_t count) {
        constexpr std::size_t step = std::size_t(1) << 20;
        std::vector<unsigned char> bytes;
        while (bytes.size() < count) {
            const std::size_t have = bytes.size();
            bytes.resize(have + (std::min)(step, count - have));
            in_.read(reinterpret_cast<char*>(bytes.data() + have), static_cast<std::streamsize>(bytes.size() - have));
            if (std::size_t(in_.gcount()) < bytes.size() - have)
                reject_cache("is truncated, or the stream cannot be read");
        }
        checksum_.add(bytes.data(), bytes.size());
        return bytes;
    }
    // Of all bytes so far, against the one that comes next.
    void check_sum() {
        const Checksum so_far = checksum_;
        if (read_word(bytes(8).data()) != so_far.value()) reject_cache("is corrupted");
        checksum_ = so_far;
    }

  private:
    std::istream& in_;
    Checksum checksum_;
};

template <Scalar T>
SavedIdentity identity_of(const SequenceState<T>& state, const SavedIdentity::LayerWords& layer) {
    return {.kind = state.kind(),
            .layer = layer,
            .size = state.size(),
            .undoable = state.head(0).history().undoable(),
            .is_masked = state.head(0).is_masked(),
            .sliding_window = state.head(0).sliding_window(),
            .terms = SavedIdentity::words_of(state.kind().terms.get())};
}

// All numbers of score terms, in the order in which they are saved.
inline std::vector<double> numbers_of(const ScoreTerms& terms) {
    std::vector<double> numbers;
    for (const Matrix<double>* table : {&terms.factor, &terms.bias}) {
        numbers.insert(numbers.end(), table->data(), table->data() + table->size());
    }
    numbers.insert(numbers.end(), terms.sinks.begin(), terms.sinks.end());
    if (terms.soft_cap) numbers.push_back(*terms.soft_cap);
    return numbers;
}

template <Scalar T>
void write_identity(SavedWriter& writer, const SavedIdentity& identity) {
    writer.bytes(SavedIdentity::magic.data(), SavedIdentity::magic.size());
    for (const std::uint64_t word : identity.to_words<T>()) writer.word(word);
    writer.checksum();
    if (identity.kind.terms == nullptr) return;
    for (const double number : numbers_of(*identity.kind.terms)) writer.word(std::bit_cast<std::uint64_t>(number));
    writer.checksum();
}

// One of the arrays, with zeros for what belongs to no token.
template <class Writer>
void write_array(Writer& writer, const SavedArrays& arrays, const SavedArray& array) {
    const Index used = array.used_cols * arrays.element;
    for (Index row = 0; row < array.used_rows; ++row) {
        writer.bytes(array.data + row * array.stride, std::size_t(used));
        writer.zeros(arrays.row_bytes() - used);
    }
    writer.zeros((arrays.rows - array.used_rows) * arrays.row_bytes());
}

// Throws std::runtime_error if the stream could not be written.
inline void finish_writing(SavedWriter& writer, std::ostream& out) {
    writer.checksum();
    if (!out.flush()) throw std::runtime_error("castle::save: the cache could not be written");
}

template <Scalar T>
void save_cache(std::ostream& out, const SequenceState<T>& state, const SavedIdentity::LayerWords& layer = {}) {
    const SavedIdentity identity = identity_of(state, layer);
    SavedWriter writer(out);
    write_identity<T>(writer, identity);
    for (Index h = 0; h < state.heads(); ++h) {
        auto& head = const_cast<HeadState<T>&>(state.head(h));  // to find where arrays are; only read
        for_saved_arrays<T>(identity, identity.undoable, [&](const SavedArrays& arrays) {
            for (Index i = 0; i < arrays.count; ++i) write_array(writer, arrays, SavedArray::of(head, arrays, i));
        });
    }
    finish_writing(writer, out);
}

// The terms of which the identity says how much there is; see numbers_of.
template <Scalar T>
std::shared_ptr<const ScoreTerms> terms_of_numbers(const SavedIdentity& saved, const std::vector<double>& numbers) {
    const SavedIdentity::TermsWords& w = saved.terms;
    const double* from = numbers.data();
    ScoreTerms terms;
    terms.factor.resize(Index(w[0]), Index(w[1]));
    terms.bias.resize(Index(w[2]), Index(w[3]));
    for (Matrix<double>* table : {&terms.factor, &terms.bias}) {
        std::copy_n(from, table->size(), table->data());
        from += table->size();
    }
    terms.sinks.assign(from, from + w[4]);
    if (w[5] != 0) terms.soft_cap = from[w[4]];
    try {
        check_terms<T>("load", terms, saved.kind.shape.heads);
    } catch (const std::invalid_argument&) {
        reject_cache("has no sensible score terms");
    }
    return std::make_shared<const ScoreTerms>(std::move(terms));
}

template <Scalar T>
std::shared_ptr<const ScoreTerms> read_terms(SavedReader& reader, const SavedIdentity& saved) {
    const std::vector<unsigned char> bytes = reader.bytes(8 * saved.count_of_terms());
    reader.check_sum();
    std::vector<double> numbers;
    for (std::size_t at = 0; at < bytes.size(); at += 8) {
        numbers.push_back(std::bit_cast<double>(read_word(bytes.data() + at)));
    }
    return terms_of_numbers<T>(saved, numbers);
}

// The identity of what the stream goes on with, if it is a cache of elements as this build has them.
template <Scalar T>
SavedIdentity read_identity(SavedReader& reader) {
    if (!std::ranges::equal(reader.bytes(SavedIdentity::magic.size()), SavedIdentity::magic))
        reject_cache("is none of castle's");
    const std::vector<unsigned char> bytes = reader.bytes(8 * SavedIdentity::word_count);
    reader.check_sum();
    SavedIdentity::Words words{};
    for (std::size_t i = 0; i < words.size(); ++i) words[i] = read_word(bytes.data() + 8 * i);
    SavedIdentity saved = SavedIdentity::from_words<T>(words);
    if (saved.has_terms()) saved.kind.terms = read_terms<T>(reader, saved);
    return saved;
}

// How many bytes a head of a saved cache has. The sizes are sensible one by one, and nothing else is known of them;
// throws std::runtime_error if there cannot be so many in all.
template <Scalar T>
Index saved_bytes(const SavedIdentity& saved) {
    double most = 0x1p62 / double(saved.kind.shape.kv_heads);
    Index bytes = 0;
    for_saved_arrays<T>(saved, saved.undoable, [&](const SavedArrays& arrays) {
        most -= double(arrays.count) * double(arrays.rows) * double(arrays.row_bytes());
        if (most < 0) reject_cache("is too large");
        bytes += arrays.count * arrays.rows * arrays.row_bytes();
    });
    return bytes;
}

// Takes the arrays of the state's share, one head after the other, into `state`, which has no tokens yet, and is of the
// saved kind.
template <Scalar T>
void take_saved(const SavedIdentity& saved, const std::vector<unsigned char>& bytes, SequenceState<T>& state) {
    const std::size_t head_bytes = bytes.size() / std::size_t(state.heads());
    state.make_room(saved.size, saved.is_masked);
    for (Index h = 0; h < state.heads(); ++h) {
        HeadState<T>& head = state.head(h);
        const unsigned char* from = bytes.data() + std::size_t(h) * head_bytes;
        if (saved.is_masked) head.start_words();
        head.history().set_undoable(saved.undoable);
        for_saved_arrays<T>(saved, head.history().undoable(), [&](const SavedArrays& arrays) {
            for (Index i = 0; i < arrays.count; ++i) {
                if (!arrays.is_of_block() && !head.share().has_panel(arrays.first + i)) continue;
                const auto array = SavedArray::of(head, arrays, i);
                for (Index row = 0; row < arrays.rows; ++row, from += arrays.row_bytes()) {
                    std::memcpy(array.data + row * array.stride, from, std::size_t(arrays.row_bytes()));
                }
            }
        });
        head.set_size(saved.size);
        make_open_gates(head);
    }
}

// The same of what comes from a stream.
template <Scalar T>
void read_state(SavedReader& reader, const SavedIdentity& saved, SequenceState<T>& state) {
    const std::size_t head_bytes = std::size_t(saved_bytes<T>(saved));
    const std::vector<unsigned char> bytes = reader.bytes(head_bytes * std::size_t(state.heads()));
    reader.check_sum();
    take_saved(saved, bytes, state);
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
