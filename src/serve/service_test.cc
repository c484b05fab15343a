#include "serve/service.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <future>
#include <map>

#include "serve/testing/byte_tokenizer.h"
#include "serve/testing/scripted_executor.h"

namespace ekiben::serve {
namespace {

using namespace std::chrono_literals;
using testing::ByteTokenizer;
using testing::ScriptedExecutor;
using testing::ScriptedOptions;

// Keeps what it hears, and says when every sequence has ended.
class RecordingSink final : public TextSink {
 public:
  explicit RecordingSink(int32_t n = 1) : left_(n), events(static_cast<size_t>(n)), texts(static_cast<size_t>(n)) {}
  void OnPrompt(const PromptInfo& p) override {
    EXPECT_EQ(prompts++, 0);
    info = p;
  }
  void OnText(const TextEvent& event) override {
    EXPECT_EQ(prompts, 1) << "OnText before OnPrompt";
    EXPECT_FALSE(ended_[event.sequence_index]) << "an event after the last one";
    auto index = static_cast<size_t>(event.sequence_index);
    texts[index] += event.text;
    tokens += event.tokens_new;
    events[index].push_back(event);
    events[index].back().text = {};
    if (event.reason == FinishReason::kNone) return;
    ended_[event.sequence_index] = true;
    last_reason = event.reason;
    if (--left_ == 0) done.set_value();
  }
  void OnError(const Error& e) override {
    error = e;
    done.set_value();
  }
  bool Wait() { return done.get_future().wait_for(20s) == std::future_status::ready; }

 private:
  int32_t left_;
  std::map<int32_t, bool> ended_;

 public:
  std::vector<std::vector<TextEvent>> events;
  std::vector<std::string> texts;
  std::optional<Error> error;
  PromptInfo info;
  int32_t prompts = 0, tokens = 0;
  FinishReason last_reason = FinishReason::kNone;
  std::promise<void> done;
};

class ServiceTest : public ::testing::Test {
 protected:
  void Start(ScriptedOptions options = {}, bool run = true) {
    if (!options.next_token) options.next_token = testing::EchoToken;
    executor = std::make_unique<ScriptedExecutor>(options, SystemClock::Get());
    auto parsed = text::ChatTemplate::Parse(testing::ByteChatTemplate());
    ASSERT_TRUE(parsed.ok()) << parsed.error().message();
    chat_template.emplace(*std::move(parsed));
    config.model_name = "bytes";
    if (config.max_seq_len == 0) config.max_seq_len = 256;
    if (config.max_input_len == 0) config.max_input_len = 200;
    config.vocab_size = ByteTokenizer::kVocabulary;
    auto created = Service::Create(*executor, tokenizer, &*chat_template, SystemClock::Get(), config);
    ASSERT_TRUE(created.ok()) << created.error().message();
    service = *std::move(created);
    if (run) executor->Start();
  }
  void TearDown() override {
    if (executor != nullptr) executor->Shutdown();
    service.reset();
  }
  static TextRequest Prompt(std::string text, int32_t max_tokens = 16) {
    TextRequest request;
    request.input = std::move(text);
    request.max_tokens = max_tokens;
    return request;
  }
  std::shared_ptr<RecordingSink> Run(TextRequest request) {
    auto sink = std::make_shared<RecordingSink>(request.n);
    auto id = service->Submit(std::move(request), sink);
    EXPECT_TRUE(id.ok());
    EXPECT_TRUE(sink->Wait());
    return sink;
  }
  static TextRequest Chat(const char* messages) {
    TextRequest request;
    ChatInput chat;
    chat.inputs["messages"] = json::parse(messages);
    chat.inputs["add_generation_prompt"] = true;
    request.input = std::move(chat);
    request.max_tokens = 8;
    return request;
  }

  ByteTokenizer tokenizer;
  std::optional<text::ChatTemplate> chat_template;
  ServiceConfig config;
  std::unique_ptr<ScriptedExecutor> executor;
  std::unique_ptr<Service> service;
};

TEST_F(ServiceTest, TextInTextOut) {
  Start();
  auto sink = Run(Prompt("hello ", 12));
  EXPECT_EQ(sink->texts[0], "hello hello ");
  EXPECT_EQ(sink->tokens, 12);
  EXPECT_EQ(sink->last_reason, FinishReason::kLength);
  EXPECT_EQ(sink->info.prompt_tokens, 6);
  EXPECT_TRUE(sink->info.prompt.empty());
  EXPECT_EQ(service->stats().output_tokens, 12u);
  EXPECT_EQ(service->stats().prompt_tokens, 6u);
}

TEST_F(ServiceTest, ChatGoesThroughTheTemplateAndUserTextStaysText) {
  Start();
  auto request = Chat(R"([{"role":"user","content":"a<end>b"}])");
  auto tokens = service->Tokenize(request);
  ASSERT_TRUE(tokens.ok());
  std::vector<TokenId> wanted = {ByteTokenizer::kUser, 'a', '<', 'e', 'n', 'd', '>', 'b', ByteTokenizer::kAssistant};
  EXPECT_EQ(*tokens, wanted);
  EXPECT_EQ(Run(std::move(request))->texts[0], "a<end>ba");
}

TEST_F(ServiceTest, NoMaxTokensTakesWhatIsLeft) {
  config.max_seq_len = 32;
  config.max_input_len = 30;
  Start();
  TextRequest request = Prompt("ab");
  request.max_tokens.reset();
  EXPECT_EQ(Run(request)->tokens, 30);
  request.max_tokens = 31;
  auto refused = Run(request);
  ASSERT_TRUE(refused->error);
  EXPECT_EQ(refused->error->field(), "max_tokens");
  EXPECT_NE(refused->error->message().find("30 fit"), std::string::npos) << refused->error->message();
  request.clamp_max_tokens = true;
  EXPECT_EQ(Run(request)->tokens, 30);
}

TEST_F(ServiceTest, StopStringAcrossTokensEndsTheSequence) {
  Start();
  TextRequest request = Prompt("one STOP two", 40);
  request.stop = {"zzz", "STOP"};
  auto sink = Run(request);
  EXPECT_EQ(sink->texts[0], "one ");
  EXPECT_EQ(sink->last_reason, FinishReason::kStopText);
  EXPECT_EQ(sink->events[0].back().stop_text, "STOP");
  EXPECT_EQ(sink->tokens, 8);
  request.include_stop_text = true;
  EXPECT_EQ(Run(request)->texts[0], "one STOP");
  for (int i = 0; i < 1000 && executor->stats().running > 0; ++i) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(executor->stats().running, 0);
}

TEST_F(ServiceTest, NoEventHoldsPartOfACharacter) {
  Start();
  auto sink = std::make_shared<RecordingSink>();
  class Splitter final : public TextSink {
   public:
    void OnPrompt(const PromptInfo&) override {}
    void OnText(const TextEvent& event) override {
      if (!event.text.empty()) pieces.emplace_back(event.text);
      if (event.reason != FinishReason::kNone) done.set_value();
    }
    void OnError(const Error&) override { done.set_value(); }
    std::vector<std::string> pieces;
    std::promise<void> done;
  };
  auto splitter = std::make_shared<Splitter>();
  ASSERT_TRUE(service->Submit(Prompt("駅弁🍱", 10), splitter).ok());
  ASSERT_EQ(splitter->done.get_future().wait_for(20s), std::future_status::ready);
  EXPECT_EQ(splitter->pieces, (std::vector<std::string>{"駅", "弁", "🍱"}));
}

TEST_F(ServiceTest, EndTokenAndIgnoreEos) {
  ScriptedOptions options;
  options.next_token = [](const Request&, int32_t, int32_t position) { return position < 3 ? 'a' : -1; };
  Start(options);
  auto sink = Run(Prompt("x"));
  EXPECT_EQ(sink->texts[0], "aaa");
  EXPECT_EQ(sink->last_reason, FinishReason::kEndToken);
  EXPECT_EQ(sink->events[0].back().stop_token, ByteTokenizer::kEnd);
  TextRequest ignoring = Prompt("x", 9);
  ignoring.ignore_eos = true;
  auto longer = Run(ignoring);
  EXPECT_EQ(longer->last_reason, FinishReason::kLength);
  EXPECT_EQ(longer->tokens, 9);
}

TEST_F(ServiceTest, SeveralSequencesTokensAndLogprobs) {
  ScriptedOptions options;
  options.next_token = [](const Request&, int32_t index, int32_t) { return 'a' + index; };
  Start(options);
  TextRequest request = Prompt("pq", 3);
  request.n = 3;
  request.want_token_ids = true;
  request.prompt_logprobs = true;
  request.sampling.logprobs = 2;
  auto sink = Run(request);
  EXPECT_EQ(sink->texts, (std::vector<std::string>{"aaa", "bbb", "ccc"}));
  EXPECT_EQ(sink->info.prompt, (std::vector<TokenId>{'p', 'q'}));
  ASSERT_EQ(sink->info.prompt_logprobs.size(), 1u);
  ASSERT_EQ(sink->events[2].size(), 3u);
  EXPECT_EQ(sink->events[2][1].tokens, std::vector<TokenId>{'c'});
  ASSERT_EQ(sink->events[2][1].logprobs.size(), 1u);
  EXPECT_EQ(sink->events[2][1].logprobs[0].best[0].token, 'c');
}

TEST_F(ServiceTest, TheTokenAfterAScoredPromptIsScoredEvenIfItEndsTheText) {
  ScriptedOptions options;
  options.next_token = [](const Request&, int32_t, int32_t) { return -1; };
  Start(options);
  for (bool scored_prompt : {true, false}) {
    TextRequest request = Prompt("pq", 1);
    request.prompt_logprobs = scored_prompt;
    request.sampling.logprobs = 1;
    auto sink = Run(request);
    ASSERT_EQ(sink->last_reason, FinishReason::kEndToken);
    auto wanted = scored_prompt ? std::vector<TokenId>{ByteTokenizer::kEnd} : std::vector<TokenId>{};
    EXPECT_EQ(sink->events[0].back().logprob_tokens, wanted);
  }
}

TEST_F(ServiceTest, BadInputNamesFieldValueAndLimit) {
  Start();
  struct Case {
    const char* field;
    const char* word;
    TextRequest request;
  };
  std::vector<Case> cases;
  auto add = [&](const char* field, const char* word, auto change) {
    TextRequest request = Prompt("hi");
    change(request);
    cases.push_back({field, word, std::move(request)});
  };
  add("prompt", "200", [](TextRequest& r) { r.input = std::string(201, 'x'); });
  add("prompt", "no tokens", [](TextRequest& r) { r.input = std::string(); });
  add("prompt", "260", [](TextRequest& r) { r.input = std::vector<TokenId>{1, 260}; });
  add("max_tokens", "256", [](TextRequest& r) { r.max_tokens = 300; });
  add("min_tokens", "16", [](TextRequest& r) { r.sampling.min_tokens = 17; });
  add("temperature", "-1", [](TextRequest& r) { r.sampling.temperature = -1; });
  add("stop", "16", [](TextRequest& r) { r.stop.assign(17, "x"); });
  add("stop", "1024", [](TextRequest& r) { r.stop = {std::string(1025, 'x')}; });
  add("stop_token_ids", "260", [](TextRequest& r) { r.stop_token_ids = {-1}; });
  add("logit_bias", "400", [](TextRequest& r) { r.sampling.logit_bias = {{400, 1.0f}}; });
  add("bad_words", "64", [](TextRequest& r) { r.bad_words = {std::string(65, 'x')}; });
  for (Case& bad : cases) {
    auto sink = Run(std::move(bad.request));
    ASSERT_TRUE(sink->error) << bad.field;
    EXPECT_EQ(sink->error->code(), Code::kInvalid);
    EXPECT_EQ(sink->error->field(), bad.field);
    EXPECT_NE(sink->error->message().find(bad.word), std::string::npos) << sink->error->message();
  }
  EXPECT_EQ(service->stats().errors, cases.size());
  EXPECT_EQ(Run(Prompt("ok", 2))->texts[0], "ok");
}

TEST_F(ServiceTest, CancelAtAnyPoint) {
  ScriptedOptions options;
  options.turn_time = 1ms;
  Start(options);
  for (int delay_us : {0, 0, 100, 1000, 5000}) {
    auto sink = std::make_shared<RecordingSink>();
    auto id = service->Submit(Prompt("abc", 200), sink);
    ASSERT_TRUE(id.ok());
    std::this_thread::sleep_for(std::chrono::microseconds(delay_us));
    service->Cancel(*id);
    service->Cancel(*id);
    ASSERT_TRUE(sink->Wait());
    EXPECT_EQ(sink->last_reason, FinishReason::kCancelled);
    service->Cancel(*id);
  }
  service->Cancel(RequestId{12345});
  EXPECT_EQ(executor->stats().running + executor->stats().waiting, 0);
}

TEST_F(ServiceTest, FullQueuesAnswerAtOnce) {
  ScriptedOptions options;
  options.max_batch_size = 1;
  options.max_queue_size = 2;
  Start(options, /*run=*/false);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 3; ++i) {
    sinks.push_back(std::make_shared<RecordingSink>());
    ASSERT_TRUE(service->Submit(Prompt("abc", 3), sinks.back()).ok());
  }
  ASSERT_TRUE(sinks[2]->Wait());
  ASSERT_TRUE(sinks[2]->error);
  EXPECT_EQ(sinks[2]->error->code(), Code::kOverloaded);
  executor->Start();
  EXPECT_TRUE(sinks[0]->Wait());
  EXPECT_EQ(sinks[0]->texts[0], "abc");
}

TEST_F(ServiceTest, AFullTokenQueueFailsItsRequestsOnlyAndLosesNoEnd) {
  config.postprocessing_queue_max = 4;
  ScriptedOptions options;
  Start(options);
  // A sink that holds its instance up while the executor runs ahead.
  class Blocker final : public TextSink {
   public:
    void OnPrompt(const PromptInfo&) override { gate.get_future().wait(); }
    void OnText(const TextEvent&) override {}
    void OnError(const Error& e) override {
      code = e.code();
      done.set_value();
    }
    std::promise<void> gate, done;
    Code code{};
  };
  auto blocker = std::make_shared<Blocker>();
  TextRequest request = Prompt("abc", 200);
  request.n = 2;
  ASSERT_TRUE(service->Submit(request, blocker).ok());
  for (int i = 0; i < 10000 && service->stats().postprocessing_stalls == 0; ++i) std::this_thread::sleep_for(1ms);
  EXPECT_GT(service->stats().postprocessing_stalls, 0u);
  while (executor->stats().running > 0) std::this_thread::sleep_for(1ms);  // both ends are emitted, and lost
  blocker->gate.set_value();
  ASSERT_EQ(blocker->done.get_future().wait_for(20s), std::future_status::ready);
  EXPECT_EQ(blocker->code, Code::kOverloaded);
  auto weak = std::weak_ptr(blocker);
  blocker.reset();
  for (int i = 0; i < 10000 && !weak.expired(); ++i) std::this_thread::sleep_for(1ms);
  EXPECT_TRUE(weak.expired()) << "the request was not released";
  EXPECT_EQ(Run(Prompt("z", 2))->texts[0], "zz");
}

TEST_F(ServiceTest, DeviceFaultDeadlineAndShutdown) {
  ScriptedOptions options;
  options.turn_time = 1ms;
  Start(options);
  TextRequest late = Prompt("abc", 250);
  late.timeout = 20ms;
  EXPECT_EQ(Run(late)->last_reason, FinishReason::kDeadline);
  auto sink = std::make_shared<RecordingSink>();
  ASSERT_TRUE(service->Submit(Prompt("abc", 250), sink).ok());
  while (executor->stats().running == 0) std::this_thread::sleep_for(1ms);
  executor->BreakDevice();
  ASSERT_TRUE(sink->Wait());
  ASSERT_TRUE(sink->error);
  EXPECT_NE(sink->error->message().find("device"), std::string::npos);
  auto refused = Run(Prompt("abc"));
  ASSERT_TRUE(refused->error);
  EXPECT_EQ(refused->error->code(), Code::kUnavailable);
}

TEST_F(ServiceTest, ManyRequestsOverSeveralInstances) {
  config.preprocessing_instance_count = 2;
  config.postprocessing_instance_count = 3;
  Start();
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 300; ++i) {
    sinks.push_back(std::make_shared<RecordingSink>(2));
    TextRequest request = Prompt("request " + std::to_string(i) + ";", 40);
    request.n = 2;
    ASSERT_TRUE(service->Submit(request, sinks.back()).ok());
  }
  for (int i = 0; i < 300; ++i) {
    ASSERT_TRUE(sinks[static_cast<size_t>(i)]->Wait());
    std::string once = "request " + std::to_string(i) + ";", wanted;
    while (wanted.size() < 40) wanted += once;
    EXPECT_EQ(sinks[static_cast<size_t>(i)]->texts[1], wanted.substr(0, 40));
  }
}

TEST_F(ServiceTest, ConfigIsChecked) {
  Start();
  ServiceConfig bad = config;
  bad.postprocessing_instance_count = 0;
  auto result = Service::Create(*executor, tokenizer, nullptr, SystemClock::Get(), bad);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().field(), "postprocessing_instance_count");
}

}  // namespace
}  // namespace ekiben::serve
