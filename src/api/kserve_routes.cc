// KServe v2 and Triton's extensions over HTTP: /v2 and everything below it.
#include <fmt/format.h>

#include <boost/json.hpp>
#include <charconv>
#include <thread>

#include "api/app_context.h"
#include "api/kserve_body.h"
#include "api/kserve_calls.h"
#include "api/kserve_documents.h"
#include "base/bounded_queue.h"

namespace ekiben::api {
namespace {

// A path below /v2, cut at its slashes and decoded.
std::vector<std::string> Segments(std::string_view path) {
  std::vector<std::string> out;
  for (path.remove_prefix(1); !path.empty();) {
    size_t end = std::min(path.find('/'), path.size());
    out.push_back(http::DecodePercent(path.substr(0, end)));
    path.remove_prefix(std::min(end + 1, path.size()));
  }
  return out;
}

class KserveSurface {
 public:
  KserveSurface(AppContext& context, kserve::InferenceServer& server) : context_(context), server_(server) {
    loader_ = std::thread([this] {
      while (auto job = loads_.Pop()) (*job)();
    });
  }
  ~KserveSurface() {
    loads_.Close();
    loader_.join();
  }

  void Answer(const http::Request& request, const Writer& writer);

 private:
  struct Path {
    std::string model, version, action;  // action: "", "ready", "infer", "trace/setting", ...
  };
  static constexpr size_t kLoadsMax = 16;

  void AnswerServer(const http::Request& request, const Writer& writer, const std::string& what);
  void AnswerModel(const http::Request& request, const Writer& writer, const Path& path);
  void AnswerRepository(const http::Request& request, const Writer& writer, const std::vector<std::string>& segments);
  void AnswerSharedMemory(const http::Request& request, const Writer& writer, const std::vector<std::string>& segments);
  Result<void> RegisterRegion(const http::Request& request, const std::string& name);

  void Infer(const http::Request& request, const Writer& writer, const Path& path);
  void Generate(const http::Request& request, const Writer& writer, const Path& path, bool stream);
  void Trace(const http::Request& request, const Writer& writer, const std::string& model);
  void Logging(const http::Request& request, const Writer& writer);
  void Index(const http::Request& request, const Writer& writer);
  void Control(const http::Request& request, const Writer& writer, const std::string& model, bool load);

  Result<json::object> ReadObject(const http::Request& request) const;
  std::optional<std::string> LoadOf(const http::Request& request) const;
  void AddTimeout(kserve::InferRequest& request) const;

  AppContext& context_;
  kserve::InferenceServer& server_;
  BoundedQueue<std::function<void()>> loads_{kLoadsMax};
  std::thread loader_;
};

void SendError(const Writer& writer, const Error& error) {
  SendAnswer(writer, ErrorAnswer(PathFamily::kKserve, error));
}
void SendStatus(const Writer& writer, int status) {
  SendAnswer(writer, StatusAnswer(PathFamily::kKserve, status, ""));
}
void SendEmpty(const Writer& writer, bool good) {
  writer->Send(good ? 200 : 400, {}, "");
}
template <class T, class Word>
void SendResult(const Writer& writer, const Result<T>& result, Word word) {
  if (!result.ok()) return SendError(writer, result.error());
  SendAnswer(writer, JsonAnswer(word(*result)));
}

bool IsGet(const http::Request& request) {
  return request.method == "GET" || request.method == "HEAD";
}
// False, and answered, when the method is another.
bool Wants(const http::Request& request, const Writer& writer, bool get, bool post) {
  if ((get && IsGet(request)) || (post && request.method == "POST")) return true;
  SendStatus(writer, 405);
  return false;
}

void KserveSurface::Answer(const http::Request& request, const Writer& writer) {
  std::vector<std::string> segments = Segments(request.path);
  if (segments.size() == 1) return AnswerServer(request, writer, "");
  const std::string& kind = segments[1];
  if (kind == "health" && segments.size() == 3) return AnswerServer(request, writer, segments[2]);
  if (kind == "logging" && segments.size() == 2) return Logging(request, writer);
  if (kind == "trace" && segments.size() == 3 && segments[2] == "setting") return Trace(request, writer, "");
  if (kind == "repository") return AnswerRepository(request, writer, segments);
  if (kind == "systemsharedmemory" || kind == "cudasharedmemory") return AnswerSharedMemory(request, writer, segments);
  if (kind != "models" || segments.size() < 3) return SendStatus(writer, 404);
  if (segments[2] == "stats" && segments.size() == 3) {
    if (Wants(request, writer, true, false)) SendResult(writer, server_.Statistics("", ""), StatisticsJson);
    return;
  }
  Path path{segments[2], "", ""};
  size_t next = 3;
  if (segments.size() > 4 && segments[3] == "versions") {
    path.version = segments[4];
    next = 5;
  }
  for (; next < segments.size(); ++next) path.action += (path.action.empty() ? "" : "/") + segments[next];
  AnswerModel(request, writer, path);
}

void KserveSurface::AnswerServer(const http::Request& request, const Writer& writer, const std::string& what) {
  if (!what.empty() && what != "live" && what != "ready") return SendStatus(writer, 404);
  if (!Wants(request, writer, true, false)) return;
  if (what == "live") return SendEmpty(writer, server_.Live());
  if (what == "ready") return SendEmpty(writer, server_.Ready());
  const auto& extensions = server_.extensions();
  SendAnswer(
      writer,
      JsonAnswer(json::serialize(json::object{{"name", "ekiben"},
                                              {"version", context_.config.version},
                                              {"extensions", json::array(extensions.begin(), extensions.end())}})));
}

void KserveSurface::AnswerModel(const http::Request& request, const Writer& writer, const Path& path) {
  const auto& [model, version, action] = path;
  bool get = action.empty() || action == "ready" || action == "config" || action == "stats";
  bool post = action == "infer" || action == "generate" || action == "generate_stream";
  bool both = action == "trace/setting";
  if (!get && !post && !both) return SendStatus(writer, 404);
  if (!Wants(request, writer, get || both, post || both)) return;
  if (action.empty()) return SendResult(writer, server_.Metadata(model, version), MetadataJson);
  if (action == "config")
    return SendResult(writer, server_.ModelConfig(model, version),
                      [](const json::object& config) { return json::serialize(config); });
  if (action == "stats") return SendResult(writer, server_.Statistics(model, version), StatisticsJson);
  if (action == "infer") return Infer(request, writer, path);
  if (action == "generate") return Generate(request, writer, path, false);
  if (action == "generate_stream") return Generate(request, writer, path, true);
  if (both) return Trace(request, writer, model);
  auto ready = server_.ModelReady(model, version);
  SendEmpty(writer, ready.ok() && *ready);
}

void KserveSurface::AnswerRepository(const http::Request& request, const Writer& writer,
                                     const std::vector<std::string>& segments) {
  // /v2/repository[/R]/index and /v2/repository[/R]/models/M/load: there is one repository, whatever its name.
  size_t size = segments.size();
  bool index = (size == 3 || size == 4) && segments.back() == "index";
  bool control = (size == 5 || size == 6) && segments[size - 3] == "models" &&
                 (segments.back() == "load" || segments.back() == "unload");
  if (!index && !control) return SendStatus(writer, 404);
  if (!Wants(request, writer, false, true)) return;
  if (index) return Index(request, writer);
  Control(request, writer, segments[size - 2], segments.back() == "load");
}

// /v2/systemsharedmemory[/region/R]/ACTION, and the same of CUDA, where no region is ever registered.
void KserveSurface::AnswerSharedMemory(const http::Request& request, const Writer& writer,
                                       const std::vector<std::string>& segments) {
  const std::string& action = segments.back();
  bool named = segments.size() == 5 && segments[2] == "region";
  bool status = action == "status", unregister = action == "unregister", system = segments[1] == "systemsharedmemory";
  bool all = segments.size() == 3 && (status || unregister);
  if (!all && !(named && (status || unregister || action == "register"))) return SendStatus(writer, 404);
  if (!Wants(request, writer, status, !status)) return;
  std::string name = named ? segments[3] : "";
  kserve::SharedMemory& memory = server_.shared_memory();
  if (!system) {
    if (unregister) return SendEmpty(writer, true);
    if (!status)
      return SendError(writer, Error(Code::kUnsupported, "CUDA shared memory is not offered; send the data"));
    if (name.empty()) return SendAnswer(writer, JsonAnswer("[]"));
    return SendError(writer, Error(Code::kNotFound,
                                   fmt::format("Unable to find cuda shared memory region: '{}'", name.substr(0, 200))));
  }
  if (status) return SendResult(writer, memory.Status(name), RegionsJson);
  if (unregister) {
    memory.Unregister(name);
    return SendEmpty(writer, true);
  }
  auto registered = RegisterRegion(request, name);
  if (!registered.ok()) return SendError(writer, registered.error());
  SendEmpty(writer, true);
}

Result<void> KserveSurface::RegisterRegion(const http::Request& request, const std::string& name) {
  ASSIGN_OR_RETURN(json::object body, ReadObject(request));
  ASSIGN_OR_RETURN(auto key, GetString(body, "key"));
  ASSIGN_OR_RETURN(auto offset, GetInt(body, "offset", 0, INT64_MAX));
  ASSIGN_OR_RETURN(auto byte_size, GetInt(body, "byte_size", 0, INT64_MAX));
  if (!key) return Error(Code::kInvalid, "key: is missing", "key");
  if (!byte_size) return Error(Code::kInvalid, "byte_size: is missing", "byte_size");
  return server_.shared_memory().Register(
      {name, *std::move(key), static_cast<uint64_t>(offset.value_or(0)), static_cast<uint64_t>(*byte_size)});
}

// ---- inference

Result<json::object> KserveSurface::ReadObject(const http::Request& request) const {
  const std::string& body = request.body;
  if (body.find_first_not_of(" \t\r\n") == std::string::npos) return json::object();
  ASSIGN_OR_RETURN(json::value value, ParseJson(body, {.bytes_max = context_.config.body_bytes_max}));
  if (!value.is_object())
    return Error(Code::kInvalid, fmt::format("JSON: an object is wanted, got {}", KindName(value)));
  return std::move(value.get_object());
}

std::optional<std::string> KserveSurface::LoadOf(const http::Request& request) const {
  std::string_view format = request.Header("endpoint-load-metrics-format");
  if (format.empty()) return std::nullopt;
  auto load = server_.CurrentLoad();
  return load ? LoadHeader(format, *load) : std::nullopt;
}

// The server's own limit, where the client has none.
void KserveSurface::AddTimeout(kserve::InferRequest& request) const {
  Nanos limit = context_.config.request_timeout;
  if (limit > Nanos(0)) request.parameters.emplace("timeout", static_cast<int64_t>(limit.count() / 1000));
}

void KserveSurface::Infer(const http::Request& request, const Writer& writer, const Path& path) {
  auto parsed = [&]() -> Result<InferBody> {
    const std::string& body = request.body;
    std::string_view length = request.Header("inference-header-content-length");
    if (length.empty()) return ParseInferBody(body, std::nullopt, context_.config.body_bytes_max);
    size_t bytes = 0;
    auto [end, code] = std::from_chars(length.data(), length.data() + length.size(), bytes);
    if (code != std::errc() || end != length.data() + length.size())
      return Error(Code::kInvalid,
                   fmt::format("inference-header-content-length: '{}' is no number of bytes", length.substr(0, 100)));
    if (bytes > 0) return ParseInferBody(body, bytes, context_.config.body_bytes_max);
    // A body without JSON is the one input of a model that has one; none of these has.
    ASSIGN_OR_RETURN(kserve::ModelMetadata metadata, server_.Metadata(path.model, path.version));
    return Error(Code::kInvalid,
                 fmt::format("Raw request must only have 1 input (found 1) to be deduced but got {} inputs in '{}' "
                             "model configuration",
                             metadata.inputs.size(), path.model));
  }();
  if (!parsed.ok()) return SendError(writer, parsed.error());
  if (auto room = CheckRoom(context_); !room.ok()) return SendError(writer, room.error());
  kserve::InferRequest infer = std::move(parsed->request);
  infer.model_name = path.model;
  infer.model_version = path.version;
  AddTimeout(infer);
  RunInference(server_, context_.calls, KserveAnswer::kInfer, std::move(infer), *std::move(parsed), LoadOf(request),
               writer);
}

void KserveSurface::Generate(const http::Request& request, const Writer& writer, const Path& path, bool stream) {
  auto parsed = [&]() -> Result<kserve::InferRequest> {
    ASSIGN_OR_RETURN(kserve::ModelMetadata metadata, server_.Metadata(path.model, path.version));
    return ParseFlatBody(request.body, metadata.inputs, context_.config.body_bytes_max);
  }();
  if (!parsed.ok()) return SendError(writer, parsed.error());
  if (auto room = CheckRoom(context_); !room.ok()) return SendError(writer, room.error());
  parsed->model_name = path.model;
  parsed->model_version = path.version;
  std::string_view id = request.Header("triton-request-id");
  if (parsed->id.empty() && IsRequestId(id)) parsed->id = id;
  AddTimeout(*parsed);
  RunInference(server_, context_.calls, stream ? KserveAnswer::kGenerateStream : KserveAnswer::kGenerate,
               *std::move(parsed), {}, LoadOf(request), writer);
}

// ---- repository and settings

void KserveSurface::Index(const http::Request& request, const Writer& writer) {
  auto index = [&]() -> Result<std::vector<serve::ModelState>> {
    ASSIGN_OR_RETURN(json::object body, ReadObject(request));
    ASSIGN_OR_RETURN(auto ready, GetBool(body, "ready"));
    return server_.Index(ready.value_or(false));
  }();
  SendResult(writer, index, IndexJson);
}

// A load takes as long as an engine takes, so it has a thread of its own.
void KserveSurface::Control(const http::Request& request, const Writer& writer, const std::string& model, bool load) {
  auto parameters = [&]() -> Result<kserve::Parameters> {
    ASSIGN_OR_RETURN(json::object body, ReadObject(request));
    ASSIGN_OR_RETURN(const json::object* given, GetObject(body, "parameters"));
    kserve::Parameters out;
    if (given != nullptr)
      for (const auto& member : *given) out.emplace(std::string(member.key()), std::string());
    return out;
  }();
  if (!parameters.ok()) return SendError(writer, parameters.error());
  auto job = [this, writer, model, load, parameters = *std::move(parameters)] {
    auto done = load ? server_.Load(model, parameters) : server_.Unload(model, parameters);
    if (!done.ok()) return SendError(writer, done.error());
    SendEmpty(writer, true);
  };
  if (!loads_.TryPush(std::move(job)))
    SendError(writer, Error(Code::kOverloaded, fmt::format("{} loads wait already; try again", kLoadsMax)));
}

void KserveSurface::Trace(const http::Request& request, const Writer& writer, const std::string& model) {
  if (!Wants(request, writer, true, true)) return;
  auto settings = [&]() -> Result<TraceSettings> {
    TraceSettings changes;
    if (request.method == "POST") {
      ASSIGN_OR_RETURN(json::object body, ReadObject(request));
      ASSIGN_OR_RETURN(changes, TraceSettingsFromJson(body));
    }
    return server_.TraceSettings(model, changes);
  }();
  SendResult(writer, settings, TraceSettingsJson);
}

void KserveSurface::Logging(const http::Request& request, const Writer& writer) {
  if (!Wants(request, writer, true, true)) return;
  auto settings = [&]() -> Result<LogSettings> {
    LogSettings changes;
    if (request.method == "POST") {
      ASSIGN_OR_RETURN(json::object body, ReadObject(request));
      ASSIGN_OR_RETURN(changes, LogSettingsFromJson(body));
    }
    return server_.LogSettings(changes);
  }();
  SendResult(writer, settings, LogSettingsJson);
}

}  // namespace

std::vector<Route> KserveRoutes(AppContext& context) {
  if (context.config.kserve == nullptr) return {};
  auto surface = std::make_shared<KserveSurface>(context, *context.config.kserve);
  auto answer = [surface](const http::Request& request, const Writer& writer) { surface->Answer(request, writer); };
  return {{.path = "/v2", .method = "*", .answer = answer},
          {.path = "/v2/health/live", .method = "*", .answer = answer, .open = true},
          {.path = "/v2/health/ready", .method = "*", .answer = answer, .open = true},
          {.path = "/v2/trace/setting", .method = "GET", .answer = answer},
          {.path = "/v2/trace/setting", .method = "POST", .answer = answer, .admin = true},
          {.path = "/v2/logging", .method = "GET", .answer = answer},
          {.path = "/v2/logging", .method = "POST", .answer = answer, .admin = true},
          {.path = "/v2/repository/index", .method = "*", .answer = answer},
          {.path = "/v2/repository/", .method = "*", .answer = answer, .admin = true, .prefix = true},
          {.path = "/v2/", .method = "*", .answer = answer, .prefix = true}};
}

}  // namespace ekiben::api
