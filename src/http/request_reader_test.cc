#include "http/request_reader.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

namespace ekiben::http {
namespace {

using State = RequestReader::State;

RequestLimits SmallLimits() {
  RequestLimits limits;
  limits.header_bytes_max = 512;
  limits.header_count_max = 8;
  limits.body_bytes_max = 64;
  limits.chunk_count_max = 4;
  limits.chunk_line_bytes_max = 64;
  return limits;
}

State Feed(RequestReader& reader, std::string_view bytes) {
  reader.Append(bytes);
  return reader.Advance();
}

constexpr std::string_view kPost =
    "POST /v1/x?a=1 HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{\"a\":1}";
constexpr std::string_view kChunked =
    "POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: 1\r\n\r\n";

TEST(RequestReader, SplitAnywhere) {
  for (std::string_view whole : {kPost, kChunked}) {
    for (size_t cut = 1; cut < whole.size(); ++cut) {
      RequestReader reader(SmallLimits());
      State state = Feed(reader, whole.substr(0, cut));
      ASSERT_NE(state, State::kComplete) << cut;
      ASSERT_NE(state, State::kFailed) << cut << ": " << reader.failure().message;
      ASSERT_EQ(Feed(reader, whole.substr(cut)), State::kComplete) << cut;
      Request request = reader.Take();
      EXPECT_EQ(request.method, "POST");
      EXPECT_EQ(request.body, whole == kPost ? "{\"a\":1}" : "abcde");
    }
  }
}

TEST(RequestReader, OneByteAtATimeAndFields) {
  RequestReader reader(SmallLimits());
  for (size_t i = 0; i + 1 < kPost.size(); ++i) ASSERT_NE(Feed(reader, kPost.substr(i, 1)), State::kFailed);
  ASSERT_EQ(Feed(reader, kPost.substr(kPost.size() - 1)), State::kComplete);
  Request request = reader.Take();
  EXPECT_EQ(request.target, "/v1/x?a=1");
  EXPECT_EQ(request.path, "/v1/x");
  EXPECT_EQ(request.query, "a=1");
  EXPECT_EQ(request.Header("content-TYPE"), "application/json");
  EXPECT_EQ(request.Header("absent"), "");
  EXPECT_TRUE(request.keep_alive);
}

TEST(RequestReader, AnEmptyChunkedBodyByteByByte) {
  RequestReader reader(SmallLimits());
  Feed(reader, "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (char c : std::string("0\r\n\r")) EXPECT_EQ(Feed(reader, std::string_view(&c, 1)), State::kBody);
  EXPECT_EQ(Feed(reader, "\n"), State::kComplete);
  EXPECT_EQ(reader.Take().body, "");
}

TEST(RequestReader, PipelinedRequestsComeInOrder) {
  RequestReader reader(SmallLimits());
  std::string both = std::string(kPost) + std::string(kChunked) + "GET /last HTTP/1.0\r\n\r\n";
  ASSERT_EQ(Feed(reader, both), State::kComplete);
  EXPECT_EQ(reader.Take().path, "/v1/x");
  ASSERT_EQ(reader.Advance(), State::kComplete);
  Request second = reader.Take();
  EXPECT_EQ(second.path, "/c");
  EXPECT_EQ(second.Header("t"), "");  // a trailer adds no header
  ASSERT_EQ(reader.Advance(), State::kComplete);
  Request last = reader.Take();
  EXPECT_EQ(last.path, "/last");
  EXPECT_TRUE(last.http_1_0);
  EXPECT_FALSE(last.keep_alive);
  EXPECT_EQ(reader.Advance(), State::kIdle);
  EXPECT_EQ(reader.buffered(), 0u);
}

TEST(RequestReader, ContinueIsAskedForOnce) {
  RequestReader reader(SmallLimits());
  EXPECT_EQ(Feed(reader, "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"),
            State::kBody);
  EXPECT_TRUE(reader.TakeContinue());
  EXPECT_FALSE(reader.TakeContinue());
  EXPECT_EQ(Feed(reader, "ok"), State::kComplete);
}

TEST(RequestReader, NoContinueWhenTheBodyCame) {
  RequestReader reader(SmallLimits());
  EXPECT_EQ(Feed(reader, "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok"),
            State::kComplete);
  EXPECT_FALSE(reader.TakeContinue());
}

struct BadCase {
  const char* name;
  std::string bytes;
  int status;
  const char* word;  // in the message
};

TEST(RequestReader, RefusesWhatTwoParsersCouldReadDifferently) {
  const std::string get = "GET / HTTP/1.1\r\nHost: h\r\n";
  const std::string post = "POST / HTTP/1.1\r\nHost: h\r\n";
  std::string many;
  for (int i = 0; i < 9; ++i) many += fmt::format("a{}: b\r\n", i);
  std::string chunks = post + "Transfer-Encoding: chunked\r\n\r\n";
  std::vector<BadCase> cases = {
      {"length and chunked", post + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400, ""},
      {"chunked and length", post + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", 400, ""},
      {"equal lengths", post + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400, "more than once"},
      {"unequal lengths", post + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400, ""},
      {"length list", post + "Content-Length: 3, 3\r\n\r\nabc", 400, "digits"},
      {"signed length", post + "Content-Length: +3\r\n\r\nabc", 400, ""},
      {"hex length", post + "Content-Length: 0x3\r\n\r\nabc", 400, ""},
      {"huge length", post + "Content-Length: 99999999999999999999999\r\n\r\nabc", 400, ""},
      {"other coding", post + "Transfer-Encoding: gzip, chunked\r\n\r\n", 501, "chunked"},
      {"coding after chunked", post + "Transfer-Encoding: chunked, identity\r\n\r\n", 501, "chunked"},
      {"two codings", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400, ""},
      {"coding in 1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400, ""},
      {"folded line", get + "A: b\r\n c\r\n\r\n", 400, "folded"},
      {"bare LF", "GET / HTTP/1.1\nHost: h\n\n", 400, "LF"},
      {"bare CR", get + "A: b\rC: d\r\n\r\n", 400, "CR"},
      {"NUL", get + std::string("A: b\0c\r\n\r\n", 10), 400, "NUL"},
      {"space before colon", get + "A : b\r\n\r\n", 400, ""},
      {"no host", "GET / HTTP/1.1\r\nA: b\r\n\r\n", 400, "host"},
      {"two hosts", get + "Host: other\r\n\r\n", 400, "host"},
      {"no path", "GET x HTTP/1.1\r\nHost: h\r\n\r\n", 400, "target"},
      {"version", "GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505, "version"},
      {"many fields", get + many + "\r\n", 431, "limit"},
      {"long header", get + "A: " + std::string(600, 'x'), 431, "limit"},
      {"long body", post + "Content-Length: 65\r\n\r\n", 413, "limit"},
      {"long chunked body", chunks + "41\r\n" + std::string(65, 'x') + "\r\n0\r\n\r\n", 413, "limit"},
      {"sum of chunks", chunks + "28\r\n" + std::string(40, 'x') + "\r\n28\r\n" + std::string(40, 'x'), 413, "limit"},
      {"many chunks", chunks + "1\r\na\r\n1\r\na\r\n1\r\na\r\n1\r\na\r\n1\r\na\r\n0\r\n\r\n", 413, "chunks"},
      {"chunk size word", chunks + "zz\r\n\r\n", 400, ""},
      {"chunk size sign", chunks + "+1\r\na\r\n", 400, ""},
      {"chunk size 0x", chunks + "0x1\r\n\r\n", 400, ""},
      {"chunk size overflow", chunks + "11111111111111111\r\na\r\n", 400, ""},
      {"chunk without CRLF", chunks + "1\r\nabc\r\n0\r\n\r\n", 400, ""},
      {"endless chunk line", chunks + "1;" + std::string(100, 'x'), 400, ""},
      {"long chunk line", chunks + "1;" + std::string(100, 'x') + "\r\na\r\n0\r\n\r\n", 400, "limit"},
      {"long trailer", chunks + "0\r\nA: " + std::string(100, 'x') + "\r\n\r\n", 400, "limit"},
      {"endless trailer", chunks + "0\r\nA: " + std::string(100, 'x'), 400, ""},
  };
  for (const BadCase& bad : cases) {
    RequestReader reader(SmallLimits());
    State state = Feed(reader, bad.bytes);
    ASSERT_EQ(state, State::kFailed) << bad.name;
    EXPECT_EQ(reader.failure().status, bad.status) << bad.name << ": " << reader.failure().message;
    EXPECT_NE(reader.failure().message.find(bad.word), std::string::npos)
        << bad.name << ": " << reader.failure().message;
    // The same, byte by byte.
    RequestReader slow(SmallLimits());
    state = State::kIdle;
    for (size_t i = 0; i < bad.bytes.size() && state != State::kFailed; ++i) {
      state = Feed(slow, std::string_view(bad.bytes).substr(i, 1));
      ASSERT_NE(state, State::kComplete) << bad.name;
    }
    EXPECT_EQ(state, State::kFailed) << bad.name;
  }
}

}  // namespace
}  // namespace ekiben::http
