#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <thread>

#include <CLI/Config.hpp>

#include "api/app.h"
#include "api/service_file.h"
#include "base/api_keys.h"
#include "base/human.h"
#include "base/log.h"
#include "cli/api_key_file.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/repository_source.h"
#include "cli/stack.h"
#include "cli/stack_source.h"
#include "cli/web_page.h"
#include "http/server.h"
#include "kserve/inference.h"
#include "rpc/grpc_server.h"

namespace ekiben::cli {
namespace {

constexpr double kTrafficTimeoutSeconds = 60;

struct ServeOptions {
  EngineSource source;
  StackOptions stack;
  std::vector<std::string> models;  // NAME=ENGINE
  std::string model_repository, model_control_mode = "none";
  std::vector<std::string> load_models;  // of the repository; "*": all
  double repository_poll_s = 15;
  http::ServerConfig http;
  rpc::GrpcConfig grpc;
  bool grpc_port_given = false, triton_ports = false;
  std::vector<std::string> api_keys;
  std::string api_key_file;
  bool admin_routes = false, log_requests = false;
  std::string tool_call_parser = "auto";
  std::string service_file;
  std::optional<double> traffic_timeout_s;  // else the service file's, else kTrafficTimeoutSeconds
  std::optional<int32_t> max_concurrency;   // else the service file's, else no limit
  double drain_timeout_s = 30;
  int32_t port = 3000, grpc_port = 8001, max_connections = 4096;
  double grpc_keepalive_time_s = 60, grpc_max_connection_age_s = 0;
  kserve::InferenceServer::Config kserve;
};

sigset_t StopSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

// True when a stop signal came within `timeout`.
bool WaitForStop(std::chrono::milliseconds timeout) {
  sigset_t set = StopSignals();
  timespec wait{static_cast<time_t>(timeout.count() / 1000), static_cast<long>(timeout.count() % 1000 * 1'000'000)};
  return sigtimedwait(&set, nullptr, &wait) > 0;
}

// `grpc` may be null.
void PrintReady(const ServeOptions& options, const std::string& model, uint16_t port, const rpc::GrpcServer* grpc,
                Nanos since) {
  std::string host = options.http.host == "0.0.0.0" || options.http.host == "::" ? "127.0.0.1" : options.http.host;
  std::string url = fmt::format("{}://{}:{}", options.http.tls.enabled() ? "https" : "http", host, port);
  fmt::print("ready in {}\n\n  chat page  {}/\n  metrics    {}/metrics\n", HumanDuration(since), url, url);
  if (grpc != nullptr) fmt::print("  gRPC       {}:{} (KServe v2)\n", host, grpc->port());
  for (uint16_t more : options.http.more_ports) fmt::print("  also       {}:{}\n", host, more);
  fmt::print("\n");
  fmt::print(
      "  curl -N {}/v1/chat/completions -H 'Content-Type: application/json' -d '{{\"model\": \"{}\", \"stream\": "
      "true, \"messages\": [{{\"role\": \"user\", \"content\": \"Why is the sky blue?\"}}]}}'\n\n",
      url, model);
  std::fflush(stdout);
}

// What answers clients. The inference core outlives its wires.
struct Surfaces {
  kserve::InferenceServer& inference;
  api::App& app;
  rpc::GrpcServer* grpc;  // null: none

  size_t running() const { return app.calls_running() + (grpc != nullptr ? grpc->stats().inferences_running : 0); }
  // Both wires at once, so that neither takes the other's time. Whether nothing was cut.
  bool Drain(Nanos timeout) const {
    inference.BeginDrain();
    bool grpc_clean = true;
    std::thread grpc_drain([&] {
      if (grpc != nullptr) grpc_clean = grpc->Drain(timeout);
    });
    bool clean = app.Drain(timeout);
    grpc_drain.join();
    return clean && grpc_clean;
  }
};

// Drains on the first signal, stops at once on the second. Returns whether nothing was cut.
bool DrainUntilSecondSignal(const Surfaces& surfaces, double timeout_s) {
  std::atomic<bool> drained = false, clean = false;
  LOG_INFO("draining: no new requests; {} running, up to {:.0f} s; a second signal stops at once", surfaces.running(),
           timeout_s);
  std::thread drain([&] {
    clean = surfaces.Drain(Nanos(static_cast<int64_t>(timeout_s * 1e9)));
    drained = true;
  });
  while (!drained && !WaitForStop(std::chrono::milliseconds(20))) {
  }
  if (!drained) {
    LOG_WARNING("second signal: stopping with {} calls running", surfaces.running());
    drain.detach();  // the process ends below
    StopLogging();
    std::_Exit(1);
  }
  drain.join();
  return clean;
}

// Null where there is to be none. A port that nobody asked for and another server has is no reason not to serve.
Result<std::unique_ptr<rpc::GrpcServer>> OpenGrpc(const ServeOptions& options, const ApiKeys& keys,
                                                  kserve::InferenceServer& inference) {
  if (options.grpc_port < 0 || (!rpc::HasGrpc() && !options.grpc_port_given)) return std::unique_ptr<rpc::GrpcServer>();
  rpc::GrpcConfig config = options.grpc;
  config.host = options.http.host;
  config.port = static_cast<uint16_t>(options.grpc_port);
  config.tls = options.http.tls;
  config.api_keys = keys;
  config.admin_routes = options.admin_routes;
  config.server_version = kserve::InferenceServer::Config().version;
  config.keepalive_time = Nanos(static_cast<int64_t>(options.grpc_keepalive_time_s * 1e9));
  config.connection_age_max = Nanos(static_cast<int64_t>(options.grpc_max_connection_age_s * 1e9));
  auto server = rpc::GrpcServer::Create(config, inference);
  if (server.ok() || options.grpc_port_given || server.error().field() != "grpc_port") return server;
  LOG_WARNING("{}; serving without gRPC", server.error().message());
  return std::unique_ptr<rpc::GrpcServer>();
}

Result<void> CheckRepositoryOptions(const ServeOptions& options) {
  const bool repository = !options.model_repository.empty();
  const bool explicit_mode = options.model_control_mode == "explicit";
  if (repository && (!options.source.text.empty() || !options.source.synth.empty() || !options.models.empty()))
    return Error(
        Code::kInvalid,
        "model_repository: leave out MODEL, --synth and --model, or the repository; models come from one place",
        "model_repository");
  if (!repository && (options.model_control_mode != "none" || !options.load_models.empty()))
    return Error(Code::kInvalid, "model_control_mode, load_model: are about a --model_repository, which is not given",
                 "model_control_mode");
  if (!options.load_models.empty() && !explicit_mode)
    return Error(Code::kInvalid, "load_model: wants --model_control_mode explicit; else every model is loaded",
                 "load_model");
  return {};
}

// What of the repository to load at start.
std::vector<std::string> ToLoad(const ServeOptions& options, const std::vector<RepositoryModel>& found) {
  std::vector<std::string> all, out;
  for (const RepositoryModel& model : found) all.push_back(model.name);
  if (options.model_control_mode != "explicit") return all;
  for (const std::string& name : options.load_models) {
    if (name == "*") return all;
    std::string model = ModelForName(found, name);
    if (std::find(out.begin(), out.end(), model) == out.end()) out.push_back(std::move(model));
  }
  return out;
}

// A model that does not load keeps its reason in the index and hurts no other. A server that nothing could change and
// that serves nothing is a mistake.
Result<std::unique_ptr<serve::LoadedModels>> OpenRepository(const ServeOptions& options) {
  ASSIGN_OR_RETURN(std::vector<RepositoryModel> found, ScanModelRepository(options.model_repository));
  auto usable = static_cast<int32_t>(
      std::count_if(found.begin(), found.end(), [](const RepositoryModel& model) { return model.reason.empty(); }));
  const std::vector<std::string> names = ToLoad(options, found);
  StackOptions stack = options.stack;
  stack.models = std::max(1, std::min(usable, names.empty() ? 1 : static_cast<int32_t>(names.size())));
  ASSIGN_OR_RETURN(auto source, RepositorySource::Create(options.model_repository, options.source, std::move(stack)));
  auto models = std::make_unique<serve::LoadedModels>(std::move(source), options.model_control_mode == "explicit");
  std::optional<Error> first;
  for (const std::string& name : names) {
    auto opened = models->Open(name);
    if (opened.ok()) continue;
    LOG_ERROR("{}", opened.error().message());
    if (!first) first = opened.error();
  }
  if (options.model_control_mode == "none" && models->Models().empty())
    return first ? *first
                 : Error(Code::kInvalid, fmt::format("model_repository: {}: no model in it", options.model_repository),
                         "model_repository");
  return models;
}

// Follows the repository's folders while it lives, where that was asked for. A load in progress is waited for at its
// end.
class RepositoryPoll {
 public:
  RepositoryPoll(serve::LoadedModels& models, const ServeOptions& options) {
    if (options.model_control_mode != "poll") return;
    auto period = std::chrono::duration<double>(options.repository_poll_s);
    thread_ = std::jthread([this, &models, period](const std::stop_token& stop) {
      std::unique_lock lock(mutex_);
      while (!ended_.wait_for(lock, stop, period, [&] { return stop.stop_requested(); })) {
        if (stop.stop_requested()) return;
        models.Poll();
      }
    });
  }

 private:
  std::mutex mutex_;
  std::condition_variable_any ended_;
  std::jthread thread_;
};

Result<std::unique_ptr<serve::LoadedModels>> OpenModels(const ServeOptions& options) {
  RETURN_IF_ERROR(CheckRepositoryOptions(options));
  if (!options.model_repository.empty()) return OpenRepository(options);
  std::vector<NamedModel> named;
  for (const std::string& text : options.models) {
    ASSIGN_OR_RETURN(NamedModel model, ParseNamedModel(text));
    named.push_back(std::move(model));
  }
  ASSIGN_OR_RETURN(auto source, StackSource::Create(options.source, options.stack, std::move(named)));
  std::vector<std::string> names = source->Names();
  auto models = std::make_unique<serve::LoadedModels>(std::move(source), /*may_change=*/true);
  for (const std::string& name : names) RETURN_IF_ERROR(models->Open(name));
  return models;
}

std::string DefaultName(const serve::ModelRegistry& models) {
  auto model = models.Find("");
  return model != nullptr ? model->name() : "";
}

// A device fault of any model, logged: the device is one.
bool HaveFault(const serve::ModelRegistry& models) {
  for (const auto& model : models.Models()) {
    Executor& executor = model->service().executor();
    if (executor.healthy()) continue;
    LOG_ERROR("model {}: device fault: {}; leaving, so that a supervisor starts a fresh process", model->name(),
              executor.fault());
    return true;
  }
  return false;
}

Result<ApiKeys> ReadApiKeys(const ServeOptions& options) {
  std::vector<ApiKey> keys;
  if (!options.api_key_file.empty()) {
    ASSIGN_OR_RETURN(keys, ReadApiKeyFile(options.api_key_file));
  }
  for (const std::string& key : options.api_keys) keys.push_back({.key = key});
  return ApiKeys(std::move(keys));
}

// What files say is read before a model is opened: a mistake in one is told at once.
Result<api::AppConfig> ConfigOf(const ServeOptions& options) {
  api::AppConfig config;
  ASSIGN_OR_RETURN(config.api_keys, ReadApiKeys(options));
  bool wide = options.http.host != "127.0.0.1" && options.http.host != "localhost";
  if (wide && !config.api_keys.required() && options.http.tls.ca_certs.empty())
    LOG_WARNING("listening on {} without --api_key: everyone who reaches this port can use the model",
                options.http.host);
  config.admin_routes = options.admin_routes;
  config.log_requests = options.log_requests;
  config.tool_call_parser = options.tool_call_parser;
  config.web_page = kWebPage;
  config.docs_page = kDocsPage;
  if (!options.service_file.empty()) {
    ASSIGN_OR_RETURN(config.service, api::ReadServiceFile(options.service_file));
  }
  const api::ServiceDefinition& service = config.service;
  config.max_concurrency = options.max_concurrency.value_or(service.max_concurrency.value_or(0));
  double timeout_s = options.traffic_timeout_s.value_or(service.timeout_s.value_or(kTrafficTimeoutSeconds));
  config.first_byte_timeout = Nanos(static_cast<int64_t>(timeout_s * 1e9));
  return config;
}

Result<int> Run(const ServeOptions& options) {
  const Clock& clock = SystemClock::Get();
  Nanos begin = clock.Now();
  sigset_t signals = StopSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // before any thread starts: only this one takes them
  std::signal(SIGPIPE, SIG_IGN);
  http::ServerConfig http = options.http;
  http.may_compress = api::MayCompress;
  ASSIGN_OR_RETURN(auto server, http::Server::Create(http));
  ASSIGN_OR_RETURN(api::AppConfig config, ConfigOf(options));
  ASSIGN_OR_RETURN(auto models, OpenModels(options));
  auto inference = kserve::InferenceServer::Create(*models, clock, options.kserve);
  config.kserve = inference.get();
  const ApiKeys keys = config.api_keys;
  ASSIGN_OR_RETURN(auto app, api::CreateApp(*models, *server, clock, std::move(config)));
  ASSIGN_OR_RETURN(auto grpc, OpenGrpc(options, keys, *inference));
  server->Start();
  auto poll = std::make_unique<RepositoryPoll>(*models, options);
  PrintReady(options, DefaultName(*models), server->port(), grpc.get(), clock.Now() - begin);

  constexpr auto kHealthPeriod = std::chrono::milliseconds(200);
  int exit_code = 0;
  while (!WaitForStop(kHealthPeriod)) {
    if (!HaveFault(*models)) continue;
    exit_code = 1;
    break;
  }
  poll.reset();
  bool clean = DrainUntilSecondSignal({*inference, *app, grpc.get()}, exit_code == 0 ? options.drain_timeout_s : 1.0);
  server->Stop();
  grpc.reset();
  models.reset();  // before the app, which counts what still ends
  LOG_INFO("stopped{}", clean ? "" : "; the drain deadline cut what was left");
  return exit_code;
}

}  // namespace

void AddServeCommand(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<ServeOptions>();
  options->http.host = "127.0.0.1";
  CLI::App* command = app.add_subcommand(
      "serve", "Serve a model over HTTP and gRPC: OpenAI, BentoML and KServe v2 (Triton), metrics, chat page");
  command->footer("SIGTERM and Ctrl-C drain: running answers end, new requests get 503; a second one stops at once.");
  AddEngineSource(*command, options->source);
  AddRuntimeOptions(*command, options->stack);
  constexpr const char* kGroup = "Server";
  auto add = [&](CLI::Option* option) { option->group(kGroup)->capture_default_str(); };
  add(command->add_option("--host", options->http.host, "Address to listen on; 0.0.0.0: every one"));
  add(command->add_option("--port", options->port, "Port; 0: any free one")->check(CLI::Range(0, 65535)));
  CLI::Option* grpc_port = command->add_option(
      "--grpc_port", options->grpc_port,
      "Port of KServe v2 over gRPC, with --host, keys and TLS as above; 0: any free one; -1: no gRPC");
  add(grpc_port->check(CLI::Range(-1, 65535)));
  command
      ->add_flag("--triton_ports", options->triton_ports,
                 "Answer on 8000 (HTTP) and 8002 (metrics) too, where Triton's clients look")
      ->group(kGroup);
  add(command
          ->add_option("--grpc_keepalive_time", options->grpc_keepalive_time_s,
                       "Seconds until a silent gRPC connection is asked whether it is there")
          ->check(CLI::Range(1.0, 86400.0)));
  add(command
          ->add_option("--grpc_max_connection_age", options->grpc_max_connection_age_s,
                       "Seconds after which a gRPC connection is told to connect again; 0: never")
          ->check(CLI::Range(0.0, 86400.0)));
  add(command->add_option("--grpc_max_message_bytes", options->grpc.message_bytes_max, "Bytes of one gRPC message")
          ->check(CLI::Range(1024, INT32_MAX)));
  add(command->add_option("--io_threads", options->http.io_threads, "Threads that read and write sockets")
          ->check(CLI::Range(1, 64)));
  add(command->add_option("--max_connections", options->max_connections, "Open connections; one more is refused")
          ->check(CLI::Range(1, 1 << 20)));
  command->add_option("--api_key", options->api_keys, "Accepted bearer token; repeatable; none: open to all")
      ->group(kGroup);
  command
      ->add_option(
          "--api_key_file", options->api_key_file,
          "YAML list of {name, key, max_concurrency, requests_per_minute, admin}: keys with limits of their own")
      ->group(kGroup);
  command
      ->add_flag(
          "--enable_admin_routes", options->admin_routes,
          "Let everyone who may ask also load and unload models and change tracing; else only keys with admin: true")
      ->group(kGroup);
  command->add_flag("--log_requests", options->log_requests, "Log each request with its body, so with prompts")
      ->group(kGroup);
  command
      ->add_option("--ssl_certfile", options->http.tls.certfile,
                   "PEM certificate with its chain: serve HTTPS (TLS 1.2 and 1.3); read again when the file changes")
      ->group(kGroup);
  command->add_option("--ssl_keyfile", options->http.tls.keyfile, "Its PEM key, when not in --ssl_certfile")
      ->group(kGroup);
  command
      ->add_option("--ssl_ca_certs", options->http.tls.ca_certs,
                   "PEM: clients must show a certificate that one of these has signed")
      ->group(kGroup);
  command
      ->add_option("--allowed_origins", options->http.allowed_origins,
                   "Web origin whose pages may read answers, e.g. https://app.example; repeatable; '*': any")
      ->group(kGroup);
  add(command
          ->add_option("--tool_call_parser", options->tool_call_parser,
                       "How the model writes tool calls: auto (from its chat template), hermes, llama3_json, mistral, "
                       "none (they stay text)")
          ->check(CLI::IsMember({"auto", "hermes", "llama3_json", "mistral", "none"})));
  command
      ->add_option("--model", options->models,
                   "NAME=ENGINE: one more model, beside MODEL or instead of it; repeatable. Cores and cache memory are "
                   "shared in equal parts")
      ->type_name("NAME=ENGINE")
      ->group(kGroup);
  command
      ->add_option("--model_repository", options->model_repository,
                   "Instead of MODEL: a folder in Triton's layout, NAME/config.pbtxt and NAME/1/ with an engine or a "
                   "checkpoint, or where the parameter engine_dir or gpt_model_path says")
      ->type_name("DIR")
      ->group(kGroup);
  add(command
          ->add_option("--model_control_mode", options->model_control_mode,
                       "Of --model_repository: none: load every model at start; poll: also follow the folders; "
                       "explicit: load --load_model, and what an admin asks for (--enable_admin_routes)")
          ->check(CLI::IsMember({"none", "poll", "explicit"})));
  command
      ->add_option("--load_model", options->load_models, "In explicit mode: load NAME at start; repeatable; '*': all")
      ->type_name("NAME")
      ->group(kGroup);
  add(command->add_option("--repository_poll_secs", options->repository_poll_s, "In poll mode: seconds between looks")
          ->check(CLI::Range(0.1, 86400.0)));
  command
      ->add_option(
          "--service", options->service_file,
          "YAML file that defines the product APIs (BentoML's routes): names, fields, prompts, limits; absent: "
          "/generate with prompt, system_prompt, max_tokens")
      ->type_name("FILE")
      ->group(kGroup);
  command->add_option("--served_model_name", options->stack.served_model_name, "MODEL's id in the API")->group(kGroup);
  add(command
          ->add_option("--traffic.timeout", options->traffic_timeout_s,
                       fmt::format("Seconds to the first byte of an answer, then 504; absent: of --service, else {}",
                                   kTrafficTimeoutSeconds))
          ->check(CLI::Range(0.001, 86400.0)));
  add(command
          ->add_option("--traffic.max_concurrency", options->max_concurrency,
                       "Generating calls at once, then 429; 0: no limit; absent: of --service, else no limit")
          ->check(CLI::NonNegativeNumber));
  add(command->add_option("--drain_timeout", options->drain_timeout_s, "Seconds that a drain may take")
          ->check(CLI::Range(0.0, 86400.0)));
  command
      ->add_option("--shared_memory_prefix", options->kserve.shared_memory_prefix,
                   "Let clients of this machine register system shared memory (Triton's extension) whose key starts "
                   "with this, e.g. /triton_; '/': any of this user's; absent: none")
      ->type_name("KEY")
      ->group(kGroup);
  add(command->add_flag("--accumulate_tokens", options->kserve.accumulate_tokens,
                        "Each response of tensorrt_llm_bls carries the text so far, not what is new"));
  add(command->add_option("--exclude_input_in_output", options->kserve.exclude_input_in_output,
                          "An answer in one piece of Triton's models leaves the prompt out, where a request does not "
                          "say"));
  command->callback([options, grpc_port, &outcome] {
    options->grpc_port_given = grpc_port->count() > 0;
    if (options->triton_ports) options->http.more_ports = {8000, 8002};
    options->http.port = static_cast<uint16_t>(options->port);
    options->http.connections_max = static_cast<size_t>(options->max_connections);
    auto result = Run(*options);
    if (!result.ok()) {
      outcome.result = std::move(result).error();
    } else {
      outcome.exit_code = *result;
    }
  });
}

}  // namespace ekiben::cli
