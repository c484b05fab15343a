// The two bodies that HTML forms send: application/x-www-form-urlencoded and multipart/form-data (RFC 7578; a part is a
// field whether it carries a file name or not). Untrusted: fields are counted before they are kept, and copies are
// never larger than the body. Thread: pure functions.
#pragma once
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace ekiben::http {

using FormFields = std::vector<std::pair<std::string, std::string>>;  // in order; bytes as sent, decoded

// Whether a Content-Type names one of the two.
bool IsForm(std::string_view content_type);
// Errors: over fields_max, no boundary, a part without a name or an end.
Result<FormFields> ParseForm(std::string_view body, std::string_view content_type, size_t fields_max);

}  // namespace ekiben::http
