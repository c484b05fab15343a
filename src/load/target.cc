#include "load/target.h"

#include <boost/json/serialize.hpp>
#include <boost/json/value_from.hpp>

#include "load/service_transport.h"
#include "load/user_loop.h"

namespace ekiben::load {
namespace {

constexpr Nanos kCallTimeout = std::chrono::seconds(30);
constexpr uint32_t kPreflightLevel = UINT32_MAX - 1;

// `{"a":1}` -> `"a":1`.
Result<std::string> MembersOf(const std::string& extra_json) {
  if (extra_json.empty()) return std::string();
  auto parsed = ParseJson(extra_json);
  if (!parsed.ok()) return std::move(parsed).error().Within("extra_json");
  if (!parsed->is_object()) return Error(Code::kInvalid, "extra_json: not a JSON object", "extra_json");
  std::string text = json::serialize(*parsed);
  return text.substr(1, text.size() - 2);
}

Result<std::string> FirstModel(const Target& target) {
  ASSIGN_OR_RETURN(CallResult answer,
                   Call(target.endpoint, "GET", "/v1/models", target.shape.headers, "", kCallTimeout));
  if (answer.status == 404) return std::string();  // a server without the route takes a request without a model
  if (answer.status != 200) {
    return Error(Code::kUnavailable,
                 fmt::format("GET /v1/models: status {}: {}", answer.status, ErrorMessageOf(answer.body)), "model");
  }
  ASSIGN_OR_RETURN(json::value list, ParseJson(answer.body));
  boost::system::error_code missing;
  const json::value* id = list.find_pointer("/data/0/id", missing);
  if (id == nullptr || !id->is_string()) {
    return Error(Code::kUnavailable, "GET /v1/models: no data[0].id; name the model with --model", "model");
  }
  return std::string(id->as_string());
}

// vLLM's and ekiben's {prompt | messages} -> {count, tokens}; llama.cpp's {content} -> {tokens}.
Result<int32_t> AskTokenCount(const Target& target, std::string_view text) {
  json::object body;
  if (!target.shape.model.empty()) body["model"] = target.shape.model;
  if (target.shape.api == Api::kChat) {
    body["messages"] = json::array{json::object{{"role", "user"}, {"content", text}}};
    body["add_generation_prompt"] = true;
  } else {
    body["prompt"] = text;
    body["content"] = text;
    body["add_special_tokens"] = true;
    body["add_special"] = true;
  }
  ASSIGN_OR_RETURN(json::value answer, CallJson(target.endpoint, "POST", "/tokenize", target.shape.headers,
                                                json::serialize(body), kCallTimeout));
  if (answer.is_object()) {
    const json::object& object = answer.as_object();
    ASSIGN_OR_RETURN(auto count, GetInt(object, "count", 0, INT32_MAX));
    if (count) return static_cast<int32_t>(*count);
    ASSIGN_OR_RETURN(const json::array* tokens, GetArray(object, "tokens"));
    if (tokens != nullptr) return static_cast<int32_t>(tokens->size());
  }
  return Error(Code::kUnsupported, "POST /tokenize: neither count nor tokens in the answer", "prompt_tokens");
}

CountTokens CounterFor(const Target& target) {
  if (target.config.count_tokens) return target.config.count_tokens;
  if (target.config.service != nullptr) {
    return
        [&target](std::string_view text) { return CountPromptTokens(*target.config.service, target.shape.api, text); };
  }
  if (target.shape.api == Api::kGenerate) return nullptr;  // its template lies behind the route
  return [&target](std::string_view text) { return AskTokenCount(target, text); };
}

}  // namespace

Result<void> CheckRange(std::string_view field, double value, double low, double high) {
  if (value >= low && value <= high) return {};
  return Error(Code::kInvalid, fmt::format("{}: {} is not in {}..{}", field, value, low, high), std::string(field));
}

Result<std::unique_ptr<Transport>> Target::NewTransport(int32_t users) const {
  if (config.service != nullptr) return std::make_unique<ServiceTransport>(*config.service, shape, users, clock);
  ASSIGN_OR_RETURN(auto transport, HttpTransport::Create(endpoint, shape, users, clock));
  return std::unique_ptr<Transport>(std::move(transport));
}

Result<std::unique_ptr<Target>> Target::Create(const BenchConfig& config) {
  if (config.api == Api::kGenerate && config.service != nullptr) {
    return Error(Code::kUnsupported, "api: generate is an HTTP route; in-process takes completions or chat", "api");
  }
  std::unique_ptr<Target> out(new Target(config));
  RETURN_IF_ERROR(out->Prepare());
  RETURN_IF_ERROR(out->Preflight());
  return out;
}

Result<void> Target::Prepare() {
  seed = config.seed.value_or(static_cast<uint64_t>(clock.WallNow().count()));
  shape.api = config.api;
  shape.model = config.model;
  shape.ignore_eos = config.ignore_eos;
  shape.temperature = config.temperature;
  ASSIGN_OR_RETURN(shape.extra_json, MembersOf(config.extra_json));
  if (config.service == nullptr) {
    ASSIGN_OR_RETURN(endpoint, ResolveEndpoint(config.url));
    if (!config.api_key.empty()) shape.headers = fmt::format("Authorization: Bearer {}\r\n", config.api_key);
    if (config.model.empty() && config.api != Api::kGenerate) {
      ASSIGN_OR_RETURN(shape.model, FirstModel(*this));
    }
  }
  PromptOptions options;
  options.prompt_tokens = config.prompt_tokens;
  options.prompt_tokens_min = config.prompt_tokens_min;
  options.steady_start = config.steady_start;
  options.shared_prefix_tokens = config.shared_prefix_tokens;
  options.output_tokens = config.output_tokens;
  options.seed = seed;
  options.file = config.prompts_file;
  ASSIGN_OR_RETURN(prompts, PromptSource::Create(options, CounterFor(*this)));
  if (prompts->has_conversations() && config.api != Api::kChat) {
    return Error(Code::kInvalid, fmt::format("prompts: {} holds conversations; use --api chat", config.prompts_file),
                 "prompts");
  }
  return {};
}

Result<void> Target::Preflight() const {
  LoopPlan plan;
  plan.level = kPreflightLevel;
  plan.start = plan.window_begin = clock.Now();
  plan.timeout = FromSeconds(config.timeout_s);
  plan.window_end = plan.start + plan.timeout + std::chrono::seconds(1);
  plan.requests_max = 1;
  ASSIGN_OR_RETURN(auto transport, NewTransport(1));
  UserLoop loop(plan, *prompts, *transport, clock, stop());
  loop.Run();
  const Recorder& seen = loop.recorder();
  std::string where = config.service != nullptr
                          ? std::string("in-process")
                          : fmt::format("http://{}{}{}", endpoint.authority(), endpoint.base_path, ApiPath(shape.api));
  if (!seen.error_messages.empty()) {
    return Error(Code::kUnavailable, fmt::format("{}: {}", where, seen.error_messages.front()), "url");
  }
  if (seen.completed_all == 1 && seen.ttft.count() == 0) {
    return Error(Code::kUnavailable, where + ": the answer carried no token", "url");
  }
  return {};
}

json::object Target::ConfigJson() const {
  json::object out;
  out["target"] = config.service != nullptr ? "in-process" : config.url;
  out["api"] = ApiPath(config.api);
  out["model"] = shape.model;
  out["users"] = json::value_from(config.users);
  out["ramp_s"] = config.ramp_s;
  out["duration_s"] = config.duration_s;
  out["think_s"] = config.think_s;
  out["timeout_s"] = config.timeout_s;
  out["prompt_tokens"] = config.prompt_tokens;
  if (config.prompt_tokens_min > 0) out["prompt_tokens_min"] = config.prompt_tokens_min;
  if (config.steady_start) out["steady_start"] = true;
  out["output_tokens"] = config.output_tokens;
  out["shared_prefix_tokens"] = config.shared_prefix_tokens;
  out["prompts_file"] = config.prompts_file;
  out["ignore_eos"] = config.ignore_eos;
  out["temperature"] = config.temperature;
  out["extra_body"] = config.extra_json;
  out["threads"] = config.threads;
  out["command"] = config.command;
  out["commit"] = config.commit;
  return out;
}

}  // namespace ekiben::load
