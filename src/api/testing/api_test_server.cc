// A server without a model, for the client-library tests in tests/conformance: answers repeat the prompt, and a few
// prompts make it do what a model does only by chance (docs in tests/conformance/README.md).
//   api_test_server [--port N] [--turn_us N] [--max_concurrency N] [--first_byte_timeout_ms N] [--api_key KEY]
// Prints "listening on PORT" and drains on SIGTERM.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <thread>

#include "api/testing/test_server.h"

namespace {

using ekiben::Request;
using ekiben::TokenId;

bool PromptHas(const Request& request, std::string_view word) {
  std::string text;
  for (TokenId token : request.prompt)
    if (token < 256) text.push_back(static_cast<char>(token));
  return text.find(word) != std::string::npos;
}

// Letters drawn from (seed, sequence, position) when sampling, the prompt again when greedy.
TokenId NextToken(const Request& request, int32_t index, int32_t position) {
  if (PromptHas(request, "EMPTY") || (PromptHas(request, "SHORT") && position >= 5)) return -1;
  if (PromptHas(request, "SLOW")) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  if (request.sampling.greedy()) return ekiben::serve::testing::EchoToken(request, index, position);
  uint64_t x = request.sampling.seed + 0x9E3779B97F4A7C15u * static_cast<uint64_t>(index * 65'537 + position + 1);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  return static_cast<TokenId>('a' + (x >> 33) % 26);
}

}  // namespace

int main(int argc, char** argv) {
  ekiben::api::testing::TestServerOptions options;
  options.http.host = "127.0.0.1";
  options.http.port = 0;
  int64_t turn_us = 200, first_byte_timeout_ms = 0;
  std::string api_key;
  CLI::App cli{"A server without a model, for client-library tests"};
  cli.add_option("--port", options.http.port);
  cli.add_option("--turn_us", turn_us);
  cli.add_option("--max_concurrency", options.app.max_concurrency);
  cli.add_option("--first_byte_timeout_ms", first_byte_timeout_ms);
  cli.add_option("--io_threads", options.http.io_threads);
  cli.add_option("--api_key", api_key);
  CLI11_PARSE(cli, argc, argv);
  options.executor.turn_time = std::chrono::microseconds(turn_us);
  options.executor.max_queue_size = 256;
  options.executor.next_token = NextToken;
  options.app.first_byte_timeout = std::chrono::milliseconds(first_byte_timeout_ms);
  options.app.web_page = "<!doctype html><title>test</title>";
  if (!api_key.empty()) options.app.api_keys = {api_key};

  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  auto server = ekiben::api::testing::TestServer::Start(options);
  if (!server.ok()) {
    fmt::print(stderr, "{}\n", server.error().message());
    return 2;
  }
  fmt::print("listening on {}\n", (*server)->port());
  std::fflush(stdout);
  int signal = 0;
  sigwait(&signals, &signal);
  bool whole = (*server)->app->Drain(std::chrono::seconds(10));
  fmt::print("{}\n", whole ? "drained" : "drained, some streams were cut");
  return 0;
}
