// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <charconv>
#include <cmath>
#include <filesystem>
#include <limits>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <fmt/core.h>
#include <boost/tokenizer.hpp>
#include <castle/types.hpp>

#include "bad_input.hpp"
#include "read_file.hpp"

/// The fields of a file's lines, which are separated by commas and may be in double quotes. Empty lines are left out.
class CsvFile {
  public:
    struct Line {
        castle::Index number;  // from 1
        std::vector<std::string> fields;
    };
    std::vector<Line> lines;

    explicit CsvFile(const std::filesystem::path& path) : path_(path.string()) {
        std::string text = read_file(path, std::numeric_limits<castle::Index>::max());
        // What some editors begin a file with.
        if (text.starts_with("\xEF\xBB\xBF")) text.erase(0, 3);
        std::istringstream stream(std::move(text));
        castle::Index number = 0;
        for (std::string line; std::getline(stream, line);) {
            ++number;
            if (line.ends_with('\r')) line.pop_back();
            if (line.empty()) continue;
            try {
                const boost::tokenizer<boost::escaped_list_separator<char>> fields(line);
                lines.push_back({number, {fields.begin(), fields.end()}});
            } catch (const boost::escaped_list_error&) {
                reject(number, "has a backslash that means nothing");
            }
        }
    }

    [[noreturn]] void reject(const std::string& why) const { throw BadInput(fmt::format("\"{}\" {}", path_, why)); }
    [[noreturn]] void reject(castle::Index line, const std::string& why) const {
        throw BadInput(fmt::format("\"{}\", line {}: {}", path_, line, why));
    }

    /// A field as a finite number; `what` names it.
    double number(const Line& line, std::size_t field, const std::string& what) const {
        const std::string& text = line.fields[field];
        const auto is_blank = [](char c) { return c == ' ' || c == '\t'; };
        const char *first = text.data(), *last = text.data() + text.size();
        while (first != last && is_blank(*first)) ++first;
        while (first != last && is_blank(last[-1])) --last;
        if (first == last) reject(line.number, fmt::format("{} is empty", what));
        double value = 0;
        const auto [end, failure] = std::from_chars(*first == '+' ? first + 1 : first, last, value);
        if (failure != std::errc() || end != last || !std::isfinite(value)) {
            reject(line.number, fmt::format("{} is \"{}\" but must be a finite number", what, text));
        }
        return value;
    }
    /// The same for a whole number of at least 0, and below `limit`.
    castle::Index index(const Line& line, std::size_t field, const std::string& what, castle::Index limit) const {
        const double value = number(line, field, what);
        if (value != std::floor(value) || value < 0 || value >= double(limit)) {
            reject(line.number, fmt::format("{} is {} but must be a whole number from 0 to {}", what,
                                            line.fields[field], limit - 1));
        }
        return castle::Index(value);
    }

  private:
    std::string path_;
};

/// What was measured, a row for every point in time.
struct Series {
    std::vector<std::string> names;  // of the variables
    std::vector<std::string> dates;  // empty where the file has none
    castle::Matrix<double> values;   // [times, variables]

    castle::Index times() const { return values.rows(); }
    castle::Index variables() const { return values.cols(); }
};

/// Reads a CSV of numbers under a line of names. A first column called "date" holds text. Throws BadInput, which names
/// the line and the column, for holes, text, infinities and lines that have too many fields or too few; and where there
/// is no variable or no row.
inline Series read_series(const std::filesystem::path& path) {
    const CsvFile file(path);
    if (file.lines.empty()) file.reject("is empty");
    Series series;
    series.names = file.lines.front().fields;
    const std::size_t columns = series.names.size();
    const bool has_dates = series.names.front() == "date";
    if (has_dates) series.names.erase(series.names.begin());
    if (series.names.empty()) file.reject("has no variables");
    std::set<std::string> different;
    for (const std::string& name : series.names) {
        if (!different.insert(name).second) file.reject(fmt::format("has two columns \"{}\"", name));
    }
    const std::size_t rows = file.lines.size() - 1;
    if (rows == 0) file.reject("has no rows");
    series.values.resize(castle::Index(rows), castle::Index(series.names.size()));
    for (std::size_t r = 0; r < rows; ++r) {
        const CsvFile::Line& line = file.lines[r + 1];
        if (line.fields.size() != columns) {
            file.reject(line.number,
                        fmt::format("has {} fields but the first line has {}", line.fields.size(), columns));
        }
        if (has_dates) series.dates.push_back(line.fields.front());
        for (std::size_t v = 0; v < series.names.size(); ++v) {
            series.values(castle::Index(r), castle::Index(v)) =
                file.number(line, v + (has_dates ? 1 : 0), fmt::format("\"{}\"", series.names[v]));
        }
    }
    return series;
}
