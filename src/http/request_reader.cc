#include "http/request_reader.h"

#include <fmt/format.h>

#include <boost/beast/core/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <functional>

#include "base/check.h"

namespace ekiben::http {

namespace beast = boost::beast;
using beast::http::field;

struct RequestReader::Parser {
  explicit Parser(const RequestLimits& limits)
      : on_chunk([this, &limits](uint64_t, beast::string_view, beast::error_code& code) {
          chunk_line = true;
          if (++chunks > limits.chunk_count_max) {
            too_many_chunks = true;
            code = beast::http::error::bad_chunk;
          }
        }) {
    impl.header_limit(static_cast<uint32_t>(limits.header_bytes_max + 2));
    impl.body_limit(limits.body_bytes_max);
    impl.eager(false);
    impl.on_chunk_header(on_chunk);
  }
  beast::http::request_parser<beast::http::string_body> impl;
  std::function<void(uint64_t, beast::string_view, beast::error_code&)> on_chunk;
  size_t chunks = 0;
  bool chunk_line = false;  // the last put took in a size line (the last one with the trailer)
  bool too_many_chunks = false;
};

RequestReader::RequestReader(const RequestLimits& limits) : limits_(limits) {}
RequestReader::~RequestReader() = default;

void RequestReader::Append(std::string_view bytes) {
  if (used_ == buffer_.size()) {
    buffer_.clear();
    scanned_ = used_ = 0;
  } else if (used_ > (size_t{64} << 10)) {
    buffer_.erase(0, used_);
    scanned_ -= std::min(scanned_, used_);
    used_ = 0;
  }
  buffer_.append(bytes);
}

RequestReader::State RequestReader::Advance() {
  if (state_ == State::kIdle || state_ == State::kHeader) state_ = AdvanceHeader();
  if (state_ == State::kBody) state_ = AdvanceBody();
  return state_;
}

Request RequestReader::Take() {
  CHECK(state_ == State::kComplete);
  state_ = State::kIdle;
  parser_.reset();
  wants_continue_ = false;
  empty_lines_ = 0;
  return std::move(request_);
}

bool RequestReader::TakeContinue() {
  return std::exchange(wants_continue_, false);
}

RequestReader::State RequestReader::Fail(int status, std::string message) {
  failure_.status = status;
  failure_.message = std::move(message);
  failure_.target = request_.target;
  return State::kFailed;
}

RequestReader::State RequestReader::AdvanceHeader() {
  // An empty line before a request is skipped, as RFC 9112 2.2 asks; more than a few are not a client's slip.
  for (; empty_lines_ < 4 && buffered() >= 2 && buffer_.compare(used_, 2, "\r\n") == 0; ++empty_lines_) used_ += 2;
  if (buffered() == 0) return State::kIdle;
  size_t from = std::max(used_, scanned_ > used_ + 3 ? scanned_ - 3 : used_);
  size_t end = buffer_.find("\r\n\r\n", from);
  size_t length = end == std::string::npos ? buffered() : end + 4 - used_;
  if (length > limits_.header_bytes_max)
    return Fail(431, fmt::format("header: more than the limit of {} bytes", limits_.header_bytes_max));
  scanned_ = used_ + length;
  std::string_view block(buffer_.data() + used_, length);
  if (!CheckHeaderBlock(block, from - used_)) return State::kFailed;
  if (end == std::string::npos) return State::kHeader;
  scanned_ = 0;

  parser_ = std::make_unique<Parser>(limits_);
  request_ = Request();
  beast::error_code code;
  parser_->impl.put(boost::asio::buffer(block.data(), block.size()), code);
  used_ += length;
  const auto& message = parser_->impl.get();
  request_.target = message.target();
  if (code == beast::http::error::body_limit)
    return Fail(413, fmt::format("body: more than the limit of {} bytes", limits_.body_bytes_max));
  if (code == beast::http::error::header_limit)
    return Fail(431, fmt::format("header: more than the limit of {} bytes", limits_.header_bytes_max));
  if (code == beast::http::error::bad_version) return Fail(505, "HTTP version: only HTTP/1.0 and HTTP/1.1 are served");
  if (code && code != beast::http::error::need_more) return Fail(400, "header: " + code.message());
  if (!parser_->impl.is_header_done()) return Fail(400, "header: not complete at its empty line");
  if (!CheckFields()) return State::kFailed;
  return State::kBody;
}

// Runs on what has arrived so far, so that garbage is refused before its header ends.
bool RequestReader::CheckHeaderBlock(std::string_view block, size_t begin) {
  for (size_t i = begin; i < block.size(); ++i) {
    char c = block[i];
    if (c == '\0') return Fail(400, "header: a NUL byte"), false;
    if (c == '\n' && (i == 0 || block[i - 1] != '\r')) return Fail(400, "header: a line ends in a bare LF"), false;
    if (c == '\r' && i + 1 < block.size() && block[i + 1] != '\n') return Fail(400, "header: a bare CR"), false;
    if (c == '\n' && i + 1 < block.size() && (block[i + 1] == ' ' || block[i + 1] == '\t'))
      return Fail(400, "header: a folded line; fold nothing, lines may be long"), false;
  }
  return true;
}

bool RequestReader::CheckFields() {
  const auto& message = parser_->impl.get();
  size_t count = 0, lengths = 0, encodings = 0, hosts = 0;
  for (const auto& entry : message) {
    ++count;
    if (entry.name() == field::content_length) {
      ++lengths;
      for (char c : entry.value())
        if (c < '0' || c > '9') return Fail(400, "content-length: digits only"), false;
    }
    if (entry.name() == field::transfer_encoding) {
      ++encodings;
      if (!EqualsIgnoreCase({entry.value().data(), entry.value().size()}, "chunked"))
        return Fail(501, "transfer-encoding: only 'chunked' is understood"), false;
    }
    if (entry.name() == field::host) ++hosts;
    request_.headers.emplace_back(std::string(entry.name_string()), std::string(entry.value()));
  }
  request_.http_1_0 = message.version() < 11;
  if (message.version() != 10 && message.version() != 11)
    return Fail(505, "HTTP version: only HTTP/1.0 and HTTP/1.1 are served"), false;
  if (count > limits_.header_count_max)
    return Fail(431, fmt::format("header: {} fields, the limit is {}", count, limits_.header_count_max)), false;
  if (lengths > 1) return Fail(400, "content-length: sent more than once"), false;
  if (lengths > 0 && encodings > 0) return Fail(400, "content-length beside transfer-encoding"), false;
  if (encodings > 0 && request_.http_1_0) return Fail(400, "transfer-encoding in HTTP/1.0"), false;
  if (hosts > 1 || (hosts == 0 && !request_.http_1_0))
    return Fail(400, fmt::format("host: sent {} times, once is wanted", hosts)), false;

  request_.method = std::string(message.method_string());
  request_.keep_alive = parser_->impl.keep_alive();
  std::string_view expect = request_.Header("expect");
  if (!expect.empty() && !EqualsIgnoreCase(expect, "100-continue"))
    return Fail(417, "expect: only '100-continue' is understood"), false;
  wants_continue_ = !request_.http_1_0 && !expect.empty() && !parser_->impl.is_done();
  return SplitTarget();
}

bool RequestReader::SplitTarget() {
  std::string_view target = request_.target;
  if (target.starts_with("http://") || target.starts_with("https://")) {
    size_t slash = target.find('/', target.find("//") + 2);
    target = slash == std::string_view::npos ? std::string_view("/") : target.substr(slash);
  }
  if (target.empty() || (target[0] != '/' && target != "*"))
    return Fail(400, "request target: a path that begins with '/' is wanted"), false;
  size_t question = target.find('?');
  request_.path = std::string(target.substr(0, question));
  if (question != std::string_view::npos) request_.query = std::string(target.substr(question + 1));
  return true;
}

RequestReader::State RequestReader::AdvanceBody() {
  auto& parser = parser_->impl;
  beast::error_code code;
  // A chunked body ends in "0 CRLF CRLF": with less than that in hand there is nothing to gain, and Beast asserts that
  // it never sees less of a last chunk that is also the first.
  const size_t enough = parser.chunked() ? 5 : 1;
  while (!parser.is_done() && buffered() >= enough) {
    // Not eager: one put takes in one size line or one stretch of data, so that a line's length is known.
    parser_->chunk_line = false;
    size_t used = parser.put(boost::asio::buffer(buffer_.data() + used_, buffered()), code);
    used_ += used;
    size_t line = code == beast::http::error::need_more ? buffered() : parser_->chunk_line ? used : 0;
    if (line > limits_.chunk_line_bytes_max)
      return Fail(
          400, fmt::format("chunk: a size line or trailer over the limit of {} bytes", limits_.chunk_line_bytes_max));
    if (code == beast::http::error::need_more) break;
    if (code) break;
    if (used == 0) break;
  }
  if (code && code != beast::http::error::need_more) {
    if (parser_->too_many_chunks)
      return Fail(413, fmt::format("body: more than the limit of {} chunks", limits_.chunk_count_max));
    if (code == beast::http::error::body_limit)
      return Fail(413, fmt::format("body: more than the limit of {} bytes", limits_.body_bytes_max));
    return Fail(400, "body: " + code.message());
  }
  if (buffered() > 0 || parser.is_done()) wants_continue_ = false;  // the client did not wait
  if (!parser.is_done()) return State::kBody;
  request_.body = std::move(parser.get().body());
  return State::kComplete;
}

}  // namespace ekiben::http
