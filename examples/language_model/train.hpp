// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <fmt/core.h>

#include "../model/adamw.hpp"
#include "../model/batch.hpp"
#include "../model/ranked_gradient.hpp"
#include "../support/ranks.hpp"
#include "checkpoint.hpp"
#include "corpus.hpp"

namespace language_model {

/// The mean loss a byte of some sequences, in nats. Ranks share the work.
inline double mean_loss(const Model& model, const std::vector<std::string_view>& sequences, const Ranks& ranks = {}) {
    std::vector<double> losses(sequences.size());
    const Ranks::Share own = ranks.share(Index(sequences.size()));
    model::for_parts(own.count, [&](Index i) {
        const std::size_t sequence = std::size_t(own.first + i);
        losses[sequence] = model.loss(sequences[sequence]);
    });
    ranks.gather(losses);
    double sum = 0;
    for (const double loss : losses) sum += loss;
    return sum / static_cast<double>(Index(sequences.size()) * model.config().context);
}

struct TrainOptions {
    std::string checkpoint;
    std::string log = {};    // a CSV of losses, if given
    Index save_every = 100;  // these are in steps
    Index report_every = 20;
    Index validate_every = 100;
    Index validation_sequences = 512;  // on the way; at the end it is all of them
};

/// Trains from where `training` is to its last step, saving on the way. The sequences of a step are dealt to ranks, all
/// of which then have the same weights, bitwise identical to those of one rank; the first one reports and saves.
class Trainer {
  public:
    Trainer(Training& training, const Corpus& corpus, const TrainOptions& options, const Ranks& ranks = {})
        : training_(training),
          corpus_(corpus),
          options_(options),
          ranks_(ranks),
          gradient_(ranks, training.model.weights, training.schedule.batch) {
        for (Index i = 0; i < gradient_.own().count; ++i) tapes_.push_back(training.model.make_tape());
        if (!ranks.is_first()) options_.log.clear();
        if (options_.log.empty()) return;
        log_.open(options.log, std::ios::app);
        std::error_code unknown;
        const bool has_lines = std::filesystem::file_size(options.log, unknown) > 0;
        if (!unknown && has_lines && training.step() == 0) {
            throw BadInput(fmt::format("the log \"{}\" is there already", options.log));
        }
        // Also nothing, since a log that cannot be written had better show now.
        write(has_lines ? "" : "step,training_loss,validation_loss,training_seconds\n");
    }

    void run() {
        const Index steps = training_.schedule.steps, first = training_.step();
        const auto begin = Clock::now();
        double seconds = 0, loss_since = 0;  // of training alone; since the last report
        Index steps_since = 0;
        while (training_.step() < steps) {
            const auto start = Clock::now();
            loss_since += step();
            ++steps_since;
            seconds += since(start);
            const Index now = training_.step();
            const bool last = now == steps, saves = last || now % options_.save_every == 0;
            std::optional<double> validation;
            if (last) {
                validation = mean_loss(training_.model, corpus_.validation_sequences(all), ranks_);
            } else if (now % options_.validate_every == 0) {
                validation =
                    mean_loss(training_.model, corpus_.validation_sequences(options_.validation_sequences), ranks_);
            }
            // A training that is resumed has to say what one without a break would have said.
            if (saves || validation || now % options_.report_every == 0) {
                const double loss = loss_since / static_cast<double>(steps_since);
                const double done = static_cast<double>(now - first);
                report(loss, validation, seconds / done, since(begin) / done);
                write(fmt::format("{},{:.6f},{},{:.3f}\n", now, loss,
                                  validation ? fmt::format("{:.6f}", *validation) : "", seconds));
                loss_since = 0;
                steps_since = 0;
            }
            if (saves) save_on_first_rank();
        }
    }

    /// One step; the mean loss of its bytes. Throws BadInput, and changes nothing, if the training has diverged.
    double step() {
        const Schedule& schedule = training_.schedule;
        const Index next = training_.step() + 1;
        const std::vector<std::string_view> batch = corpus_.batch(schedule.batch, schedule.seed, next);
        const double count = static_cast<double>(schedule.batch * training_.model.config().context);
        std::vector<double> losses(batch.size());
        gradient_.set_zero();
        model::for_parts(gradient_.own().count, [&](Index i) {
            const std::size_t sequence = std::size_t(gradient_.own().first + i);
            losses[sequence] = training_.model.learn(batch[sequence], static_cast<float>(1 / count),
                                                     tapes_[std::size_t(i)], gradient_.part(i));
        });
        ranks_.gather(losses);
        Weights& gradient = gradient_.sum();
        if (!std::isfinite(model::clip(gradient.matrices(), 1.0))) {
            throw BadInput(fmt::format("the gradient of step {} is not finite; try a lower --learning_rate", next));
        }
        training_.optimizer.step(training_.model.weights, gradient, schedule.rate(next), {});
        training_.model.update();
        double sum = 0;
        for (const double loss : losses) sum += loss;
        return sum / count;
    }

  private:
    using Clock = std::chrono::steady_clock;

    static double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

    void report(double loss, std::optional<double> validation, double step_seconds, double whole_seconds) const {
        if (!ranks_.is_first()) return;
        const Schedule& schedule = training_.schedule;
        const Index now = training_.step();
        const double tokens = static_cast<double>(schedule.batch * training_.model.config().context);
        const Index left = static_cast<Index>(whole_seconds * static_cast<double>(schedule.steps - now));
        fmt::print("step {:>5} of {}   loss {:.4f}   perplexity {:7.3f}   {:>6.0f} tokens/s   {}:{:02} left{}\n", now,
                   schedule.steps, loss, std::exp(loss), tokens / step_seconds, left / 60, left % 60,
                   validation ? fmt::format("   validation {:.4f}, {:.3f}", *validation, std::exp(*validation)) : "");
        std::fflush(stdout);
    }

    void save_on_first_rank() {
        // Ranks that round differently, by other instructions, have drifted apart.
        if (ranks_.size() > 1) {
            ranks_.expect_same(fmt::format("the model after step {}", training_.step()), fingerprint(training_));
        }
        if (ranks_.is_first()) save(options_.checkpoint, training_);
    }

    void write(const std::string& line) {
        if (options_.log.empty()) return;
        log_ << line;
        log_.flush();
        if (!log_) throw BadInput(fmt::format("the log \"{}\" could not be written", options_.log));
    }

    Training& training_;
    const Corpus& corpus_;
    TrainOptions options_;
    Ranks ranks_;
    model::RankedGradient<Weights> gradient_;
    std::vector<Tape> tapes_;
    std::ofstream log_;
};

}  // namespace language_model
