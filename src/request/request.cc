#include "request/request.h"

namespace ekiben {

std::string_view FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone: return "";
    case FinishReason::kEndToken:
    case FinishReason::kStopText: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kCancelled: return "cancelled";
    case FinishReason::kDeadline: return "timeout";
    case FinishReason::kError: return "error";
  }
  return "";
}

}  // namespace ekiben
