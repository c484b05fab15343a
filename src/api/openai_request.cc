#include "api/openai_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>
#include <limits>

#include "api/chat_messages.h"

namespace ekiben::api {
namespace {

using serve::TextRequest;

constexpr int64_t kTokensMax = int64_t{1} << 24;

Error Invalid(std::string_view field, const std::string& message) {
  return Error(Code::kInvalid, fmt::format("{}: {}", field, message), std::string(field));
}
Error Unsupported(std::string_view field, const std::string& message) {
  return Error(Code::kUnsupported, fmt::format("{}: {}", field, message), std::string(field));
}

template <class T, class U>
void SetIf(const std::optional<T>& value, U& out) {
  if (value) out = static_cast<U>(*value);
}

#define READ_INT(object, key, low, high, out)                         \
  do {                                                                \
    ASSIGN_OR_RETURN(auto read_, GetInt(object, key, (low), (high))); \
    SetIf(read_, out);                                                \
  } while (false)
#define READ_NUMBER(object, key, low, high, out)                         \
  do {                                                                   \
    ASSIGN_OR_RETURN(auto read_, GetNumber(object, key, (low), (high))); \
    SetIf(read_, out);                                                   \
  } while (false)
#define READ_BOOL(object, key, out)                     \
  do {                                                  \
    ASSIGN_OR_RETURN(auto read_, GetBool(object, key)); \
    SetIf(read_, out);                                  \
  } while (false)

Result<std::vector<TokenId>> TokenIds(std::string_view field, const json::array& array, size_t count_max) {
  if (array.size() > count_max)
    return Invalid(field, fmt::format("{} token ids, the limit is {}", array.size(), count_max));
  std::vector<TokenId> ids;
  ids.reserve(array.size());
  for (const json::value& value : array) {
    if (!value.is_int64()) return Invalid(field, fmt::format("token ids are wanted, got {}", KindName(value)));
    int64_t id = value.get_int64();
    if (id < 0 || id > std::numeric_limits<TokenId>::max())
      return Invalid(field, fmt::format("token id {} is outside [0, {}]", id, std::numeric_limits<TokenId>::max()));
    ids.push_back(static_cast<TokenId>(id));
  }
  return ids;
}

Result<std::vector<std::string>> Strings(std::string_view field, const json::array& array, size_t count_max) {
  if (array.size() > count_max)
    return Invalid(field, fmt::format("{} strings, the limit is {}", array.size(), count_max));
  std::vector<std::string> out;
  for (const json::value& value : array) {
    if (!value.is_string()) return Invalid(field, fmt::format("strings are wanted, got {}", KindName(value)));
    out.emplace_back(value.get_string());
  }
  return out;
}

Result<void> ParseStop(const json::object& body, TextRequest& out) {
  const json::value* stop = body.if_contains("stop");
  if (stop != nullptr && stop->is_string()) {
    out.stop.emplace_back(stop->get_string());
  } else if (stop != nullptr && !stop->is_null()) {
    if (!stop->is_array())
      return Invalid("stop", fmt::format("a string or an array of strings is wanted, got {}", KindName(*stop)));
    ASSIGN_OR_RETURN(out.stop, Strings("stop", stop->get_array(), 16));
  }
  // Some clients send "" for "none".
  std::erase(out.stop, std::string());
  ASSIGN_OR_RETURN(const json::array* ids, GetArray(body, "stop_token_ids"));
  if (ids != nullptr) {
    ASSIGN_OR_RETURN(out.stop_token_ids, TokenIds("stop_token_ids", *ids, 256));
  }
  ASSIGN_OR_RETURN(const json::array* words, GetArray(body, "bad_words"));
  if (words != nullptr) {
    ASSIGN_OR_RETURN(out.bad_words, Strings("bad_words", *words, 128));
    std::erase(out.bad_words, std::string());
  }
  return {};
}

Result<void> ParseLogitBias(const json::object& body, SamplingParams& out) {
  ASSIGN_OR_RETURN(const json::object* biases, GetObject(body, "logit_bias"));
  if (biases == nullptr) return {};
  if (biases->size() > 1024) return Invalid("logit_bias", fmt::format("{} entries, the limit is 1024", biases->size()));
  for (const auto& [key, value] : *biases) {
    TokenId id = 0;
    auto [end, code] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (code != std::errc() || end != key.data() + key.size())
      return Invalid("logit_bias", fmt::format("key '{}' is no token id", std::string(key.substr(0, 40))));
    if (!value.is_number()) return Invalid("logit_bias", fmt::format("a number is wanted, got {}", KindName(value)));
    double bias = value.to_number<double>();
    if (!(bias >= -100 && bias <= 100)) return Invalid("logit_bias", fmt::format("{} is outside [-100, 100]", bias));
    out.logit_bias.emplace_back(id, static_cast<float>(bias));
  }
  return {};
}

Result<void> ParseSampling(const json::object& body, uint64_t seed_if_absent, SamplingParams& out) {
  READ_NUMBER(body, "temperature", 0, 2, out.temperature);
  READ_NUMBER(body, "top_p", 0, 1, out.top_p);
  if (out.top_p == 0) {  // some clients mean "the best only"
    out.top_p = 1;
    out.top_k = 1;
  }
  READ_INT(body, "top_k", -1, std::numeric_limits<int32_t>::max(), out.top_k);
  if (out.top_k == -1) out.top_k = 0;  // vLLM's "all"
  READ_NUMBER(body, "min_p", 0, 1, out.min_p);
  READ_NUMBER(body, "repetition_penalty", 1e-3, 100, out.repetition_penalty);
  READ_NUMBER(body, "presence_penalty", -2, 2, out.presence_penalty);
  READ_NUMBER(body, "frequency_penalty", -2, 2, out.frequency_penalty);
  READ_INT(body, "min_tokens", 0, kTokensMax, out.min_tokens);
  out.seed = seed_if_absent;
  ASSIGN_OR_RETURN(auto seed,
                   GetInt(body, "seed", std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()));
  if (seed) out.seed = static_cast<uint64_t>(*seed);
  RETURN_IF_ERROR(ParseLogitBias(body, out));
  ASSIGN_OR_RETURN(const json::array* allowed, GetArray(body, "allowed_token_ids"));
  if (allowed != nullptr) {
    ASSIGN_OR_RETURN(out.allowed_tokens, TokenIds("allowed_token_ids", *allowed, size_t{1} << 20));
    if (out.allowed_tokens.empty()) return Invalid("allowed_token_ids", "an empty list allows nothing; leave it out");
  }
  return {};
}

// Fields that would change the answer and that this server does not have: refused, so that nobody is misled.
Result<void> RefuseUnsupported(const json::object& body) {
  for (const char* key : {"functions", "function_call", "audio"}) {
    const json::value* value = body.if_contains(key);
    if (value != nullptr && !value->is_null()) return Unsupported(key, "not offered by this server; leave it out");
  }
  ASSIGN_OR_RETURN(auto beams, GetBool(body, "use_beam_search"));
  if (beams.value_or(false)) return Unsupported("use_beam_search", "true is not offered by this server");
  ASSIGN_OR_RETURN(const json::array* modalities, GetArray(body, "modalities"));
  if (modalities != nullptr)
    for (const json::value& modality : *modalities)
      if (modality != "text") return Unsupported("modalities", "only \"text\" is offered");
  return {};
}

Result<void> ParseStreaming(const json::object& body, CompletionRequest& out) {
  READ_BOOL(body, "stream", out.stream);
  ASSIGN_OR_RETURN(const json::object* options, GetObject(body, "stream_options"));
  if (options == nullptr) return {};
  if (!out.stream) return Invalid("stream_options", "only with \"stream\": true");
  READ_BOOL(*options, "include_usage", out.include_usage);
  READ_BOOL(*options, "continuous_usage_stats", out.continuous_usage_stats);
  return {};
}

// What both bodies have in common, into `out` and `request`, which every prompt is a copy of.
Result<void> ParseCommon(const json::object& body, uint64_t seed_if_absent, const OpenAiLimits& limits,
                         CompletionRequest& out, TextRequest& request) {
  ASSIGN_OR_RETURN(auto model, GetString(body, "model"));
  out.model = model.value_or("");
  RETURN_IF_ERROR(RefuseUnsupported(body));
  READ_INT(body, "n", 1, limits.n_max, out.n);
  RETURN_IF_ERROR(ParseStreaming(body, out));
  RETURN_IF_ERROR(ParseStop(body, request));
  RETURN_IF_ERROR(ParseSampling(body, seed_if_absent, request.sampling));
  READ_BOOL(body, "ignore_eos", request.ignore_eos);
  READ_BOOL(body, "include_stop_str_in_output", request.include_stop_text);
  READ_BOOL(body, "skip_special_tokens", request.skip_special_tokens);
  READ_BOOL(body, "return_token_ids", out.return_token_ids);
  READ_BOOL(body, "echo", out.echo);
  request.want_token_ids = out.return_token_ids;
  // vLLM's priority: lower is earlier. The executor's: higher is earlier.
  int32_t priority = 0;
  READ_INT(body, "priority", -1'000'000, 1'000'000, priority);
  request.priority = -priority;
  ASSIGN_OR_RETURN(auto salt, GetString(body, "cache_salt"));
  if (salt && salt->empty()) return Invalid("cache_salt", "an empty string; leave it out");
  if (salt && salt->size() > 1024)
    return Invalid("cache_salt", fmt::format("{} bytes, the limit is 1024", salt->size()));
  request.cache_salt = salt.value_or("");
  ASSIGN_OR_RETURN(auto truncate, GetInt(body, "truncate_prompt_tokens", -1, kTokensMax));
  if (truncate && *truncate == 0)
    return Invalid("truncate_prompt_tokens", "0 leaves no prompt; -1 means max_input_len");
  if (truncate) request.truncate_prompt_tokens = static_cast<int32_t>(*truncate);
  READ_INT(body, "prompt_logprobs", 0, PositionLogProbs::kAlternativesMax, out.prompt_logprobs);
  if (out.prompt_logprobs >= 0 && out.stream) return Unsupported("prompt_logprobs", "not offered in a stream");
  ASSIGN_OR_RETURN(request.grammar, ParseOutputFormat(body));
  ASSIGN_OR_RETURN(auto id, GetString(body, "request_id"));
  out.request_id = id.value_or("");
  return {};
}

// Sequences of a prompt, and which log-probabilities they need: those that were asked for, those of the prompt (which
// take as many alternatives as the request's tokens do), and the chosen tokens' where sequences are ranked.
Result<void> SettleSequences(const json::object& body, const OpenAiLimits& limits, CompletionRequest& out,
                             TextRequest& request) {
  out.best_of = out.n;
  READ_INT(body, "best_of", 1, limits.n_max, out.best_of);
  if (out.best_of < out.n) return Invalid("best_of", fmt::format("{} is less than n = {}", out.best_of, out.n));
  const bool ranks = out.best_of > out.n;
  if (ranks && out.stream) return Unsupported("best_of", "over n it is not offered in a stream: ranks come at the end");
  request.n = out.best_of;
  request.prompt_logprobs = out.prompt_logprobs >= 0 || (out.echo && out.logprobs >= 0);
  request.sampling.logprobs = std::max({out.logprobs, out.prompt_logprobs, ranks ? 0 : -1});
  return {};
}

Result<void> ParseChatLogprobs(const json::object& body, int32_t& out) {
  bool logprobs = false;
  int32_t top = 0;
  READ_BOOL(body, "logprobs", logprobs);
  ASSIGN_OR_RETURN(auto given, GetInt(body, "top_logprobs", 0, PositionLogProbs::kAlternativesMax));
  SetIf(given, top);
  if (top > 0 && !logprobs) return Invalid("top_logprobs", "only with \"logprobs\": true");
  if (logprobs) out = top;
  return {};
}

}  // namespace

Result<std::vector<PromptInput>> ParsePrompts(const json::object& body, const char* key, const OpenAiLimits& limits) {
  std::vector<PromptInput> out;
  const json::value* prompt = body.if_contains(key);
  if (prompt == nullptr || prompt->is_null()) return Invalid(key, "missing");
  if (prompt->is_string()) {
    out.emplace_back(std::string(prompt->get_string()));
    return out;
  }
  if (!prompt->is_array())
    return Invalid(key, fmt::format("a string, an array of strings, token ids or an array of them is wanted, "
                                    "got {}",
                                    KindName(*prompt)));
  const json::array& array = prompt->get_array();
  if (array.empty()) return Invalid(key, "an empty array");
  if (array[0].is_number()) {
    ASSIGN_OR_RETURN(auto ids, TokenIds(key, array, limits.token_ids_max));
    out.emplace_back(std::move(ids));
    return out;
  }
  if (array.size() > limits.prompts_max)
    return Invalid(key, fmt::format("{} prompts, the limit is {}", array.size(), limits.prompts_max));
  for (const json::value& item : array) {
    if (item.is_string()) {
      out.emplace_back(std::string(item.get_string()));
    } else if (item.is_array()) {
      ASSIGN_OR_RETURN(auto ids, TokenIds(key, item.get_array(), limits.token_ids_max));
      out.emplace_back(std::move(ids));
    } else {
      return Invalid(key, fmt::format("strings or arrays of token ids are wanted, got {}", KindName(item)));
    }
  }
  return out;
}

Result<json::object> ParseBody(std::string_view body, size_t bytes_max) {
  if (body.empty()) return Error(Code::kInvalid, "body: empty; a JSON object is wanted");
  ASSIGN_OR_RETURN(json::value value, ParseJson(body, {.depth_max = 64, .bytes_max = bytes_max}));
  if (!value.is_object())
    return Error(Code::kInvalid, fmt::format("body: a JSON object is wanted, got {}", KindName(value)));
  return std::move(value.get_object());
}

Result<CompletionRequest> ParseChatRequest(const json::object& body, uint64_t seed_if_absent,
                                           const OpenAiLimits& limits) {
  CompletionRequest out;
  out.chat = true;
  TextRequest request;
  ASSIGN_OR_RETURN(out.tools, ParseToolChoice(body));
  ASSIGN_OR_RETURN(request.input, ParseChatInput(body, out.tools, limits.messages_max));
  RETURN_IF_ERROR(ParseCommon(body, seed_if_absent, limits, out, request));
  if (out.tools.grammar && request.grammar)
    return Invalid("tool_choice", fmt::format("a demanded call not together with {}", request.grammar->field));
  if (out.tools.grammar) request.grammar = std::move(out.tools.grammar);
  RETURN_IF_ERROR(ParseChatLogprobs(body, out.logprobs));
  RETURN_IF_ERROR(SettleSequences(body, limits, out, request));
  if (out.echo) return Unsupported("echo", "true is not offered for chat; use /v1/completions");
  ASSIGN_OR_RETURN(auto old_name, GetInt(body, "max_tokens", 1, kTokensMax));
  ASSIGN_OR_RETURN(auto new_name, GetInt(body, "max_completion_tokens", 1, kTokensMax));
  if (old_name) request.max_tokens = static_cast<int32_t>(*old_name);
  if (new_name) request.max_tokens = static_cast<int32_t>(*new_name);
  out.prompts.push_back(std::move(request));
  return out;
}

Result<CompletionRequest> ParseCompletionRequest(const json::object& body, uint64_t seed_if_absent,
                                                 const OpenAiLimits& limits) {
  CompletionRequest out;
  TextRequest request;
  RETURN_IF_ERROR(ParseCommon(body, seed_if_absent, limits, out, request));
  READ_INT(body, "logprobs", 0, PositionLogProbs::kAlternativesMax, out.logprobs);
  RETURN_IF_ERROR(SettleSequences(body, limits, out, request));
  READ_BOOL(body, "add_special_tokens", request.add_special_tokens);
  ASSIGN_OR_RETURN(auto suffix, GetString(body, "suffix"));
  if (suffix && !suffix->empty()) return Unsupported("suffix", "not offered by this server; leave it out");
  ASSIGN_OR_RETURN(auto max_tokens, GetInt(body, "max_tokens", 0, kTokensMax));
  request.max_tokens = static_cast<int32_t>(max_tokens.value_or(16));
  if (request.max_tokens == 0 && !out.echo)
    return Invalid("max_tokens", "0 produces nothing; send at least 1, or \"echo\": true to score the prompt");
  if (request.max_tokens == 0) request.sampling.min_tokens = 0;
  ASSIGN_OR_RETURN(auto prompts, ParsePrompts(body, "prompt", limits));
  if (prompts.size() * static_cast<size_t>(out.best_of) > limits.sequences_max)
    return Invalid("n", fmt::format("{} with {} prompts is over the limit of {} sequences", out.best_of, prompts.size(),
                                    limits.sequences_max));
  for (auto& prompt : prompts) {
    out.prompts.push_back(request);
    out.prompts.back().input = std::move(prompt);
  }
  return out;
}

Result<TokenizeRequest> ParseTokenizeRequest(const json::object& body, const OpenAiLimits& limits) {
  TokenizeRequest out;
  ASSIGN_OR_RETURN(auto model, GetString(body, "model"));
  out.model = model.value_or("");
  READ_BOOL(body, "add_special_tokens", out.input.add_special_tokens);
  READ_BOOL(body, "return_token_strs", out.return_token_strs);
  if (body.contains("messages")) {
    ASSIGN_OR_RETURN(ToolChoice tools, ParseToolChoice(body));
    ASSIGN_OR_RETURN(out.input.input, ParseChatInput(body, tools, limits.messages_max));
    return out;
  }
  ASSIGN_OR_RETURN(auto prompt, GetString(body, "prompt"));
  if (!prompt) return Invalid("prompt", "missing; send \"prompt\" or \"messages\"");
  out.input.input = std::move(*prompt);
  return out;
}

Result<std::vector<TokenId>> ParseDetokenizeRequest(const json::object& body, int32_t vocab_size,
                                                    const OpenAiLimits& limits) {
  ASSIGN_OR_RETURN(const json::array* tokens, GetArray(body, "tokens"));
  if (tokens == nullptr) return Invalid("tokens", "missing");
  ASSIGN_OR_RETURN(auto ids, TokenIds("tokens", *tokens, limits.token_ids_max));
  for (TokenId id : ids)
    if (id >= vocab_size) return Invalid("tokens", fmt::format("token id {} is outside [0, {})", id, vocab_size));
  return ids;
}

}  // namespace ekiben::api
