// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <istream>
#include <limits>
#include <optional>
#include <ostream>
#include <stdexcept>
#include <string>
#include <vector>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/cache/checksum.hpp>
#include <castle/detail/cache/rollback.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/check/message.hpp>
#include <castle/detail/state/head_state.hpp>
#include <castle/options.hpp>
#include <castle/rotary.hpp>
#include <castle/types.hpp>

// A cache as bytes: eight that say what it is, the identity, a checksum, the numbers, a checksum. Each checksum is of
// all before it but checksums. Words are little endian; numbers are as in memory, and the identity says in which order
// their bytes are.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

[[noreturn]] inline void refuse_cache(const std::string& why) {
    throw std::runtime_error("castle::load: the saved cache " + why);
}

// What a saved cache is, by which it is told from others, and how much there is of it.
struct SavedIdentity {
    std::uint64_t version = 1;
    std::uint64_t byte_order = std::endian::native == std::endian::little ? 1 : 2;  // of the numbers
    std::uint64_t scalar_bytes = 0;
    std::uint64_t block = block_size;
    std::uint64_t panel = panel_size;
    std::uint64_t d_model = 0;  // of a layer; 0 for a head alone
    std::uint64_t projections = 0;
    std::uint64_t heads = 1;
    std::uint64_t d = 0;
    std::uint64_t dv = 0;
    std::uint64_t window = 0;
    std::uint64_t silu = 1;
    std::uint64_t causal_keys = 1;
    std::uint64_t scale = 0;        // the bits of a double
    std::uint64_t rotated = 0;      // a bit for each projection
    std::uint64_t rotary_base = 0;  // the bits of a double; 0 without rotation
    std::uint64_t size = 0;
    std::uint64_t undoable = 0;  // finished blocks that can be undone

    static constexpr std::size_t words = 18;
    static constexpr std::array<char, 8> magic = {'c', 'a', 's', 't', 'l', 'e', 'K', 'V'};

    bool operator==(const SavedIdentity&) const = default;

    template <Scalar T>
    static SavedIdentity of_head(const HeadState<T>& state, std::uint64_t projections) {
        return {.scalar_bytes = sizeof(T),
                .projections = projections,
                .d = std::uint64_t(state.shape().d),
                .dv = std::uint64_t(state.shape().dv),
                .window = std::uint64_t(state.window()),
                .silu = state.has_silu(),
                .causal_keys = state.has_causal_scores(),
                .scale = std::bit_cast<std::uint64_t>(double(state.scale())),
                .size = std::uint64_t(state.size()),
                .undoable = std::uint64_t(state.history().undoable())};
    }

    void set_rotary(const Rotary& r) {
        const std::array<bool, 6> all = {r.causal_q,    r.causal_k,    r.causal_v,
                                         r.lookahead_q, r.lookahead_k, r.lookahead_v};
        rotated = 0;
        for (std::size_t i = 0; i < all.size(); ++i) rotated |= std::uint64_t(all[i]) << i;
        rotary_base = std::bit_cast<std::uint64_t>(r.base);
    }

    std::optional<Rotary> rotary() const {
        if (rotary_base == 0) return std::nullopt;
        const auto is_rotated = [&](unsigned i) { return (rotated >> i & 1) != 0; };
        return Rotary{.causal_q = is_rotated(0),
                      .causal_k = is_rotated(1),
                      .causal_v = is_rotated(2),
                      .lookahead_q = is_rotated(3),
                      .lookahead_k = is_rotated(4),
                      .lookahead_v = is_rotated(5),
                      .base = std::bit_cast<double>(rotary_base)};
    }

    // Whether tokens of the one can go on in the other.
    bool is_kind_of(SavedIdentity other) const {
        other.size = size;
        other.undoable = undoable;
        return *this == other;
    }

    std::array<std::uint64_t, words> to_words() const {
        return {version, byte_order, scalar_bytes, block,       panel, d_model, projections, heads, d,
                dv,      window,     silu,         causal_keys, scale, rotated, rotary_base, size,  undoable};
    }
    static SavedIdentity from_words(const std::array<std::uint64_t, words>& w) {
        return {w[0], w[1],  w[2],  w[3],  w[4],  w[5],  w[6],  w[7],  w[8],
                w[9], w[10], w[11], w[12], w[13], w[14], w[15], w[16], w[17]};
    }
};

// Calls f(data, rows, cols, stride, used_rows, used_cols) for every array of a head that its cache saves, in a fixed
// order. What is not used is to be taken for 0. What undoes blocks comes last, the last block first: whoever can undo
// fewer has no use for the end.
template <Scalar T, class F>
void for_saved_arrays(HeadState<T>& state, Index size, Index undoable, const F& f) {
    if (size == 0) return;
    const Index d = state.shape().d, dv = state.shape().dv;
    const Index panels = ceil_div(size, panel_size);
    const auto used = [](Index p, Index end) { return (std::min)(panel_size, end - p * panel_size); };
    for (Index p = 0; p < panels; ++p) {
        if (state.has_lookahead()) f(state.lookahead_keys(p), d, panel_size, panel_size, d, used(p, size));
        f(state.causal_keys(p), d, panel_size, panel_size, d, used(p, size));
        f(state.values(p), panel_size, dv, state.dv_padded(), used(p, size), dv);
    }
    if (!state.has_lookahead()) return;
    const Index last = size / block_size;
    f(state.open_block().lookahead_keys(), 2 * d, block_size, block_size, 2 * d, size % block_size);
    for (Index p = oldest_panel(state.window(), size); p < panels; ++p) {
        f(state.lookahead_queries(p), d, panel_size, panel_size, d, used(p, size));
    }
    // Block by block further back, with the queries that it asks for once it is undone.
    for (Index b = last - 1; b >= last - undoable; --b) {
        const Index origin = b * block_size, end = origin + block_size, oldest = oldest_panel(state.window(), origin);
        for (Index p = oldest; p < (std::min)(oldest_panel(state.window(), end), panels); ++p) {
            f(state.lookahead_queries(p), d, panel_size, panel_size, d, used(p, size));
        }
        f(state.history().operands(b), 2 * d, block_size, block_size, 2 * d, block_size);
        for (Index p = oldest; p * panel_size < end; ++p) {
            f(state.history().panel(b, p), d, panel_size, panel_size, d, used(p, end));
        }
    }
}

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
    // Stays out of the next one: to a CRC all texts that end with their own CRC are alike.
    void checksum() {
        const Checksum so_far = checksum_;
        word(checksum_.value());
        checksum_ = so_far;
    }
    template <Scalar T>
    void numbers(const T* data, Index count) {
        bytes(data, std::size_t(count) * sizeof(T));
    }
    template <Scalar T>
    void zeros(Index count) {
        static constexpr std::array<T, 64> some{};
        for (; count > 0; count -= 64) numbers(some.data(), std::min<Index>(count, 64));
    }

  private:
    std::ostream& out_;
    Checksum checksum_;
};

// Throws std::runtime_error if the stream cannot be written.
template <Scalar T, class States>
void save_cache(std::ostream& out, const SavedIdentity& identity, const States& states) {
    SavedWriter writer(out);
    writer.bytes(SavedIdentity::magic.data(), SavedIdentity::magic.size());
    for (const std::uint64_t word : identity.to_words()) writer.word(word);
    writer.checksum();
    for (const HeadState<T>& state : states) {
        for_saved_arrays(const_cast<HeadState<T>&>(state), Index(identity.size), Index(identity.undoable),
                         [&](const T* data, Index rows, Index cols, Index stride, Index used_rows, Index used_cols) {
                             for (Index i = 0; i < used_rows; ++i) {
                                 writer.numbers(data + i * stride, used_cols);
                                 writer.zeros<T>(cols - used_cols);
                             }
                             writer.zeros<T>((rows - used_rows) * cols);
                         });
    }
    writer.checksum();
    if (!out.flush()) throw std::runtime_error("castle::save: the cache could not be written");
}

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
                refuse_cache("is truncated, or the stream cannot be read");
        }
        checksum_.add(bytes.data(), bytes.size());
        return bytes;
    }
    // Of all bytes so far, against the one that comes next.
    void check_sum() {
        const Checksum so_far = checksum_;
        if (read_word(bytes(8).data()) != so_far.value()) refuse_cache("is corrupted");
        checksum_ = so_far;
    }

  private:
    std::istream& in_;
    Checksum checksum_;
};

// The identity of what the stream goes on with, if it is a cache of numbers as this build has them.
template <Scalar T>
SavedIdentity read_identity(SavedReader& reader) {
    if (!std::ranges::equal(reader.bytes(SavedIdentity::magic.size()), SavedIdentity::magic))
        refuse_cache("is none of castle's");
    const std::vector<unsigned char> bytes = reader.bytes(8 * SavedIdentity::words);
    reader.check_sum();
    std::array<std::uint64_t, SavedIdentity::words> words{};
    for (std::size_t i = 0; i < words.size(); ++i) words[i] = read_word(bytes.data() + 8 * i);
    const SavedIdentity saved = SavedIdentity::from_words(words), own{.scalar_bytes = sizeof(T)};
    if (saved.version != own.version) refuse_cache("is of another version of the format");
    if (saved.byte_order != own.byte_order) refuse_cache("has the bytes of its numbers in another order");
    if (saved.scalar_bytes != own.scalar_bytes) {
        refuse_cache(text("has numbers of ", Index(saved.scalar_bytes), " bytes, not of ", Index(own.scalar_bytes)));
    }
    if (saved.block != own.block || saved.panel != own.panel) refuse_cache("has another layout");
    constexpr std::uint64_t most_size = std::uint64_t(1) << 24;
    const auto is_size = [&](std::uint64_t x) { return x >= 1 && x <= most_size; };
    if (!is_size(saved.d) || !is_size(saved.dv) || !is_size(saved.heads) || saved.size > std::uint64_t(most_tokens) ||
        saved.window > std::uint64_t(unlimited) || saved.silu > 1 || saved.causal_keys > 1 ||
        !(std::abs(std::bit_cast<double>(saved.scale)) <= double((std::numeric_limits<T>::max)())) ||
        saved.undoable > most_size / block_size || saved.undoable > saved.size / block_size) {
        refuse_cache("has no sensible sizes");
    }
    return saved;
}

// How many numbers for_saved_arrays goes through. The sizes are within the limits above, and nothing else is known of
// them; throws std::runtime_error if there cannot be so many.
inline Index saved_numbers(const SavedIdentity& saved) {
    const Index d = Index(saved.d), dv = Index(saved.dv), size = Index(saved.size), window = Index(saved.window);
    const Index panels = ceil_div(size, panel_size), operands = 2 * d * block_size;
    const Index row = (window > 0 ? 2 : 1) * d + dv;
    if (size == 0) return 0;
    Index key_panels = 0, blocks = 0;
    if (window > 0) {
        key_panels = panels - oldest_panel(window, size);
        blocks = Index(saved.undoable) + 1;
        for (Index b = size / block_size - 1; b >= size / block_size - Index(saved.undoable); --b) {
            const Index origin = b * block_size, end = origin + block_size, oldest = oldest_panel(window, origin);
            key_panels += (std::min)(oldest_panel(window, end), panels) - oldest + ceil_div(end, panel_size) - oldest;
        }
    }
    const double most = 0x1p60;
    if (double(panels) * panel_size * double(row) + double(key_panels) * panel_size * double(d) +
            double(blocks) * double(operands) >
        most) {
        refuse_cache("is too large");
    }
    return panels * panel_size * row + key_panels * panel_size * d + blocks * operands;
}

// The heads of a cache, made by make() and without tokens yet.
template <Scalar T, class Make>
std::vector<HeadState<T>> read_states(SavedReader& reader, const SavedIdentity& saved, const Make& make) {
    const Index numbers = saved_numbers(saved), heads = Index(saved.heads);
    if (double(numbers) * double(heads) > 0x1p60) refuse_cache("is too large");
    const std::vector<unsigned char> bytes = reader.bytes(std::size_t(numbers) * std::size_t(heads) * sizeof(T));
    reader.check_sum();
    std::vector<HeadState<T>> states;
    states.reserve(std::size_t(heads));
    for (Index h = 0; h < heads; ++h) {
        HeadState<T>& state = states.emplace_back(make());
        const unsigned char* from = bytes.data() + std::size_t(h) * std::size_t(numbers) * sizeof(T);
        const Index size = Index(saved.size);
        state.reserve(size);
        state.history().set_undoable(Index(saved.undoable));
        for_saved_arrays(state, size, state.history().undoable(),
                         [&](T* data, Index rows, Index cols, Index stride, Index, Index) {
                             for (Index i = 0; i < rows; ++i, from += std::size_t(cols) * sizeof(T)) {
                                 std::memcpy(data + i * stride, from, std::size_t(cols) * sizeof(T));
                             }
                         });
        state.set_size(size);
        make_open_gates(state);
    }
    return states;
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
