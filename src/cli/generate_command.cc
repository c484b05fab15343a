#include <CLI/Config.hpp>
#include <atomic>
#include <boost/json.hpp>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <deque>
#include <fstream>
#include <mutex>

#include "base/human.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/stack.h"
#include "cli/terminal.h"

namespace ekiben::cli {
namespace {

struct GenerateOptions {
  EngineSource source;
  StackOptions stack;
  std::string input, output;
  int32_t max_tokens = 128, concurrency = 0;
  double temperature = 0;
  uint64_t seed = 0;
  bool ignore_eos = false, json = false;
};

// One prompt's answer, filled by postprocessing, waited for by the writer.
struct Answer {
  std::mutex mutex;
  std::condition_variable ready;
  bool done = false;
  json::object out;
  int64_t tokens = 0;
};

class AnswerSink final : public serve::TextSink {
 public:
  explicit AnswerSink(std::shared_ptr<Answer> answer) : answer_(std::move(answer)) {}
  void OnPrompt(const serve::PromptInfo& info) override { prompt_tokens_ = info.prompt_tokens; }
  void OnText(const serve::TextEvent& event) override {
    text_ += event.text;
    tokens_ += event.tokens_new;
    if (event.reason == FinishReason::kNone) return;
    Complete({{"text", text_},
              {"finish_reason", FinishReasonName(event.reason)},
              {"prompt_tokens", prompt_tokens_},
              {"completion_tokens", tokens_}});
  }
  void OnError(const Error& error) override {
    Complete({{"error", {{"code", CodeName(error.code())}, {"message", error.message()}, {"param", error.field()}}}});
  }

 private:
  void Complete(const json::object& out) {
    std::lock_guard lock(answer_->mutex);
    for (const auto& [key, value] : out) answer_->out[key] = value;
    answer_->tokens = tokens_;
    answer_->done = true;
    answer_->ready.notify_all();
  }
  std::shared_ptr<Answer> answer_;
  std::string text_;
  int64_t prompt_tokens_ = 0, tokens_ = 0;
};

Result<serve::TextRequest> ParseLine(const std::string& line, const GenerateOptions& options) {
  ASSIGN_OR_RETURN(json::value value, ParseJson(line));
  serve::TextRequest request;
  if (!value.is_object())
    return Error(Code::kInvalid, R"(a line is an object: {"prompt": "..."} or {"messages": [...]})");
  const json::object& object = value.get_object();
  ASSIGN_OR_RETURN(auto prompt, GetString(object, "prompt"));
  ASSIGN_OR_RETURN(const json::array* messages, GetArray(object, "messages"));
  if (prompt) {
    request.input = *prompt;
  } else if (messages != nullptr) {
    request.input = serve::ChatInput{{{"messages", *messages}, {"add_generation_prompt", true}}};
  } else {
    return Error(Code::kInvalid, "prompt: a line needs prompt or messages", "prompt");
  }
  ASSIGN_OR_RETURN(auto max_tokens, GetInt(object, "max_tokens", 1, 1 << 24));
  ASSIGN_OR_RETURN(auto temperature, GetNumber(object, "temperature", 0, 100));
  ASSIGN_OR_RETURN(auto top_p, GetNumber(object, "top_p", 0, 1));
  ASSIGN_OR_RETURN(auto top_k, GetInt(object, "top_k", 0, 1 << 24));
  ASSIGN_OR_RETURN(auto seed, GetInt(object, "seed", INT64_MIN, INT64_MAX));
  request.max_tokens = static_cast<int32_t>(max_tokens.value_or(options.max_tokens));
  request.sampling.temperature = static_cast<float>(temperature.value_or(options.temperature));
  request.sampling.top_p = static_cast<float>(top_p.value_or(1));
  request.sampling.top_k = static_cast<int32_t>(top_k.value_or(0));
  request.sampling.seed = static_cast<uint64_t>(seed.value_or(static_cast<int64_t>(options.seed)));
  request.ignore_eos = options.ignore_eos;
  return request;
}

// Whole lines that an earlier run wrote; a last line without its end is cut off.
Result<int64_t> LinesDone(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return int64_t{0};
  std::string line;
  int64_t lines = 0, bytes = 0;
  while (std::getline(in, line)) {
    if (in.eof()) break;
    ++lines;
    bytes += static_cast<int64_t>(line.size()) + 1;
  }
  in.close();
  std::error_code code;
  std::filesystem::resize_file(path, static_cast<uintmax_t>(bytes), code);
  if (code) return Error(Code::kInternal, fmt::format("-o {}: {}", path, code.message()));
  return lines;
}

Result<std::vector<std::string>> ReadLines(const std::string& path) {
  std::ifstream in(path);
  if (!in) return Error(Code::kNotFound, fmt::format("-i {}: cannot open", path), "i");
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);)
    if (line.find_first_not_of(" \t\r") != std::string::npos) lines.push_back(std::move(line));
  return lines;
}

std::atomic<bool> interrupted = false;

Result<void> Run(const GenerateOptions& options) {
  const Clock& clock = SystemClock::Get();
  ASSIGN_OR_RETURN(std::vector<std::string> lines, ReadLines(options.input));
  ASSIGN_OR_RETURN(int64_t done, LinesDone(options.output));
  auto total = static_cast<int64_t>(lines.size());
  if (done > total)
    return Error(Code::kInvalid, fmt::format("-o {}: holds {} lines, the input only {}; it belongs to another input",
                                             options.output, done, total));
  std::ofstream out(options.output, std::ios::binary | std::ios::app);
  if (!out) return Error(Code::kInternal, fmt::format("-o {}: cannot write", options.output));
  if (done > 0) fmt::print(stderr, "generate: {} of {} lines are there already; going on\n", done, total);
  ASSIGN_OR_RETURN(auto stack, Stack::Open(options.source, options.stack));
  std::signal(SIGINT, [](int) { interrupted = true; });
  int32_t width = options.concurrency > 0 ? options.concurrency : 2 * stack->backend_info().max_batch_size;
  ProgressLine progress("generate", "prompts", clock);
  std::deque<std::shared_ptr<Answer>> waiting;
  Nanos begin = clock.Now();
  int64_t next = done, tokens = 0, errors = 0;
  const int64_t first = done;
  while (done < total && !(interrupted && waiting.empty())) {
    while (!interrupted && next < total && static_cast<int32_t>(waiting.size()) < width) {
      auto answer = std::make_shared<Answer>();
      answer->out["index"] = next;
      auto sink = std::make_shared<AnswerSink>(answer);
      auto request = ParseLine(lines[static_cast<size_t>(next)], options);
      if (!request.ok()) {
        sink->OnError(request.error());
      } else if (auto id = stack->service().Submit(*std::move(request), sink); !id.ok()) {
        if (id.error().code() == Code::kOverloaded && !waiting.empty()) break;  // take some out first
        sink->OnError(id.error());
      }
      waiting.push_back(std::move(answer));
      ++next;
    }
    std::shared_ptr<Answer> answer = std::move(waiting.front());
    waiting.pop_front();
    {
      std::unique_lock lock(answer->mutex);
      answer->ready.wait(lock, [&] { return answer->done; });
    }
    tokens += answer->tokens;
    errors += answer->out.contains("error") ? 1 : 0;
    out << json::serialize(answer->out) << '\n' << std::flush;
    if (!out) return Error(Code::kInternal, fmt::format("-o {}: write failed: disk full?", options.output));
    ++done;
    progress.Update(done - first, total - first,
                    fmt::format("{:.0f} tokens/s", static_cast<double>(tokens) / Seconds(clock.Now() - begin)));
  }
  double seconds = Seconds(clock.Now() - begin);
  progress.Done(fmt::format("{} prompts, {} tokens in {:.1f} s = {:.1f} tokens/s, {} errors{}", done - first, tokens,
                            seconds, static_cast<double>(tokens) / seconds, errors,
                            interrupted ? "; interrupted, the same command goes on from here" : ""));
  if (options.json)
    std::printf(
        "%s\n",
        json::serialize(
            json::object{{"prompts", done - first}, {"tokens", tokens}, {"seconds", seconds}, {"errors", errors}})
            .c_str());
  return {};
}

}  // namespace

void AddGenerateCommand(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = app.add_subcommand("generate", "Answer a file of prompts: JSONL in, JSONL out, order kept");
  command->footer(
      "A line: {\"prompt\": \"...\"} or {\"messages\": [...]}, with max_tokens, temperature, top_p, top_k, seed if "
      "they\n"
      "differ from the options. A line of the output: index, text, finish_reason, prompt_tokens, completion_tokens, "
      "or\n"
      "index and error. Run again after an interruption: it goes on after the last whole line.");
  AddEngineSource(*command, options->source);
  AddRuntimeOptions(*command, options->stack);
  command->add_option("-i,--input", options->input, "Prompts, JSONL")->required();
  command->add_option("-o,--output", options->output, "Answers, JSONL")->required();
  command->add_option("--max_tokens", options->max_tokens, "New tokens at most")->capture_default_str();
  command->add_option("--temperature", options->temperature, "0: greedy")->capture_default_str();
  command->add_option("--seed", options->seed, "Of every line that names none")->capture_default_str();
  command->add_option("--concurrency", options->concurrency, "Prompts in flight; 0: twice max_batch_size")
      ->capture_default_str();
  command->add_flag("--ignore_eos", options->ignore_eos, "Always generate max_tokens");
  command->add_flag("--json", options->json, "A summary as JSON on standard output");
  command->callback([options, &outcome] { outcome.result = Run(*options); });
}

}  // namespace ekiben::cli
