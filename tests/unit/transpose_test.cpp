// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include <gtest/gtest.h>

#include <castle/detail/simd/transpose.hpp>

#include "support/generators.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

template <class T>
class Transpose : public ::testing::Test {};
TYPED_TEST_SUITE(Transpose, support::Scalars);

TYPED_TEST(Transpose, WritesItsColumnsAndNothingElse) {
    using T = TypeParam;
    constexpr Index stride = 64;
    Random random(1);
    for (const Index d : {1, 3, 15, 16, 17, 40, 65}) {
        Matrix<T> wide(40, d + 5);  // the rows of a view lie apart
        fill_normal(random, wide);
        const auto from = wide.middleCols(2, d);
        for (const Index count : {0, 1, 7, 16, 19, 32}) {
            for (const Index column : {Index(0), Index(9), stride - count}) {
                const Index row = random.integer(0, from.rows() - count);
                const T untouched = sentinel<T>();
                Matrix<T> to = Matrix<T>::Constant(d, stride, untouched);
                castle::detail::transpose<T>(from.data() + row * wide.cols(), wide.cols(), count, d, T(3),
                                             to.data() + column, stride);
                for (Index k = 0; k < d; ++k) {
                    for (Index i = 0; i < stride; ++i) {
                        const bool inside = i >= column && i < column + count;
                        const T expected = inside ? T(3) * from(row + i - column, k) : untouched;
                        ASSERT_TRUE(same_bits(to(k, i), expected)) << "row " << k << ", column " << i;
                    }
                }
            }
        }
    }
}

}  // namespace
