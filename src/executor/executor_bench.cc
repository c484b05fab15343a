// What the executor itself costs: its own time in a step (all but its calls into the backend) at several batch sizes,
// on the fake backend, with users that each ask again when they have their 512 tokens.
//
//   executor_bench OUT.json
//
// The sink counts tokens and does nothing else; postprocessing is another thread's. One line a batch size.
#include <fmt/format.h>

#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "backend/fake_backend.h"
#include "base/clock.h"
#include "device/cpu_features.h"
#include "executor/executor.h"

namespace ekiben {
namespace {

constexpr int32_t kVocab = 128256, kOutputTokens = 512, kTokensPerBlock = 64, kBlocksEach = 16, kTurns = 4000;

class Ends final : public TokenSink {
 public:
  void OnToken(const TokenEvent& event) override { count += event.reason != FinishReason::kNone; }
  int32_t count = 0;
};

std::string Measure(int32_t batch, int32_t tickets) {
  FakeBackendOptions options;
  options.vocab_size = kVocab;
  options.max_batch_size = batch;
  options.tickets_max = tickets;
  options.tokens_per_block = kTokensPerBlock;
  options.blocks = batch * kBlocksEach + kBlocksEach;
  options.knows_step_costs = true;
  options.step_time = std::chrono::milliseconds(5);  // said, not taken: without a clock steps take no time
  options.step_time_per_token = std::chrono::microseconds(20);
  FakeBackend backend(options);
  const Clock& clock = SystemClock::Get();
  auto executor = *Executor::Create(backend, {}, clock);
  Ends ends;
  std::mt19937 random(1);
  int32_t sent = 0;
  for (int32_t turn = 0; turn < kTurns; ++turn) {
    for (; sent - ends.count < batch; ++sent) {
      auto request = std::make_shared<Request>();
      request->id = {static_cast<uint64_t>(sent) + 1};
      request->prompt.resize(30 + random() % 121);
      for (TokenId& token : request->prompt) token = static_cast<TokenId>(random() % kVocab);
      request->max_tokens = kOutputTokens;
      request->ignore_eos = true;
      request->arrival = clock.Now();
      CHECK(executor->Submit(request, &ends).ok());
    }
    executor->Step();
  }
  ExecutorStats stats = executor->stats();
  executor->Shutdown();
  double own = static_cast<double>(stats.host_time.count()) * 1e-3 / static_cast<double>(stats.steps);
  fmt::print("batch {:4}, {} in flight: {:6.1f} us a step\n", batch, tickets, own);
  return fmt::format("{{\"batch\": {}, \"tickets\": {}, \"executor_us_a_step\": {:.2f}, \"steps\": {}}}", batch,
                     tickets, own, stats.steps);
}

}  // namespace
}  // namespace ekiben

int main(int argc, char** argv) {
  if (argc != 2) {
    fmt::print(stderr, "usage: executor_bench OUT.json\n");
    return 2;
  }
  std::vector<std::string> rows;
  for (int32_t batch : {1, 16, 64, 128, 256})
    for (int32_t tickets : {1, 2}) rows.push_back(ekiben::Measure(batch, tickets));
  std::ofstream file(argv[1]);
  file << fmt::format("{{\"machine\": \"{}\", \"command\": \"executor_bench {}\",\n \"rows\": [\n  {}\n ]}}\n",
                      ekiben::DescribeCpu(), argv[1], fmt::join(rows, ",\n  "));
  return file.good() ? 0 : 1;
}
