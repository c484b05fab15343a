#include "api/service_file.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>
#include <cmath>
#include <fstream>
#include <sstream>

#include "api/bento_request.h"

namespace ekiben::api {
namespace {

// A node, and how a message calls it: "service.yaml:12: apis.generate.fields".
class At {
 public:
  At(const YAML::Node& node, const std::string& file, std::string key, int line_above = 0)
      : node_(node), file_(file), key_(std::move(key)), line_above_(line_above) {}

  Error Bad(const std::string& message) const {
    return {Code::kInvalid, fmt::format("{}:{}: {}{}{}", file_, Line(), key_, key_.empty() ? "" : ": ", message), key_};
  }
  const YAML::Node& node() const { return node_; }
  // Counted from 1; of what is absent, the line of what it is absent from.
  int Line() const { return (node_.IsDefined() ? node_.Mark().line : line_above_) + 1; }
  bool given() const { return node_.IsDefined() && !node_.IsNull(); }

  At operator[](const std::string& name) const {
    const YAML::Node& map = node_;  // const: a look adds nothing
    return {node_.IsDefined() && node_.IsMap() ? map[name] : YAML::Node(YAML::NodeType::Undefined), file_,
            key_.empty() ? name : key_ + "." + name, node_.IsDefined() ? node_.Mark().line : line_above_};
  }
  At Item(size_t i) const { return {node_[i], file_, fmt::format("{}[{}]", key_, i)}; }
  // The members of a map, in order; only those in `known` where that is not empty.
  Result<std::vector<std::pair<std::string, At>>> Members(const std::vector<std::string_view>& known) const {
    std::vector<std::pair<std::string, At>> out;
    if (!given()) return out;
    if (!node_.IsMap()) return Bad("a map is wanted here");
    for (const auto& member : node_) {
      std::string name = member.first.IsScalar() ? member.first.Scalar() : "";
      At at{member.second, file_, key_.empty() ? name : key_ + "." + name};
      bool twice = std::any_of(out.begin(), out.end(), [&](const auto& earlier) { return earlier.first == name; });
      if (name.empty() || twice) return at.Bad(twice ? "given twice" : "a name is wanted as the key");
      if (!known.empty() && std::find(known.begin(), known.end(), name) == known.end())
        return at.Bad(fmt::format("not known; it is one of {}", fmt::join(known, ", ")));
      out.emplace_back(std::move(name), std::move(at));
    }
    return out;
  }

  Result<std::string> String() const {
    if (!given() || !node_.IsScalar()) return Bad("a text is wanted here");
    return node_.Scalar();
  }
  Result<double> Number(double low, double high) const {
    double out = 0;
    std::string text = node_.IsScalar() ? node_.Scalar() : "";
    auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), out);
    if (code != std::errc() || end != text.data() + text.size() || !std::isfinite(out))
      return Bad(fmt::format("'{}' is not a number", text.substr(0, 100)));
    if (out < low || out > high) return Bad(fmt::format("{:g} is outside [{:g}, {:g}]", out, low, high));
    return out;
  }
  Result<bool> Bool() const {
    bool out = false;
    if (!node_.IsScalar() || !YAML::convert<bool>::decode(node_, out)) return Bad("true or false is wanted here");
    return out;
  }
  // A value of `type`: what a client could send, but a quoted text is no number.
  Result<json::value> Value(FieldType type) const {
    if (!node_.IsScalar()) return Bad(fmt::format("a {} is wanted here", FieldTypeName(type)));
    if (type == FieldType::kString) return json::value(node_.Scalar());
    if (type == FieldType::kBoolean) {
      ASSIGN_OR_RETURN(bool out, Bool());
      return json::value(out);
    }
    ASSIGN_OR_RETURN(double number, Number(-9e15, 9e15));
    if (type == FieldType::kNumber) return json::value(number);
    if (number != std::floor(number)) return Bad(fmt::format("{:g} is not an integer", number));
    return json::value(static_cast<int64_t>(number));
  }
  Result<std::shared_ptr<const text::ChatTemplate>> Template() const {
    ASSIGN_OR_RETURN(std::string source, String());
    auto parsed = text::ChatTemplate::Parse(source);
    if (!parsed.ok()) return Bad("the template does not parse: " + parsed.error().message());
    return std::make_shared<const text::ChatTemplate>(*std::move(parsed));
  }

 private:
  YAML::Node node_;
  const std::string& file_;
  std::string key_;
  int line_above_;
};

bool IsName(std::string_view text) {
  return !text.empty() && text.size() <= 63 && !(text[0] >= '0' && text[0] <= '9') &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
         });
}

Result<FieldType> TypeOf(const At& at) {
  if (!at.given()) return FieldType::kString;
  ASSIGN_OR_RETURN(std::string name, at.String());
  for (FieldType type : {FieldType::kString, FieldType::kInteger, FieldType::kNumber, FieldType::kBoolean})
    if (name == FieldTypeName(type)) return type;
  return at.Bad(fmt::format("'{}' is not one of string, integer, number, boolean", name));
}

Result<void> ReadSets(const At& at, ServiceField& field) {
  if (!at.given()) return {};
  ASSIGN_OR_RETURN(field.sets, at.String());
  auto type = ParameterType(field.sets);
  if (!type) return at.Bad(fmt::format("'{}' is not one of {}", field.sets, ParameterNames()));
  bool fits = *type == field.type || (*type == FieldType::kNumber && field.type == FieldType::kInteger);
  if (!fits)
    return at.Bad(
        fmt::format("{} takes a {}, the field is a {}", field.sets, FieldTypeName(*type), FieldTypeName(field.type)));
  return {};
}

Result<void> ReadBounds(const At& at, ServiceField& field) {
  bool number = field.type == FieldType::kInteger || field.type == FieldType::kNumber;
  for (auto [key, bound] : {std::pair{"minimum", &field.minimum}, std::pair{"maximum", &field.maximum}}) {
    At value = at[key];
    if (!value.given()) continue;
    if (!number) return value.Bad("only of an integer or a number");
    ASSIGN_OR_RETURN(*bound, value.Number(-9e15, 9e15));
  }
  if (field.minimum && field.maximum && *field.minimum > *field.maximum)
    return at["minimum"].Bad(fmt::format("{:g} is over the maximum of {:g}", *field.minimum, *field.maximum));
  if (At length = at["max_length"]; length.given()) {
    if (field.type != FieldType::kString) return length.Bad("only of a string");
    ASSIGN_OR_RETURN(double most, length.Number(1, 1e9));
    field.max_length = static_cast<int64_t>(most);
  }
  if (At choices = at["enum"]; choices.given()) {
    if (field.type != FieldType::kString || !choices.node().IsSequence())
      return choices.Bad("a list of texts is wanted, of a string field");
    for (const YAML::Node& choice : choices.node()) {
      if (!choice.IsScalar()) return choices.Bad("a list of texts is wanted");
      field.choices.push_back(choice.Scalar());
    }
  }
  return {};
}

Result<ServiceField> ReadField(const std::string& name, const At& at) {
  RETURN_IF_ERROR(
      at.Members({"type", "default", "nullable", "minimum", "maximum", "max_length", "enum", "description", "sets"}));
  ServiceField out;
  out.name = name;
  if (!IsName(name)) return at.Bad("a field's name has letters, digits and '_', at most 63, no digit first");
  ASSIGN_OR_RETURN(out.type, TypeOf(at["type"]));
  if (At nullable = at["nullable"]; nullable.given()) {
    ASSIGN_OR_RETURN(out.nullable, nullable.Bool());
  }
  if (At text = at["description"]; text.given()) {
    ASSIGN_OR_RETURN(out.description, text.String());
  }
  RETURN_IF_ERROR(ReadBounds(at, out));
  RETURN_IF_ERROR(ReadSets(at["sets"], out));
  At preset = at["default"];
  if (preset.given()) {
    ASSIGN_OR_RETURN(json::value value, preset.Value(out.type));
    std::vector<FieldProblem> problems;
    if (!CheckField(out, value, problems)) return preset.Bad(problems[0].message);
    out.default_value = std::move(value);
  } else if (out.nullable) {
    out.default_value = nullptr;
  }
  return out;
}

Result<void> ReadMessages(const At& at, ServiceApi& api) {
  if (!at.node().IsSequence() || at.node().size() == 0) return at.Bad("a list of {role, content} is wanted");
  for (size_t i = 0; i < at.node().size(); ++i) {
    At message = at.Item(i);
    RETURN_IF_ERROR(message.Members({"role", "content"}));
    ServiceMessage out;
    ASSIGN_OR_RETURN(out.role, message["role"].String());
    ASSIGN_OR_RETURN(out.content, message["content"].Template());
    api.messages.push_back(std::move(out));
  }
  return {};
}

Result<void> ReadParameters(const At& at, ServiceApi& api) {
  ASSIGN_OR_RETURN(auto members, at.Members({}));
  for (const auto& [name, value] : members) {
    auto type = ParameterType(name);
    if (!type) return value.Bad(fmt::format("not known; it is one of {}", ParameterNames()));
    for (const ServiceField& field : api.fields)
      if (field.sets == name) return value.Bad(fmt::format("the field '{}' sets it, too", field.name));
    ASSIGN_OR_RETURN(json::value read, value.Value(*type));
    api.parameters.emplace_back(name, std::move(read));
  }
  return {};
}

Result<ServiceApi> ReadApi(const std::string& name, const At& at) {
  RETURN_IF_ERROR(
      at.Members({"route", "description", "model", "stream", "fields", "prompt", "messages", "parameters"}));
  ServiceApi out;
  out.name = name;
  if (!IsName(name)) return at.Bad("an API's name has letters, digits and '_', at most 63, no digit first");
  out.route = "/" + name;
  if (At route = at["route"]; route.given()) {
    ASSIGN_OR_RETURN(out.route, route.String());
    if (!out.route.starts_with('/') || out.route.size() < 2 || out.route.find_first_of("?#% ") != std::string::npos)
      return route.Bad(fmt::format("'{}' is not a path such as /generate", out.route));
  }
  for (auto [key, text] : {std::pair{"description", &out.doc}, std::pair{"model", &out.model}}) {
    if (!at[key].given()) continue;
    ASSIGN_OR_RETURN(*text, at[key].String());
  }
  if (At stream = at["stream"]; stream.given()) {
    ASSIGN_OR_RETURN(out.stream, stream.Bool());
  }
  ASSIGN_OR_RETURN(auto fields, at["fields"].Members({}));
  for (const auto& [field_name, field_at] : fields) {
    ASSIGN_OR_RETURN(ServiceField field, ReadField(field_name, field_at));
    for (const ServiceField& earlier : out.fields)
      if (!field.sets.empty() && earlier.sets == field.sets)
        return field_at["sets"].Bad(fmt::format("the field '{}' sets {}, too", earlier.name, field.sets));
    out.fields.push_back(std::move(field));
  }
  At prompt = at["prompt"], messages = at["messages"];
  if (prompt.given() == messages.given())
    return at.Bad("either prompt (a whole template) or messages (for the model's own one) is wanted");
  if (prompt.given()) {
    ASSIGN_OR_RETURN(out.prompt, prompt.Template());
  } else {
    RETURN_IF_ERROR(ReadMessages(messages, out));
  }
  RETURN_IF_ERROR(ReadParameters(at["parameters"], out));
  return out;
}

Result<void> ReadTraffic(const At& at, ServiceDefinition& service) {
  RETURN_IF_ERROR(at.Members({"timeout", "max_concurrency"}));
  if (At timeout = at["timeout"]; timeout.given()) {
    ASSIGN_OR_RETURN(service.timeout_s, timeout.Number(0.001, 86400));
  }
  if (At most = at["max_concurrency"]; most.given()) {
    ASSIGN_OR_RETURN(double calls, most.Number(1, 1e6));
    service.max_concurrency = static_cast<int32_t>(calls);
  }
  return {};
}

// Paths that the server itself answers.
bool IsTaken(std::string_view route) {
  for (std::string_view prefix : {"/v1/", "/v2/"})
    if (route.starts_with(prefix)) return true;
  for (std::string_view path : {"/v1", "/v2", "/tokenize", "/detokenize", "/schema.json", "/docs.json", "/docs",
                                "/healthz", "/livez", "/readyz", "/health", "/ping", "/version", "/metrics"})
    if (route == path) return true;
  return false;
}

Result<ServiceDefinition> Read(const At& root) {
  RETURN_IF_ERROR(root.Members({"name", "version", "description", "traffic", "metrics_namespace", "apis"}));
  ServiceDefinition out;
  for (auto [key, text] :
       {std::pair{"name", &out.name}, std::pair{"version", &out.version}, std::pair{"description", &out.description},
        std::pair{"metrics_namespace", &out.metrics_namespace}}) {
    if (!root[key].given()) continue;
    ASSIGN_OR_RETURN(*text, root[key].String());
  }
  bool printable = std::all_of(out.name.begin(), out.name.end(), [](char c) { return c >= ' ' && c <= '~'; });
  if (out.name.empty() || out.name.size() > 200 || !printable)
    return root["name"].Bad("1 to 200 printable ASCII characters are wanted: it stands in a header");
  if (!IsName(out.metrics_namespace))
    return root["metrics_namespace"].Bad("letters, digits and '_' are wanted, no digit first");
  RETURN_IF_ERROR(ReadTraffic(root["traffic"], out));
  At apis = root["apis"];
  ASSIGN_OR_RETURN(auto members, apis.Members({}));
  if (members.empty()) return root.Bad("apis: at least one is wanted");
  for (const auto& [name, at] : members) {
    ASSIGN_OR_RETURN(ServiceApi api, ReadApi(name, at));
    bool taken = IsTaken(api.route) || std::any_of(out.apis.begin(), out.apis.end(),
                                                   [&](const ServiceApi& a) { return a.route == api.route; });
    if (taken) return at.Bad(fmt::format("the route {} is taken already", api.route));
    out.apis.push_back(std::move(api));
  }
  return out;
}

}  // namespace

Result<ServiceDefinition> ParseServiceFile(const std::string& text, const std::string& file) {
  if (text.size() > kServiceFileBytesMax)
    return Error(Code::kInvalid,
                 fmt::format("{}: {} bytes; a service file has at most {}", file, text.size(), kServiceFileBytesMax));
  try {
    YAML::Node root = YAML::Load(text);
    if (!root.IsMap()) return Error(Code::kInvalid, fmt::format("{}:1: a map with name and apis is wanted", file));
    return Read(At(root, file, ""));
  } catch (const YAML::Exception& e) {
    return Error(Code::kInvalid, fmt::format("{}:{}: {}", file, e.mark.line + 1, e.msg));
  }
}

Result<ServiceDefinition> ReadServiceFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return Error(Code::kNotFound, fmt::format("service: {} cannot be read", path), "service");
  std::string text(kServiceFileBytesMax + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));
  return ParseServiceFile(text, path);
}

}  // namespace ekiben::api
