// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include <fmt/core.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "model/safetensors.hpp"
#include "support/read_file.hpp"

namespace {

using model::Index;
using model::Matrix;

class Safetensors : public ::testing::Test {
  protected:
    Safetensors() { safetensors::write(path_, matrices(), {{"what", "a test"}}); }
    ~Safetensors() override {
        std::error_code ignored;
        std::filesystem::remove(path_, ignored);
    }

    model::NamedMatrices matrices() { return {{"a", &a_}, {"b.c", &b_}, {"empty", &empty_}}; }
    std::string contents() const { return read_file(path_, Index(1) << 20); }
    void put(std::string_view bytes) const { std::ofstream(path_, std::ios::binary) << bytes; }
    bool is_rejected(std::string_view bytes) {
        put(bytes);
        try {
            safetensors::File(path_).read(matrices());
        } catch (const BadInput&) {
            return true;
        }
        return false;
    }

    std::string path_ =
        (std::filesystem::temp_directory_path() / fmt::format("castle_safetensors_{}", ::getpid())).string();
    Matrix a_ = Matrix::Random(3, 4);
    Matrix b_ = Matrix::Random(1, 5);
    Matrix empty_ = Matrix(0, 7);
};

std::string file_of(const std::string& header, const std::string& elements) {
    std::string length(8, '\0');
    length[0] = static_cast<char>(header.size() % 256);
    length[1] = static_cast<char>(header.size() / 256);
    return length + header + elements;
}

TEST_F(Safetensors, ReadsWhatItWrote) {
    const Matrix a = a_, b = b_;
    a_.setZero();
    b_.setZero();
    const safetensors::File file(path_);
    EXPECT_EQ(file.count(), 17);
    EXPECT_EQ(file.metadata("what"), "a test");
    EXPECT_EQ(file.metadata("other"), "");
    file.read(matrices());
    EXPECT_EQ(a_, a);
    EXPECT_EQ(b_, b);
}

// 16-bit elements are rounded when they are written, and nothing else happens to them.
TEST_F(Safetensors, RoundsToSixteenBits) {
    const Matrix a = a_;
    const auto check = [&](safetensors::Element element, const Matrix& rounded) {
        a_ = a;
        safetensors::write(path_, matrices(), {}, element);
        a_.setZero();
        const safetensors::File file(path_);
        EXPECT_EQ(file.count(), 17);
        file.read(matrices());
        EXPECT_EQ(a_, rounded);
        EXPECT_NE(a_, a);
        // Once more, to the bit.
        const std::string once = contents();
        safetensors::write(path_, matrices(), {}, element);
        EXPECT_EQ(contents(), once);
    };
    check(safetensors::Element::bf16, a.cast<castle::bfloat16>().cast<float>());
    check(safetensors::Element::f16, a.cast<castle::half>().cast<float>());
}

// Byte by byte, as the format's description has it.
TEST_F(Safetensors, WritesTheFormat) {
    a_ = Matrix::Constant(1, 1, 1.0F);
    safetensors::write(path_, {{"x", &a_}}, {{"k", "v"}});
    EXPECT_EQ(contents(),
              file_of(R"({"__metadata__":{"k":"v"},"x":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}       )",
                      std::string("\0\0\x80\x3f", 4)));
    safetensors::write(path_, {{"x", &a_}}, {{"k", "v"}}, safetensors::Element::bf16);
    EXPECT_EQ(contents(),
              file_of(R"({"__metadata__":{"k":"v"},"x":{"dtype":"BF16","shape":[1,1],"data_offsets":[0,2]}}      )",
                      std::string("\x80\x3f", 2)));
    safetensors::write(path_, {{"x", &a_}}, {{"k", "v"}}, safetensors::Element::f16);
    EXPECT_EQ(contents(),
              file_of(R"({"__metadata__":{"k":"v"},"x":{"dtype":"F16","shape":[1,1],"data_offsets":[0,2]}}       )",
                      std::string("\0\x3c", 2)));
}

TEST_F(Safetensors, RejectsEveryTruncatedFileAndEveryLongerOne) {
    const std::string whole = contents();
    EXPECT_FALSE(is_rejected(whole));
    for (std::size_t length = 0; length < whole.size(); ++length) {
        EXPECT_TRUE(is_rejected(std::string_view(whole).substr(0, length))) << length << " bytes";
    }
    EXPECT_TRUE(is_rejected(whole + '\0'));
    EXPECT_TRUE(is_rejected(whole + whole));
}

// It may be read, for the format has no checksum, but nothing worse.
TEST_F(Safetensors, ReadsOrRejectsFilesWithAnyByteChanged) {
    const std::string whole = contents();
    int rejected = 0;
    for (std::size_t i = 0; i < whole.size(); ++i) {
        std::string changed = whole;
        changed[i] = static_cast<char>(changed[i] ^ (1 << (i % 8)));
        rejected += is_rejected(changed) ? 1 : 0;
    }
    EXPECT_GT(rejected, 100);
}

TEST_F(Safetensors, RejectsHeadersThatDoNotFit) {
    const std::string elements(16, '\0');
    const auto entry = [](const std::string& rest) { return R"({"a":{"dtype":"F32",)" + rest + "}}"; };
    const auto rejected = [&](const std::string& header) {
        EXPECT_TRUE(is_rejected(file_of(header, elements))) << header;
    };
    a_.resize(2, 2);
    b_.resize(0, 0);
    put(file_of(entry(R"("shape":[2,2],"data_offsets":[0,16])"), elements));
    EXPECT_NO_THROW(safetensors::File(path_).read({{"a", &a_}}));
    EXPECT_THROW(safetensors::File(path_).read({{"b", &a_}}), BadInput);
    rejected("[]");
    rejected("{}");
    rejected(R"({"a":1})");
    rejected(R"({"a":{"dtype":7,"shape":[2,2],"data_offsets":[0,16]}})");
    rejected(R"({"a":{"dtype":"F16","shape":[2,2],"data_offsets":[0,16]}})");
    rejected(R"({"a":{"dtype":"F64","shape":[2,1],"data_offsets":[0,16]}})");
    rejected(entry(R"("shape":[2,2])"));
    rejected(entry(R"("shape":[4],"data_offsets":[0,16])"));
    rejected(entry(R"("shape":[2,-2],"data_offsets":[0,16])"));
    rejected(entry(R"("shape":[2,"2"],"data_offsets":[0,16])"));
    rejected(entry(R"("shape":[2,2],"data_offsets":[16,0])"));
    rejected(entry(R"("shape":[2,2],"data_offsets":[0,12])"));
    rejected(entry(R"("shape":[2,2],"data_offsets":[4,20])"));
    rejected(entry(R"("shape":[1,4],"data_offsets":[0,16])"));
    rejected(entry(R"("shape":[0,0],"data_offsets":[0,0])"));
    rejected(entry(R"("shape":[4611686018427387904,4],"data_offsets":[0,16])"));
    rejected(entry(R"("shape":[4611686018427387905,0],"data_offsets":[0,0])"));
    const std::string half = R"(:{"dtype":"F32","shape":[1,2],"data_offsets":)";
    rejected(R"({"a")" + half + R"([0,8]},"b")" + half + "[0,8]}}");
    rejected(R"({"a")" + half + R"([0,8]},"b")" + half + "[4,12]}}");
}

}  // namespace
