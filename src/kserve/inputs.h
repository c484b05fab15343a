// The inputs of one request against its model's schema: every name known, every type and shape right, all batches
// equal. After Create the getters cannot fail.
//
// A tensor of dims D may come as D or as [batch, D...]; a request is a batch of one where none is given. Inputs that
// are known but not offered are refused by name unless they hold a neutral value (empty, zero, -1), which clients send
// for "none".
// Thread: plain values.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "kserve/inference.h"
#include "kserve/model_schema.h"

namespace ekiben::kserve {

class Inputs {
 public:
  // `request` and `schema` outlive this. Errors are worded as Triton's.
  static Result<Inputs> Create(const InferRequest& request, const ModelSchema& schema, int32_t batch_max);

  int32_t batch() const { return batch_; }
  bool Has(std::string_view name) const { return given_.contains(name); }
  // Row `row` of the batch. A scalar is its only element; nullopt: not given.
  std::optional<bool> Bool(std::string_view name, int32_t row) const { return Scalar<bool>(name, row); }
  std::optional<int32_t> Int32(std::string_view name, int32_t row) const { return Scalar<int32_t>(name, row); }
  std::optional<uint64_t> Uint64(std::string_view name, int32_t row) const { return Scalar<uint64_t>(name, row); }
  std::optional<float> Fp32(std::string_view name, int32_t row) const { return Scalar<float>(name, row); }
  std::optional<std::string> Text(std::string_view name, int32_t row) const;
  // All elements of the row; empty: not given.
  std::vector<int32_t> Int32s(std::string_view name, int32_t row) const { return Elements<int32_t>(name, row); }
  std::vector<float> Fp32s(std::string_view name, int32_t row) const { return Elements<float>(name, row); }
  std::vector<std::string> Texts(std::string_view name, int32_t row) const;
  // The row's shape, without the batch. REQUIRES: Has(name).
  std::vector<int64_t> RowShape(std::string_view name) const;

 private:
  struct Given {
    const Tensor* tensor = nullptr;
    const TensorSchema* schema = nullptr;
    bool batched = false;  // the first dimension is the batch
    size_t row_elements = 0;
    std::vector<std::string_view> texts;  // of BYTES
  };

  Result<void> Add(const Tensor& tensor, const ModelSchema& schema);
  Result<void> CheckBatch(int32_t batch_max, const ModelSchema& schema);
  Result<void> CheckRequired(const ModelSchema& schema) const;
  const Given* Find(std::string_view name) const;

  template <class T>
  std::vector<T> Elements(std::string_view name, int32_t row) const;
  template <class T>
  std::optional<T> Scalar(std::string_view name, int32_t row) const;

  std::map<std::string_view, Given> given_;
  int32_t batch_ = 1;
};

}  // namespace ekiben::kserve
