// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include <castle/detail/backward/backward_pass.hpp>
#include <castle/detail/forward/append.hpp>
#include <castle/detail/forward/group_views.hpp>
#include <castle/detail/forward/pieces.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/detail/state/sequence_state.hpp>
#include <castle/detail/state/sequences.hpp>
#include <castle/executor.hpp>
#include <castle/input.hpp>
#include <castle/mask.hpp>
#include <castle/output.hpp>
#include <castle/terms.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Some sequences from their forward to their backward pass: what the former leaves beside its output, and the memory
// that both work in. It keeps its memory from step to step.
template <Scalar T>
class TrainingRecord {
    using C = Compute<T>;

  public:
    explicit TrainingRecord(const AttentionKind& kind) : kind_(kind), terms_(SequenceState<T>::terms_of(kind)) {}

    const AttentionKind& kind() const { return kind_; }

    // Tokens of the forward pass that waits for its backward pass, and of each of its sequences.
    Index size() const { return size_; }
    std::span<const Index> counts() const { return counts_; }
    bool has_mass() const { return !mass_over_.empty(); }
    Index cross_keys() const { return cross_keys_; }
    // All rows of the call.
    auto whole() const {
        return WholeCall(counts(), [](Index) { return Index(0); });
    }

    // Other score terms of the same shapes. A forward pass that waits for its backward pass is no more.
    void set_terms(const AttentionKind& kind) {
        terms_ = SequenceState<T>::terms_of(kind);
        kind_ = kind;
        finish();
        for (auto& state : states_) state.set_kind(kind_, terms_);
    }

    Index bytes() const {
        Index bytes = (log_sum_exp_.size() + mass_.size() + memory_.size()) * Index(sizeof(C)) +
                      Index(last_bad_blocks_.size() * sizeof(LastBadBlocks)) +
                      Index((counts_.capacity() + places_.capacity() + order_.capacity()) * sizeof(Index));
        for (const auto& state : states_) bytes += state.bytes();
        return bytes;
    }

    // Before a forward pass of sequences of so many tokens: makes room in their states and for the backward pass. Where
    // it throws, the record holds no forward pass.
    void start(std::span<const Index> counts, const CallMasks& masks, const Executor& executor) {
        size_ = 0;
        counts_.assign(counts.begin(), counts.end());
        const auto keep = [](const Masks& from, std::vector<Mask>& to) {
            to.clear();
            for (Index i = 0; i < from.size(); ++i) to.push_back(*from[i]);
        };
        cross_keys_ = masks.cross_keys;
        keep(masks.seen, seen_);
        keep(masks.mass_over, mass_over_);
        place();
        Index tokens = 0;
        for (const Index count : counts) tokens += count;
        const Index sums = 2 * kind_.shape.heads * tokens;
        if (sums > log_sum_exp_.size()) log_sum_exp_ = AlignedBuffer<C>(sums);
        if (has_mass() && sums / 2 > mass_.size()) mass_ = AlignedBuffer<C>(sums / 2);
        reserve_backward(executor);
        size_ = tokens;
    }
    void finish() { size_ = 0; }

    // The forward pass, see AppendTransaction; outputs go with output(out). The constructor makes room for its scratch;
    // where that throws, there is no forward pass.
    class ForwardPass {
      public:
        ForwardPass(TrainingRecord& record, bool together, const Executor& executor)
            : states_(record),
              tokens_(std::exchange(record.size_, 0)),
              append_(Sequences<T>(states_), record.counts_, record.masks(), together, record.memory_, executor) {
            record.size_ = tokens_;
        }
        ForwardPass(const ForwardPass&) = delete;
        ForwardPass& operator=(const ForwardPass&) = delete;

        bool looks_ahead() const { return append_.looks_ahead(); }
        template <class F>
        void for_steps(const F& run_step) {
            append_.for_steps(/*packed=*/false, run_step);
        }

      private:
        struct States {
            TrainingRecord& record;
            explicit States(TrainingRecord& of) : record(of) {}
            SequenceState<T>& operator()(Index i) const { return record.state(i); }
        };

        States states_;
        Index tokens_;
        AppendTransaction<T> append_;
    };

    // Outputs of the forward pass, with what the backward pass needs of them.
    OutputRows<C> output(OutputRows<C> rows) {
        rows.log_sum_exp = {log_sum_exp_.data(), log_sum_exp_.data() + kind_.shape.heads * size_};
        rows.kept_mass = has_mass() ? mass_.data() : nullptr;
        rows.stride = size_;
        return rows;
    }

    // Makes room for a backward pass by this executor, if the forward pass has not.
    void reserve_backward(const Executor& executor) {
        Index elements = 0, panels = 0;
        for_batches(executor, [&](Index first, Index end) {
            const Parts all = place_parts(first, end, executor);
            elements = (std::max)(elements, all.elements);
            panels = (std::max)(panels, all.panels);
        });
        if (elements > memory_.size()) memory_ = AlignedBuffer<C>(elements);
        if (panels > Index(last_bad_blocks_.size())) last_bad_blocks_.resize(std::size_t(panels));
    }

    // The backward pass, for which there is room; the record is used up. `out` is the forward pass's output. Gradients
    // may go to where the input is: every element of it is read before.
    template <Scalar In>
    void backward(const Input<In>& input, ConstMatrixView<C> out, const OutputGradient<C>& d_output,
                  const GradientView<C>& gradient, const TermsGradientView<C>& d_terms, const Executor& executor) {
        const LogSumExp<C> log_sum_exp = output({}).log_sum_exp;
        for (const MatrixView<C>& g : {d_terms.factor, d_terms.bias, d_terms.sinks}) {
            if (g.rows() > 0) g.map().setZero();
        }
        Index row = 0;
        for (Index i = 0; i < sequences(); ++i) {
            state(i).work() = {.call_row = row};
            row += count(i);
        }
        // The pass of head h of sequence i, which f gets; parts of it may run at the same time.
        const auto with_pass = [&](Index i, Index h, const auto& f) {
            const auto& work = state(i).work();
            const Index heads = kind_.group(), first = work.call_row, rows = count(i);
            const Index cols = heads * kind_.shape.dv, place = executor ? h : 0;
            const auto rows_of_head = [&](const ConstMatrixView<C>& m) {
                return m.rows() > 0 ? view_of_group(m, h, heads, first, rows) : m;
            };
            const BackwardInput<T, In> own{.input = views_of_group(kind_.shape, input, h, first, rows),
                                           .out = view_of_group(out, h, cols, first, rows),
                                           .log_sum_exp = log_sum_exp.from(h * heads * size_ + first),
                                           .mass = has_mass() ? mass_.data() + h * heads * size_ + first : nullptr,
                                           .stride = size_,
                                           .d_output = {.out = view_of_group(d_output.out, h, cols, first, rows),
                                                        .log_sum_exp = rows_of_head(d_output.log_sum_exp),
                                                        .mass = rows_of_head(d_output.mass)},
                                           .gradient = views_of_group(kind_.shape, gradient, h, first, rows),
                                           .sight = sight(i)};
            BackwardPass<T, In> pass(
                state(i).head(h), own, memory_.data() + work.first_element + place * head_elements(i),
                last_bad_blocks_.data() + work.first_panel + place * BackwardPass<T>::panels(keys(i)));
            f(pass);
        };
        if (size_ > 0) {
            for_batches(executor, [&](Index first, Index end) {
                place_parts(first, end, executor);
                run_batch(first, end, with_pass, d_terms, executor);
            });
        }
        if (size_ == 0 && cross_keys_ > 0) {
            // No query has seen them.
            gradient.causal.k.map().setZero();
            gradient.causal.v.map().setZero();
        }
        finish();
    }

  private:
    Index sequences() const { return Index(counts_.size()); }
    SequenceState<T>& state(Index i) { return states_[std::size_t(places_[std::size_t(i)])]; }

    // Gives the longest sequence the first state, and so on, so that states need not grow where sequences of other
    // steps come in another order. Makes room in them.
    void place() {
        order_.resize(counts_.size());
        places_.resize(counts_.size());
        std::iota(order_.begin(), order_.end(), Index(0));
        std::sort(order_.begin(), order_.end(), [&](Index a, Index b) {
            const Index of_a = counts_[std::size_t(a)], of_b = counts_[std::size_t(b)];
            return of_a != of_b ? of_a > of_b : a < b;
        });
        for (std::size_t place = 0; place < order_.size(); ++place) {
            places_[std::size_t(order_[place])] = Index(place);
            if (place == states_.size()) states_.emplace_back(kind_, Keeping{.every_query = true}, terms_);
            states_[place].clear();
            states_[place].make_room((std::max)(counts_[std::size_t(order_[place])], cross_keys_));
        }
    }

    CallMasks masks() const { return {.seen = seen_, .mass_over = mass_over_, .cross_keys = cross_keys_}; }
    Sight sight(Index i) const {
        const auto of = [&](const std::vector<Mask>& masks) {
            return masks.empty() ? nullptr : &masks[masks.size() == 1 ? 0 : std::size_t(i)];
        };
        const Mask* seen = of(seen_);
        return {.rule = seen != nullptr ? seen->rule() : nullptr,
                .keys = keys(i),
                .has_own_keys = cross_keys_ < 0,
                .mass_over = of(mass_over_)};
    }

    // Adds the gradients of the terms that a pass of key-value head h has, of the query heads of its group.
    template <class Pass>
    void add_terms(const Pass& pass, Index h, const TermsGradientView<C>& d_terms) const {
        if (!d_terms.has_any()) return;
        for (Index i = 0; i < kind_.group(); ++i) {
            const Index head = h * kind_.group() + i;
            const auto add = [&](const MatrixView<C>& to, const C* from) {
                if (to.rows() == 0) return;
                C* row = to.row(to.rows() == 1 ? 0 : head);
                for (Index k = 0; k < (std::min)(to.cols(), pass.distances()); ++k) row[k] += from[k];
            };
            add(d_terms.factor, pass.d_factor(i));
            add(d_terms.bias, pass.d_bias(i));
            if (d_terms.sinks.rows() > 0) d_terms.sinks.row(0)[head] += pass.d_sink(i);
        }
    }

    Index count(Index i) const { return counts_[std::size_t(i)]; }
    // Of the keys that its rows see or, in cross-attention, of the other sequence's.
    Index keys(Index i) const { return cross_keys_ >= 0 ? cross_keys_ : count(i); }
    Index head_elements(Index i) { return BackwardPass<T>::elements(state(i).head(0), count(i), keys(i)); }

    // With threads some sequences go together, otherwise one after the other.
    template <class F>
    void for_batches(const Executor& executor, const F& f) const {
        detail::for_batches(
            counts_, executor ? batch_rows : 1, [](Index tokens) { return tokens; }, f);
    }

    // Gives each sequence of a batch its part of the memory and returns how much all of them need. Without threads
    // heads run one after the other, and all in the same part.
    struct Parts {
        Index elements = 0;
        Index panels = 0;
    };
    Parts place_parts(Index first, Index end, const Executor& executor) {
        Parts used;
        for (Index i = first; i < end; ++i) {
            const Index heads = executor ? kind_.shape.kv_heads : 1;
            state(i).work().first_element = used.elements;
            state(i).work().first_panel = used.panels;
            used.elements += heads * head_elements(i);
            used.panels += heads * BackwardPass<T>::panels(keys(i));
        }
        return used;
    }

    template <class WithPass>
    void run_batch(Index first, Index end, const WithPass& with_pass, const TermsGradientView<C>& d_terms,
                   const Executor& executor) {
        if (!executor) {
            for (Index i = first; i < end; ++i) {
                for (Index h = 0; count(i) > 0 && h < kind_.shape.kv_heads; ++h) {
                    with_pass(i, h, [&](auto& pass) {
                        pass.run();
                        add_terms(pass, h, d_terms);
                    });
                }
            }
        } else {
            run_pieces(first, end, with_pass, d_terms, executor);
        }
    }

    // The same with threads. Not to take stack without.
    template <class WithPass>
    EIGEN_DONT_INLINE void run_pieces(Index first, Index end, const WithPass& with_pass,
                                      const TermsGradientView<C>& d_terms, const Executor& executor) {
        const auto one = [&](Index i) -> SequenceState<T>& { return state(i); };
        // f(pass, i, k) for the k-th of n(i) parts of every head of sequence i.
        const auto for_parts = [&](const auto& n, const auto& f) {
            Pieces<T>(first, end, kind_.shape.kv_heads, Sequences<T>(one), n)
                .run(executor, [&](Index i, Index h, Index k) { with_pass(i, h, [&](auto& pass) { f(pass, i, k); }); });
        };
        const auto panels = [&](Index i) { return BackwardPass<T>::panels(keys(i)); };
        Index most = 0;
        for (Index i = first; i < end; ++i) most = (std::max)(most, BackwardPass<T>::groups(count(i)));
        const bool has_terms = kind_.terms != nullptr;
        const auto once = [](Index) { return Index(1); };
        if (has_terms) for_parts(once, [](auto& pass, Index, Index) { pass.start_terms(); });
        for_parts(panels, [](auto& pass, Index, Index p) { pass.start_panel(p); });
        for (Index g = most - 1; g >= 0; --g) {
            const auto group = [&](Index i) {
                return g < BackwardPass<T>::groups(count(i)) ? BackwardPass<T>::group(count(i), g, sight(i)) : Group();
            };
            const auto blocks = [&](Index i) { return group(i).blocks(); };
            const auto spans = [&](Index i) { return group(i).spans() - group(i).first_span(); };
            for_parts(blocks, [&](auto& pass, Index i, Index b) { pass.pack_block(group(i), b); });
            for_parts(spans, [&](auto& pass, Index i, Index k) {
                const Group own = group(i);
                pass.sweep_span(own, own.first_span() + k);
            });
            if (has_terms) for_parts(once, [&](auto& pass, Index i, Index) { pass.add_terms(group(i)); });
            for_parts(blocks, [&](auto& pass, Index i, Index b) { pass.finish_block(group(i), b); });
        }
        for_parts(panels, [](auto& pass, Index, Index p) { pass.finish_panel(p); });
        for (Index i = first; d_terms.has_any() && i < end; ++i) {
            for (Index h = 0; h < kind_.shape.kv_heads; ++h) {
                with_pass(i, h, [&](auto& pass) { add_terms(pass, h, d_terms); });
            }
        }
    }

    AttentionKind kind_;
    typename SequenceState<T>::Terms terms_;
    SelfMovable<std::vector<SequenceState<T>>> states_{std::vector<SequenceState<T>>()};
    SelfMovable<std::vector<Index>> counts_{std::vector<Index>()};
    SelfMovable<std::vector<Index>> places_{std::vector<Index>()};  // sequence i has state places_[i]
    SelfMovable<std::vector<Index>> order_{std::vector<Index>()};
    SelfMovable<std::vector<Mask>> seen_{std::vector<Mask>()};
    SelfMovable<std::vector<Mask>> mass_over_{std::vector<Mask>()};
    AlignedBuffer<C> log_sum_exp_;
    AlignedBuffer<C> mass_;
    AlignedBuffer<C> memory_;
    SelfMovable<std::vector<LastBadBlocks>> last_bad_blocks_{std::vector<LastBadBlocks>()};
    Index cross_keys_ = -1;  // see CallMasks
    Index size_ = 0;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
