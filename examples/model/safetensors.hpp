// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <castle/types.hpp>

#include "../support/bad_input.hpp"
#include "../support/read_file.hpp"
#include "matrices.hpp"

// The safetensors format: eight bytes with the length of a JSON header, the header, and the elements. All of them
// little endian, matrices row-major, of float or of the two scalars of 16 bits, which are rounded and widened.
namespace safetensors {

using model::Index;
using model::NamedMatrices;
using model::NamedMatrix;

using Metadata = std::map<std::string, std::string>;

static_assert(std::endian::native == std::endian::little, "elements are written as they are");

/// What an element is in a file.
enum class Element { f32, bf16, f16 };

struct ElementType {
    Element element;
    std::string_view name;
    std::uint64_t bytes;
};
inline constexpr std::array<ElementType, 3> element_types = {
    {{Element::f32, "F32", 4}, {Element::bf16, "BF16", 2}, {Element::f16, "F16", 2}}};

/// The numbers as elements of a file.
inline std::string stored(const model::Matrix& m, Element element) {
    const auto bytes_of = [&](const auto& numbers) {
        return std::string(reinterpret_cast<const char*>(numbers.data()), std::size_t(m.size()) * sizeof(numbers(0)));
    };
    switch (element) {
        case Element::bf16:
            return bytes_of(castle::Matrix<castle::bfloat16>(m.cast<castle::bfloat16>()));
        case Element::f16:
            return bytes_of(castle::Matrix<castle::half>(m.cast<castle::half>()));
        case Element::f32:
            break;
    }
    return bytes_of(m);
}
/// The other way round, from as many bytes as the matrix needs.
inline void fill(const char* bytes, Element element, model::Matrix& m) {
    // An empty matrix has no memory, and then there is nothing to copy from either.
    if (m.size() == 0) return;
    const auto copy = [&](auto& numbers) {
        std::memcpy(static_cast<void*>(numbers.data()), bytes, std::size_t(m.size()) * sizeof(numbers(0)));
    };
    const auto widen = [&](auto numbers) {
        numbers.resize(m.rows(), m.cols());
        copy(numbers);
        m = numbers.template cast<float>();
    };
    switch (element) {
        case Element::bf16:
            return widen(castle::Matrix<castle::bfloat16>());
        case Element::f16:
            return widen(castle::Matrix<castle::half>());
        case Element::f32:
            return copy(m);
    }
}

/// Writes all matrices, beside the file first: a file that was there stays as it is until the new one is whole.
inline void write(const std::filesystem::path& path, const NamedMatrices& matrices, const Metadata& metadata,
                  Element element = Element::f32) {
    const ElementType& type = *std::ranges::find(element_types, element, &ElementType::element);
    nlohmann::ordered_json header;
    header["__metadata__"] = metadata;
    std::uint64_t end = 0;
    for (const NamedMatrix& m : matrices) {
        const std::uint64_t begin = end;
        end += static_cast<std::uint64_t>(m.matrix->size()) * type.bytes;
        header[m.name] = {
            {"dtype", type.name}, {"shape", {m.matrix->rows(), m.matrix->cols()}}, {"data_offsets", {begin, end}}};
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    const std::uint64_t length = text.size();

    const std::filesystem::path beside = path.string() + ".part";
    std::error_code failure;
    {
        std::ofstream file(beside, std::ios::binary);
        file.write(reinterpret_cast<const char*>(&length), sizeof(length));
        file << text;
        for (const NamedMatrix& m : matrices) {
            const std::string elements = stored(*m.matrix, element);
            file.write(elements.data(), static_cast<std::streamsize>(elements.size()));
        }
        file.flush();
        if (!file) failure = std::make_error_code(std::errc::io_error);
    }
    if (!failure) std::filesystem::rename(beside, path, failure);
    if (failure) {
        std::error_code ignored;
        std::filesystem::remove(beside, ignored);
        throw BadInput(fmt::format("the checkpoint \"{}\" could not be written; the one before, if any, is still there",
                                   path.string()));
    }
}

/// A file that has been read, and found to be whole.
class File {
  public:
    explicit File(const std::filesystem::path& path) : path_(path.string()) {
        std::uint64_t length = 0;
        const std::string first = read_file(path, sizeof(length));
        if (first.size() < sizeof(length)) reject("is too short");
        std::memcpy(&length, first.data(), sizeof(length));
        std::error_code unknown;
        const std::uint64_t size = std::filesystem::file_size(path, unknown);
        if (unknown || length > size - sizeof(length)) reject("is truncated, or another kind of file");
        bytes_ = read_file(path, static_cast<Index>(size));
        if (bytes_.size() != size) reject("is truncated");
        elements_ = sizeof(length) + length;
        header_ = nlohmann::json::parse(bytes_.begin() + sizeof(length), bytes_.begin() + Index(elements_), nullptr,
                                        /*allow_exceptions=*/false);
        if (!header_.is_object()) reject("is another kind of file");
        std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
        for (const auto& [name, entry] : header_.items()) {
            if (name != "__metadata__") ranges.push_back(checked_range(name, entry));
        }
        std::sort(ranges.begin(), ranges.end());
        std::uint64_t end = 0;
        for (const auto& [from, to] : ranges) {
            if (from != end) reject("has matrices with gaps between them, or one upon another");
            end = to;
        }
        if (end != bytes_.size() - elements_) reject("is longer than its matrices");
    }

    /// How many elements there are in all matrices.
    Index count() const { return count_; }

    /// "" for what is not there.
    std::string metadata(const std::string& name) const {
        const auto all = header_.find("__metadata__");
        if (all == header_.end() || !all->is_object() || !all->contains(name) || !(*all)[name].is_string()) return "";
        return (*all)[name];
    }

    /// Fills the matrices, each of which has to be there in its shape.
    void read(const NamedMatrices& matrices) const {
        for (const NamedMatrix& m : matrices) {
            const auto entry = header_.find(m.name);
            if (entry == header_.end()) reject(fmt::format("has no \"{}\"", m.name));
            const Index rows = (*entry)["shape"][0], cols = (*entry)["shape"][1];
            if (rows != m.matrix->rows() || cols != m.matrix->cols()) {
                reject(fmt::format("has a \"{}\" of [{}, {}] that must be [{}, {}]", m.name, rows, cols,
                                   m.matrix->rows(), m.matrix->cols()));
            }
            const std::uint64_t begin = (*entry)["data_offsets"][0];
            fill(bytes_.data() + elements_ + begin, type_of(*entry)->element, *m.matrix);
        }
    }

    [[noreturn]] void reject(const std::string& why) const {
        throw BadInput(fmt::format("the checkpoint \"{}\" {}", path_, why));
    }

  private:
    // Null where it is another one.
    static const ElementType* type_of(const nlohmann::json& entry) {
        const auto found =
            std::ranges::find_if(element_types, [&](const ElementType& type) { return entry["dtype"] == type.name; });
        return found != element_types.end() ? &*found : nullptr;
    }

    // From where to where a matrix lies among the elements; counts it.
    std::pair<std::uint64_t, std::uint64_t> checked_range(const std::string& name, const nlohmann::json& entry) {
        const auto is_pair = [&](const char* key) {
            return entry.contains(key) && entry[key].is_array() && entry[key].size() == 2 &&
                   entry[key][0].is_number_unsigned() && entry[key][1].is_number_unsigned();
        };
        if (!entry.is_object() || !entry.contains("dtype") || type_of(entry) == nullptr || !is_pair("shape") ||
            !is_pair("data_offsets")) {
            reject(fmt::format("has a \"{}\" that is no matrix of F32, BF16 or F16", name));
        }
        const std::uint64_t bytes = type_of(entry)->bytes;
        const std::uint64_t begin = entry["data_offsets"][0], end = entry["data_offsets"][1];
        const std::uint64_t rows = entry["shape"][0], cols = entry["shape"][1];
        if (end > bytes_.size() - elements_) reject("is truncated");
        const std::uint64_t count = end < begin ? 0 : (end - begin) / bytes;
        if (end < begin || count * bytes != end - begin ||
            (cols == 0 ? count != 0 : rows != count / cols || count % cols != 0)) {
            reject(fmt::format("has a \"{}\" whose size does not fit its shape", name));
        }
        count_ += Index(count);
        return {begin, end};
    }

    std::string path_;
    std::string bytes_;
    std::size_t elements_;  // where they begin
    Index count_ = 0;       // of them
    nlohmann::json header_;
};

}  // namespace safetensors
