// SPDX-License-Identifier: Apache-2.0

// Whatever bytes come as a saved cache: a cache that works, or std::runtime_error. Checksums would keep every other
// input out, so they are made to fit.
#include <sstream>
#include <string>

#include "fuzz/input.hpp"

namespace {

using namespace fuzz;

void put_word(std::string& bytes, std::uint64_t x) {
    for (unsigned i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(x >> (8 * i)));
}

// Appends the checksum of all that has been added to it, with what has come since byte `from`.
void put_checksum(std::string& bytes, castle::detail::Checksum& checksum, std::size_t from) {
    checksum.add(bytes.data() + from, bytes.size() - from);
    put_word(bytes, checksum.value());
}

template <class Cache, class Use>
void load(const std::string& bytes, const Use& use) {
    std::istringstream in(bytes);
    try {
        Cache cache = Cache::load(in);
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
    auto words =
        castle::detail::SavedIdentity{.scalar_bytes = sizeof(float), .projections = 6, .d = 1, .dv = 1}.to_words();
    for (Index changes = input.below(8); changes > 0; --changes) {
        const std::size_t word = std::size_t(input.below(Index(words.size())));
        words[word] = input.below(2) == 0 ? input.byte() : input.word();
    }
    std::string bytes(castle::detail::SavedIdentity::magic.begin(), castle::detail::SavedIdentity::magic.end());
    for (const std::uint64_t word : words) put_word(bytes, word);
    castle::detail::Checksum checksum;
    put_checksum(bytes, checksum, 0);
    const std::size_t numbers = bytes.size();
    // As many numbers as are asked for, if they are not too many, or as many as there are.
    std::size_t wanted = 0;
    try {
        std::istringstream in(bytes);
        castle::detail::SavedReader reader(in);
        const auto saved = castle::detail::read_identity<float>(reader);
        wanted = std::size_t(castle::detail::saved_numbers(saved)) * sizeof(float);
    } catch (const std::runtime_error&) {
    }
    const bool fits = input.below(4) != 0 && wanted < 1 << 20;
    while (fits ? bytes.size() - numbers < wanted : !input.empty()) bytes.push_back(static_cast<char>(input.byte()));
    put_checksum(bytes, checksum, numbers);

    const Matrix<float> token = Matrix<float>::Constant(1, 1, 0.5F);
    load<castle::UqKvCache<float>>(bytes, [&](castle::UqKvCache<float>& cache) {
        require(cache.size() <= 1 << 20, "a cache of more tokens than were there");
        if (cache.shape().d == 1 && cache.shape().dv == 1) {
            castle::extend(cache, {.causal = {.q = token, .k = token, .v = token},
                                   .lookahead = {.q = token, .k = token, .v = token}});
        }
        cache.rollback(cache.max_rollback());
    });
    load<castle::KvCache<float>>(bytes, [&](castle::KvCache<float>& cache) { cache.rollback(cache.size()); });
    return 0;
}
