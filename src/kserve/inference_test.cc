#include "kserve/inference.h"
#include "kserve/model_names.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <boost/json.hpp>
#include <cstring>
#include <future>
#include <thread>

#include "kserve/shared_memory.h"
#include "kserve/testing/shared_object.h"
#include "serve/testing/scripted_model.h"

namespace ekiben::kserve {
namespace {

using namespace std::chrono_literals;
using serve::testing::ScriptedModelOptions;

class RecordingSink final : public InferSink {
 public:
  void OnResponse(InferResponse response) override {
    bool final = response.final;
    responses.push_back(std::move(response));
    if (on_response) on_response();
    if (final) done.set_value();
  }
  void OnError(const Error& e) override {
    error = e;
    done.set_value();
  }
  bool Wait() { return done.get_future().wait_for(20s) == std::future_status::ready; }

  std::vector<InferResponse> responses;
  std::optional<Error> error;
  std::function<void()> on_response;
  std::promise<void> done;
};

const Tensor* Output(const InferResponse& response, std::string_view name) {
  for (const Tensor& tensor : response.outputs)
    if (tensor.name == name) return &tensor;
  return nullptr;
}

template <class T>
std::vector<T> Values(const InferResponse& response, std::string_view name) {
  const Tensor* tensor = Output(response, name);
  if (tensor == nullptr) return {};
  std::vector<T> out(tensor->data.size() / sizeof(T));
  if (!out.empty()) std::memcpy(out.data(), tensor->data.data(), tensor->data.size());
  return out;
}

std::string Text(const InferResponse& response, std::string_view name = "text_output") {
  const Tensor* tensor = Output(response, name);
  return tensor == nullptr ? "(none)" : std::string(BytesElements(*tensor).at(0));
}

std::string Joined(const RecordingSink& sink) {
  std::string out;
  for (const InferResponse& response : sink.responses)
    if (!response.outputs.empty()) out += Text(response);
  return out;
}

Tensor Bool(const std::string& name, bool value, std::vector<int64_t> shape = {1}) {
  return {name, DataType::kBool, std::move(shape), std::string(1, value ? '\1' : '\0')};
}
Tensor Int(const std::string& name, int32_t value, std::vector<int64_t> shape = {1}) {
  return Int32Tensor(name, std::move(shape), {value});
}

InferRequest TextRequest(const std::string& text, int32_t max_tokens, std::vector<Tensor> more = {},
                         const std::string& model = "ensemble") {
  InferRequest out;
  out.model_name = model;
  out.id = "7";
  out.inputs = {BytesTensor("text_input", {1, 1}, {text}), Int("max_tokens", max_tokens, {1, 1})};
  for (Tensor& tensor : more) out.inputs.push_back(std::move(tensor));
  return out;
}

class InferenceTest : public ::testing::Test {
 protected:
  // "bytes" is loaded, `second` can be.
  void Start(ScriptedModelOptions options = {}, InferenceServer::Config config = {}, std::string second = "other") {
    options.name = "bytes";
    options.facts.tokens_per_block = 16;
    ScriptedModelOptions other;
    other.name = std::move(second);
    std::vector<ScriptedModelOptions> all = {std::move(options), std::move(other)};
    models = std::make_unique<serve::LoadedModels>(std::make_unique<serve::testing::ScriptedSource>(std::move(all)),
                                                   /*may_change=*/true);
    ASSERT_TRUE(models->Open("bytes").ok());
    server = InferenceServer::Create(*models, SystemClock::Get(), std::move(config));
  }
  void TearDown() override { models.reset(); }  // what still runs counts itself in the server's numbers
  // Runs to its end. A refusal at once counts as the sink's error.
  std::shared_ptr<RecordingSink> Run(InferRequest request) {
    auto sink = std::make_shared<RecordingSink>();
    auto begun = server->Infer(std::move(request), sink);
    if (!begun.ok())
      sink->error = begun.error();
    else
      EXPECT_TRUE(sink->Wait());
    return sink;
  }
  std::string Refusal(InferRequest request, Code code) {
    auto sink = Run(std::move(request));
    if (!sink->error) return "(taken)";
    EXPECT_EQ(sink->error->code(), code) << sink->error->message();
    return sink->error->message();
  }

  std::unique_ptr<InferenceServer> server;
  std::unique_ptr<serve::LoadedModels> models;
};

TEST_F(InferenceTest, TheEnsembleAnswersInOnePiece) {
  Start();
  auto sink = Run(TextRequest("abc", 5));
  ASSERT_FALSE(sink->error) << sink->error->message();
  ASSERT_EQ(sink->responses.size(), 1u);
  const InferResponse& response = sink->responses[0];
  EXPECT_EQ(response.model_name, "ensemble");
  EXPECT_EQ(response.model_version, "1");
  EXPECT_EQ(response.id, "7");
  EXPECT_TRUE(response.final);
  ASSERT_EQ(response.outputs.size(), 1u);
  EXPECT_EQ(Text(response), "abcab");
  EXPECT_EQ(response.outputs[0].shape, (std::vector<int64_t>{1}));  // 1-D: clients decode its first element
  EXPECT_FALSE(std::get<bool>(response.parameters.at("sequence_end")));
}

TEST_F(InferenceTest, AStreamSendsDeltasAndOneFinal) {
  Start();
  InferRequest request = TextRequest("abc", 5, {Bool("stream", true, {1, 1})});
  request.may_stream = true;
  auto sink = Run(std::move(request));
  ASSERT_FALSE(sink->error);
  EXPECT_EQ(Joined(*sink), "abcab");
  ASSERT_EQ(sink->responses.size(), 5u);
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(sink->responses[i].final, i == 4) << i;
}

TEST_F(InferenceTest, BlsEndsWithAnEmptyFinalAndMayAccumulate) {
  InferenceServer::Config config;
  config.accumulate_tokens = true;
  Start({}, config);
  InferRequest request = TextRequest("abc", 3, {Bool("stream", true)}, "tensorrt_llm_bls");
  request.may_stream = true;
  auto sink = Run(std::move(request));
  ASSERT_EQ(sink->responses.size(), 4u);
  EXPECT_EQ(Text(sink->responses[0]), "a");
  EXPECT_EQ(Text(sink->responses[1]), "ab");
  EXPECT_EQ(Text(sink->responses[2]), "abc");
  EXPECT_FALSE(sink->responses[2].final);
  EXPECT_TRUE(sink->responses[3].outputs.empty());
  EXPECT_TRUE(sink->responses[3].final);
}

TEST_F(InferenceTest, AStreamWhereOneAnswerIsWantedIsRefused) {
  Start();
  std::string message = Refusal(TextRequest("abc", 5, {Bool("stream", true)}), Code::kUnsupported);
  EXPECT_NE(message.find("Streaming is only supported if model is deployed using decoupled mode"), std::string::npos)
      << message;
}

TEST_F(InferenceTest, ABatchIsOneAnswerWithARowEach) {
  Start();
  InferRequest request;
  request.model_name = "ensemble";
  request.inputs = {BytesTensor("text_input", {2, 1}, {"ab", "xyz"}), Int32Tensor("max_tokens", {2, 1}, {2, 4}),
                    Tensor{"return_num_output_tokens", DataType::kBool, {2, 1}, std::string("\1\1", 2)},
                    Tensor{"return_log_probs", DataType::kBool, {2, 1}, std::string("\1\1", 2)}};
  auto sink = Run(std::move(request));
  ASSERT_FALSE(sink->error) << sink->error->message();
  ASSERT_EQ(sink->responses.size(), 1u);
  const InferResponse& response = sink->responses[0];
  EXPECT_EQ(Output(response, "text_output")->shape, (std::vector<int64_t>{2}));
  auto texts = BytesElements(*Output(response, "text_output"));
  EXPECT_EQ(texts[0], "ab");
  EXPECT_EQ(texts[1], "xyzx");
  EXPECT_EQ(Values<int32_t>(response, "num_output_tokens"), (std::vector<int32_t>{2, 4}));
  EXPECT_EQ(Values<int32_t>(response, "batch_index"), (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(Output(response, "output_log_probs")->shape, (std::vector<int64_t>{2, 1, 4}));
  EXPECT_EQ(Values<float>(response, "output_log_probs"),
            (std::vector<float>{-0.25f, -0.25f, 0, 0, -0.25f, -0.25f, -0.25f, -0.25f}));
  EXPECT_EQ(Values<float>(response, "cum_log_probs"), (std::vector<float>{-0.5f, -1.0f}));
}

TEST_F(InferenceTest, SeveralSequencesOfAPromptEachHaveTheirIndex) {
  ScriptedModelOptions options;
  options.executor.next_token = [](const Request&, int32_t sequence, int32_t) { return 'a' + sequence; };
  Start(std::move(options));
  InferRequest request = TextRequest("p", 3, {Int("num_return_sequences", 2)});
  request.may_stream = true;
  auto sink = Run(std::move(request));
  ASSERT_EQ(sink->responses.size(), 2u);
  std::map<int32_t, std::string> texts;
  for (const InferResponse& response : sink->responses)
    texts[Values<int32_t>(response, "sequence_index").at(0)] = Text(response);
  EXPECT_EQ(texts, (std::map<int32_t, std::string>{{0, "aaa"}, {1, "bbb"}}));
  EXPECT_FALSE(sink->responses[0].final);
  EXPECT_TRUE(sink->responses[1].final);
}

TEST_F(InferenceTest, ThePromptComesBackWhereItIsAskedFor) {
  Start();
  EXPECT_EQ(Text(Run(TextRequest("abc", 2, {Bool("exclude_input_in_output", false)}))->responses.at(0)), "abcab");
  EXPECT_EQ(Text(Run(TextRequest("abc", 2, {Bool("exclude_input_in_output", true)}))->responses.at(0)), "ab");
}

TEST_F(InferenceTest, SamplingMeansWhatTensorRtLlmMeans) {
  std::mutex mutex;
  std::vector<Request> seen;
  ScriptedModelOptions options;
  options.executor.next_token = [&](const Request& request, int32_t, int32_t) {
    std::lock_guard lock(mutex);
    seen.push_back(request);
    return 'x';
  };
  Start(std::move(options));
  Tensor seed{"random_seed", DataType::kUint64, {1}, std::string("\x2a\0\0\0\0\0\0\0", 8)};
  InferRequest request = TextRequest(
      "p", 1,
      {Fp32Tensor("top_p", {1}, {0.5f}), Fp32Tensor("temperature", {1}, {0.7f}), std::move(seed), Int("min_length", 1),
       Int("end_id", 'q'), BytesTensor("bad_words", {1, 2}, {"", "no"}),
       BytesTensor("embedding_bias_words", {2}, {"ab", "b"}), Fp32Tensor("embedding_bias_weights", {2}, {1, 2})});
  request.parameters["priority"] = uint64_t{1};
  ASSERT_FALSE(Run(std::move(request))->error);
  ASSERT_FALSE(Run(TextRequest("p", 1))->error);
  const SamplingParams& asked = seen.at(0).sampling;
  EXPECT_EQ(asked.top_p, 0.5f);
  EXPECT_EQ(asked.top_k, 0);
  EXPECT_EQ(asked.temperature, 0.7f);
  EXPECT_EQ(asked.seed, 42u);
  EXPECT_EQ(asked.min_tokens, 1);
  EXPECT_EQ(seen[0].stop_tokens, (std::vector<TokenId>{'q'}));
  EXPECT_FALSE(asked.bad_words.empty());
  EXPECT_EQ(asked.logit_bias, (std::vector<std::pair<TokenId, float>>{{'a', 1.0f}, {'b', 3.0f}}));
  EXPECT_GT(seen[0].priority, seen.at(1).priority);
  EXPECT_TRUE(seen[1].sampling.greedy());  // neither top_k nor top_p
  EXPECT_EQ(seen[1].stop_tokens, (std::vector<TokenId>{serve::testing::ByteTokenizer::kEnd}));
}

TEST_F(InferenceTest, StopWordsEndTheText) {
  Start();
  EXPECT_EQ(Text(Run(TextRequest("abcdef", 20, {BytesTensor("stop_words", {1, 2}, {"de", ""})}))->responses.at(0)),
            "abc");
}

TEST_F(InferenceTest, TokensInTokensOut) {
  Start();
  InferRequest request;
  request.model_name = "tensorrt_llm";
  request.may_stream = true;
  request.inputs = {Int32Tensor("input_ids", {1, 4}, {'a', 'b', 'c', 'z'}), Int("input_lengths", 3, {1, 1}),
                    Int("request_output_len", 9, {1, 1}), Bool("streaming", true, {1, 1}),
                    Int32Tensor("stop_words_list", {1, 2, 2}, {'a', 'b', 2, -1})};
  auto sink = Run(std::move(request));
  ASSERT_FALSE(sink->error) << sink->error->message();
  std::vector<int32_t> ids;
  for (const InferResponse& response : sink->responses) {
    auto some = Values<int32_t>(response, "output_ids");
    EXPECT_EQ(Output(response, "output_ids")->shape, (std::vector<int64_t>{1, 1, static_cast<int64_t>(some.size())}));
    EXPECT_EQ(Values<int32_t>(response, "sequence_length").at(0), static_cast<int32_t>(some.size()));
    ids.insert(ids.end(), some.begin(), some.end());
  }
  EXPECT_EQ(ids, (std::vector<int32_t>{'a', 'b'}));  // the stop words' own tokens are part of it
}

TEST_F(InferenceTest, ThePartsCompose) {
  Start();
  InferRequest first;
  first.model_name = "preprocessing";
  first.inputs = {BytesTensor("QUERY", {1, 1}, {"hello"}), Int("REQUEST_OUTPUT_LEN", 7, {1, 1}),
                  BytesTensor("STOP_WORDS_DICT", {1, 2}, {"lo", "x"})};
  auto made = Run(std::move(first));
  ASSERT_FALSE(made->error) << made->error->message();
  const InferResponse& pre = made->responses.at(0);
  EXPECT_EQ(Values<int32_t>(pre, "INPUT_ID"), (std::vector<int32_t>{'h', 'e', 'l', 'l', 'o'}));
  EXPECT_EQ(Values<int32_t>(pre, "STOP_WORDS_IDS"), (std::vector<int32_t>{'l', 'o', 'x', 2, 3, -1}));
  EXPECT_EQ(Values<int32_t>(pre, "BAD_WORDS_IDS"), (std::vector<int32_t>{0, -1}));
  EXPECT_EQ(Values<int32_t>(pre, "OUT_END_ID").at(0), serve::testing::ByteTokenizer::kEnd);
  InferRequest second;
  second.model_name = "tensorrt_llm";
  for (auto [from, to] : {std::pair("INPUT_ID", "input_ids"),
                          {"REQUEST_INPUT_LEN", "input_lengths"},
                          {"REQUEST_OUTPUT_LEN", "request_output_len"},
                          {"STOP_WORDS_IDS", "stop_words_list"},
                          {"BAD_WORDS_IDS", "bad_words_list"},
                          {"OUT_END_ID", "end_id"}}) {
    second.inputs.push_back(*Output(pre, from));
    second.inputs.back().name = to;
  }
  auto tokens = Run(std::move(second));
  ASSERT_FALSE(tokens->error) << tokens->error->message();
  InferRequest third;
  third.model_name = "postprocessing";
  third.inputs = {*Output(tokens->responses.at(0), "output_ids"), *Output(tokens->responses[0], "sequence_length")};
  third.inputs[0].name = "TOKENS_BATCH";
  third.inputs[1].name = "SEQUENCE_LENGTH";
  auto text = Run(std::move(third));
  ASSERT_FALSE(text->error) << text->error->message();
  EXPECT_EQ(Text(text->responses.at(0), "OUTPUT"), "hello");  // up to and with "lo"
}

TEST_F(InferenceTest, WhatIsWrongIsNamed) {
  Start();
  auto with = [](Tensor tensor) { return TextRequest("p", 1, {std::move(tensor)}); };
  EXPECT_EQ(Refusal(with(Int("nonsense", 1)), Code::kInvalid),
            "unexpected inference input 'nonsense' for model 'ensemble'");
  EXPECT_EQ(Refusal(with(Int("temperature", 1)), Code::kInvalid),
            "inference input 'temperature' data-type is 'INT32', but model 'ensemble' expects 'FP32'");
  EXPECT_EQ(Refusal(with(Int32Tensor("top_k", {1, 2}, {1, 2})), Code::kInvalid),
            "unexpected shape for input 'top_k' for model 'ensemble'. Expected [-1,1], got [1,2]");
  EXPECT_EQ(Refusal(with(Int("max_tokens", 2)), Code::kInvalid), "input 'max_tokens' already exists in request");
  EXPECT_NE(Refusal(with(Int32Tensor("top_k", {2, 1}, {1, 2})), Code::kInvalid).find("batch size does not match"),
            std::string::npos);
  EXPECT_EQ(Refusal(with(Int("beam_width", 4)), Code::kUnsupported),
            "beam_width: 4 is over the engine's max_beam_width of 1; send 1");
  EXPECT_EQ(Refusal(with(Bool("return_context_logits", true)), Code::kUnsupported),
            "return_context_logits: the engine was built without gather_context_logits; leave it out");
  EXPECT_EQ(Refusal(with(Tensor{"lora_task_id", DataType::kUint64, {1}, std::string("\1\0\0\0\0\0\0\0", 8)}),
                    Code::kUnsupported),
            "lora_task_id: LoRA is not offered; leave it out");
  EXPECT_EQ(Refusal(with(BytesTensor("decoder_text_input", {1, 1}, {""})), Code::kInvalid), "(taken)");
  InferRequest incomplete = TextRequest("p", 1);
  incomplete.inputs.pop_back();
  EXPECT_EQ(Refusal(incomplete, Code::kInvalid),
            "expected at least 2 inputs but got 1 inputs for model 'ensemble'. Got input(s) ['text_input'], but "
            "missing required input(s) ['max_tokens']. Please provide all required input(s).");
  EXPECT_EQ(Refusal(TextRequest("p", 1, {}, "nope"), Code::kNotFound),
            "Request for unknown model: 'nope' is not found");
  InferRequest old = TextRequest("p", 1);
  old.model_version = "3";
  EXPECT_EQ(Refusal(old, Code::kNotFound), "Request for unknown model: 'ensemble' version 3 is not found");
  InferRequest wrong = TextRequest("p", 1);
  wrong.outputs = {{"nonsense", {}}};
  EXPECT_EQ(Refusal(wrong, Code::kInvalid), "unexpected inference output 'nonsense' for model 'ensemble'");
}

// TensorRT-LLM's guides become the grammar that every token is held to.
TEST_F(InferenceTest, AGuideIsAGrammar) {
  ScriptedModelOptions options;
  std::atomic<int> guided{0}, all{0};
  options.executor.next_token = [&](const Request& request, int32_t, int32_t) {
    guided += request.constraint != nullptr && !request.ignore_eos;
    ++all;
    return TokenId{'7'};
  };
  Start(std::move(options));
  auto with = [](std::string type, std::string guide, std::vector<Tensor> more = {}) {
    more.push_back(BytesTensor("guided_decoding_guide_type", {1, 1}, {std::move(type)}));
    more.push_back(BytesTensor("guided_decoding_guide", {1, 1}, {std::move(guide)}));
    return TextRequest("p", 1, std::move(more));
  };
  EXPECT_EQ(Refusal(with("", ""), Code::kInvalid), "(taken)");
  EXPECT_EQ(guided, 0);
  auto built = Run(with("regex", "[0-9]+"));
  if (built->error && built->error->code() == Code::kUnsupported) GTEST_SKIP() << built->error->message();
  for (auto [type, guide] : {std::pair("json", ""), std::pair("json_schema", R"({"type":"integer"})"),
                             std::pair("ebnf_grammar", "root ::= [0-9]+")})
    EXPECT_EQ(Refusal(with(type, guide), Code::kInvalid), "(taken)") << type;
  EXPECT_EQ(guided, 4);
  EXPECT_EQ(all, 5);
  EXPECT_EQ(Refusal(with("nonsense", "x"), Code::kInvalid),
            "guided_decoding_guide_type: 'nonsense' is not one of json, json_schema, regex, ebnf_grammar");
  EXPECT_EQ(Refusal(with("structural_tag", "x"), Code::kUnsupported),
            "guided_decoding_guide_type: structural_tag is not offered; use ebnf_grammar");
  EXPECT_EQ(Refusal(with("regex", ""), Code::kInvalid), "guided_decoding_guide: a guide of type regex is wanted");
  EXPECT_EQ(Refusal(with("regex", "(a"), Code::kInvalid).find("guided_decoding_guide: "), 0u);
  EXPECT_EQ(Refusal(with("regex", "a", {Int("end_id", 'q', {1, 1})}), Code::kInvalid),
            "end_id: 113 is no end token of the model, which a guided text ends with; leave it out");
}

TEST_F(InferenceTest, LogitsComeWhereTheEngineGathersThem) {
  ScriptedModelOptions options;
  options.facts.gather_context_logits = options.facts.gather_generation_logits = true;
  options.service.logits_bytes_max = 100 * 4 * 300;
  Start(std::move(options));
  std::vector<Tensor> both = {Bool("return_context_logits", true, {1, 1}),
                              Bool("return_generation_logits", true, {1, 1})};
  auto whole = Run(TextRequest("abc", 4, both));
  ASSERT_FALSE(whole->error) << whole->error->message();
  const InferResponse& response = whole->responses.at(0);
  const Tensor* context = Output(response, "context_logits");
  const Tensor* generation = Output(response, "generation_logits");
  ASSERT_TRUE(context != nullptr && generation != nullptr);
  ASSERT_EQ(context->shape.size(), 3u);
  int64_t prompt = context->shape[1], vocab = context->shape[2];
  EXPECT_GE(prompt, 3);
  EXPECT_EQ(generation->shape, (std::vector<int64_t>{1, 1, 4, vocab}));
  auto rows = [&](const InferResponse& from, const char* name) {
    std::vector<float> out, values = Values<float>(from, name);
    for (size_t i = 0; i < values.size(); i += static_cast<size_t>(vocab)) {
      EXPECT_EQ(values[i], values[i + static_cast<size_t>(vocab) - 1]);
      out.push_back(values[i]);
    }
    return out;
  };
  EXPECT_EQ(rows(response, "context_logits").back(), static_cast<float>(prompt - 1));
  EXPECT_EQ(rows(response, "generation_logits"), (std::vector<float>{100, 101, 102, 103}));

  InferRequest streamed = TextRequest("abc", 3, both);
  streamed.inputs.push_back(Bool("stream", true, {1, 1}));
  streamed.may_stream = true;
  auto stream = Run(std::move(streamed));
  ASSERT_EQ(stream->responses.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(Output(stream->responses[i], "context_logits") != nullptr, i == 0);
    EXPECT_EQ(rows(stream->responses[i], "generation_logits"), std::vector<float>{100.0f + static_cast<float>(i)});
  }

  InferRequest several = TextRequest("abc", 2, {both[1], Int("num_return_sequences", 2, {1, 1})});
  auto two = Run(std::move(several));
  ASSERT_FALSE(two->error) << two->error->message();
  EXPECT_EQ(rows(two->responses.at(0), "generation_logits"), (std::vector<float>{100, 101, 200, 201}));
  EXPECT_EQ(Output(two->responses.at(0), "context_logits"), nullptr);

  EXPECT_EQ(Refusal(TextRequest("abc", 1000, both), Code::kInvalid).find("return_context_logits: "), 0u);
  InferRequest batch = TextRequest("abc", 1);
  batch.inputs = {BytesTensor("text_input", {2, 1}, {"a", "b"}), Int32Tensor("max_tokens", {2, 1}, {1, 1}),
                  Tensor{"return_context_logits", DataType::kBool, {2, 1}, "\1\1"}};
  EXPECT_EQ(Refusal(std::move(batch), Code::kUnsupported),
            "return_context_logits: a batch of 2; send one prompt a request");
  // What ended gives its memory back, a moment after its last response.
  for (int i = 0; i < 3; ++i) {
    std::string refusal;
    for (int tries = 0; tries < 2000; ++tries) {
      refusal = Refusal(TextRequest("abc", 60, both), Code::kOverloaded);
      if (refusal == "(taken)") break;
      std::this_thread::sleep_for(1ms);
    }
    EXPECT_EQ(refusal, "(taken)");
  }
}

TEST_F(InferenceTest, NumbersMayComeAsClassesAndTensorsByMemory) {
  testing::SharedObject object("infer", 4096);
  InferenceServer::Config config;
  config.shared_memory_prefix = testing::SharedObject::Prefix();
  Start({}, config);
  EXPECT_NE(std::ranges::find(server->extensions(), "system_shared_memory"), server->extensions().end());
  ASSERT_TRUE(server->shared_memory().Register({"r", object.key(), 0, 4096}).ok());
  std::string prompt;
  AppendBytesElement(prompt, "abc");
  object.Put(200, prompt);
  InferRequest request = TextRequest("", 5, {Bool("return_num_output_tokens", true, {1, 1})});
  request.inputs[0].data.clear();
  request.inputs[0].region = RegionSpan{"r", 200, prompt.size()};
  request.outputs = {
      {"text_output", {{"shared_memory_region", std::string("r")}, {"shared_memory_byte_size", int64_t{100}}}},
      {"num_output_tokens", {{"classification", int64_t{1}}}}};
  auto sink = Run(request);
  ASSERT_FALSE(sink->error) << sink->error->message();
  const InferResponse& response = sink->responses.at(0);
  ASSERT_TRUE(Output(response, "text_output")->region);
  EXPECT_EQ(Output(response, "text_output")->region->byte_size, 9u);
  EXPECT_EQ(object.Take(0, 9), std::string("\5\0\0\0abcab", 9));
  EXPECT_EQ(Text(response, "num_output_tokens"), "5:0");

  request.outputs[0].parameters["shared_memory_byte_size"] = int64_t{8};
  EXPECT_NE(Refusal(request, Code::kInvalid).find("should be at least 9 bytes"), std::string::npos);
  request.inputs[0].region->byte_size = prompt.size() - 1;
  EXPECT_EQ(Refusal(request, Code::kInvalid), "input 'text_input': its 6 bytes end inside element 0 of 1");
  EXPECT_EQ(server->Statistics("ensemble", "")->at(0).fail.count, 2u);
  EXPECT_EQ(server->Statistics("ensemble", "")->at(0).success.count, 1u);

  // A part that runs on the text thread.
  InferRequest post;
  post.model_name = "postprocessing";
  post.inputs = {Int32Tensor("TOKENS_BATCH", {1, 1, 2}, {'h', 'i'}), Int32Tensor("SEQUENCE_LENGTH", {1, 1}, {2})};
  post.outputs = {{"OUTPUT", {{"shared_memory_region", std::string("r")}, {"shared_memory_byte_size", int64_t{6}}}}};
  EXPECT_FALSE(Run(post)->error);
  EXPECT_EQ(object.Take(0, 6), std::string("\2\0\0\0hi", 6));
}

TEST_F(InferenceTest, CancelEndsWithAnError) {
  ScriptedModelOptions options;
  options.executor.turn_time = 2ms;
  Start(std::move(options));
  auto sink = std::make_shared<RecordingSink>();
  InferRequest request = TextRequest("abc", 200, {Bool("stream", true)});
  request.may_stream = true;
  std::promise<void> first;
  sink->on_response = [&, told = false]() mutable {
    if (!std::exchange(told, true)) first.set_value();
  };
  auto running = server->Infer(std::move(request), sink);
  ASSERT_TRUE(running.ok());
  first.get_future().wait();
  (*running)->Cancel();
  (*running)->Cancel();
  ASSERT_TRUE(sink->Wait());
  ASSERT_TRUE(sink->error);
  EXPECT_EQ(sink->error->code(), Code::kCancelled);
  auto statistics = server->Statistics("ensemble", "");
  EXPECT_EQ(statistics->at(0).fail.count, 1u);
  EXPECT_EQ(statistics->at(0).success.count, 0u);
}

TEST_F(InferenceTest, StopByIdEndsQuietly) {
  ScriptedModelOptions options;
  options.executor.turn_time = 2ms;
  Start(std::move(options));
  auto sink = std::make_shared<RecordingSink>();
  InferRequest request = TextRequest("abc", 200, {Bool("stream", true)});
  request.may_stream = true;
  auto running = server->Infer(std::move(request), sink);
  ASSERT_TRUE(running.ok());
  InferRequest stop;
  stop.model_name = "tensorrt_llm";
  stop.inputs = {Bool("stop", true)};
  EXPECT_NE(Refusal(stop, Code::kInvalid).find("without an id"), std::string::npos);
  stop.id = "7";
  auto stopped = Run(std::move(stop));
  ASSERT_EQ(stopped->responses.size(), 1u);
  EXPECT_TRUE(stopped->responses[0].outputs.empty());
  ASSERT_TRUE(sink->Wait());
  EXPECT_FALSE(sink->error);
  EXPECT_TRUE(sink->responses.back().final);
  EXPECT_LT(sink->responses.size(), 200u);
}

TEST_F(InferenceTest, PerformanceMetricsOfARequest) {
  Start();
  auto sink = Run(TextRequest("0123456789abcdefghij", 5,
                              {Bool("return_perf_metrics", true), Bool("return_num_input_tokens", true)}));
  const InferResponse& response = sink->responses.at(0);
  EXPECT_EQ(Values<int32_t>(response, "num_input_tokens"), (std::vector<int32_t>{20}));
  EXPECT_EQ(Values<int32_t>(response, "kv_cache_alloc_total_blocks"), (std::vector<int32_t>{2}));  // 24 of 16 each
  EXPECT_EQ(Values<int32_t>(response, "kv_cache_alloc_new_blocks"), (std::vector<int32_t>{2}));
  std::vector<int64_t> times;
  for (const char* name : {"arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns"}) {
    ASSERT_EQ(Values<int64_t>(response, name).size(), 1u) << name;
    times.push_back(Values<int64_t>(response, name)[0]);
  }
  EXPECT_GT(times[0], 0);
  EXPECT_TRUE(std::is_sorted(times.begin(), times.end()));
  EXPECT_LT(times[2], times[3]);
}

TEST_F(InferenceTest, ModelsAreNamedLoadedAndUnloaded) {
  Start();
  EXPECT_FALSE(*server->ModelReady("other", ""));
  EXPECT_FALSE(server->Metadata("other_ensemble", "").ok());
  ASSERT_TRUE(server->Load("other", {}).ok());
  for (const char* name : {"other", "other_ensemble", "other_tensorrt_llm_bls", "other_preprocessing",
                           "other_tensorrt_llm", "other_postprocessing", "ensemble", "bytes", "bytes_ensemble"}) {
    auto ready = server->ModelReady(name, "1");
    EXPECT_TRUE(ready.ok() && *ready) << name;
    auto metadata = server->Metadata(name, "");
    ASSERT_TRUE(metadata.ok()) << name;
    EXPECT_EQ(metadata->name, name);
  }
  EXPECT_EQ(Text(Run(TextRequest("xy", 3, {}, "other"))->responses.at(0)), "xyx");
  auto all = server->Statistics("", "");
  ASSERT_EQ(all->size(), 10u);
  EXPECT_EQ(all->at(6).name, "other_tensorrt_llm_bls");
  EXPECT_EQ(all->at(6).success.count, 1u);
  EXPECT_EQ(server->Unload("other_ensemble", {}).error().code(), Code::kUnsupported);
  ASSERT_TRUE(server->Unload("other", {}).ok());
  EXPECT_EQ(Refusal(TextRequest("xy", 3, {}, "other"), Code::kNotFound),
            "Request for unknown model: 'other' is not found");
  auto index = server->Index(/*ready_only=*/false);
  ASSERT_EQ(index->size(), 7u);
  EXPECT_EQ(index->at(1).name, "other");
  EXPECT_NE(index->at(1).kind, serve::ModelState::Kind::kReady);
  EXPECT_EQ(server->Index(true)->size(), 6u);
}

TEST_F(InferenceTest, AnEngineCalledTensorRtLlmIsTheFiveModels) {
  Start({}, {}, "tensorrt_llm");  // loaded after "bytes", which is the default elsewhere
  ASSERT_TRUE(server->Load("tensorrt_llm", {}).ok());
  EXPECT_EQ(server->ModelConfig("ensemble", "")->at("name").as_string(), "ensemble");
  EXPECT_EQ(FindModel(*models, "ensemble", "")->model->name(), "tensorrt_llm");
  EXPECT_EQ(FindModel(*models, "tensorrt_llm", "")->part, Part::kTensorRtLlm);
  EXPECT_EQ(FindModel(*models, "bytes_ensemble", "")->model->name(), "bytes");
  auto index = server->Index(/*ready_only=*/true);
  EXPECT_EQ(std::count_if(index->begin(), index->end(), [](const auto& m) { return m.name == "tensorrt_llm"; }), 1);
  EXPECT_EQ(index->size(), 11u);  // two engines, five parts of each, one name in both
  EXPECT_EQ(server->Unload("ensemble", {}).error().code(), Code::kUnsupported);
  ASSERT_TRUE(server->Unload("tensorrt_llm", {}).ok());
  EXPECT_EQ(FindModel(*models, "ensemble", "")->model->name(), "bytes");
}

TEST_F(InferenceTest, ADrainRefuses) {
  Start();
  EXPECT_TRUE(server->Ready());
  server->BeginDrain();
  EXPECT_FALSE(server->Ready());
  Refusal(TextRequest("p", 1), Code::kUnavailable);
}

TEST_F(InferenceTest, TheConfigTellsWhatClientsRead) {
  Start();
  auto config = server->ModelConfig("ensemble", "");
  ASSERT_TRUE(config.ok());
  EXPECT_TRUE(config->at("model_transaction_policy").at("decoupled").as_bool());
  EXPECT_EQ(config->at("max_batch_size").as_int64(), 64);
  EXPECT_EQ(config->at("ensemble_scheduling").at("step").as_array().size(), 3u);
  EXPECT_EQ(config->at("input").as_array().at(0).at("data_type").as_string(), "TYPE_STRING");
  EXPECT_FALSE(server->ModelConfig("postprocessing", "")->at("model_transaction_policy").at("decoupled").as_bool());
}

TEST_F(InferenceTest, TracesGoToAFile) {
  Start();
  std::string path = ::testing::TempDir() + "kserve_trace.json";
  EXPECT_FALSE(server->TraceSettings("", {{"trace_rate", {"0"}}}).ok());
  EXPECT_FALSE(server->TraceSettings("", {{"trace_level", {"TENSORS"}}}).ok());
  EXPECT_FALSE(server->TraceSettings("", {{"nonsense", {"1"}}}).ok());
  ASSERT_TRUE(
      server
          ->TraceSettings(
              "",
              {{"trace_file", {path}}, {"trace_level", {"TIMESTAMPS"}}, {"trace_rate", {"2"}}, {"trace_count", {"2"}}})
          .ok());
  for (int i = 0; i < 7; ++i) ASSERT_FALSE(Run(TextRequest("p", 1))->error);
  ASSERT_TRUE(server->TraceSettings("", {{"trace_level", {}}}).ok());  // closes the file
  std::FILE* file = std::fopen(path.c_str(), "r");
  ASSERT_NE(file, nullptr);
  std::string text(1 << 16, '\0');
  text.resize(std::fread(text.data(), 1, text.size(), file));
  std::fclose(file);
  auto parsed = ParseJson(text);
  ASSERT_TRUE(parsed.ok()) << text;
  ASSERT_EQ(parsed->as_array().size(), 4u);  // two traces, each a head and its times
  EXPECT_EQ(parsed->as_array()[0].at("model_name").as_string(), "ensemble");
  EXPECT_EQ(parsed->as_array()[1].at("timestamps").as_array().size(), 7u);
}

}  // namespace
}  // namespace ekiben::kserve
