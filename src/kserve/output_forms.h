// How a client wants its outputs: as they are, as their best classes (Triton's classification extension), or written
// into a region of shared memory. Made from the parameters of a request's outputs before anything runs, applied to
// each response.
// Thread: plain values.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "kserve/inference.h"
#include "kserve/model_schema.h"
#include "kserve/shared_memory.h"

namespace ekiben::kserve {

class OutputForms {
 public:
  // `memory` outlives the forms. Outputs that the schema does not have are the caller's to refuse.
  static Result<OutputForms> Create(const std::vector<RequestedOutput>& outputs, const ModelSchema& schema,
                                    const SharedMemory& memory);

  // An error: nothing of the response may be sent.
  Result<void> Apply(std::vector<Tensor>& outputs) const;

 private:
  struct Form {
    size_t classes = 0;  // 0: as it is
    std::optional<RegionSpan> region;
  };
  std::map<std::string, Form, std::less<>> forms_;  // of the outputs that are not wanted as they are
  const SharedMemory* memory_ = nullptr;
};

// The `count` greatest elements of each row of the batch, greatest first and of equals the first, as "value:index" in
// BYTES [batch, count]. REQUIRES: CheckData(tensor) is ok, and a type with numbers.
Tensor BestClasses(const Tensor& tensor, size_t count);

}  // namespace ekiben::kserve
