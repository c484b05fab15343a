#include "load/response_parser.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace ekiben::load {
namespace {

struct Parsed {
  int status = 0;
  bool done = false, keep_alive = false;
  std::string body, error;
};

// The whole of `wire` in reads of `first` bytes and then the rest.
Parsed ParseCut(const std::string& wire, size_t first) {
  Parsed out;
  ResponseParser parser;
  for (std::string_view part : {std::string_view(wire).substr(0, first), std::string_view(wire).substr(first)}) {
    std::string_view body;
    while (true) {
      auto event = parser.Next(part, body);
      if (event == ResponseParser::Event::kBody) out.body += body;
      if (event == ResponseParser::Event::kError) out.error = parser.error();
      if (event == ResponseParser::Event::kDone) out.done = true;
      if (event != ResponseParser::Event::kBody && event != ResponseParser::Event::kHeaders) break;
    }
  }
  out.status = parser.status();
  out.keep_alive = parser.keep_alive();
  return out;
}

TEST(ResponseParser, ReadsAChunkedAnswerCutAtEveryByte) {
  const std::string wire =
      "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\ntransfer-ENCODING: chunked\r\n\r\n"
      "5\r\nhello\r\n7;ext=1\r\n, world\r\n0\r\nTrailer: x\r\n\r\n";
  for (size_t cut = 0; cut <= wire.size(); ++cut) {
    Parsed got = ParseCut(wire, cut);
    EXPECT_EQ(got.body, "hello, world") << cut;
    EXPECT_TRUE(got.done) << cut;
    EXPECT_TRUE(got.keep_alive) << cut;
    EXPECT_EQ(got.status, 200) << cut;
  }
}

TEST(ResponseParser, ReadsASizedAnswerCutAtEveryByteAndLeavesTheNextAlone) {
  const std::string wire = "HTTP/1.1 429 Too Many Requests\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbusyEXTRA";
  for (size_t cut = 0; cut <= wire.size(); ++cut) {
    Parsed got = ParseCut(wire, cut);
    EXPECT_EQ(got.body, "busy") << cut;
    EXPECT_EQ(got.status, 429) << cut;
    EXPECT_TRUE(got.done) << cut;
    EXPECT_FALSE(got.keep_alive) << cut;
  }
}

TEST(ResponseParser, KnowsWhenACloseIsTheEnd) {
  ResponseParser parser;
  std::string_view input = "HTTP/1.0 200 OK\r\n\r\nrest", body;
  EXPECT_FALSE(parser.CloseCompletes());
  EXPECT_EQ(parser.Next(input, body), ResponseParser::Event::kHeaders);
  EXPECT_EQ(parser.Next(input, body), ResponseParser::Event::kBody);
  EXPECT_EQ(body, "rest");
  EXPECT_TRUE(parser.CloseCompletes());
  EXPECT_FALSE(parser.keep_alive());
}

TEST(ResponseParser, SkipsInterimAnswersAndEndsAtOnceWithoutABody) {
  EXPECT_EQ(ParseCut("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", 9).status, 204);
  EXPECT_TRUE(ParseCut("HTTP/1.1 204 No Content\r\n\r\n", 3).done);
  EXPECT_TRUE(ParseCut("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 3).done);
}

TEST(ResponseParser, RefusesWhatIsNotHttp) {
  for (const char* wire : {"SSH-2.0-OpenSSH\r\n\r\n", "HTTP/2 200\r\n\r\n", "HTTP/1.1 abc no\r\n\r\n",
                           "HTTP/1.1 200 OK\r\nnocolon\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1x\r\n\r\n",
                           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
                           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFF\r\n"}) {
    for (size_t cut : {size_t{0}, size_t{5}, std::string_view(wire).size()}) {
      EXPECT_NE(ParseCut(wire, cut).error, "") << wire;
    }
  }
}

TEST(ResponseParser, BoundsHeaderLinesInLengthAndNumber) {
  EXPECT_NE(ParseCut("HTTP/1.1 200 OK\r\nA: " + std::string(100'000, 'x'), 10).error, "");
  std::string many = "HTTP/1.1 200 OK\r\n";
  for (int i = 0; i < 300; ++i) many += "A: b\r\n";
  EXPECT_NE(ParseCut(many, 10).error, "");
}

TEST(SseParser, CutsFieldsWhereverTheReadsEnd) {
  const std::string wire =
      ": comment\r\ndata: {\"a\":1}\r\n\r\nid: 7\ndata:two\n\nevent: error\ndata: bad\n\ndata: [DONE]\n\n";
  for (size_t cut = 0; cut <= wire.size(); ++cut) {
    SseParser parser;
    std::vector<std::string> got;
    std::vector<bool> errors;
    for (std::string_view part : {std::string_view(wire).substr(0, cut), std::string_view(wire).substr(cut)}) {
      std::string_view data;
      while (parser.Next(part, data)) {
        got.emplace_back(data);
        errors.push_back(parser.error_event());
      }
    }
    EXPECT_EQ(got, (std::vector<std::string>{"{\"a\":1}", "two", "bad", "[DONE]"})) << cut;
    EXPECT_EQ(errors, (std::vector<bool>{false, false, true, false})) << cut;
  }
}

TEST(SseParser, BoundsALine) {
  SseParser parser;
  std::string piece(1 << 20, 'x');
  std::string_view data;
  for (int i = 0; i < 20; ++i) {
    std::string_view input = piece;
    EXPECT_FALSE(parser.Next(input, data));
  }
  EXPECT_TRUE(parser.overflow());
}

}  // namespace
}  // namespace ekiben::load
