#include "cli/engine_source.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstdlib>

#include "base/human.h"
#include "base/log.h"
#include "cli/terminal.h"
#include "compile/cuda_profile.h"
#include "compile/engine_fingerprint.h"
#include "package/model_store.h"
#include "text/synthetic_tokenizer.h"
#include "weights/published_shapes.h"

namespace ekiben::cli {
namespace {

namespace fs = std::filesystem;

bool IsEngine(const fs::path& path) {
  return fs::exists(path / "rank0.engine");
}

fs::path CacheFolder() {
  if (const char* value = std::getenv("EKIBEN_CACHE"); value != nullptr && *value != '\0') return value;
  const char* home = std::getenv("HOME");
  return fs::path(home != nullptr ? home : ".") / ".cache" / "ekiben";
}

// An advisory lock on a file, for the life of the object.
class FileLock {
 public:
  explicit FileLock(const fs::path& path) : fd_(::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644)) {
    if (fd_ >= 0 && ::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
      LOG_INFO("another process builds this engine; waiting for it ({})", path.string());
      (void)::flock(fd_, LOCK_EX);
    }
  }
  ~FileLock() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  int fd_;
};

}  // namespace

std::string ModelNameOf(const EngineSource& source) {
  if (!source.synth.empty()) return source.synth;
  if (!fs::exists(source.text)) return source.text;
  fs::path path(source.text);
  fs::path name = path.filename().empty() ? path.parent_path().filename() : path.filename();
  if (name.extension() == ".gguf" || name.extension() == ".safetensors") name = name.stem();
  return name.string();
}

Result<void> RequireTokenizer(const Checkpoint& checkpoint) {
  if (checkpoint.has_tokenizer || checkpoint.tokenizer_error.empty()) return {};
  return Error(Code::kUnsupported, fmt::format("{}: its tokenizer cannot be used: {}", checkpoint.path.string(),
                                               checkpoint.tokenizer_error));
}

Result<void> BuildAndProfile(const Checkpoint& checkpoint, const BuildConfig& build, const fs::path& engine,
                             ProgressLine& line) {
  auto show = [&](const BuildProgress& progress) {
    if (!progress.line.empty()) line.Keep(progress.line);
    line.Update(progress.done, progress.total, progress.stage);
  };
  RETURN_IF_ERROR(BuildEngine(checkpoint, build, engine, show));
  if (build.device != "cuda") return {};
  ASSIGN_OR_RETURN(std::string done, ProfileCudaEngine(engine, show));
  line.Keep(done);
  return {};
}

Result<fs::path> ResolveCheckpoint(const std::string& text) {
  if (fs::exists(text)) return fs::path(text);
  if (text.find('/') != std::string::npos || fs::path(text).extension() == ".gguf")
    return Error(Code::kNotFound, fmt::format("{}: no such file or folder", text));
  ModelStore store(ModelStore::DefaultRoot());
  auto model = store.Get(text);
  if (model.ok()) return store.CheckpointOf(*model);
  return Error(Code::kNotFound,
               fmt::format("'{}': no such file or folder, and as a tag: {}", text, model.error().message()));
}

namespace {

// What `source` asks of a build. The fake device runs what was built for either.
BuildConfig Wanted(const EngineSource& source) {
  BuildConfig out = source.build;
  out.device = source.device == "cuda" ? "cuda" : "cpu";
  return out;
}

Result<OpenedEngine> OpenBuilt(const fs::path& path, std::string model_name, const EngineSource& source) {
  ASSIGN_OR_RETURN(Engine engine, OpenEngine(path, Verify::kAll));
  BuildConfig wanted = Wanted(source);
  if (source.device == "fake") wanted.device = engine.build.device;
  ASSIGN_OR_RETURN(engine.build, CapBuilt(engine, wanted, source.limits));
  return OpenedEngine{std::move(engine), std::move(model_name)};
}

Result<void> BuildIntoCache(const Checkpoint& checkpoint, const BuildConfig& build, const fs::path& engine) {
  const Clock& clock = SystemClock::Get();
  Nanos begin = clock.Now();
  ProgressLine line("build", "steps", clock);
  RETURN_IF_ERROR(BuildAndProfile(checkpoint, build, engine, line));
  line.Done(
      fmt::format("{} -> {} in {}", checkpoint.path.string(), engine.string(), HumanDuration(clock.Now() - begin)));
  return {};
}

Result<OpenedEngine> OpenSynthetic(const EngineSource& source) {
  if (!source.text.empty())
    return Error(Code::kInvalid,
                 fmt::format("synth: {} and {} were both named; leave one out", source.synth, source.text), "synth");
  Engine engine;
  ASSIGN_OR_RETURN(engine.model, PublishedShape(source.synth));
  if (source.device == "cpu")
    return Error(Code::kInvalid,
                 fmt::format("synth: weights are made on a GPU; add --device cuda, or write a checkpoint with `ekiben "
                             "synth {} -o FOLDER` and name that",
                             source.synth),
                 "synth");
  ASSIGN_OR_RETURN(engine.build, ResolveBuildConfig(WithLimits(Wanted(source), source.limits), engine.model));
  ASSIGN_OR_RETURN(engine.tokenizer, text::SyntheticTokenizer(engine.model.vocab_size));
  engine.path = "synth:" + source.synth;
  return OpenedEngine{std::move(engine), ModelNameOf(source)};
}

}  // namespace

Result<OpenedEngine> OpenEngineSource(const EngineSource& source) {
  if (!source.synth.empty()) return OpenSynthetic(source);
  if (source.text.empty())
    return Error(Code::kInvalid,
                 "MODEL is required: an engine folder, a checkpoint, a tag of the model store, or --synth SHAPE",
                 "MODEL");
  if (IsEngine(source.text)) return OpenBuilt(source.text, ModelNameOf(source), source);
  ASSIGN_OR_RETURN(fs::path path, ResolveCheckpoint(source.text));
  if (IsEngine(path)) return OpenBuilt(path, ModelNameOf(source), source);
  std::string name = ModelNameOf(source);
  ASSIGN_OR_RETURN(Checkpoint checkpoint, OpenCheckpoint(path));
  if (source.takes_text) RETURN_IF_ERROR(RequireTokenizer(checkpoint));
  ASSIGN_OR_RETURN(BuildConfig wanted,
                   ResolveBuildConfig(WithLimits(Wanted(source), source.limits), checkpoint.config));
  const BuildConfig build = CacheBuild(wanted);
  fs::path cache = CacheFolder() / "engines";
  std::error_code code;
  fs::create_directories(cache, code);
  if (code) return Error(Code::kInternal, fmt::format("{}: cannot create: {}", cache.string(), code.message()));
  fs::path folder = cache / EngineFingerprint(checkpoint, build).substr(0, 32);
  FileLock lock(folder.string() + ".lock");
  if (IsEngine(folder)) {
    auto opened = OpenEngine(folder, Verify::kAll);
    if (opened.ok()) {
      opened->build = wanted;
      return OpenedEngine{*std::move(opened), name};
    }
    LOG_WARNING("the cached engine cannot be used and is built again: {}", opened.error().message());
  }
  RETURN_IF_ERROR(BuildIntoCache(checkpoint, build, folder));
  ASSIGN_OR_RETURN(Engine engine, OpenEngine(folder, Verify::kAll));
  engine.build = wanted;
  return OpenedEngine{std::move(engine), name};
}

}  // namespace ekiben::cli
