// Bodies of KServe's inference routes -> tensors -> an answer's body. The first byte picks the route, the next two how
// much of an infer body is JSON (its Inference-Header-Content-Length); the rest is the body.
#include <cstdint>
#include <cstdlib>

#include <boost/json.hpp>

#include "api/kserve_body.h"
#include "base/check.h"
#include "kserve/tensor.h"

namespace {

using namespace ekiben;

// What the stages below rely on: data fits its shape. What came in goes out again as an answer, in both forms.
void CheckInputs(const kserve::InferRequest& request, const api::InferBody* asked) {
  kserve::InferResponse response;
  response.model_name = "ensemble";
  response.model_version = "1";
  response.id = request.id;
  for (const kserve::Tensor& tensor : request.inputs) {
    CHECK(tensor.region ? tensor.data.empty() : kserve::CheckData(tensor).ok());
    if (!tensor.region && tensor.type == kserve::DataType::kBytes)
      CHECK(static_cast<int64_t>(kserve::BytesElements(tensor).size()) == *kserve::ElementCount(tensor.shape));
    response.outputs.push_back(tensor);
  }
  if (asked != nullptr) {
    auto answer = api::WriteInferAnswer(response, *asked);
    if (answer.ok()) {
      CHECK(answer->json_bytes <= answer->body.size());
      CHECK(boost::json::parse(
                std::string_view(answer->body).substr(0, answer->binary ? answer->json_bytes : answer->body.size()))
                .is_object());
    } else {
      CHECK(!answer.error().message().empty());
    }
    return;
  }
  std::string out;
  api::AppendGenerateAnswer(out, response);
  CHECK(boost::json::parse(out).is_object());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 3) return 0;
  std::string_view body(reinterpret_cast<const char*>(data) + 3, size - 3);
  constexpr size_t kBytesMax = size_t{1} << 20;
  if (data[0] % 3 == 2) {
    const std::vector<kserve::TensorMetadata> inputs = {{"text_input", kserve::DataType::kBytes, {1}},
                                                        {"max_tokens", kserve::DataType::kInt32, {1}},
                                                        {"temperature", kserve::DataType::kFp32, {1}, true},
                                                        {"stream", kserve::DataType::kBool, {1}, true},
                                                        {"stop_words", kserve::DataType::kBytes, {-1}, true}};
    auto parsed = api::ParseFlatBody(body, inputs, kBytesMax);
    if (parsed.ok())
      CheckInputs(*parsed, nullptr);
    else
      CHECK(!parsed.error().message().empty());
    return 0;
  }
  std::optional<size_t> json_bytes;
  if (data[0] % 3 == 1) json_bytes = static_cast<size_t>(data[1]) * 256 + data[2];
  auto parsed = api::ParseInferBody(body, json_bytes, kBytesMax);
  if (parsed.ok())
    CheckInputs(parsed->request, &*parsed);
  else
    CHECK(!parsed.error().message().empty());
  return 0;
}
