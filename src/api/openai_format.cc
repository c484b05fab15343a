#include "api/openai_format.h"

#include "api/json_text.h"
#include "text/tokenizer.h"

namespace ekiben::api {
namespace {

void AppendBytes(std::string& out, std::string_view bytes) {
  out.push_back('[');
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i > 0) out.push_back(',');
    AppendJsonInt(out, static_cast<unsigned char>(bytes[i]));
  }
  out.push_back(']');
}

void AppendScored(std::string& out, const text::Tokenizer& tokenizer, TokenId token, float logprob) {
  std::string_view bytes = tokenizer.Bytes(token);
  out.append("{\"token\":");
  AppendJsonString(out, ReplaceInvalidUtf8(bytes));
  out.append(",\"logprob\":");
  AppendJsonFloat(out, logprob);
  out.append(",\"bytes\":");
  AppendBytes(out, bytes);
}

// A map from token text to log-probability: the best, and the chosen one, which a client wants to find there too.
void AppendTopMap(std::string& out, const text::Tokenizer& tokenizer, TokenId chosen,
                  const PositionLogProbs& position) {
  out.push_back('{');
  bool has_chosen = false;
  for (int32_t i = 0; i < position.count; ++i) {
    if (i > 0) out.push_back(',');
    AppendJsonString(out, ReplaceInvalidUtf8(tokenizer.Bytes(position.best[i].token)));
    out.push_back(':');
    AppendJsonFloat(out, position.best[i].logprob);
    has_chosen |= position.best[i].token == chosen;
  }
  if (!has_chosen) {
    if (position.count > 0) out.push_back(',');
    AppendJsonString(out, ReplaceInvalidUtf8(tokenizer.Bytes(chosen)));
    out.push_back(':');
    AppendJsonFloat(out, position.chosen);
  }
  out.push_back('}');
}

}  // namespace

void AppendUsage(std::string& out, int64_t prompt_tokens, int64_t output_tokens, int64_t cached_tokens) {
  out.append("{\"prompt_tokens\":");
  AppendJsonInt(out, prompt_tokens);
  out.append(",\"total_tokens\":");
  AppendJsonInt(out, prompt_tokens + output_tokens);
  out.append(",\"completion_tokens\":");
  AppendJsonInt(out, output_tokens);
  out.append(",\"prompt_tokens_details\":{\"cached_tokens\":");
  AppendJsonInt(out, cached_tokens);
  out.append("}}");
}

void AppendChatLogprobs(std::string& out, const text::Tokenizer& tokenizer, const std::vector<TokenId>& tokens,
                        const std::vector<PositionLogProbs>& positions) {
  out.append("{\"content\":[");
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0) out.push_back(',');
    AppendScored(out, tokenizer, tokens[i], positions[i].chosen);
    out.append(",\"top_logprobs\":[");
    for (int32_t k = 0; k < positions[i].count; ++k) {
      if (k > 0) out.push_back(',');
      AppendScored(out, tokenizer, positions[i].best[k].token, positions[i].best[k].logprob);
      out.push_back('}');
    }
    out.append("]}");
  }
  out.append("],\"refusal\":null}");
}

void AppendCompletionLogprobs(std::string& out, const text::Tokenizer& tokenizer,
                              const std::vector<ScoredToken>& tokens, size_t& offset) {
  std::string offsets, logprobs, texts, tops;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0)
      for (std::string* list : {&offsets, &logprobs, &texts, &tops}) list->push_back(',');
    std::string text = ReplaceInvalidUtf8(tokenizer.Bytes(tokens[i].token));
    AppendJsonInt(offsets, static_cast<int64_t>(offset));
    offset += CountCodePoints(text);
    AppendJsonString(texts, text);
    if (tokens[i].position == nullptr) {
      logprobs.append("null");
      tops.append("null");
    } else {
      AppendJsonFloat(logprobs, tokens[i].position->chosen);
      AppendTopMap(tops, tokenizer, tokens[i].token, *tokens[i].position);
    }
  }
  out.append("{\"text_offset\":[").append(offsets);
  out.append("],\"token_logprobs\":[").append(logprobs);
  out.append("],\"tokens\":[").append(texts);
  out.append("],\"top_logprobs\":[").append(tops).append("]}");
}

void AppendPromptLogprobs(std::string& out, const text::Tokenizer& tokenizer, const std::vector<ScoredToken>& prompt,
                          int32_t alternatives) {
  out.push_back('[');
  for (size_t i = 0; i < prompt.size(); ++i) {
    if (i > 0) out.push_back(',');
    const PositionLogProbs* position = prompt[i].position;
    if (position == nullptr) {
      out.append("null");
      continue;
    }
    auto append = [&](TokenId token, float logprob, int32_t rank) {
      out.append(out.back() == '{' ? "\"" : ",\"");
      AppendJsonInt(out, token);
      out.append("\":{\"logprob\":");
      AppendJsonFloat(out, logprob);
      out.append(",\"rank\":");
      if (rank > 0)
        AppendJsonInt(out, rank);
      else
        out.append("null");  // worse than the alternatives that were looked at
      out.append(",\"decoded_token\":");
      AppendJsonString(out, ReplaceInvalidUtf8(tokenizer.Bytes(token)));
      out.push_back('}');
    };
    out.push_back('{');
    int32_t own_rank = 0;
    for (int32_t k = 0; k < position->count; ++k) {
      if (position->best[k].token == prompt[i].token) own_rank = k + 1;
      if (k < alternatives) append(position->best[k].token, position->best[k].logprob, k + 1);
    }
    if (own_rank == 0 || own_rank > alternatives) append(prompt[i].token, position->chosen, own_rank);
    out.push_back('}');
  }
  out.push_back(']');
}

void AppendTokenIds(std::string& out, const std::vector<TokenId>& tokens) {
  out.push_back('[');
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0) out.push_back(',');
    AppendJsonInt(out, tokens[i]);
  }
  out.push_back(']');
}

}  // namespace ekiben::api
