// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <limits>
#include <string_view>
#include <type_traits>

#include <castle/detail/check/message.hpp>
#include <castle/detail/simd/scalar.hpp>
#include <castle/detail/simd/storage.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// An owning row-major matrix: rows are tokens.
template <Scalar T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

namespace detail {

template <class E>
concept EigenDense = std::derived_from<std::remove_cvref_t<E>, Eigen::DenseBase<std::remove_cvref_t<E>>>;

// Memory that a view can point into: row-major, and neighbours within a row are neighbours in memory.
template <class E, class T>
concept RowMajorMemory = EigenDense<E> && std::same_as<typename std::remove_cvref_t<E>::Scalar, T> && requires(E& e) {
    { e.data() } -> std::convertible_to<const T*>;
    e.outerStride();
} && bool(std::remove_cvref_t<E>::IsRowMajor) && int(std::remove_cvref_t<E>::InnerStrideAtCompileTime) == 1;

// A matrix that owns its elements, and would take them along when it dies.
template <class E>
concept OwningMatrix = std::derived_from<std::remove_cvref_t<E>, Eigen::PlainObjectBase<std::remove_cvref_t<E>>>;

// An Eigen::Ref<const ...> may hold a silent copy of its own, which a temporary Ref takes along as well.
template <class E>
inline constexpr bool is_const_ref = false;
template <class M, int O, class S>
inline constexpr bool is_const_ref<Eigen::Ref<const M, O, S>> = true;

template <class E, class T>
concept ViewableAs = RowMajorMemory<E, T> &&
    (std::is_lvalue_reference_v<E> || !(OwningMatrix<E> || is_const_ref<std::remove_cvref_t<E>>));

// What everybody passes first.
template <class E, class T>
concept ColumnMajorMatrix = EigenDense<E> && std::same_as<typename std::remove_cvref_t<E>::Scalar, T> &&
    !bool(std::remove_cvref_t<E>::IsRowMajor);

// The scalar of several matrices, one of which at least is of this kind.
template <class T, class... Es>
concept ScalarOfColumnMajor = (ColumnMajorMatrix<Es, T> || ...);

// A name for compilers to show where they say that a constructor is deleted.
struct row_major_matrix;

// Out of line, so that a slice costs its comparisons and no more.
[[noreturn]] EIGEN_DONT_INLINE inline void fail_slice(std::string_view where, std::string_view what, Index size,
                                                      std::string_view unit, Index first, Index count) {
    fail(where, "first is ", first, " and count is ", count, " but ", what, " has ", size, " ", unit);
}

// No sum of two arguments, which might overflow.
inline void check_slice(std::string_view where, std::string_view what, Index size, std::string_view unit, Index first,
                        Index count) {
    if (first < 0 || count < 0 || first > size || count > size - first) {
        fail_slice(where, what, size, unit, first, count);
    }
}

}  // namespace detail

/// A read-only view of a row-major matrix `[rows, cols]` whose rows lie `outer_stride` elements apart.
///
/// Never copies and never owns: what it looks at has to outlive it. It is made from any row-major Eigen object with
/// memory (a Matrix, a Map, a block of either) or from a pointer; an expression, a column-major matrix or a temporary
/// that owns its elements does not compile. What the compiler cannot see is a block of a temporary, as in
/// `make_matrix().leftCols(8)`: the view of it dangles.
template <Scalar T>
class ConstMatrixView {
  public:
    using value_type = T;
    using EigenMap = Eigen::Map<const Matrix<T>, 0, Eigen::OuterStride<>>;

    /// The empty view, `[0, 0]`.
    ConstMatrixView() = default;

    ConstMatrixView(const T* data, Index rows, Index cols, Index outer_stride)
        : data_(data), rows_(rows), cols_(cols), outer_stride_(outer_stride) {}

    ConstMatrixView(const T* data, Index rows, Index cols) : ConstMatrixView(data, rows, cols, cols) {}

    template <class E>
    requires detail::ViewableAs<E, T>
    // NOLINTNEXTLINE(bugprone-forwarding-reference-overload): constrained to Eigen types
    ConstMatrixView(E&& m) : ConstMatrixView(m.data(), m.rows(), m.cols(), m.outerStride()) {}

    // Instead of "no matching function".
    template <detail::ColumnMajorMatrix<T> E, class Needed = detail::row_major_matrix>
    ConstMatrixView(E&&) = delete;  // a view needs a row-major matrix, such as castle::Matrix<T>

    const T* data() const { return data_; }
    Index rows() const { return rows_; }
    Index cols() const { return cols_; }
    Index outer_stride() const { return outer_stride_; }

    /// The first element of row `i`; not checked.
    const T* row(Index i) const { return data_ + i * outer_stride_; }

    /// The `count` rows from `first` on. Throws std::invalid_argument if they are not all there.
    ConstMatrixView middle_rows(Index first, Index count) const {
        detail::check_slice("middle_rows", "the view", rows_, "rows", first, count);
        return {data_ + first * outer_stride_, count, cols_, outer_stride_};
    }
    /// The `count` columns from `first` on. Throws std::invalid_argument if they are not all there.
    ConstMatrixView middle_cols(Index first, Index count) const {
        detail::check_slice("middle_cols", "the view", cols_, "columns", first, count);
        return {data_ + first, rows_, count, outer_stride_};
    }

    /// The same view for use in Eigen expressions.
    EigenMap map() const { return EigenMap(data_, rows_, cols_, Eigen::OuterStride<>(outer_stride_)); }

  private:
    const T* data_ = nullptr;
    Index rows_ = 0;
    Index cols_ = 0;
    Index outer_stride_ = 0;
};

/// A writable view of a row-major matrix; otherwise as ConstMatrixView.
template <Scalar T>
class MatrixView {
  public:
    using value_type = T;
    using EigenMap = Eigen::Map<Matrix<T>, 0, Eigen::OuterStride<>>;

    /// The empty view, `[0, 0]`.
    MatrixView() = default;

    MatrixView(T* data, Index rows, Index cols, Index outer_stride)
        : data_(data), rows_(rows), cols_(cols), outer_stride_(outer_stride) {}

    MatrixView(T* data, Index rows, Index cols) : MatrixView(data, rows, cols, cols) {}

    template <class E>
    requires detail::ViewableAs<E, T> && requires(E& e) {
        { e.data() } -> std::convertible_to<T*>;
    }
    // NOLINTNEXTLINE(bugprone-forwarding-reference-overload): constrained to Eigen types
    MatrixView(E&& m) : MatrixView(m.data(), m.rows(), m.cols(), m.outerStride()) {}

    // Instead of "no matching function".
    template <detail::ColumnMajorMatrix<T> E, class Needed = detail::row_major_matrix>
    MatrixView(E&&) = delete;  // a view needs a row-major matrix, such as castle::Matrix<T>

    operator ConstMatrixView<T>() const { return {data_, rows_, cols_, outer_stride_}; }

    T* data() const { return data_; }
    Index rows() const { return rows_; }
    Index cols() const { return cols_; }
    Index outer_stride() const { return outer_stride_; }

    /// The first element of row `i`; not checked.
    T* row(Index i) const { return data_ + i * outer_stride_; }

    /// The `count` rows from `first` on. Throws std::invalid_argument if they are not all there.
    MatrixView middle_rows(Index first, Index count) const {
        detail::check_slice("middle_rows", "the view", rows_, "rows", first, count);
        return {data_ + first * outer_stride_, count, cols_, outer_stride_};
    }
    /// The `count` columns from `first` on. Throws std::invalid_argument if they are not all there.
    MatrixView middle_cols(Index first, Index count) const {
        detail::check_slice("middle_cols", "the view", cols_, "columns", first, count);
        return {data_ + first, rows_, count, outer_stride_};
    }

    /// The same view for use in Eigen expressions.
    EigenMap map() const { return EigenMap(data_, rows_, cols_, Eigen::OuterStride<>(outer_stride_)); }

  private:
    T* data_ = nullptr;
    Index rows_ = 0;
    Index cols_ = 0;
    Index outer_stride_ = 0;
};

namespace detail {

// Every element from one scalar to another, of views of one shape.
template <Scalar From, Scalar To>
void copy_elements(const ConstMatrixView<From>& from, const MatrixView<To>& to) {
    for (Index i = 0; i < from.rows(); ++i) copy_numbers(from.row(i), from.cols(), to.row(i));
}

}  // namespace detail

}  // namespace CASTLE_ABI
}  // namespace castle
