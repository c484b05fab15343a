// The registry of a running server: models come from a ModelSource (cli/ opens engines, tests make doubles), live
// here, and leave when they are unloaded and the last call that found them is over.
//
// The registry owns every model; a caller's shared_ptr is a lease. A model is destroyed on a thread of the registry's
// own, never on one that gives a lease back: that may be a thread of the model itself, which its end would join.
// Invariants: one load at a time; Find never waits for one. At the destructor models end as they are, with what still
// runs on them; no call may look for a model any more, leases that are still held may only be dropped.
// Thread: any.
#pragma once
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <vector>

#include "serve/model_registry.h"

namespace ekiben::serve {

class ModelSource {
 public:
  virtual ~ModelSource() = default;
  // What Open may be asked for, in the order that a server would load them.
  virtual std::vector<std::string> Names() const = 0;
  // Takes as long as an engine takes; called by one thread at a time.
  virtual Result<std::unique_ptr<ServedModel>> Open(const std::string& name) = 0;
  // Another text whenever the files of the model are others: what a poll and a second load compare. Empty: not known.
  virtual std::string Stamp(const std::string& name) const = 0;
  // The model to open for a client's `name`, which may be one of several for it; `name` itself when there is none.
  virtual std::string ModelFor(const std::string& name) const { return name; }
};

class LoadedModels final : public ModelRegistry {
 public:
  // `may_change`: Load and Unload are for clients, too.
  LoadedModels(std::unique_ptr<ModelSource> source, bool may_change);
  ~LoadedModels() override;

  std::shared_ptr<ServedModel> Find(std::string_view name) const override;
  std::vector<std::shared_ptr<ServedModel>> Models() const override;
  std::vector<ModelState> Index() const override;
  // Nothing to do for a model that is ready and whose files are what they were, and for an alias of one that is ready.
  Result<void> Load(std::string_view name) override;
  Result<void> Unload(std::string_view name) override;

  // Load, whether models may change or not: at start.
  Result<void> Open(const std::string& name);
  // Loads what is new or has other files than when it was loaded, unloads what is gone. One that does not load keeps
  // its error in the index, and is tried again when its files change.
  void Poll();

 private:
  struct Entry {
    std::string name;
    std::shared_ptr<ServedModel> lease;    // while it is ready
    const ServedModel* leaving = nullptr;  // unloaded, still held by calls
    ModelState::Kind kind = ModelState::Kind::kUnavailable;
    std::string reason, stamp;
    uint64_t loaded = 0;  // order of loading
  };
  // Models whose last lease came back. Outlives the registry where a lease does.
  struct Returns;

  Entry& EntryOf(const std::string& name);
  bool Known(std::string_view name) const;
  bool Current(const std::string& name);
  Result<void> OpenLocked(const std::string& name);
  void Close(const std::string& name);
  void Reap();
  std::shared_ptr<ServedModel> Lease(ServedModel* model);
  std::vector<std::shared_ptr<ServedModel>> InOrder() const;

  const std::unique_ptr<ModelSource> source_;
  const bool may_change_;
  const std::shared_ptr<Returns> returns_;
  std::mutex load_mutex_;  // held through a load
  mutable std::mutex mutex_;
  std::vector<Entry> entries_;
  std::unordered_map<const ServedModel*, std::unique_ptr<ServedModel>> owned_;
  uint64_t loads_ = 0;
  std::thread reaper_;
};

}  // namespace ekiben::serve
