// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include <castle/mask.hpp>
#include <castle/methods/confounders.hpp>

#include "../spurious_tokens/train.hpp"

// LeaF (arXiv:2506.07851) on the spurious token game: which tokens mislead a student, and distillation without them.
namespace distillation {

using castle::methods::TokenSpan;
using namespace spurious_tokens;

/// Whether one of the spans has the token.
inline bool any_has(const std::vector<TokenSpan>& spans, Index t) {
    return std::ranges::any_of(spans, [&](const TokenSpan& span) { return t >= span.begin && t < span.end; });
}

/// Causal attention without the tokens of these spans, which see themselves alone: no other sees them, and no lookahead
/// key absorbs them. Without positions that is the person without them.
inline castle::Mask without(const std::vector<TokenSpan>& spans) {
    return castle::masks::packed(length, length, [&](Index row, Index key) {
        return key == row || (key < row && !any_has(spans, key) && !any_has(spans, row));
    });
}

/// Which spans of each person are removed, each in an example of its own or all in one: the counterfactual examples.
using Counterfactuals = std::vector<std::vector<std::vector<TokenSpan>>>;

/// `g` of every person: of each token the norm of the gradient of the loss with respect to its embedding.
inline std::vector<std::vector<double>> gradient_norms(const Model& model, const std::vector<Person>& people) {
    std::vector<std::vector<double>> norms;
    Model::Tape tape(model);
    Weights ignored = model::zeros_like(model.weights);
    for_batches(people, [&](std::span<const Person> some) {
        Matrix d_logits = model.forward(some, tape);
        for (std::size_t p = 0; p < some.size(); ++p) {
            model::cross_entropy(d_logits.row(Index(p)), some[p].risk);
        }
        const Matrix d_embedded = model.backward(some, d_logits, false, tape, ignored);
        for (std::size_t p = 0; p < some.size(); ++p) {
            norms.push_back(castle::methods::gradient_norms(
                castle::ConstMatrixView<float>(d_embedded).middle_rows(Index(p) * length, length)));
        }
    });
    return norms;
}

/// The confounders' spans of every person, among the phrases.
inline std::vector<std::vector<TokenSpan>> confounding_spans(const Model& teacher, const Model& student,
                                                             const std::vector<Person>& people, double threshold) {
    const auto of_teacher = gradient_norms(teacher, people), of_student = gradient_norms(student, people);
    std::vector<std::vector<TokenSpan>> spans;
    constexpr std::size_t phrases = attributes.size();
    for (std::size_t p = 0; p < people.size(); ++p) {
        const auto difference = castle::methods::gradient_difference(std::span(of_teacher[p]).subspan(1, phrases),
                                                                     std::span(of_student[p]).subspan(1, phrases));
        spans.push_back(castle::methods::spans_of(castle::methods::confounders_by_threshold(difference, threshold)));
        for (TokenSpan& span : spans.back()) span = {span.begin + 1, span.end + 1};  // after BOS
    }
    return spans;
}

/// As many spans as those, of the same lengths, anywhere among the phrases.
inline std::vector<std::vector<TokenSpan>> random_spans(std::vector<std::vector<TokenSpan>> spans, std::uint64_t seed) {
    std::mt19937_64 bits(seed);
    for (auto& of_person : spans) {
        for (TokenSpan& span : of_person) {
            const Index size = span.end - span.begin;
            span.begin = 1 + model::below(Index(attributes.size()) - size + 1, bits);
            span.end = span.begin + size;
        }
    }
    return spans;
}

/// The phrases that follow a cause in training only.
inline std::vector<std::vector<TokenSpan>> spurious_spans(const std::vector<Person>& people) {
    std::vector<std::vector<TokenSpan>> spans;
    for (const Person& person : people) {
        std::vector<TokenSpan>& own = spans.emplace_back();
        for (Index t = 0; t < Index(attributes.size()); ++t) {
            if (person.phrases[std::size_t(t)].is_spurious()) own.push_back({t + 1, t + 2});
        }
    }
    return spans;
}

/// One counterfactual example a span, or one a person for all of its spans; those that the teacher answers right.
inline Counterfactuals kept(const Model& teacher, const std::vector<Person>& people,
                            const std::vector<std::vector<TokenSpan>>& spans, bool one_by_one) {
    Counterfactuals all(people.size());
    Model::Tape tape(teacher);
    for (std::size_t p = 0; p < people.size(); ++p) {
        std::vector<std::vector<TokenSpan>> candidates;
        for (const TokenSpan& span : spans[p]) {
            if (one_by_one || candidates.empty()) candidates.emplace_back();
            candidates.back().push_back(span);
        }
        if (candidates.empty()) continue;
        const std::vector<Person> same(candidates.size(), people[p]);
        std::vector<castle::Mask> masks;
        for (const auto& removed : candidates) masks.push_back(without(removed));
        const Matrix logits = teacher.forward(same, tape, false, masks);
        for (std::size_t i = 0; i < candidates.size(); ++i) {
            if (model::likeliest(logits.row(Index(i))) == people[p].risk) all[p].push_back(candidates[i]);
        }
    }
    return all;
}

/// KL(teacher || student) of one row; the student's logits become its gradient, softmax(student) - softmax(teacher).
template <class Row, class Other>
double divergence(Row&& student, const Other& teacher) {
    const auto probabilities = [](const auto& logits) {
        Eigen::RowVectorXf p = (logits.array() - logits.maxCoeff()).exp();
        return Eigen::RowVectorXf(p / p.sum());
    };
    const Eigen::RowVectorXf t = probabilities(teacher), s = probabilities(student);
    double sum = 0;
    for (Index i = 0; i < t.size(); ++i) {
        if (t[i] > 0) sum += double(t[i]) * (std::log(double(t[i])) - std::log(double(s[i])));
    }
    student = s - t;
    return sum;
}

/// Trains a student on what the teacher says of people and, with counterfactual examples, of one of each person's:
/// lambda KL(X) + (1 - lambda) KL(X without). Plain distillation has none.
inline void distil(Model& student, const Model& teacher, const std::vector<Person>& people,
                   const Counterfactuals& counterfactuals, double lambda, Index epochs, std::uint64_t seed) {
    std::mt19937_64 bits(seed + 77);
    Model::Tape of_teacher(teacher);
    train(student, Index(people.size()), epochs, seed,
          [&](std::span<const Index> numbers, Index, Model::Tape& tape, Weights& gradient) {
              const std::vector<Person> some = chosen(people, numbers);
              std::vector<castle::Mask> masks;
              std::vector<float> factors;
              for (const Index i : numbers) {
                  const auto& own =
                      counterfactuals.empty() ? std::vector<std::vector<TokenSpan>>() : counterfactuals[std::size_t(i)];
                  masks.push_back(own.empty() ? castle::Mask()
                                              : without(own[std::size_t(model::below(Index(own.size()), bits))]));
                  factors.push_back(own.empty() ? 0.0F : float(1 - lambda));
              }
              const auto learn = [&](const castle::Masks& seen, const auto& factor_of) {
                  const Matrix said = teacher.forward(some, of_teacher, false, seen);
                  Matrix d_logits = student.forward(some, tape, false, seen);
                  for (std::size_t p = 0; p < some.size(); ++p) {
                      divergence(d_logits.row(Index(p)), said.row(Index(p)));
                      d_logits.row(Index(p)) *= factor_of(p);
                  }
                  student.backward(some, d_logits, false, tape, gradient);
              };
              learn({}, [&](std::size_t p) { return 1 - factors[p]; });
              if (!counterfactuals.empty()) learn(masks, [&](std::size_t p) { return factors[p]; });
          });
}

/// People whose spurious attributes are drawn anew, but for a share of them: what a teacher that is not misled learns
/// from.
inline std::vector<Person> with_random_followers(std::vector<Person> people, double share, std::mt19937_64& bits) {
    for (Person& person : people) {
        if (double(bits() >> 11) * 0x1p-53 >= share) continue;
        for (Phrase& phrase : person.phrases) {
            if (phrase.is_spurious()) phrase.value = 1 + model::below(10, bits);
        }
    }
    return people;
}

}  // namespace distillation
