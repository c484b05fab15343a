// Text to tokens and back, without a generation: vLLM's utility routes.
#include <fmt/format.h>

#include <boost/json.hpp>

#include "api/app_context.h"
#include "api/json_text.h"
#include "api/openai_format.h"
#include "serve/service.h"
#include "text/tokenizer.h"

namespace ekiben::api {
namespace {

Result<std::string> Tokenize(const AppContext& context, const http::Request& request) {
  ASSIGN_OR_RETURN(json::object body, ReadJsonBody(context, request));
  ASSIGN_OR_RETURN(TokenizeRequest parsed, ParseTokenizeRequest(body, context.config.limits));
  ASSIGN_OR_RETURN(auto model, FindModel(context, parsed.model));
  serve::Service& service = model->service();
  ASSIGN_OR_RETURN(std::vector<TokenId> tokens, service.Tokenize(parsed.input));
  std::string out =
      fmt::format("{{\"count\":{},\"max_model_len\":{},\"tokens\":", tokens.size(), service.config().max_seq_len);
  AppendTokenIds(out, tokens);
  if (parsed.return_token_strs) {
    out.append(",\"token_strs\":[");
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (i > 0) out.push_back(',');
      AppendJsonString(out, ReplaceInvalidUtf8(service.tokenizer().Bytes(tokens[i])));
    }
    out.push_back(']');
  } else {
    out.append(",\"token_strs\":null");
  }
  return out + "}";
}

Result<std::string> Detokenize(const AppContext& context, const http::Request& request) {
  ASSIGN_OR_RETURN(json::object body, ReadJsonBody(context, request));
  ASSIGN_OR_RETURN(std::optional<std::string> name, GetString(body, "model"));
  ASSIGN_OR_RETURN(auto model, FindModel(context, name.value_or("")));
  serve::Service& service = model->service();
  ASSIGN_OR_RETURN(auto tokens, ParseDetokenizeRequest(body, service.config().vocab_size, context.config.limits));
  std::string out = "{\"prompt\":";
  AppendJsonString(out, service.tokenizer().Decode(tokens, {.skip_special = false}));
  return out + "}";
}

// Added tokens have their text in the specification only.
std::string TextOf(const text::Tokenizer& tokenizer, TokenId id) {
  for (const text::AddedToken& token : tokenizer.spec().added)
    if (token.id == id) return token.content;
  return std::string(tokenizer.Bytes(id));
}

// What lm-eval asks before it sends texts as tokens.
std::string TokenizerInfo(const text::Tokenizer& tokenizer, const std::string& model, int32_t max_model_len) {
  const text::TokenizerSpec& spec = tokenizer.spec();
  json::object out = {{"model", model},
                      {"tokenizer_class", "ekiben"},
                      {"vocab_size", tokenizer.vocab_size()},
                      {"model_max_length", max_model_len},
                      {"add_bos_token", spec.add_bos},
                      {"add_eos_token", spec.add_eos},
                      {"chat_template", spec.chat_template}};
  auto name = [&](const char* key, TokenId id) {
    out[key] = id < 0 ? json::value(nullptr) : json::value(ReplaceInvalidUtf8(TextOf(tokenizer, id)));
  };
  name("bos_token", spec.bos);
  name("eos_token", spec.eos);
  name("unk_token", spec.unk);
  name("pad_token", spec.pad);
  return json::serialize(out);
}

void AnswerTokenizerInfo(const AppContext& context, const Writer& writer) {
  auto model = FindModel(context, "");
  if (!model.ok()) return SendAnswer(writer, ErrorAnswer(PathFamily::kOpenAi, model.error()));
  serve::Service& service = (*model)->service();
  SendAnswer(writer, JsonAnswer(TokenizerInfo(service.tokenizer(), (*model)->name(), service.config().max_seq_len)));
}

Route SlowRoute(AppContext& context, const char* path,
                Result<std::string> (*answer)(const AppContext&, const http::Request&)) {
  return {.path = path,
          .method = "POST",
          .answer =
              [&context, answer](const http::Request& request, const Writer& writer) {
                auto text = answer(context, request);
                SendAnswer(writer,
                           text.ok() ? JsonAnswer(*std::move(text)) : ErrorAnswer(PathFamily::kOpenAi, text.error()));
              },
          .slow = true};
}

}  // namespace

std::vector<Route> TextRoutes(AppContext& context) {
  return {SlowRoute(context, "/tokenize", Tokenize),
          SlowRoute(context, "/detokenize", Detokenize),
          {"/tokenizer_info", "GET",
           [&context](const http::Request&, const Writer& writer) { AnswerTokenizerInfo(context, writer); }}};
}

}  // namespace ekiben::api
