#include "http/form.h"

#include <fmt/format.h>

#include <algorithm>

#include "http/request.h"

namespace ekiben::http {
namespace {

constexpr std::string_view kUrlEncoded = "application/x-www-form-urlencoded";
constexpr std::string_view kMultipart = "multipart/form-data";

std::string_view Trim(std::string_view text) {
  size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

std::string_view MediaOf(std::string_view content_type) {
  return Trim(content_type.substr(0, content_type.find(';')));
}

// The value of `name=` among the parameters behind a header's first ';', without quotes.
std::string_view ParameterOf(std::string_view header, std::string_view name) {
  size_t at = header.find(';');
  while (at != std::string_view::npos) {
    header.remove_prefix(at + 1);
    size_t equals = header.find('=');
    if (equals == std::string_view::npos) return {};
    std::string_view key = Trim(header.substr(0, equals));
    header.remove_prefix(equals + 1);
    size_t end = 0;
    std::string_view value;
    if (header.starts_with('"')) {
      end = header.find('"', 1);
      if (end == std::string_view::npos) return {};
      value = header.substr(1, end - 1);
      at = header.find(';', end);
    } else {
      at = header.find(';');
      value = Trim(header.substr(0, at));
    }
    if (EqualsIgnoreCase(key, name)) return value;
  }
  return {};
}

Error TooMany(size_t fields_max) {
  return {Code::kInvalid, fmt::format("the form has more than {} fields", fields_max)};
}

std::string Decode(std::string_view text) {
  std::string plain(text);
  std::replace(plain.begin(), plain.end(), '+', ' ');
  return DecodePercent(plain);
}

Result<FormFields> ParseUrlEncoded(std::string_view body, size_t fields_max) {
  FormFields out;
  while (!body.empty()) {
    size_t end = body.find('&');
    std::string_view pair = body.substr(0, end);
    body = end == std::string_view::npos ? std::string_view() : body.substr(end + 1);
    size_t equals = pair.find('=');
    if (equals == std::string_view::npos) continue;
    if (out.size() == fields_max) return TooMany(fields_max);
    out.emplace_back(Decode(pair.substr(0, equals)), Decode(pair.substr(equals + 1)));
  }
  return out;
}

// The name that a part's header gives it; empty: none.
std::string_view NameOf(std::string_view header) {
  while (!header.empty()) {
    size_t end = header.find("\r\n");
    std::string_view line = header.substr(0, end);
    header = end == std::string_view::npos ? std::string_view() : header.substr(end + 2);
    size_t colon = line.find(':');
    if (colon != std::string_view::npos && EqualsIgnoreCase(Trim(line.substr(0, colon)), "content-disposition"))
      return ParameterOf(line, "name");
  }
  return {};
}

Result<FormFields> ParseMultipart(std::string_view body, std::string_view boundary, size_t fields_max) {
  if (boundary.empty() || boundary.size() > 70)
    return Error(Code::kInvalid, "the form's content-type has no boundary of 1 to 70 characters");
  const std::string border = "\r\n--" + std::string(boundary);
  // The first border may stand at the very beginning, without a line before it.
  std::string_view first = std::string_view(border).substr(2);
  size_t at = body.starts_with(first) ? first.size() : std::string_view::npos;
  if (at == std::string_view::npos) {
    at = body.find(border);
    if (at == std::string_view::npos) return Error(Code::kInvalid, "the form does not hold its boundary");
    at += border.size();
  }
  FormFields out;
  while (!body.substr(at).starts_with("--")) {
    size_t begin = body.find("\r\n", at);
    size_t blank = begin == std::string_view::npos ? begin : body.find("\r\n\r\n", begin);
    size_t end = blank == std::string_view::npos ? blank : body.find(border, blank + 2);
    if (end == std::string_view::npos) return Error(Code::kInvalid, "a part of the form has no end");
    std::string_view name = blank > begin ? NameOf(body.substr(begin + 2, blank - begin - 2)) : std::string_view();
    if (name.empty()) return Error(Code::kInvalid, "a part of the form has no name");
    if (out.size() == fields_max) return TooMany(fields_max);
    size_t value = std::min(blank + 4, end);
    out.emplace_back(name, body.substr(value, end - value));
    at = end + border.size();
  }
  return out;
}

}  // namespace

bool IsForm(std::string_view content_type) {
  std::string_view media = MediaOf(content_type);
  return EqualsIgnoreCase(media, kUrlEncoded) || EqualsIgnoreCase(media, kMultipart);
}

Result<FormFields> ParseForm(std::string_view body, std::string_view content_type, size_t fields_max) {
  if (EqualsIgnoreCase(MediaOf(content_type), kUrlEncoded)) return ParseUrlEncoded(body, fields_max);
  return ParseMultipart(body, ParameterOf(content_type, "boundary"), fields_max);
}

}  // namespace ekiben::http
