// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <exception>
#include <vector>

#include "matrices.hpp"

namespace model {

/// Runs f(part) for every part of a batch on all cores. What it throws comes out here.
template <class F>
void for_parts(Index parts, const F& f) {
    std::exception_ptr failure;
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic, 1)
#endif
    for (Index part = 0; part < parts; ++part) {
        try {
            f(part);
        } catch (...) {
#ifdef _OPENMP
#pragma omp critical
#endif
            failure = std::current_exception();
        }
    }
    if (failure) std::rethrow_exception(failure);
}

/// A gradient for every part of a batch. Parts are summed up in their order, so that the sum does not depend on the
/// number of threads.
template <class Weights>
class BatchGradient {
  public:
    BatchGradient(const Weights& weights, Index parts) : parts_(static_cast<std::size_t>(parts), zeros_like(weights)) {}

    Index size() const { return static_cast<Index>(parts_.size()); }
    Weights& part(Index i) { return parts_[static_cast<std::size_t>(i)]; }

    void set_zero() {
        for (Weights& part : parts_) {
            for (const NamedMatrix& m : part.matrices()) m.matrix->setZero();
        }
    }
    /// In place of the first part.
    Weights& sum() {
        for (std::size_t i = 1; i < parts_.size(); ++i) add(parts_.front(), parts_[i]);
        return parts_.front();
    }

  private:
    std::vector<Weights> parts_;
};

}  // namespace model
