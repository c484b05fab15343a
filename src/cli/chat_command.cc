#include <CLI/Config.hpp>
#include <boost/json.hpp>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <mutex>

#include "cli/commands.h"
#include "cli/options.h"
#include "cli/stack.h"
#include "cli/terminal.h"

namespace ekiben::cli {
namespace {

struct ChatOptions {
  EngineSource source;
  StackOptions stack;
  std::string system;
  int32_t max_tokens = 0;
  double temperature = 0.7;
  std::optional<uint64_t> seed;
};

// Prints text as it comes, and lets the prompt loop wait for the end.
class PrintSink final : public serve::TextSink {
 public:
  explicit PrintSink(const Clock& clock) : clock_(clock), begin_(clock.Now()) {}
  void OnPrompt(const serve::PromptInfo& info) override { prompt_tokens_ = info.prompt_tokens; }
  void OnText(const serve::TextEvent& event) override {
    if (event.tokens_new > 0 && first_ == Nanos{}) first_ = clock_.Now();
    tokens_ += event.tokens_new;
    text_ += event.text;
    std::fwrite(event.text.data(), 1, event.text.size(), stdout);
    std::fflush(stdout);
    if (event.reason != FinishReason::kNone) Complete("");
  }
  void OnError(const Error& error) override { Complete(error.message()); }

  // The answer's text; the error when there was one.
  Result<std::string> Wait() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return finished_; });
    if (!error_.empty()) return Error(Code::kInternal, error_);
    return text_;
  }
  std::string Summary() const {
    double ttft = Millis(first_ - begin_), generation = Seconds(clock_.Now() - first_);
    return fmt::format("{} prompt tokens, first token {:.0f} ms, {} tokens, {:.1f} tokens/s", prompt_tokens_, ttft,
                       tokens_, generation > 0 ? (tokens_ - 1) / generation : 0);
  }

 private:
  void Complete(std::string error) {
    std::lock_guard lock(mutex_);
    error_ = std::move(error);
    finished_ = true;
    done_.notify_all();
  }
  const Clock& clock_;
  Nanos begin_, first_{};
  int32_t prompt_tokens_ = 0, tokens_ = 0;
  std::mutex mutex_;
  std::condition_variable done_;
  bool finished_ = false;
  std::string text_, error_;
};

Result<void> Run(const ChatOptions& options) {
  ASSIGN_OR_RETURN(auto stack, Stack::Open(options.source, options.stack));
  if (stack->chat_template() == nullptr)
    return Error(Code::kInvalid,
                 fmt::format("{}: has no chat template; use `ekiben generate` with plain prompts", stack->name()));
  for (const std::string& line : stack->Describe()) fmt::print(stderr, "{}\n", line);
  fmt::print(stderr, "\nType a message and Enter. Empty line or Ctrl-D ends.\n");
  json::array messages;
  if (!options.system.empty()) messages.push_back({{"role", "system"}, {"content", options.system}});
  for (std::string line;;) {
    fmt::print(stderr, "\n> ");
    if (!std::getline(std::cin, line) || line.empty()) break;
    messages.push_back({{"role", "user"}, {"content", line}});
    serve::TextRequest request;
    request.input = serve::ChatInput{{{"messages", messages}, {"add_generation_prompt", true}}};
    if (options.max_tokens > 0) request.max_tokens = options.max_tokens;
    request.sampling.temperature = static_cast<float>(options.temperature);
    request.sampling.seed = options.seed.value_or(static_cast<uint64_t>(SystemClock::Get().WallNow().count()));
    auto sink = std::make_shared<PrintSink>(SystemClock::Get());
    ASSIGN_OR_RETURN(RequestId id, stack->service().Submit(std::move(request), sink));
    (void)id;
    auto answer = sink->Wait();
    fmt::print("\n");
    if (!answer.ok()) {
      fmt::print(stderr, "error: {}\n", answer.error().message());
      messages.pop_back();
      continue;
    }
    fmt::print(stderr, "[{}]\n", sink->Summary());
    messages.push_back({{"role", "assistant"}, {"content", *answer}});
  }
  return {};
}

}  // namespace

void AddChatCommand(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<ChatOptions>();
  CLI::App* command = app.add_subcommand("chat", "Talk to a model in the terminal");
  AddEngineSource(*command, options->source);
  AddRuntimeOptions(*command, options->stack);
  command->add_option("--system", options->system, "System prompt");
  command->add_option("--max_tokens", options->max_tokens, "New tokens of an answer; 0: what fits")
      ->capture_default_str();
  command->add_option("--temperature", options->temperature, "0: greedy")->capture_default_str();
  command->add_option("--seed", options->seed, "Same seed, same answers; absent: from the clock");
  command->callback([options, &outcome] { outcome.result = Run(*options); });
}

}  // namespace ekiben::cli
