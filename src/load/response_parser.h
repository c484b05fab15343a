// HTTP/1.1 responses and server-sent events, a piece at a time, wherever the network cut the bytes. Body bytes are
// handed out as views into the caller's buffer; nothing is allocated once a connection has seen its longest line.
// Only what a client of streaming APIs needs: status line, Content-Length, chunked and until-close bodies, keep-alive
// (RFC 9112 sections 4, 6, 7.1; the SSE line format of the HTML standard, section 9.2).
// Thread: plain values, one connection each.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace ekiben::load {

class ResponseParser {
 public:
  enum class Event : uint8_t {
    kNeedMore,  // `input` is used up
    kHeaders,   // status() and the framing are known
    kBody,      // `body` holds a part of the body
    kDone,      // the answer is complete; call Reset before the next one
    kError,     // not HTTP/1.x, or over a limit; error() says what. The connection is of no more use.
  };
  static constexpr size_t kLineMax = 16 << 10;     // one header line
  static constexpr int kHeadersMax = 200;          // header lines
  static constexpr uint64_t kChunkMax = 1u << 30;  // bytes of one chunk

  void Reset();
  // Consumes a part of `input` and says what it was. Call until kNeedMore, kDone or kError.
  Event Next(std::string_view& input, std::string_view& body);
  // The peer closed: true when that is the proper end of an until-close body.
  bool CloseCompletes() const { return state_ == State::kUntilClose; }

  int status() const { return status_; }
  bool keep_alive() const { return keep_alive_; }
  bool started() const { return started_; }
  // After kBody: the HTTP chunk (or the sized body) that it belongs to has no more bytes.
  bool piece_complete() const { return left_ == 0; }
  const char* error() const { return error_; }

 private:
  enum class State : uint8_t {
    kStatusLine,
    kHeader,
    kSized,
    kUntilClose,
    kChunkSize,
    kChunk,
    kChunkEnd,
    kTrailer,
    kDone,
    kError
  };
  bool TakeLine(std::string_view& input, std::string_view& line);
  Event OnLine(std::string_view line);
  Event OnHeadersEnd();
  bool ParseStatusLine(std::string_view line);
  bool ParseHeader(std::string_view line);
  bool ParseChunkSize(std::string_view line);
  Event Fail(const char* why);

  State state_ = State::kStatusLine;
  bool started_ = false, keep_alive_ = true, chunked_ = false, has_length_ = false;
  int status_ = 0, headers_ = 0;
  uint64_t left_ = 0;  // of the sized body or of the chunk
  std::string carry_;  // a line cut by the end of a read
  bool carry_used_ = false;
  const char* error_ = "";
};

// Cuts an event stream into its `data:` fields. Comments, ids and blank lines are passed over; an `event: error` line
// marks the next data.
class SseParser {
 public:
  static constexpr size_t kLineMax = 16 << 20;

  void Reset();
  // True: `data` holds one field's value (valid until the next call). False: `input` is used up, or overflow().
  bool Next(std::string_view& input, std::string_view& data);
  bool error_event() const { return error_event_; }
  bool overflow() const { return overflow_; }

 private:
  std::string carry_;
  bool carry_used_ = false, error_event_ = false, overflow_ = false;
};

}  // namespace ekiben::load
