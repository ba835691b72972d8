// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include <fmt/core.h>

/// A table as Markdown has it, so that documents can hold what programs print: the first column to the left, the others
/// to the right.
class Table {
  public:
    explicit Table(std::vector<std::string> heads) : rows_{std::move(heads)} {}

    void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }

    std::string text() const {
        std::vector<std::size_t> widths(rows_.front().size(), 3);
        for (const auto& row : rows_) {
            for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width(row[i]));
        }
        std::string text;
        for (std::size_t r = 0; r < rows_.size(); ++r) {
            text += line(rows_[r], widths);
            if (r > 0) continue;
            for (std::size_t i = 0; i < widths.size(); ++i) {
                text += "| " + std::string(widths[i] - 1, '-') + (i == 0 ? "- " : ": ");
            }
            text += "|\n";
        }
        return text;
    }
    void print() const { fmt::print("{}", text()); }

  private:
    // Of UTF-8: bytes that go on with a character have none.
    static std::size_t width(const std::string& cell) {
        return std::size_t(std::ranges::count_if(cell, [](unsigned char c) { return (c & 0xC0) != 0x80; }));
    }
    static std::string line(const std::vector<std::string>& row, const std::vector<std::size_t>& widths) {
        std::string line;
        for (std::size_t i = 0; i < row.size(); ++i) {
            const std::string space(widths[i] - width(row[i]), ' ');
            line += "| " + (i == 0 ? row[i] + space : space + row[i]) + " ";
        }
        return line + "|\n";
    }

    std::vector<std::vector<std::string>> rows_;
};
