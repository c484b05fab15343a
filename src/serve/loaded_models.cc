#include "serve/loaded_models.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>

#include "base/log.h"

namespace ekiben::serve {

namespace {

constexpr const char* kFixed =
    "explicit model load / unload is not allowed; start the server with --model_control_mode explicit";

}  // namespace

struct LoadedModels::Returns {
  std::mutex mutex;
  std::condition_variable came;
  std::vector<const ServedModel*> models;
  bool closed = false;

  void Add(const ServedModel* model) {
    std::lock_guard lock(mutex);
    if (closed) return;
    models.push_back(model);
    came.notify_one();
  }
};

LoadedModels::LoadedModels(std::unique_ptr<ModelSource> source, bool may_change)
    : source_(std::move(source)),
      may_change_(may_change),
      returns_(std::make_shared<Returns>()),
      reaper_([this] { Reap(); }) {}

LoadedModels::~LoadedModels() {
  {
    std::lock_guard lock(returns_->mutex);
    returns_->closed = true;
    returns_->came.notify_one();
  }
  reaper_.join();
  entries_.clear();
  owned_.clear();
}

void LoadedModels::Reap() {
  std::unique_lock lock(returns_->mutex);
  while (true) {
    returns_->came.wait(lock, [&] { return returns_->closed || !returns_->models.empty(); });
    if (returns_->closed) return;
    const ServedModel* model = returns_->models.back();
    returns_->models.pop_back();
    lock.unlock();
    std::unique_ptr<ServedModel> last;
    {
      std::lock_guard guard(mutex_);
      auto node = owned_.extract(model);
      if (!node.empty()) last = std::move(node.mapped());
    }
    std::string name = last != nullptr ? last->name() : "";
    last.reset();
    {
      std::lock_guard guard(mutex_);
      for (Entry& entry : entries_) {
        if (entry.leaving != model) continue;
        entry.leaving = nullptr;
        if (entry.kind == ModelState::Kind::kUnloading) {
          entry.kind = ModelState::Kind::kUnavailable;
          entry.reason = "unloaded";
        }
      }
    }
    LOG_INFO("model {}: unloaded, its memory is free", name);
    lock.lock();
  }
}

std::shared_ptr<ServedModel> LoadedModels::Lease(ServedModel* model) {
  return {model, [returns = returns_](ServedModel* unheld) { returns->Add(unheld); }};
}

LoadedModels::Entry& LoadedModels::EntryOf(const std::string& name) {
  for (Entry& entry : entries_)
    if (entry.name == name) return entry;
  entries_.push_back({.name = name});
  return entries_.back();
}

std::vector<std::shared_ptr<ServedModel>> LoadedModels::InOrder() const {
  std::vector<const Entry*> ready;
  for (const Entry& entry : entries_)
    if (entry.lease != nullptr) ready.push_back(&entry);
  std::sort(ready.begin(), ready.end(), [](const Entry* a, const Entry* b) { return a->loaded < b->loaded; });
  std::vector<std::shared_ptr<ServedModel>> out;
  out.reserve(ready.size());
  for (const Entry* entry : ready) out.push_back(entry->lease);
  return out;
}

std::shared_ptr<ServedModel> LoadedModels::Find(std::string_view name) const {
  std::lock_guard lock(mutex_);
  const Entry* found = nullptr;
  for (const Entry& entry : entries_) {
    if (entry.lease == nullptr) continue;
    if (entry.lease->name() == name) return entry.lease;
    const auto& aliases = entry.lease->aliases();
    bool fits = name.empty() || std::find(aliases.begin(), aliases.end(), name) != aliases.end();
    if (fits && (found == nullptr || entry.loaded < found->loaded)) found = &entry;
  }
  return found != nullptr ? found->lease : nullptr;
}

std::vector<std::shared_ptr<ServedModel>> LoadedModels::Models() const {
  std::lock_guard lock(mutex_);
  return InOrder();
}

std::vector<ModelState> LoadedModels::Index() const {
  std::vector<std::string> names = source_->Names();
  std::vector<ModelState> out;
  std::lock_guard lock(mutex_);
  for (const Entry& entry : entries_) {  // not one whose folder is gone, and nothing of it runs
    bool gone = entry.kind == ModelState::Kind::kUnavailable &&
                std::find(names.begin(), names.end(), entry.name) == names.end();
    if (!gone) out.push_back({entry.name, "1", entry.kind, entry.reason});
  }
  for (const std::string& name : names) {
    bool listed = std::any_of(out.begin(), out.end(), [&](const ModelState& state) { return state.name == name; });
    if (!listed) out.push_back({name, "1", ModelState::Kind::kUnavailable, "not loaded"});
  }
  return out;
}

bool LoadedModels::Known(std::string_view name) const {
  std::vector<std::string> names = source_->Names();
  return std::find(names.begin(), names.end(), name) != names.end();
}

Result<void> LoadedModels::Load(std::string_view name) {
  if (!may_change_) return Error(Code::kUnsupported, kFixed);
  std::lock_guard loading(load_mutex_);
  std::string model = source_->ModelFor(std::string(name));
  if (Known(model) ? Current(model) : Find(name) != nullptr) return {};
  return OpenLocked(model);
}

bool LoadedModels::Current(const std::string& name) {
  std::string stamp = source_->Stamp(name);
  std::lock_guard lock(mutex_);
  const Entry& entry = EntryOf(name);
  return entry.lease != nullptr && !stamp.empty() && entry.stamp == stamp;
}

Result<void> LoadedModels::Open(const std::string& name) {
  std::lock_guard loading(load_mutex_);
  return OpenLocked(name);
}

Result<void> LoadedModels::OpenLocked(const std::string& name) {
  if (!Known(name))
    return Error(Code::kNotFound, fmt::format("failed to load '{}': no such model here", name.substr(0, 200)), "model");
  std::string stamp = source_->Stamp(name);
  {
    std::lock_guard lock(mutex_);
    Entry& entry = EntryOf(name);
    entry.stamp = stamp;
    if (entry.lease == nullptr) entry.kind = ModelState::Kind::kLoading;
  }
  auto opened = source_->Open(name);
  std::shared_ptr<ServedModel> before;  // dropped without the lock: its return may end it
  std::lock_guard lock(mutex_);
  Entry& entry = EntryOf(name);
  if (!opened.ok()) {
    if (entry.lease == nullptr) {
      entry.kind = ModelState::Kind::kUnavailable;
      entry.reason = opened.error().message();
    }
    return std::move(opened).error().Within("model " + name);
  }
  ServedModel* model = opened->get();
  owned_.emplace(model, *std::move(opened));
  before = std::move(entry.lease);
  entry.leaving = before.get();
  entry.lease = Lease(model);
  if (before == nullptr) entry.loaded = ++loads_;  // a model that is read anew keeps its place
  entry.kind = ModelState::Kind::kReady;
  entry.reason.clear();
  return {};
}

Result<void> LoadedModels::Unload(std::string_view name) {
  if (!may_change_) return Error(Code::kUnsupported, kFixed);
  std::lock_guard loading(load_mutex_);
  std::string model(name);
  if (!Known(name)) {
    auto served = Find(name);  // an alias, or one whose files are gone
    if (served == nullptr)
      return Error(Code::kNotFound, fmt::format("failed to unload '{}': no such model here", model.substr(0, 200)),
                   "model");
    model = served->name();
  }
  Close(model);
  return {};
}

void LoadedModels::Close(const std::string& name) {
  std::shared_ptr<ServedModel> before;
  std::lock_guard lock(mutex_);
  Entry& entry = EntryOf(name);
  if (entry.lease == nullptr) return;
  before = std::move(entry.lease);
  entry.leaving = before.get();
  entry.kind = ModelState::Kind::kUnloading;
}

void LoadedModels::Poll() {
  std::lock_guard loading(load_mutex_);
  std::vector<std::string> names = source_->Names();
  std::vector<std::string> gone;
  {
    std::lock_guard lock(mutex_);
    for (const Entry& entry : entries_)
      if (entry.lease != nullptr && std::find(names.begin(), names.end(), entry.name) == names.end())
        gone.push_back(entry.name);
  }
  for (const std::string& name : gone) Close(name);
  for (const std::string& name : names) {
    bool changed = false;
    {
      std::lock_guard lock(mutex_);
      changed = EntryOf(name).stamp != source_->Stamp(name);
    }
    if (!changed) continue;
    LOG_INFO("model {}: new or changed, loading", name);
    auto loaded = OpenLocked(name);
    if (!loaded.ok()) LOG_ERROR("{}", loaded.error().message());
  }
}

}  // namespace ekiben::serve
