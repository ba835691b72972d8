// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include <castle/detail/simd/abi.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

using ChecksumTable = std::array<std::uint32_t, 256>;

// Table k: what a byte does that k more follow.
constexpr std::array<ChecksumTable, 8> checksum_tables() {
    std::array<ChecksumTable, 8> all{};
    for (std::uint32_t i = 0; i < 256; ++i) {
        std::uint32_t r = i;
        for (int bit = 0; bit < 8; ++bit) r = (r >> 1) ^ ((r & 1U) != 0 ? 0xedb88320U : 0U);
        all[0][i] = r;
    }
    for (std::size_t k = 1; k < 8; ++k) {
        for (std::size_t i = 0; i < 256; ++i) {
            all[k][i] = (all[k - 1][i] >> 8) ^ all[0][all[k - 1][i] & 0xffU];
        }
    }
    return all;
}
// CRC-32 (ISO-HDLC, polynomial 0x04C11DB7 reflected), which finds every error within 32 bits.
class Checksum {
  public:
    void add(const void* data, std::size_t bytes) {
        const auto* byte = static_cast<const unsigned char*>(data);
        for (; bytes >= 8; byte += 8, bytes -= 8) {
            std::uint32_t next = 0;
            for (unsigned i = 0; i < 4; ++i) next ^= tables[7 - i][byte[i] ^ ((remainder_ >> (8 * i)) & 0xffU)];
            for (unsigned i = 4; i < 8; ++i) next ^= tables[7 - i][byte[i]];
            remainder_ = next;
        }
        for (; bytes > 0; ++byte, --bytes) remainder_ = step(remainder_, *byte);
    }

    std::uint32_t value() const { return ~remainder_; }

  private:
    static constexpr std::array<ChecksumTable, 8> tables = checksum_tables();

    static std::uint32_t step(std::uint32_t r, unsigned char byte) { return (r >> 8) ^ tables[0][(r ^ byte) & 0xffU]; }

    std::uint32_t remainder_ = 0xffffffffU;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
