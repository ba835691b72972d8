// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <span>
#include <string_view>
#include <vector>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/base/span_share.hpp>
#include <castle/detail/forward/group_scratch.hpp>
#include <castle/detail/forward/group_steps.hpp>
#include <castle/detail/forward/group_views.hpp>
#include <castle/detail/forward/pieces.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/detail/state/sequences.hpp>
#include <castle/executor.hpp>
#include <castle/input.hpp>
#include <castle/mask.hpp>

// What is behind every form: new tokens onto the states of some sequences.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The masks of a call's sequences, and those of the keys on which mass is asked for, if it is.
struct CallMasks {
    Masks seen = {};
    Masks mass_over = {};
    Index cross_keys = -1;  // keys of the only sequence, from nothing, where they are those of another one
};

// Rows that lie one after the other in the call and in the step's input.
struct RowRun {
    Index call_row;
    Index row;
    Index count;
    Index position;  // of the first of them, where they belong to one sequence
};

// The rows of a call as one step has them: those of sequence i begin at position(i) of it.
template <class Position>
class WholeCall {
  public:
    WholeCall(std::span<const Index> counts, const Position& position) : counts_(counts), position_(position) {}

    Index rows() const {
        Index rows = 0;
        for (const Index count : counts_) rows += count;
        return rows;
    }
    template <class F>
    void for_runs(const F& f) const {
        f(RowRun{.call_row = 0, .row = 0, .count = rows(), .position = 0});
    }
    template <class F>
    void for_sequences(const F& f) const {
        Index row = 0;
        for (Index i = 0; i < Index(counts_.size()); ++i) {
            const Index count = counts_[std::size_t(i)];
            if (count > 0) f(RowRun{.call_row = row, .row = row, .count = count, .position = position_(i)});
            row += count;
        }
    }

  private:
    std::span<const Index> counts_;
    Position position_;
};

// The tokens that one call appends to some sequences: counts[i] rows onto sequence i, the rows of one sequence after
// those of the other. All ways of appending tokens are this one.
//
// Work goes in steps. A step takes one group of tokens of each of some neighbouring sequences, so that short ones run
// together; a long one takes a step for every group. The constructor makes room in the states and for scratch, and is
// the only part that throws; no token has changed then, though some states may have more capacity.
//
// The sequences are of one shape.
template <Scalar T>
class AppendTransaction {
    using C = Compute<T>;

  public:
    // With `together` sequences share their steps without threads too, for the sake of what else is done with a step's
    // rows. Scratch is taken from `memory`, which grows where it is too small. With one token for each sequence none is
    // needed.
    AppendTransaction(const Sequences<T>& sequences, std::span<const Index> counts, const CallMasks& masks,
                      bool together, AlignedBuffer<C>& memory, const Executor& executor)
        : sequences_(sequences),
          counts_(counts),
          masks_(masks),
          executor_(executor),
          // Otherwise one sequence after the other: many do not fit the processor's caches, and would be fetched anew
          // for every step.
          rows_together_(executor || together ? batch_rows : 1) {
        Index row = 0;
        for (Index i = 0; i < Index(counts.size()); ++i) {
            SequenceState<T>& one = sequences[i];
            const MaskRule* rule = rule_of(i);
            one.work() = {.call_row = row,
                          .before = one.size(),
                          .after = one.size() + tokens(i),
                          .keys = is_cross() ? masks_.cross_keys : one.size() + tokens(i),
                          .rule = rule,
                          .mass_over = masks_.mass_over[i]};
            if (tokens(i) > 0) one.make_room((std::max)(one.work().after, one.work().keys), rule != nullptr);
            one.work().looks_ahead = looks_ahead(i);
            looks_ahead_ = looks_ahead_ || one.work().looks_ahead;
            row += tokens(i);
        }
        Index scratch = 0;
        for_batches([&](Index first, Index end) { scratch = (std::max)(scratch, place_scratch(first, end, nullptr)); });
        if (scratch > memory.size()) memory = AlignedBuffer<C>(scratch);
        memory_ = memory.data();
    }

    // Whether no sequence gets more than one token.
    bool is_one_each() const {
        return std::all_of(counts_.begin(), counts_.end(), [](Index count) { return count <= 1; });
    }

    // Whether rows of a sequence may see keys after their group. All rows of the call are to have their keys before the
    // first is attended then.
    bool looks_ahead() const { return looks_ahead_; }

    // All rows of the call.
    auto whole() const {
        return WholeCall(counts_, [this](Index i) { return work(i).before; });
    }

    // The most rows that one step has.
    Index most_rows() const {
        Index most = 0;
        for_batches([&](Index first, Index end) {
            Index rows = 0;
            for (Index i = first; i < end; ++i) rows += (std::min)(tokens(i), group_size);
            most = (std::max)(most, rows);
        });
        return most;
    }

    // Calls run_step(step) for every step, in order, and counts the new tokens in. Rows of the step's input and output
    // are numbered as in the call or, if `packed`, from 0 in each step.
    class Step;
    template <class F>
    void for_steps(bool packed, const F& run_step) {
        for_batches([&](Index first, Index end) {
            place_scratch(first, end, memory_);
            for (Index i = first; i < end; ++i) {
                sequences_[i].start(work(i).after, tokens(i) > 0 && work(i).rule != nullptr);
            }
            for (bool begins = true;; begins = false) {
                Index row = 0;
                for (Index i = first; i < end; ++i) {
                    auto& w = work(i);
                    const Index from = begins ? w.before : w.group.end;
                    const HeadState<T>& any = sequences_[i].head(0);
                    w.group = Group::next(from, w.after, packed ? row : w.call_row + from - w.before, sight(i),
                                          any.is_masked() ? oldest_panel(any.window(), from) * panel_size : every_key);
                    row += w.group.rows();
                }
                if (row == 0) break;
                run_step(Step(*this, first, end));
            }
            for (Index i = first; i < end; ++i) sequences_[i].finish(work(i).after);
        });
    }

    class Step {
      public:
        // Calls f for runs of rows that lie side by side, with their place in the call and in the step.
        template <class F>
        void for_runs(const F& f) const {
            RowRun run{};
            for_sequences([&](const RowRun& next) {
                if (run.count > 0 && run.call_row + run.count == next.call_row && run.row + run.count == next.row) {
                    run.count += next.count;
                    return;
                }
                if (run.count > 0) f(run);
                run = next;
            });
            if (run.count > 0) f(run);
        }
        // The same for each sequence.
        template <class F>
        void for_sequences(const F& f) const {
            for (Index i = first_; i < end_; ++i) {
                const auto& w = append_.work(i);
                const Index rows = w.group.rows();
                if (rows == 0) continue;
                f(RowRun{.call_row = w.call_row + w.group.first - w.before,
                         .row = w.group.row,
                         .count = rows,
                         .position = w.group.first});
            }
        }
        Index rows() const {
            Index rows = 0;
            for (Index i = first_; i < end_; ++i) rows += append_.work(i).group.rows();
            return rows;
        }

        // The attention of the step's rows, of all heads.
        template <Scalar In, Scalar O>
        void attend(const Input<In>& input, const OutputRows<O>& output) const {
            append_.attend(first_, end_, rows(), input, output);
        }
        // The same up to the states of the rows over the spans that are here: finish(i, h, b) is called once those of
        // block b of the group and key-value head h of sequence i are in scratch(i, h), for all of them, on any thread
        // of the executor. Scratch of other heads may be the same memory.
        template <Scalar In, class Finish>
        void sweep(const Input<In>& input, const Finish& finish) const {
            append_.sweep(first_, end_, rows(), input, finish);
        }
        GroupScratch<T> scratch(Index i, Index h) const { return append_.scratch(i, h); }
        const Group& group(Index i) const { return append_.work(i).group; }
        Index first_sequence() const { return first_; }
        Index end_of_sequences() const { return end_; }

      private:
        friend AppendTransaction;

        Step(AppendTransaction& append, Index first, Index end) : append_(append), first_(first), end_(end) {}

        AppendTransaction& append_;
        Index first_;
        Index end_;
    };

  private:
    auto& work(Index i) const { return sequences_[i].work(); }
    Sight sight(Index i) const {
        return {
            .rule = work(i).rule, .keys = work(i).keys, .has_own_keys = !is_cross(), .mass_over = work(i).mass_over};
    }
    bool is_cross() const { return masks_.cross_keys >= 0; }
    const MaskRule* rule_of(Index i) {
        const SequenceState<T>& one = sequences_[i];
        const Mask* mask = masks_.seen[i];
        if (mask == nullptr || mask->rule() == nullptr) return one.window_mask().rule();
        return one.slides() ? narrowed_.emplace_back(*mask & one.window_mask()).rule() : mask->rule();
    }
    bool looks_ahead(Index i) const {
        const auto& w = work(i);
        if (is_cross()) return true;
        if (w.rule == nullptr || tokens(i) == 0) return false;
        for (Index first = w.before; first < w.after;) {
            const Index end = Group::next(first, w.after, 0).end;
            if (sight(i).reach(first, end).end > end) return true;
            first = end;
        }
        return false;
    }
    Index tokens(Index i) const { return counts_[std::size_t(i)]; }
    const AttentionKind& kind() const { return sequences_[0].kind(); }

    template <class F>
    void for_batches(const F& f) const {
        detail::for_batches(
            counts_, rows_together_, [](Index tokens) { return (std::min)(tokens, group_size); }, f);
    }

    // Gives each sequence its part of `memory` and returns how much all of them need. Without threads heads run one
    // after the other, and all in the same part, which the processor's caches hold.
    Index place_scratch(Index first, Index end, C* memory) const {
        Index used = 0;
        for (Index i = first; i < end; ++i) {
            auto& w = work(i);
            w.scratch = nullptr;
            if (tokens(i) <= 1) continue;
            const Index need = (executor_ ? kind().shape.kv_heads : 1) * head_scratch(i);
            if (memory != nullptr) w.scratch = executor_ ? memory + used : memory;
            used = executor_ ? used + need : (std::max)(used, need);
        }
        return used;
    }
    Index head_scratch(Index i) const {
        return GroupScratch<T>::elements(sequences_[i].head(0), (std::min)(tokens(i), group_size),
                                         (std::max)(work(i).after, work(i).keys));
    }

    GroupScratch<T> scratch(Index i, Index h) const {
        SequenceState<T>& one = sequences_[i];
        const auto& w = one.work();
        C* memory = w.scratch != nullptr && executor_ ? w.scratch + h * head_scratch(i) : w.scratch;
        return {one.head(h), w.group, memory, memory != nullptr ? nullptr : one.step_scratch(h)};
    }

    template <Scalar In, Scalar O>
    void attend(Index first, Index end, Index rows, const Input<In>& input, const OutputRows<O>& output) const {
        sweep(first, end, rows, input, [&](Index i, Index h, Index b) {
            finish_rows(sequences_[i].head(h), scratch(i, h), b, output.of_group(h, kind().group(), kind().shape.dv));
        });
    }

    template <Scalar In, class Finish>
    void sweep(Index first, Index end, Index rows, const Input<In>& input, const Finish& finish_block) const {
        const Shape& shape = kind().shape;
        const SpanShare& share = sequences_[first].head(0).share();
        const auto head = [&](Index i, Index h) -> HeadState<T>& { return sequences_[i].head(h); };
        // Of a sequence that looks ahead all keys of the call, before its first group.
        const auto blocks_ahead = [&](Index i) {
            const auto& w = work(i);
            if (!w.looks_ahead || w.group.rows() == 0 || w.group.first != w.before) return Index(0);
            return ceil_div(w.keys, block_size) - w.before / block_size;
        };
        const auto pack_ahead = [&](Index i, Index h, Index b) {
            const auto& w = work(i);
            const Index origin = (w.before / block_size + b) * block_size;
            const Index from = (std::max)(origin, w.before), to = (std::min)(origin + block_size, w.keys);
            pack_keys(head(i, h), from, to - from, views_of_group(shape, input, h, 0, input.causal.q.rows()),
                      w.group.row + from - w.before, /*is_ahead=*/true);
        };
        const auto pack = [&](Index i, Index h, Index b) {
            pack_block(head(i, h), scratch(i, h), b, views_of_group(shape, input, h, 0, input.causal.q.rows()));
        };
        // The spans of the group that are here.
        const auto spans_of = [&](Index i) {
            const Group& group = work(i).group;
            return share.spans_before(group.spans()) - share.spans_before(group.first_span());
        };
        const auto span_of = [&](Index i, Index k) {
            return share.span_at(share.spans_before(work(i).group.first_span()) + k);
        };
        const auto make_gates = [&](Index i, Index h, Index k) {
            sweep_gates(head(i, h), scratch(i, h), span_of(i, k));
        };
        const auto sweep = [&](Index i, Index h, Index k) { sweep_span(head(i, h), scratch(i, h), span_of(i, k)); };
        const auto finish = [&](Index i, Index h, Index b) {
            finish_block(i, h, b);
            if (b == work(i).group.blocks() - 1) keep_open_block(head(i, h), scratch(i, h));
        };
        const auto has_gates = [&](Index i) {
            return work(i).group.is_part_of_block() && sequences_[i].kind().has_lookahead();
        };
        // One head after the other finds its memory in the processor's caches from step to step.
        const auto run_head = [&](Index i, Index h) {
            const Group& group = work(i).group;
            for (Index b = 0; b < blocks_ahead(i); ++b) pack_ahead(i, h, b);
            for (Index b = 0; b < group.blocks(); ++b) pack(i, h, b);
            for (Index k = 0; has_gates(i) && k < spans_of(i); ++k) make_gates(i, h, k);
            for (Index k = 0; k < spans_of(i); ++k) sweep(i, h, k);
            for (Index b = 0; b < group.blocks(); ++b) finish(i, h, b);
        };
        if (!executor_) {
            for (Index i = first; i < end; ++i) {
                if (work(i).group.rows() == 0) continue;
                for (Index h = 0; h < shape.kv_heads; ++h) run_head(i, h);
            }
            return;
        }
        // A head with one block and one span runs all steps as one piece.
        const auto is_whole = [&](Index i) { return work(i).group.blocks() == 1 && spans_of(i) <= 1; };
        Index whole = 0, active = 0;
        for (Index i = first; i < end; ++i) {
            whole += is_whole(i) ? 1 : 0;
            active += work(i).group.rows() > 0 ? 1 : 0;
        }
        const auto pieces = [&](const auto& count) { return Pieces<T>(first, end, shape.kv_heads, sequences_, count); };
        const auto divided = [&](Index i, Index n) { return is_whole(i) ? 0 : n; };
        const Executor& light = executor_for_rows(executor_, rows);
        if (looks_ahead_) pieces([&](Index i) { return is_whole(i) ? 0 : blocks_ahead(i); }).run(executor_, pack_ahead);
        pieces([&](Index i) {
            return work(i).group.blocks();
        }).run(whole > 0 ? executor_ : light, [&](Index i, Index h, Index b) {
            if (is_whole(i)) {
                run_head(i, h);
            } else {
                pack(i, h, b);
            }
        });
        if (whole == active) return;
        pieces([&](Index i) { return has_gates(i) ? divided(i, spans_of(i)) : 0; }).run(executor_, make_gates);
        pieces([&](Index i) { return divided(i, spans_of(i)); }).run(executor_, sweep);
        pieces([&](Index i) { return divided(i, work(i).group.blocks()); }).run(light, finish);
    }

    Sequences<T> sequences_;
    std::span<const Index> counts_;
    CallMasks masks_;
    const Executor& executor_;
    Index rows_together_;
    std::vector<Mask> narrowed_;  // masks that are cut to the windows of caches
    bool looks_ahead_ = false;
    C* memory_ = nullptr;
};

// The mask for the next `rows` rows of a sequence; see check_sight in check/.
template <Scalar T>
void check_sight(std::string_view where, const SequenceState<T>& state, const Mask* mask, Index rows,
                 const Mask* mass_over) {
    const Index size = state.size();
    Mask narrowed;
    if (state.slides()) mask = &(narrowed = mask != nullptr ? *mask & state.window_mask() : state.window_mask());
    check_sight(where, mask, state.kind().terms.get(), size, size + rows, mass_over);
}

// Appends the tokens of `input` to the sequences, with the outputs to `out`; shapes have been checked. Sequences may
// keep their numbers in another scalar than that of the input and the output, which is one.
template <Scalar T, Scalar In>
void append(const Sequences<T>& sequences, std::span<const Index> counts, const CallMasks& masks,
            const Input<In>& input, const OutputRows<In>& output, const Executor& executor) {
    if (input.causal.q.rows() == 0) return;
    AlignedBuffer<Compute<T>> memory;
    AppendTransaction<T> transaction(sequences, counts, masks, /*together=*/false, memory, executor);
    transaction.for_steps(/*packed=*/false, [&](const auto& step) { step.attend(input, output); });
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
