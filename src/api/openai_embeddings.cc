#include "api/openai_embeddings.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "api/json_text.h"

namespace ekiben::api {
namespace {

static_assert(std::endian::native == std::endian::little, "clients read little-endian floats");

constexpr int64_t kDimensionsMax = 1 << 20;

class EmbeddingsCall final : public CompletionCall {
 public:
  EmbeddingsCall(const CallContext& context, std::shared_ptr<http::ResponseWriter> writer,
                 const EmbeddingsRequest& request, OpenAiCallInfo info)
      : CompletionCall(context, std::move(writer)),
        base64_(request.base64),
        dimensions_(request.dimensions),
        info_(std::move(info)) {}

 private:
  void PromptKnown(Prompt&) override {}
  void Text(Prompt&, Sequence&, const serve::TextEvent&) override {}

  void AllEnded() override {
    std::string out = "{\"object\":\"list\",\"data\":[";
    for (size_t i = 0; i < prompts_.size(); ++i) {
      if (i > 0) out.push_back(',');
      out.append("{\"object\":\"embedding\",\"index\":");
      AppendJsonInt(out, static_cast<int64_t>(i));
      out.append(",\"embedding\":");
      AppendVector(out, Normalized(prompts_[i].info.pooled, dimensions_));
      out.push_back('}');
    }
    out.append("],\"model\":");
    AppendJsonString(out, info_.model);
    out.append(",\"usage\":{\"prompt_tokens\":");
    AppendJsonInt(out, prompt_tokens());
    out.append(",\"total_tokens\":");
    AppendJsonInt(out, prompt_tokens());
    out.append("}}");
    writer_->Send(200, HeadersOf(info_, "application/json"), out);
  }

  void AppendVector(std::string& out, const std::vector<float>& values) const {
    if (base64_) return AppendJsonString(out, Base64(values));
    out.push_back('[');
    for (size_t i = 0; i < values.size(); ++i) {
      if (i > 0) out.push_back(',');
      fmt::format_to(std::back_inserter(out), "{}", values[i]);  // the shortest text that reads back as this float
    }
    out.push_back(']');
  }

  void Broken(const Error& error) override { SendCallError(*writer_, info_, error); }

  const bool base64_;
  const int32_t dimensions_;
  const OpenAiCallInfo info_;
};

}  // namespace

std::vector<float> Normalized(const std::vector<float>& hidden, int32_t dimensions) {
  std::vector<float> out = hidden;
  if (dimensions > 0) out.resize(std::min(out.size(), static_cast<size_t>(dimensions)));
  double squares = 0;
  for (float value : out) squares += static_cast<double>(value) * static_cast<double>(value);
  if (squares == 0) return out;
  for (float& value : out) value = static_cast<float>(static_cast<double>(value) / std::sqrt(squares));
  return out;
}

std::string Base64(const std::vector<float>& values) {
  size_t bytes = values.size() * sizeof(float);
  std::string raw(bytes, '\0'), out((bytes + 2) / 3 * 4 + 1, '\0');
  if (bytes > 0) std::memcpy(raw.data(), values.data(), bytes);
  int written = EVP_EncodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                                reinterpret_cast<const unsigned char*>(raw.data()), static_cast<int>(bytes));
  out.resize(static_cast<size_t>(written));
  return out;
}

Result<EmbeddingsRequest> ParseEmbeddingsRequest(const json::object& body, const OpenAiLimits& limits) {
  auto invalid = [](const char* field, const std::string& message) {
    return Error(Code::kInvalid, fmt::format("{}: {}", field, message), field);
  };
  EmbeddingsRequest out;
  ASSIGN_OR_RETURN(auto model, GetString(body, "model"));
  out.model = model.value_or("");
  ASSIGN_OR_RETURN(auto format, GetString(body, "encoding_format"));
  if (format && *format != "float" && *format != "base64")
    return invalid("encoding_format", fmt::format("'{}' is not one of float, base64", format->substr(0, 64)));
  out.base64 = format == "base64";
  ASSIGN_OR_RETURN(auto dimensions, GetInt(body, "dimensions", 1, kDimensionsMax));
  out.dimensions = static_cast<int32_t>(dimensions.value_or(0));
  ASSIGN_OR_RETURN(auto pooling, GetString(body, "pooling"));
  if (pooling && *pooling != "last" && *pooling != "mean")
    return invalid("pooling", fmt::format("'{}' is not one of last, mean", pooling->substr(0, 64)));
  serve::TextRequest request;
  request.pooling = pooling == "mean" ? Pooling::kMean : Pooling::kLast;
  request.max_tokens = 0;
  ASSIGN_OR_RETURN(auto truncate, GetInt(body, "truncate_prompt_tokens", -1, int64_t{1} << 24));
  if (truncate == 0) return invalid("truncate_prompt_tokens", "0 leaves no prompt; -1 means max_input_len");
  if (truncate) request.truncate_prompt_tokens = static_cast<int32_t>(*truncate);
  ASSIGN_OR_RETURN(auto inputs, ParsePrompts(body, "input", limits));
  for (auto& input : inputs) {
    out.inputs.push_back(request);
    out.inputs.back().input = std::move(input);
  }
  return out;
}

std::shared_ptr<CompletionCall> MakeEmbeddingsCall(const CallContext& context,
                                                   std::shared_ptr<http::ResponseWriter> writer,
                                                   const EmbeddingsRequest& request, OpenAiCallInfo info) {
  return std::make_shared<EmbeddingsCall>(context, std::move(writer), request, std::move(info));
}

}  // namespace ekiben::api
