// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>
#include <utility>

#include <castle/detail/check/checks.hpp>
#include <castle/detail/forward/append.hpp>
#include <castle/head_cache.hpp>
#include <castle/input.hpp>
#include <castle/options.hpp>

// The baseline: standard causal attention by the same kernels. To the bit it is CASTLE with a window of 0.
namespace castle {
inline namespace CASTLE_ABI {

/// What standard attention takes besides its input; as in Options.
struct CausalOptions {
    std::optional<double> scale = std::nullopt;  ///< `1 / sqrt(d)` unless given
    Executor executor = {};                      ///< the calling thread unless given
};

namespace detail {

inline Options without_lookahead(CausalOptions options) {
    return {.scale = options.scale, .lookahead_window = 0, .executor = std::move(options.executor)};
}

}  // namespace detail

/// The key-value cache of one head of standard causal attention; otherwise as UqKvCache.
template <Scalar T>
class KvCache : public HeadCache<T> {
  public:
    /// An empty cache for heads of `shape`. Throws std::invalid_argument if a size is below 1 or above 2^24,
    /// or the scale not finite.
    explicit KvCache(HeadShape shape, CausalOptions options = {})
        : HeadCache<T>("KvCache", 3, shape, detail::without_lookahead(std::move(options)), 0) {}

    KvCache(KvCache&&) = default;
    KvCache& operator=(KvCache&& other) noexcept {
        if (this != &other) HeadCache<T>::operator=(std::move(other));
        return *this;
    }
    ~KvCache() = default;

    /// As of UqKvCache.
    KvCache fork() const { return KvCache(this->fork_head()); }

    /// As of UqKvCache.
    static KvCache load(std::istream& in, Executor executor = {}) {
        return KvCache(HeadCache<T>::load(in, "KvCache::load", 3, std::move(executor), 0));
    }

  private:
    explicit KvCache(HeadCache<T> cache) : HeadCache<T>(std::move(cache)) {}
};

namespace detail {

template <Scalar T>
auto because_of(const KvCache<T>& cache, const Qkv<T>& head) {
    return [&] {
        return text("for ", head.q.rows(), " tokens (the rows of q) and a cache of d ", cache.shape().d, ", dv ",
                    cache.shape().dv);
    };
}

template <Scalar T>
void check_extend(const KvCache<T>& cache, const Qkv<T>& head) {
    check_qkv("extend", "", head, head.q.rows(), cache.shape(), because_of(cache, head));
}

}  // namespace detail

/// Puts the `m >= 0` tokens of `head` (`q, k` `[m, d]`, `v` `[m, dv]`) onto the cache and writes
/// `softmax(scale q_t K^T) V` over the tokens up to each of them to `out`, `[m, dv]`. Promises the same as `extend` of
/// a UqKvCache.
template <Scalar T>
void extend(KvCache<T>& cache, const std::type_identity_t<Qkv<T>>& head, std::type_identity_t<MatrixView<T>> out) {
    detail::check_extend(cache, head);
    detail::check_shape("extend", "", "out", out, head.q.rows(), cache.shape().dv, detail::because_of(cache, head));
    detail::extend_head(detail::CacheAccess::state(cache), HeadInput<T>{.causal = head}, out,
                        detail::CacheAccess::executor(cache));
}

/// As above, but allocates the outputs, `[m, dv]`, and returns them.
template <Scalar T>
Matrix<T> extend(KvCache<T>& cache, const std::type_identity_t<Qkv<T>>& head) {
    detail::check_extend(cache, head);
    Matrix<T> out(head.q.rows(), cache.shape().dv);
    extend(cache, head, out);
    return out;
}

/// Standard causal attention over a whole sequence: writes `softmax(scale q k^T + mask) v`, `[L, dv]`, to `out`.
/// `q, k` are `[L, d]`, `v` `[L, dv]`; `out` must not overlap them. Blocked: `O(L^2 d)` time, `O(L d)` memory. Throws
/// std::invalid_argument if shapes or options do not fit.
template <Scalar T>
void causal_attention(const Qkv<T>& head, std::type_identity_t<MatrixView<T>> out, const CausalOptions& options = {}) {
    const HeadShape shape = detail::checked_shape("causal_attention", head, detail::without_lookahead(options));
    detail::check_shape("causal_attention", "", "out", out, head.q.rows(), shape.dv, detail::because_of(head));
    KvCache<T> cache(shape, options);
    extend(cache, head, out);
}

/// As above; returns the outputs, `[L, dv]`.
template <Scalar T>
[[nodiscard]] Matrix<T> causal_attention(const Qkv<T>& head, const CausalOptions& options = {}) {
    const HeadShape shape = detail::checked_shape("causal_attention", head, detail::without_lookahead(options));
    Matrix<T> out(head.q.rows(), shape.dv);
    causal_attention(head, out, options);
    return out;
}

/// As above, from separate matrices (or views) of one scalar.
template <class Q, class K, class V, Scalar T = typename Q::value_type>
requires std::convertible_to<const Q&, ConstMatrixView<T>> && std::convertible_to<const K&, ConstMatrixView<T>> &&
    std::convertible_to<const V&, ConstMatrixView<T>>
[[nodiscard]] Matrix<T> causal_attention(const Q& q, const K& k, const V& v, const CausalOptions& options = {}) {
    return causal_attention(Qkv<T>{.q = q, .k = k, .v = v}, options);
}

// Instead of "no matching function", as at the views.
template <class Q, class K, class V, detail::ScalarOfColumnMajor<Q, K, V> T = typename Q::value_type,
          class Needed = detail::row_major_matrix>
void causal_attention(const Q&, const K&, const V&, const CausalOptions& = {}) = delete;

}  // namespace CASTLE_ABI
}  // namespace castle
