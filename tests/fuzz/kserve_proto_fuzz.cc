// A protobuf message off the wire -> a KServe request, and its tensors into an answer's message.
#include <cstdint>
#include <cstdlib>

#include "base/check.h"
#include "kserve/tensor.h"
#include "proto/grpc_service.pb.h"
#include "rpc/message_conversion.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace ekiben;
  inference::ModelInferRequest message;
  if (!message.ParseFromArray(data, static_cast<int>(size))) return 0;
  auto request = rpc::TakeInferRequest(message);
  if (!request.ok()) {
    CHECK(!request.error().message().empty());
    return 0;
  }
  kserve::InferResponse response;
  response.id = request->id;
  response.parameters = request->parameters;
  for (kserve::Tensor& tensor : request->inputs) {
    CHECK(tensor.region ? tensor.data.empty() : kserve::CheckData(tensor).ok());
    response.outputs.push_back(std::move(tensor));
  }
  size_t outputs = response.outputs.size();
  inference::ModelInferResponse answer;
  rpc::FillInferResponse(std::move(response), answer);
  CHECK(static_cast<size_t>(answer.raw_output_contents_size()) == outputs);
  return 0;
}
