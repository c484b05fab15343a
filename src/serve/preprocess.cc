#include "serve/preprocess.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <utility>

namespace ekiben::serve {
namespace {

Error Invalid(const std::string& field, const std::string& message) {
  return Error(Code::kInvalid, field + ": " + message, field);
}

std::string_view PromptField(const TextRequest& request) {
  if (request.pooling != Pooling::kNone) return "input";
  return std::holds_alternative<ChatInput>(request.input) ? "messages" : "prompt";
}

// A template writes what ends a turn behind the last message; the model is to go on inside it.
Result<void> CutAfterLastContent(const json::object& inputs, std::vector<text::ChatTemplate::Span>& spans) {
  const json::array& messages = inputs.at("messages").as_array();
  const json::value& content = messages.back().at("content");
  std::string rendered;
  for (const auto& span : spans) rendered.append(span.text);
  // Templates trim contents, or do not.
  std::string_view wanted = content.is_string() ? std::string_view(content.get_string()) : "";
  size_t at = rendered.rfind(wanted);
  if (at == std::string::npos) {
    constexpr std::string_view kSpaces = " \t\r\n";
    wanted.remove_prefix(std::min(wanted.find_first_not_of(kSpaces), wanted.size()));
    wanted = wanted.substr(0, wanted.find_last_not_of(kSpaces) + 1);
    at = rendered.rfind(wanted);
  }
  if (wanted.empty() || at == std::string::npos)
    return Invalid("continue_final_message", "the chat template does not show the last message's content");
  size_t kept = at + wanted.size();
  for (auto& span : spans) {
    span.text.resize(std::min(span.text.size(), kept));
    kept -= span.text.size();
  }
  return {};
}

}  // namespace

Preprocessor::Preprocessor(const text::Tokenizer& tokenizer, const text::ChatTemplate* chat_template,
                           const Clock& clock, const ServiceConfig& config)
    : tokenizer_(tokenizer),
      chat_template_(chat_template),
      clock_(clock),
      config_(config),
      bos_text_(TextOfSpecial(tokenizer.spec().bos)),
      eos_text_(TextOfSpecial(tokenizer.spec().eos)) {}

std::string Preprocessor::TextOfSpecial(TokenId id) const {
  for (const auto& added : tokenizer_.spec().added)
    if (added.id == id) return added.content;
  return id < 0 ? std::string() : std::string(tokenizer_.Bytes(id));
}

Result<void> Preprocessor::CheckCheap(const TextRequest& request) const {
  const auto* chat = std::get_if<ChatInput>(&request.input);
  if (chat != nullptr && chat->own_template == nullptr && chat_template_ == nullptr)
    return Error(Code::kUnsupported, "messages: the model has no chat template; use /v1/completions", "messages");
  if (request.stop.size() > kStopStringsMax)
    return Invalid("stop", fmt::format("{} strings, the limit is {}", request.stop.size(), kStopStringsMax));
  for (const std::string& stop : request.stop) {
    if (stop.empty()) return Invalid("stop", "an empty string would stop at once; leave it out");
    if (stop.size() > kStopBytesMax)
      return Invalid("stop", fmt::format("{} bytes, the limit is {}", stop.size(), kStopBytesMax));
  }
  if (request.grammar && request.ignore_eos)
    return Invalid("ignore_eos", fmt::format("not together with {}, whose end ends the text", request.grammar->field));
  if (request.n < 1) return Invalid("n", fmt::format("{} is less than 1", request.n));
  if (request.max_tokens && *request.max_tokens < 0)
    return Invalid("max_tokens", fmt::format("{} is negative", *request.max_tokens));
  for (TokenId token : request.stop_token_ids)
    if (token < 0 || token >= config_.vocab_size)
      return Invalid("stop_token_ids", fmt::format("token id {} is outside [0, {})", token, config_.vocab_size));
  if (const auto* tokens = std::get_if<std::vector<TokenId>>(&request.input))
    for (TokenId token : *tokens)
      if (token < 0 || token >= config_.vocab_size)
        return Invalid(std::string(PromptField(request)),
                       fmt::format("token id {} is outside [0, {})", token, config_.vocab_size));
  if (const auto* text = std::get_if<std::string>(&request.input))
    RETURN_IF_ERROR(CheckBytes(std::string(PromptField(request)).c_str(), text->size()));
  return Validate(request.sampling, config_.vocab_size);
}

// A token stands for at most a few hundred bytes in any known vocabulary: a text this long cannot fit.
Result<void> Preprocessor::CheckBytes(const char* field, size_t bytes) const {
  if (bytes / 512 <= static_cast<size_t>(config_.max_input_len)) return {};
  return Invalid(field, fmt::format("{} bytes cannot fit max_input_len of {} tokens; send a shorter prompt", bytes,
                                    config_.max_input_len));
}

Result<std::vector<TokenId>> Preprocessor::Tokenize(const TextRequest& request) const {
  if (const auto* tokens = std::get_if<std::vector<TokenId>>(&request.input)) return *tokens;
  if (const auto* chat = std::get_if<ChatInput>(&request.input)) return TokenizeChat(*chat);
  return tokenizer_.Encode(std::get<std::string>(request.input),
                           {.add_special = request.add_special_tokens, .parse_special = true});
}

Result<std::vector<TokenId>> Preprocessor::TokenizeChat(const ChatInput& chat) const {
  const text::ChatTemplate* chat_template = chat.own_template != nullptr ? chat.own_template.get() : chat_template_;
  if (chat_template == nullptr)
    return Error(Code::kUnsupported, "messages: the model has no chat template; use /v1/completions", "messages");
  json::object inputs = chat.inputs;
  if (!inputs.contains("bos_token")) inputs["bos_token"] = bos_text_;
  if (!inputs.contains("eos_token")) inputs["eos_token"] = eos_text_;
  auto wall = std::chrono::duration_cast<std::chrono::seconds>(clock_.WallNow()).count();
  auto spans = chat_template->Render(inputs, wall);
  if (!spans.ok()) {
    Error error = std::move(spans).error();
    return Error(error.code(), "messages: the chat template says: " + error.message(), "messages");
  }
  if (chat.continue_final_message) RETURN_IF_ERROR(CutAfterLastContent(inputs, *spans));
  std::vector<text::Tokenizer::Span> views;
  views.reserve(spans->size());
  size_t bytes = 0;
  for (const auto& span : *spans) {
    views.push_back({span.text, span.trusted});
    bytes += span.text.size();
  }
  RETURN_IF_ERROR(CheckBytes("messages", bytes));
  return tokenizer_.EncodeSpans(views, /*add_special=*/false);
}

Result<std::shared_ptr<const Request>> Preprocessor::Build(RequestId id, const TextRequest& request, Nanos arrival,
                                                           std::shared_ptr<const TokenConstraint> constraint) const {
  RETURN_IF_ERROR(CheckCheap(request));
  auto out = std::make_shared<Request>();
  out->id = id;
  ASSIGN_OR_RETURN(out->prompt, Tokenize(request));
  if (request.truncate_prompt_tokens) {
    int32_t kept = *request.truncate_prompt_tokens < 0 ? config_.max_input_len : *request.truncate_prompt_tokens;
    if (std::cmp_greater(out->prompt.size(), kept)) out->prompt.erase(out->prompt.begin(), out->prompt.end() - kept);
  }
  RETURN_IF_ERROR(CheckLengths(request, *out));
  out->n = request.n;
  out->sampling = request.sampling;
  out->constraint = std::move(constraint);
  AddBadWords(request.bad_words, out->sampling);
  RETURN_IF_ERROR(Validate(out->sampling, config_.vocab_size));
  // ignore_eos is about the model's own end tokens; ids that the client names stop in any case.
  out->stop_tokens = request.stop_token_ids;
  if (!request.ignore_eos) {
    const auto& ends = tokenizer_.spec().end_ids;
    out->stop_tokens.insert(out->stop_tokens.end(), ends.begin(), ends.end());
  }
  out->ignore_eos = request.ignore_eos && request.stop_token_ids.empty();
  out->prompt_logprobs = request.prompt_logprobs;
  out->pooling = request.pooling;
  out->priority = request.priority;
  out->cache_salt = request.cache_salt;
  out->arrival = arrival;
  if (request.timeout) out->deadline = arrival + *request.timeout;
  RETURN_IF_ERROR(AddLogits(request, *out));
  return std::shared_ptr<const Request>(std::move(out));
}

// Taken here, whole, so that the executor need not: what does not fit is refused before a step was spent on it.
Result<void> Preprocessor::AddLogits(const TextRequest& request, Request& out) const {
  if (!request.context_logits && !request.generation_logits) return {};
  const char* field = request.context_logits ? "return_context_logits" : "return_generation_logits";
  auto prompt = request.context_logits ? static_cast<int32_t>(out.prompt.size()) : 0;
  int32_t tokens = request.generation_logits ? out.max_tokens : 0;
  // n is at most some hundreds and lengths below 2^31, so this fits.
  int64_t rows = prompt + int64_t{request.n} * tokens;
  int64_t limit = config_.logits_bytes_max, row_bytes = int64_t{config_.vocab_size} * int64_t{sizeof(float)};
  if (rows > limit / row_bytes)
    return Invalid(field,
                   fmt::format("{} rows of {} bytes are over the limit of {} bytes; send a shorter prompt or fewer "
                               "tokens",
                               rows, row_bytes, limit));
  int64_t bytes = rows * row_bytes;
  if (logits_held_->fetch_add(bytes, std::memory_order_relaxed) + bytes > limit) {
    logits_held_->fetch_sub(bytes, std::memory_order_relaxed);
    return Error(
        Code::kOverloaded,
        fmt::format("{}: {} bytes beside what other requests hold are over {}; try again", field, bytes, limit), field);
  }
  try {
    out.logits = std::make_shared<GatheredLogits>(prompt, request.n, tokens, config_.vocab_size, bytes, logits_held_);
  } catch (const std::bad_alloc&) {
    logits_held_->fetch_sub(bytes, std::memory_order_relaxed);
    return Error(Code::kOverloaded, fmt::format("{}: no memory for {} bytes; try again", field, bytes), field);
  }
  return {};
}

Result<void> Preprocessor::CheckLengths(const TextRequest& request, Request& out) const {
  auto length = static_cast<int64_t>(out.prompt.size());
  std::string field(PromptField(request));
  if (length == 0) return Invalid(field, "no tokens; send at least one");
  if (length > config_.max_input_len)
    return Invalid(field, fmt::format("{} tokens are over max_input_len of {}; send a shorter prompt", length,
                                      config_.max_input_len));
  int64_t room = config_.max_seq_len - length;
  if (request.max_tokens && *request.max_tokens > room && !request.clamp_max_tokens)
    return Invalid("max_tokens",
                   fmt::format("{} with a prompt of {} tokens is over max_seq_len of {}; at most {} fit",
                               *request.max_tokens, length, config_.max_seq_len, std::max<int64_t>(room, 0)));
  if (room < 1 && request.max_tokens.value_or(1) > 0)
    return Invalid(field, fmt::format("{} tokens leave no room in max_seq_len of {}; send a shorter prompt", length,
                                      config_.max_seq_len));
  out.max_tokens = static_cast<int32_t>(std::min<int64_t>(request.max_tokens.value_or(room), room));
  if (request.sampling.min_tokens > out.max_tokens)
    return Invalid("min_tokens",
                   fmt::format("{} is over max_tokens of {}", request.sampling.min_tokens, out.max_tokens));
  return {};
}

// A word inside a text usually carries the space before it in its first token, so both spellings are banned.
void Preprocessor::AddBadWords(const std::vector<std::string>& words, SamplingParams& sampling) const {
  for (const std::string& word : words) {
    for (const std::string& spelling : {word, " " + word}) {
      auto tokens = tokenizer_.Encode(spelling, {.add_special = false, .parse_special = false});
      if (!tokens.empty() &&
          std::find(sampling.bad_words.begin(), sampling.bad_words.end(), tokens) == sampling.bad_words.end())
        sampling.bad_words.push_back(std::move(tokens));
    }
  }
}

}  // namespace ekiben::serve
