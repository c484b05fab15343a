// Tensors and parameters in KServe's JSON. A tensor's "data" is row-major, flat or nested: numbers as numbers, BOOL as
// booleans, BYTES as strings; FP16 and BF16 have no JSON form. Source: Open Inference Protocol v2, "Tensor Data".
// Errors name the tensor, the element and the range. Thread: pure functions.
#pragma once
#include <string>

#include "base/json.h"
#include "base/result.h"
#include "kserve/inference.h"

namespace ekiben::api {

// Fills `tensor.data` from `data`: exactly the elements of tensor.shape, in any nesting whose leaves are in order.
Result<void> DataFromJson(const json::value& data, kserve::Tensor& tensor);
// A tensor from a scalar or an array of scalars, as the generate routes take them: shape [1] or [n].
Result<kserve::Tensor> TensorFromJson(std::string name, kserve::DataType type, const json::value& data);
// Its elements as a flat array; with `scalar_alone`, a single one without the array. BYTES that are not UTF-8 are
// repaired with U+FFFD, as text is everywhere on JSON wires. REQUIRES: CheckData(tensor) was ok, and not FP16 or BF16.
void AppendDataJson(std::string& out, const kserve::Tensor& tensor, bool scalar_alone);

Result<kserve::Parameters> ParametersFromJson(const json::object& object);
Result<kserve::ParameterValue> ParameterFromJson(std::string_view name, const json::value& value);
void AppendParameterJson(std::string& out, const kserve::ParameterValue& value);

}  // namespace ekiben::api
