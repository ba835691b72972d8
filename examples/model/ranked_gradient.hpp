// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "../support/ranks.hpp"
#include "batch.hpp"
#include "matrices.hpp"

namespace model {

/// The gradient of a batch whose parts are dealt to ranks. Each has gradients of its own parts alone; the sum is that
/// of BatchGradient, part after part in their order, and bitwise identical on any number of ranks.
///
/// A range of the elements at a time: each rank gets its slice of the range from every part, adds them up, and all
/// gather the sums. A rank with n parts sends about n + 1 times the gradient's bytes, in messages of some MiB.
template <class Weights>
class RankedGradient {
  public:
    RankedGradient(const Ranks& ranks, const Weights& weights, Index parts)
        : ranks_(ranks),
          parts_(parts),
          own_(ranks.share(parts)),
          // A rank without parts needs a place for the sum.
          gradient_(weights, std::max<Index>(own_.count, 1)),
          elements_(parameters(weights)) {
        if (ranks.size() == 1) return;
        constexpr Index most_received = Index(1) << 20;
        const Index size = ranks.size();
        const Index slice = std::min((elements_ + size - 1) / size, most_received / std::max(parts, size));
        range_ = std::max<Index>(slice, 1) * size;
        out_.resize(std::size_t(own_.count * range_));
        in_.resize(std::size_t(parts * (range_ / size)));
        sums_.resize(std::size_t(range_));
        for (std::vector<int>* counts : {&out_counts_, &in_counts_, &sum_counts_}) counts->resize(std::size_t(size));
    }

    /// Which parts are this rank's.
    Ranks::Share own() const { return own_; }
    /// That of part own().first + i.
    Weights& part(Index i) { return gradient_.part(i); }
    void set_zero() { gradient_.set_zero(); }

    /// On every rank, in place of its first part.
    Weights& sum() {
        if (ranks_.size() == 1) return gradient_.sum();
        std::vector<NamedMatrices> own;
        for (Index i = 0; i < own_.count; ++i) own.push_back(part(i).matrices());
        const NamedMatrices sum = part(0).matrices();
        ranks_.agree();
        for (Index first = 0; first < elements_; first += range_) {
            add_range(own, sum, first, std::min(range_, elements_ - first));
        }
        return part(0);
    }

  private:
    void add_range(const std::vector<NamedMatrices>& own, const NamedMatrices& sum, Index first, Index count) {
        const Ranks::Share own_slice = ranks_.share(count);
        float* out = out_.data();
        for (int r = 0; r < ranks_.size(); ++r) {
            const Ranks::Share slice = ranks_.share(count, r);
            for (const NamedMatrices& matrices : own) {
                for_elements(matrices, first + slice.first, slice.count,
                             [&](const float* elements, Index n) { out = std::copy_n(elements, n, out); });
            }
            out_counts_[std::size_t(r)] = int(own_.count * slice.count);
            in_counts_[std::size_t(r)] = int(ranks_.share(parts_, r).count * own_slice.count);
            sum_counts_[std::size_t(r)] = int(slice.count);
        }
        ranks_.messages().exchange(out_.data(), out_counts_, in_.data(), in_counts_);

        // A row for every part; ranks have them in their order.
        const Eigen::Map<const Matrix> slices(in_.data(), parts_, own_slice.count);
        Eigen::Map<Eigen::RowVectorXf> own_sum(sums_.data() + own_slice.first, own_slice.count);
        own_sum = slices.row(0);
        for (Index i = 1; i < parts_; ++i) own_sum += slices.row(i);
        ranks_.messages().gather(sums_.data(), sum_counts_);

        const float* next = sums_.data();
        for_elements(sum, first, count, [&](float* elements, Index n) {
            std::copy_n(next, n, elements);
            next += n;
        });
    }

    Ranks ranks_;
    Index parts_;
    Ranks::Share own_;
    BatchGradient<Weights> gradient_;
    Index elements_;
    Index range_ = 0;  // how many are summed up at a time, by all ranks together
    std::vector<float> out_, in_, sums_;
    std::vector<int> out_counts_, in_counts_, sum_counts_;
};

}  // namespace model
