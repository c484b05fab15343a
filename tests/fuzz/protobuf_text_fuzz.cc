// Protobuf's text (config.pbtxt) -> a tree. Written again in one form, it must be read as the same tree.
#include <cstdint>
#include <cstdlib>

#include "base/check.h"
#include "package/protobuf_text.h"

namespace {

using ekiben::TextField;

void Append(std::string& out, const std::vector<TextField>& fields) {
  for (const TextField& field : fields) {
    out += field.name;
    if (!field.fields.empty()) {
      out += '{';
      Append(out, field.fields);
      out += '}';
      continue;
    }
    out += ":\"";
    for (char c : field.value) {
      if (c == '\\' || c == '"') out += '\\';
      if (c == '\n') {
        out += "\\n";
      } else {
        out += c;
      }
    }
    out += "\" ";
  }
}

bool Same(const std::vector<TextField>& a, const std::vector<TextField>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i)
    if (a[i].name != b[i].name || a[i].value != b[i].value || !Same(a[i].fields, b[i].fields)) return false;
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto parsed = ekiben::ParseProtobufText({reinterpret_cast<const char*>(data), size});
  if (!parsed.ok()) {
    CHECK(parsed.error().message().starts_with("line "));
    return 0;
  }
  std::string text;
  Append(text, *parsed);
  auto again = ekiben::ParseProtobufText(text);
  CHECK(again.ok() && Same(*parsed, *again));
  return 0;
}
