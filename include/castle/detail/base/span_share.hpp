// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include <castle/detail/base/layout.hpp>

namespace castle::base {

// The spans of a sequence that one of several ranks holds: they are dealt round, span s to rank s mod ranks. By default
// there is one rank, with all of them. What a rank holds of panels and spans has places without gaps, in their order.
struct SpanShare {
    Index rank = 0;
    Index ranks = 1;

    [[gnu::always_inline]] bool is_whole() const { return ranks == 1; }
    [[gnu::always_inline]] bool has_span(Index s) const { return is_whole() || s % ranks == rank; }
    [[gnu::always_inline]] bool has_panel(Index p) const { return has_span(p / span_panels); }

    // Spans of the share before span s, which is the place of span s if it is one of them; and panels.
    [[gnu::always_inline]] Index spans_before(Index s) const { return is_whole() ? s : (s + ranks - 1 - rank) / ranks; }
    [[gnu::always_inline]] Index panels_before(Index p) const {
        if (is_whole()) return p;
        const Index s = p / span_panels;
        return spans_before(s) * span_panels + (has_span(s) ? p % span_panels : 0);
    }

    // The span at a place, and the panel.
    [[gnu::always_inline]] Index span_at(Index place) const { return place * ranks + rank; }
    [[gnu::always_inline]] Index panel_at(Index place) const {
        return is_whole() ? place : span_at(place / span_panels) * span_panels + place % span_panels;
    }

    // The most that a share has of so many spans or panels, one after the other.
    [[gnu::always_inline]] Index most_spans(Index spans) const { return ceil_div_within(spans, ranks); }
    [[gnu::always_inline]] Index most_panels(Index panels) const {
        const Index round = span_panels * ranks;
        return panels / round * span_panels + (std::min)(panels % round, span_panels);
    }

  private:
    // Without overflow where x has no limit.
    [[gnu::always_inline]] static Index ceil_div_within(Index x, Index y) { return x / y + (x % y != 0 ? 1 : 0); }
};

}  // namespace castle::base
