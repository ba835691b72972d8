// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include <gtest/gtest.h>
#include <mpi.h>

#include <castle/detail/mpi/columns.hpp>

// Matrices whose columns are dealt to ranks: gathered, and turned into rows.
namespace {

using castle::ConstMatrixView;
using castle::Index;
using castle::Matrix;
using castle::MatrixView;
using castle::detail::AlignedBuffer;
using castle::detail::ColumnGather;
using castle::detail::DealtColumns;

const castle::mpi::Communicator& ranks() {
    static const castle::mpi::Communicator all(MPI_COMM_WORLD);
    return all;
}

Matrix<float> numbered(Index rows, Index cols) {
    Matrix<float> m(rows, cols);
    for (Index i = 0; i < m.size(); ++i) m.data()[i] = static_cast<float>(i);
    return m;
}

TEST(DealtColumns, KeepUnitsWhole) {
    for (const Index unit : {1, 3, 64}) {
        for (const Index columns : {Index(0), unit - 1, unit, 5 * unit - 1, 5 * unit}) {
            for (const int parts : {1, 2, 3, 4, 7}) {
                const DealtColumns dealt("test", columns, unit, parts);
                EXPECT_EQ(dealt.total(), columns);
                Index next = 0;
                for (int part = 0; part < parts; ++part) {
                    EXPECT_EQ(dealt.first(part), next);
                    EXPECT_TRUE(next % unit == 0 || next == columns);
                    EXPECT_LE(dealt.count(part), (5 + parts - 1) / parts * unit);
                    next += dealt.count(part);
                }
                EXPECT_EQ(next, columns);
            }
        }
    }
}

TEST(ColumnGather, GivesEveryRankAllColumns) {
    for (const Index rows : {1, 2, 7}) {
        for (const Index columns : {1, 5, 12}) {
            const DealtColumns dealt("test", columns, 3, ranks().size());
            const Matrix<float> expected = numbered(rows, columns);
            Matrix<float> all = Matrix<float>::Constant(rows, columns + 2, -1);
            const MatrixView<float> view = MatrixView<float>(all).middle_cols(1, columns);
            AlignedBuffer<float> buffer;
            const ColumnGather<float> gather("test", ranks(), dealt, rows,
                                             ColumnGather<float>::memory_for(view, buffer));
            EXPECT_EQ(buffer.size() == 0, rows == 1) << "a single row needs none";
            gather.own().map() = dealt.of(ranks().rank(), ConstMatrixView<float>(expected)).map();
            gather.run();
            gather.copy_to(view);
            EXPECT_EQ(Matrix<float>(view.map()), expected);
            EXPECT_TRUE((all.col(0).array() == -1).all() && (all.col(columns + 1).array() == -1).all());
        }
    }
}

TEST(ExchangeBlocks, TurnsColumnsIntoRows) {
    const int own = ranks().rank();
    for (const Index height : {1, 4, 9}) {
        for (const Index width : {1, 5, 12}) {
            const DealtColumns rows("test", height, 2, ranks().size()), columns("test", width, 3, ranks().size());
            const Matrix<float> whole = numbered(height, width);
            Matrix<float> got = Matrix<float>::Zero(rows.count(own), width);
            AlignedBuffer<float> memory(castle::detail::exchange_elements(ranks(), rows, columns));
            castle::detail::exchange_blocks<float>(
                "test", ranks(), rows, columns, memory.data(),
                [&](int to, const MatrixView<float>& block) {
                    block.map() = whole.block(rows.first(to), columns.first(own), rows.count(to), columns.count(own));
                },
                [&](int from, const ConstMatrixView<float>& block) {
                    columns.of(from, MatrixView<float>(got)).map() = block.map();
                });
            EXPECT_EQ(got, Matrix<float>(whole.middleRows(rows.first(own), rows.count(own))));
        }
    }
}

}  // namespace
