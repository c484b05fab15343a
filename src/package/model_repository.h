// A folder in the layout of Triton's model repositories: ROOT/NAME/config.pbtxt and ROOT/NAME/VERSION/, of which one
// counts: the highest, or the one that version_policy's `specific` names. What a model is made of, in this order: the
// parameters engine_dir or gpt_model_path of its config (a relative path is the model folder's), what lies in the
// version's folder (an engine, a checkpoint or one *.gguf, or one folder that is such).
//
// A deployment's pipeline (an `ensemble`, and `preprocessing`, `postprocessing`, `tensorrt_llm_bls` with backend
// python) is no model of its own: the engine of `tensorrt_llm` beside it answers under all of these names. A model that
// cannot be served is listed with its reason: one folder's mistake is not the repository's. Nothing is kept: each call
// reads the disk. Thread: any.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "base/result.h"

namespace ekiben {

inline constexpr std::string_view kPipelineEngine = "tensorrt_llm";

struct RepositoryModel {
  std::string name;
  std::filesystem::path path;  // engine or checkpoint
  std::string reason;          // why there is no path
  std::string stamp;           // another text whenever one of its files is another
};

// kPipelineEngine first, so that it is the default, then by name; without the parts of its pipeline.
Result<std::vector<RepositoryModel>> ScanModelRepository(const std::filesystem::path& root);
// Which of `models` to load for `name`: who names a part of the pipeline and no model means kPipelineEngine; else
// `name`.
std::string ModelForName(const std::vector<RepositoryModel>& models, const std::string& name);

}  // namespace ekiben
