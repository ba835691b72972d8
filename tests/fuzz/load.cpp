// SPDX-License-Identifier: Apache-2.0

// Whatever bytes come as a saved cache: a cache that works, or std::runtime_error. Checksums would keep every other
// input out, so they are made to fit.
#include <array>
#include <sstream>
#include <string>
#include <vector>

#include "fuzz/input.hpp"

namespace {

using namespace fuzz;

using Identity = castle::detail::SavedIdentity;
constexpr Index most_tokens = 1 << 20, most_heads = 8;

void put_word(std::string& bytes, std::uint64_t x) {
    for (unsigned i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(x >> (8 * i)));
}

// Appends the checksum of all that has been added to it, with what has come since byte `from`.
void put_checksum(std::string& bytes, castle::detail::Checksum& checksum, std::size_t from) {
    checksum.add(bytes.data() + from, bytes.size() - from);
    put_word(bytes, checksum.value());
}

// The words of its identity, as a cache without tokens is saved.
template <class Cache>
Identity::Words identity_of(const Cache& cache) {
    std::stringstream file;
    cache.save(file);
    const std::string bytes = file.str();
    Identity::Words words{};
    for (std::size_t i = 0; i < words.size(); ++i) {
        words[i] = castle::detail::read_word(
            reinterpret_cast<const unsigned char*>(bytes.data() + Identity::magic.size() + 8 * i));
    }
    return words;
}

const castle::Layer<float>& layer() {
    static const castle::Layer<float> layer(
        {.d_model = 2, .heads = 2, .kv_heads = 1, .d_head = 2, .rotary = castle::Rotary{}});
    return layer;
}

// Identities to begin with: heads alone and in groups, windows of every kind, and a layer.
const std::vector<Identity::Words>& identities() {
    static const std::vector<Identity::Words> all = [] {
        std::vector<Identity::Words> words;
        for (const castle::Shape& shape :
             {castle::Shape{.d = 1, .dv = 1}, castle::Shape{.d = 1, .dv = 1, .heads = 2, .kv_heads = 2},
              castle::Shape{.d = 1, .dv = 1, .heads = 4, .kv_heads = 2}}) {
            for (const Index window : {castle::unlimited, Index(0), Index(40)}) {
                words.push_back(identity_of(castle::UqKvCache<float>(shape, {.lookahead_window = window})));
            }
        }
        for (const Index window : {Index(0), castle::unlimited}) {
            words.push_back(
                identity_of(castle::UqKvCache<float>({.d = 1, .dv = 1}, {.lookahead_window = window}, 64, 3)));
        }
        words.push_back(identity_of(layer().make_cache()));
        return words;
    }();
    return all;
}

// What is behind a sliding window takes no bytes.
template <class Cache>
bool has_sensible_size(const Cache& cache) {
    return cache.size() <= most_tokens || cache.sliding_window() != castle::unlimited;
}

// One token more, taken back with all others that can be.
void use(castle::UqKvCache<float>& cache) {
    const castle::Shape shape = cache.shape();
    require(has_sensible_size(cache), "a cache of more tokens than were there");
    if (shape.d == 1 && shape.dv == 1 && shape.heads <= most_heads) {
        const Matrix<float> q = Matrix<float>::Constant(1, shape.heads, 0.5F);
        const Matrix<float> x = Matrix<float>::Constant(1, shape.kv_heads, 0.5F);
        castle::extend(cache, {.causal = {.q = q, .k = x, .v = x}, .lookahead = {.q = x, .k = x, .v = x}});
    }
    cache.rollback(cache.max_rollback());
}

void use(castle::LayerCache<float>& cache) {
    require(has_sensible_size(cache), "a layer's cache of more tokens than were there");
    const Matrix<float> x = Matrix<float>::Constant(1, 2, 0.5F);
    layer().extend(cache, x);
    cache.rollback(cache.max_rollback());
}

template <class Load>
void load(const std::string& bytes, const Load& load_from) {
    std::istringstream in(bytes);
    try {
        auto cache = load_from(in);
        use(cache);
        std::ostringstream again;
        cache.save(again);
    } catch (const std::runtime_error&) {
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Input input(data, size);
    // An identity that is nearly right: each byte pair changes one of its words.
    Identity::Words words = identities()[std::size_t(input.below(Index(identities().size())))];
    for (Index changes = input.below(8); changes > 0; --changes) {
        const std::size_t word = std::size_t(input.below(Index(words.size())));
        words[word] = input.below(2) == 0 ? input.byte() : input.word();
    }
    std::string bytes(Identity::magic.begin(), Identity::magic.end());
    for (const std::uint64_t word : words) put_word(bytes, word);
    castle::detail::Checksum checksum;
    put_checksum(bytes, checksum, 0);
    const std::size_t elements = bytes.size();
    // As many elements as the identity asks for, if they are not too many, or as many as there are.
    std::size_t wanted = 0;
    try {
        std::istringstream in(bytes);
        castle::detail::SavedReader reader(in);
        const auto saved = castle::detail::read_identity<float>(reader);
        wanted = std::size_t(castle::detail::saved_bytes<float>(saved) * saved.kind.shape.kv_heads);
    } catch (const std::runtime_error&) {
    }
    const bool fits = input.below(4) != 0 && wanted < 1 << 20;
    while (fits ? bytes.size() - elements < wanted : !input.empty()) bytes.push_back(static_cast<char>(input.byte()));
    put_checksum(bytes, checksum, elements);

    load(bytes, [](std::istream& in) { return castle::UqKvCache<float>::load(in); });
    load(bytes, [](std::istream& in) { return layer().load_cache(in); });
    return 0;
}
