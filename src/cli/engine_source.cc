#include "cli/engine_source.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstdlib>

#include "base/human.h"
#include "base/log.h"
#include "cli/terminal.h"
#include "compile/engine_fingerprint.h"
#include "package/model_store.h"

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

std::string ModelName(const fs::path& path) {
  fs::path name = path.filename().empty() ? path.parent_path().filename() : path.filename();
  if (name.extension() == ".gguf" || name.extension() == ".safetensors") name = name.stem();
  return name.string();
}

}  // namespace

Result<fs::path> ResolveCheckpoint(const std::string& text) {
  if (fs::exists(text)) return fs::path(text);
  ModelStore store(ModelStore::DefaultRoot());
  auto model = store.Get(text);
  if (model.ok()) return store.CheckpointOf(*model);
  return Error(Code::kNotFound,
               fmt::format("'{}': no such file or folder, and as a tag: {}", text, model.error().message()));
}

Result<ResolvedEngine> ResolveEngine(const EngineSource& source) {
  if (IsEngine(source.text)) return ResolvedEngine{source.text, ModelName(source.text)};
  ASSIGN_OR_RETURN(fs::path path, ResolveCheckpoint(source.text));
  if (IsEngine(path)) return ResolvedEngine{path, ModelName(source.text)};
  std::string name = fs::exists(source.text) ? ModelName(path) : source.text;
  ASSIGN_OR_RETURN(Checkpoint checkpoint, OpenCheckpoint(path));
  fs::path cache = CacheFolder() / "engines";
  std::error_code code;
  fs::create_directories(cache, code);
  if (code) return Error(Code::kInternal, fmt::format("{}: cannot create: {}", cache.string(), code.message()));
  fs::path engine = cache / EngineFingerprint(checkpoint, source.build).substr(0, 32);
  FileLock lock(engine.string() + ".lock");
  if (IsEngine(engine)) {
    auto opened = OpenEngine(engine, Verify::kHeader);
    if (opened.ok()) return ResolvedEngine{engine, name};
    LOG_WARNING("the cached engine cannot be used and is built again: {}", opened.error().message());
  }
  Nanos begin = SystemClock::Get().Now();
  ProgressLine line("build", "steps", SystemClock::Get());
  RETURN_IF_ERROR(BuildEngine(checkpoint, source.build, engine, [&](const BuildProgress& progress) {
    line.Update(progress.done, progress.total, progress.stage);
  }));
  line.Done(
      fmt::format("{} -> {} in {}", path.string(), engine.string(), HumanDuration(SystemClock::Get().Now() - begin)));
  return ResolvedEngine{engine, name};
}

}  // namespace ekiben::cli
