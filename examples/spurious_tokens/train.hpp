// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <optional>
#include <random>
#include <span>
#include <vector>

#include "../model/descent.hpp"
#include "../model/schedule.hpp"
#include "game.hpp"
#include "model.hpp"

namespace spurious_tokens {

struct Data {
    std::vector<Person> training;
    std::vector<Person> validation;  // a tenth of the training data, for whoever wants to choose
    std::vector<Person> in_distribution;
    std::vector<Person> out_of_distribution;
};

/// Splits the last tenth of the training data off.
inline void split_validation(Data& data) {
    const std::size_t kept = data.training.size() - data.training.size() / 10;
    data.validation.assign(data.training.begin() + std::ptrdiff_t(kept), data.training.end());
    data.training.resize(kept);
}

struct Accuracies {
    double validation = 0;
    double in_distribution = 0;
    double out_of_distribution = 0;
    double mass = 0;  // of the answer's attention on the causes, of the validation data
};

inline constexpr Index batch = 50;
inline constexpr double peak_rate = 3e-3;
inline constexpr double warm_up = 0.05;  // of the steps

inline double learning_rate(Index step, Index steps) {
    return model::warm_cosine(peak_rate, warm_up * double(steps), double(step), double(steps));
}

/// Calls f(some) for the people, a batch at a time.
template <class F>
void for_batches(const std::vector<Person>& people, const F& f) {
    for (std::size_t first = 0; first < people.size(); first += std::size_t(batch)) {
        f(std::span(people).subspan(first, std::min(std::size_t(batch), people.size() - first)));
    }
}

/// The part of these people whose risk the model tells.
inline double accuracy(const Model& model, const std::vector<Person>& people, double* mass = nullptr) {
    Model::Tape tape(model);
    Index right = 0;
    double sum = 0;
    for_batches(people, [&](std::span<const Person> some) {
        const Matrix logits = model.forward(some, tape, mass != nullptr);
        for (std::size_t p = 0; p < some.size(); ++p) {
            right += model::likeliest(logits.row(Index(p))) == some[p].risk ? 1 : 0;
            for (const auto& block : tape.blocks) {
                if (mass == nullptr) break;
                sum += double(block.mass.row(Index(p) * length + answer_row).mean()) / double(tape.blocks.size());
            }
        }
    });
    if (mass != nullptr) *mass = sum / double(people.size());
    return double(right) / double(people.size());
}

/// Trains a model in the calling thread: learn(people, epoch, tape, gradient) adds the gradient of the loss of some
/// people, given by their numbers.
template <class Learn>
void train(Model& model, Index people, Index epochs, std::uint64_t seed, const Learn& learn) {
    std::mt19937_64 bits(seed);
    model::Descent descent(model);
    Model::Tape tape(model);
    std::vector<Index> order(std::size_t(people), 0);
    std::iota(order.begin(), order.end(), Index(0));
    const Index steps = epochs * ((people + batch - 1) / batch);
    Index step = 0;
    for (Index epoch = 0; epoch < epochs; ++epoch) {
        for (std::size_t i = order.size() - 1; i > 0; --i) {
            std::swap(order[i], order[std::size_t(model::below(Index(i) + 1, bits))]);
        }
        for (std::size_t first = 0; first < order.size(); first += std::size_t(batch)) {
            const std::size_t count = std::min(std::size_t(batch), order.size() - first);
            descent.step(Index(count), learning_rate(++step, steps), [&](Weights& gradient) {
                learn(std::span<const Index>(order).subspan(first, count), epoch, tape, gradient);
            });
        }
    }
}

/// Those of the people with these numbers.
inline std::vector<Person> chosen(const std::vector<Person>& people, std::span<const Index> numbers) {
    std::vector<Person> some;
    for (const Index i : numbers) some.push_back(people[std::size_t(i)]);
    return some;
}

/// By cross-entropy and, if there is one, the loss on the attention.
inline void train(Model& model, const std::vector<Person>& people, const std::optional<Tuning>& tuning, Index epochs,
                  std::uint64_t seed) {
    train(model, Index(people.size()), epochs, seed,
          [&](std::span<const Index> numbers, Index epoch, Model::Tape& tape, Weights& gradient) {
              const double weight = tuning ? tuning->weight * std::exp(-tuning->decay * double(epoch)) : 0;
              model.learn(chosen(people, numbers), tuning, weight, tape, gradient);
          });
}

inline Accuracies accuracies(const Model& model, const Data& data) {
    Accuracies all;
    all.validation = accuracy(model, data.validation, &all.mass);
    all.in_distribution = accuracy(model, data.in_distribution);
    all.out_of_distribution = accuracy(model, data.out_of_distribution);
    return all;
}

}  // namespace spurious_tokens
