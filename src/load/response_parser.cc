#include "load/response_parser.h"

#include <algorithm>
#include <charconv>

namespace ekiben::load {
namespace {

bool EqualsNoCase(std::string_view a, std::string_view lower) {
  return std::equal(a.begin(), a.end(), lower.begin(), lower.end(),
                    [](char x, char y) { return (x >= 'A' && x <= 'Z' ? x + ('a' - 'A') : x) == y; });
}

std::string_view Trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// True when the comma-separated list holds `token`.
bool ListHas(std::string_view list, std::string_view token) {
  while (!list.empty()) {
    size_t comma = std::min(list.find(','), list.size());
    if (EqualsNoCase(Trim(list.substr(0, comma)), token)) return true;
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return false;
}

}  // namespace

void ResponseParser::Reset() {
  state_ = State::kStatusLine;
  started_ = chunked_ = has_length_ = carry_used_ = false;
  keep_alive_ = true;
  status_ = headers_ = 0;
  left_ = 0;
  carry_.clear();
  error_ = "";
}

ResponseParser::Event ResponseParser::Fail(const char* why) {
  state_ = State::kError;
  error_ = why;
  return Event::kError;
}

// A whole line without its end, from `input` or joined with what the last read left over.
bool ResponseParser::TakeLine(std::string_view& input, std::string_view& line) {
  if (carry_used_) {
    carry_.clear();
    carry_used_ = false;
  }
  size_t newline = input.find('\n');
  if (newline == std::string_view::npos) {
    carry_.append(input);
    input = {};
    return false;
  }
  line = input.substr(0, newline);
  input.remove_prefix(newline + 1);
  if (!carry_.empty()) {
    carry_.append(line);
    line = carry_;
    carry_used_ = true;
  }
  if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
  return true;
}

ResponseParser::Event ResponseParser::Next(std::string_view& input, std::string_view& body) {
  while (true) {
    if (state_ == State::kDone) return Event::kDone;
    if (state_ == State::kError) return Event::kError;
    if (input.empty()) return Event::kNeedMore;
    started_ = true;
    if (state_ == State::kSized || state_ == State::kChunk || state_ == State::kUntilClose) {
      bool until_close = state_ == State::kUntilClose;
      auto take = until_close ? input.size() : static_cast<size_t>(std::min<uint64_t>(left_, input.size()));
      body = input.substr(0, take);
      input.remove_prefix(take);
      if (!until_close && (left_ -= take) == 0) state_ = state_ == State::kSized ? State::kDone : State::kChunkEnd;
      return Event::kBody;
    }
    std::string_view line;
    if (!TakeLine(input, line)) {
      if (carry_.size() > kLineMax) return Fail("a header line over 16 KiB");
      return Event::kNeedMore;
    }
    Event event = OnLine(line);
    if (event != Event::kNeedMore) return event;
  }
}

// kNeedMore here means: go on.
ResponseParser::Event ResponseParser::OnLine(std::string_view line) {
  switch (state_) {
    case State::kStatusLine:
      if (!ParseStatusLine(line)) return Fail("no HTTP/1.x status line");
      state_ = State::kHeader;
      return Event::kNeedMore;
    case State::kHeader:
      if (line.empty()) return OnHeadersEnd();
      if (++headers_ > kHeadersMax) return Fail("more than 200 header lines");
      if (!ParseHeader(line)) return Fail("a malformed header line");
      return Event::kNeedMore;
    case State::kChunkSize:
      if (!ParseChunkSize(line)) return Fail("a malformed chunk size");
      state_ = left_ == 0 ? State::kTrailer : State::kChunk;
      return Event::kNeedMore;
    case State::kChunkEnd:
      if (!line.empty()) return Fail("no line end after a chunk");
      state_ = State::kChunkSize;
      return Event::kNeedMore;
    default:  // kTrailer
      if (++headers_ > kHeadersMax) return Fail("more than 200 header lines");
      if (line.empty()) state_ = State::kDone;
      return Event::kNeedMore;
  }
}

ResponseParser::Event ResponseParser::OnHeadersEnd() {
  if (status_ >= 100 && status_ < 200) {  // an interim answer; the real one follows
    state_ = State::kStatusLine;
    return Event::kNeedMore;
  }
  if (status_ == 204 || status_ == 304) {
    state_ = State::kDone;
  } else if (chunked_) {
    state_ = State::kChunkSize;
  } else if (has_length_) {
    state_ = left_ == 0 ? State::kDone : State::kSized;
  } else {
    state_ = State::kUntilClose;
    keep_alive_ = false;
  }
  return Event::kHeaders;
}

bool ResponseParser::ParseStatusLine(std::string_view line) {
  if (line.size() < 12 || !line.starts_with("HTTP/1.") || line[8] != ' ') return false;
  keep_alive_ = line[7] != '0';
  auto [rest, error] = std::from_chars(line.data() + 9, line.data() + 12, status_);
  return error == std::errc() && rest == line.data() + 12 && status_ >= 100;
}

bool ResponseParser::ParseHeader(std::string_view line) {
  size_t colon = line.find(':');
  if (colon == std::string_view::npos || colon == 0) return false;
  std::string_view name = line.substr(0, colon), value = Trim(line.substr(colon + 1));
  if (EqualsNoCase(name, "content-length")) {
    auto [rest, error] = std::from_chars(value.data(), value.data() + value.size(), left_);
    has_length_ = true;
    return error == std::errc() && rest == value.data() + value.size();
  }
  if (EqualsNoCase(name, "transfer-encoding")) chunked_ = ListHas(value, "chunked");
  if (EqualsNoCase(name, "connection")) {
    if (ListHas(value, "close")) keep_alive_ = false;
    if (ListHas(value, "keep-alive")) keep_alive_ = true;
  }
  return true;
}

bool ResponseParser::ParseChunkSize(std::string_view line) {
  line = Trim(line.substr(0, line.find(';')));
  auto [rest, error] = std::from_chars(line.data(), line.data() + line.size(), left_, 16);
  return error == std::errc() && rest == line.data() + line.size() && left_ <= kChunkMax;
}

void SseParser::Reset() {
  carry_.clear();
  carry_used_ = error_event_ = overflow_ = false;
}

bool SseParser::Next(std::string_view& input, std::string_view& data) {
  while (!input.empty()) {
    if (carry_used_) {
      carry_.clear();
      carry_used_ = false;
    }
    size_t newline = input.find('\n');
    if (newline == std::string_view::npos) {
      if (carry_.size() + input.size() > kLineMax) {
        overflow_ = true;
        input = {};
        return false;
      }
      carry_.append(input);
      input = {};
      return false;
    }
    std::string_view line = input.substr(0, newline);
    input.remove_prefix(newline + 1);
    if (!carry_.empty()) {
      carry_.append(line);
      line = carry_;
      carry_used_ = true;
    }
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (line.empty()) error_event_ = false;
    if (line.starts_with("event:")) error_event_ = Trim(line.substr(6)) == "error";
    if (!line.starts_with("data:")) continue;
    data = line.substr(5);
    if (!data.empty() && data.front() == ' ') data.remove_prefix(1);
    return true;
  }
  return false;
}

}  // namespace ekiben::load
