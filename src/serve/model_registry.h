// The models that one server serves, by name. Every surface finds its model here, so that a load or an unload shows on
// all of them at once.
//
// A call holds the ServedModel it found (shared_ptr): an unloaded model finds no new calls, goes on with those it has,
// and is destroyed after the last one. The first model that was loaded and is still there is the default: it answers
// where a client names no model.
// Thread: any. Load and Unload may take seconds: never on an I/O thread.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"

namespace ekiben::serve {

class Service;

// What the surfaces tell about an engine, and what of a request it can honour.
struct EngineFacts {
  std::string dtype;                 // "float32", "bfloat16", "fp8", ...
  std::string architecture, engine;  // "llama"; path of the engine's folder
  int32_t max_batch_size = 0, max_num_tokens = 0, max_input_len = 0, max_seq_len = 0, max_beam_width = 1;
  int32_t vocab_size = 0, hidden_size = 0, tokens_per_block = 0;
  bool gather_context_logits = false, gather_generation_logits = false;
};

class ServedModel {
 public:
  virtual ~ServedModel() = default;
  virtual const std::string& name() const = 0;
  virtual const std::vector<std::string>& aliases() const = 0;  // further names that requests may use
  virtual Service& service() = 0;
  virtual const EngineFacts& facts() const = 0;
  virtual Nanos loaded_at() const = 0;  // Clock::WallNow
};

// One line of a repository's index (KServe's model repository extension).
struct ModelState {
  enum class Kind : uint8_t { kReady, kLoading, kUnloading, kUnavailable };
  std::string name, version = "1";
  Kind kind = Kind::kUnavailable;
  std::string reason;  // of kUnavailable: "unloaded", or the error of its load
};

class ModelRegistry {
 public:
  virtual ~ModelRegistry() = default;
  // By name or alias; "" is the default model. Null when it is not ready.
  virtual std::shared_ptr<ServedModel> Find(std::string_view name) const = 0;
  // Those that are ready, the default first.
  virtual std::vector<std::shared_ptr<ServedModel>> Models() const = 0;
  // Also those that could be loaded.
  virtual std::vector<ModelState> Index() const = 0;
  // kUnsupported where clients may not change what is served (a repository that is polled, or fixed). Load of a loaded model
  // reads it anew and replaces it; returns when it is ready. Unload returns when no new call finds it.
  virtual Result<void> Load(std::string_view name) = 0;
  virtual Result<void> Unload(std::string_view name) = 0;
};

}  // namespace ekiben::serve
