// --api_key_file: a YAML list of keys with what each may use.
//   - {name: alice, key: "...", max_concurrency: 4, requests_per_minute: 600}
//   - {name: operator, key: "...", admin: true}
// Thread: any. Errors: name the file, the entry and the field; never a key.
#pragma once
#include <string>
#include <vector>

#include "base/api_keys.h"
#include "base/result.h"

namespace ekiben::cli {

Result<std::vector<ApiKey>> ReadApiKeyFile(const std::string& path);

}  // namespace ekiben::cli
