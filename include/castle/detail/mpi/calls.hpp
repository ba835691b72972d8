// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>

#include <mpi.h>

#include <castle/detail/check/message.hpp>

// MPI's functions with errors as exceptions and counts in 64 bits.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

inline void check_mpi(std::string_view where, int result) {
    if (result == MPI_SUCCESS) return;
    char words[MPI_MAX_ERROR_STRING] = {};
    int length = 0;
    MPI_Error_string(result, words, &length);
    throw std::runtime_error(text("castle::", where, ": MPI reports ", std::string_view(words, std::size_t(length))));
}

// MPI counts in int.
inline int mpi_count(std::string_view where, Index count) {
    if (count > (std::numeric_limits<int>::max)()) {
        throw std::length_error(
            text("castle::", where, ": ", count, " elements are more than MPI takes in one exchange"));
    }
    return static_cast<int>(count);
}

// So many bytes as one element, while it lives.
class ElementType {
  public:
    explicit ElementType(std::string_view where, Index bytes) {
        check_mpi(where, MPI_Type_contiguous(mpi_count(where, bytes), MPI_BYTE, &type_));
        check_mpi(where, MPI_Type_commit(&type_));
    }
    ElementType(const ElementType&) = delete;
    ElementType& operator=(const ElementType&) = delete;
    ~ElementType() { MPI_Type_free(&type_); }

    operator MPI_Datatype() const { return type_; }

  private:
    MPI_Datatype type_ = MPI_DATATYPE_NULL;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
