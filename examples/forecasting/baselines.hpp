// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <vector>

#include <Eigen/Cholesky>

#include "../model/batch.hpp"
#include "data.hpp"

// What an attention has to beat.
namespace forecasting {

/// The value before the window, again and again.
inline Forecasts forecast_last_value(const Data& data, const Part& part, Index windows, Index longest) {
    return make_forecasts(data, windows, longest,
                          [&](Index w, Index v, auto row) { row.setConstant(data.values(v, part.first + w - 1)); });
}

/// The last `period` values, again and again.
inline Forecasts forecast_last_period(const Data& data, const Part& part, Index windows, Index longest, Index period) {
    return make_forecasts(data, windows, longest, [&](Index w, Index v, auto row) {
        const Index first = part.first + w - period;
        for (Index k = 0; k < row.size(); ++k) row(k) = data.values(v, first + k % period);
    });
}

/// A linear map, the same for all variables, from the last `context` values to the points after them, both less the
/// last value. With `A` the rows of the training part's windows and `B` what comes after them, it minimises
/// `|A M - B|^2 + lambda |M|^2`.
class Ridge {
  public:
    using MatrixXd = castle::Matrix<double>;

    Ridge(const Data& data, Index context, Index longest)
        : context_(context),
          longest_(longest),
          squares_(MatrixXd::Zero(context, context)),
          products_(MatrixXd::Zero(context, longest)) {
        const Index windows = Part{context, data.training().count - context}.windows(longest);
        std::vector<MatrixXd> squares(std::size_t(data.variables())), products = squares;
        model::for_parts(data.variables(), [&](Index v) {
            MatrixXd& square = squares[std::size_t(v)];
            MatrixXd& product = products[std::size_t(v)];
            square = MatrixXd::Zero(context, context);
            product = MatrixXd::Zero(context, longest);
            for (Index first = 0; first < windows; first += rows_at_once) {
                const Index count = std::min(rows_at_once, windows - first);
                MatrixXd before(count, context), after(count, longest);
                for (Index i = 0; i < count; ++i) {
                    const Index origin = context + first + i;
                    before.row(i) = inputs(data, v, origin);
                    after.row(i) = data.values.row(v).segment(origin, longest).cast<double>().array() -
                                   double(data.values(v, origin - 1));
                }
                square.noalias() += before.transpose() * before;
                product.noalias() += before.transpose() * after;
            }
        });
        for (std::size_t v = 0; v < squares.size(); ++v) {
            squares_ += squares[v];
            products_ += products[v];
        }
    }

    void solve(double lambda) {
        const MatrixXd regular = squares_ + lambda * MatrixXd::Identity(context_, context_);
        map_ = regular.llt().solve(products_);
    }
    /// `[context, longest]`
    const MatrixXd& map() const { return map_; }

    Forecasts forecast(const Data& data, const Part& part, Index windows) const {
        Forecasts all(windows * data.variables(), longest_);
        model::for_parts((windows + rows_at_once - 1) / rows_at_once, [&](Index chunk) {
            const Index first = chunk * rows_at_once, count = std::min(rows_at_once, windows - first);
            MatrixXd before(count * data.variables(), context_);
            for (Index r = 0; r < before.rows(); ++r) {
                before.row(r) = inputs(data, r % data.variables(), part.first + first + r / data.variables());
            }
            const MatrixXd after = before * map_;
            for (Index r = 0; r < before.rows(); ++r) {
                const Index origin = part.first + first + r / data.variables();
                all.row(first * data.variables() + r) =
                    (after.row(r).array() + double(data.values(r % data.variables(), origin - 1))).cast<float>();
            }
        });
        return all;
    }

  private:
    static constexpr Index rows_at_once = 256;

    Eigen::RowVectorXd inputs(const Data& data, Index v, Index origin) const {
        return data.values.row(v).segment(origin - context_, context_).cast<double>().array() -
               double(data.values(v, origin - 1));
    }

    Index context_, longest_;
    MatrixXd squares_, products_;  // A^T A, A^T B
    MatrixXd map_;
};

}  // namespace forecasting
