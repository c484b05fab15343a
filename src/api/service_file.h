// service.yaml -> ServiceDefinition: an API of another shape without C++ (docs/api.md has the keys, deploy/services/
// examples). Every key is checked: an unknown one, a wrong type, a default outside its own range, a template that does
// not parse, two APIs on one route are errors that name file, line and key.
// Thread: main's, at start. The file is trusted with nothing but memory: its size is bounded.
#pragma once
#include <string>

#include "api/service_definition.h"
#include "base/result.h"

namespace ekiben::api {

constexpr size_t kServiceFileBytesMax = size_t{1} << 20;

Result<ServiceDefinition> ReadServiceFile(const std::string& path);
// `file`: how messages call it.
Result<ServiceDefinition> ParseServiceFile(const std::string& text, const std::string& file);

}  // namespace ekiben::api
