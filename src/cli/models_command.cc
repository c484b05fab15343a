#include <CLI/Config.hpp>
#include <boost/json.hpp>
#include <cstdio>

#include "base/human.h"
#include "base/json.h"
#include "cli/commands.h"
#include "package/model_store.h"

namespace ekiben::cli {
namespace {

struct ModelsOptions {
  std::string tag, path;
  bool json = false;
};

json::object ToJson(const StoredModel& model) {
  return {{"tag", model.tag.Text()},
          {"module", model.module},
          {"size", model.bytes},
          {"creation_time", model.creation_time},
          {"path", model.path.string()}};
}

void Print(const StoredModel& model, bool as_json) {
  if (as_json) {
    std::printf("%s\n", json::serialize(ToJson(model)).c_str());
  } else {
    std::printf("%s\n  path     %s\n  size     %s\n  module   %s\n  created  %s\n", model.tag.Text().c_str(),
                model.path.c_str(), HumanBytes(model.bytes).c_str(), model.module.c_str(), model.creation_time.c_str());
  }
}

Result<void> List(ModelStore& store, const ModelsOptions& options) {
  ASSIGN_OR_RETURN(std::vector<StoredModel> models, store.List(options.tag));
  if (options.json) {
    json::array out;
    for (const StoredModel& model : models) out.push_back(ToJson(model));
    std::printf("%s\n", json::serialize(out).c_str());
    return {};
  }
  fmt::print("{:<48} {:<10} {:>10}  {}\n", "Tag", "Module", "Size", "Creation Time");
  for (const StoredModel& model : models)
    fmt::print("{:<48} {:<10} {:>10}  {}\n", model.tag.Text(), model.module, HumanBytes(model.bytes),
               model.creation_time);
  if (models.empty())
    fmt::print(stderr, "nothing in {}; add a model with `ekiben models import FILE`\n",
               ModelStore::DefaultRoot().string());
  return {};
}

}  // namespace

void AddModelsCommand(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<ModelsOptions>();
  CLI::App* command = app.add_subcommand("models", "The model store: list, get, import, export, delete");
  command->require_subcommand(1);
  command->footer("The store is $EKIBEN_HOME, else $BENTOML_HOME, else ~/bentoml; its layout and tags are BentoML's.");
  auto store = [] { return ModelStore(ModelStore::DefaultRoot()); };
  auto add = [&](const char* name, const char* help, auto run) {
    CLI::App* sub = command->add_subcommand(name, help);
    sub->add_flag("--json", options->json, "JSON on standard output");
    sub->callback([=, &outcome] { outcome.result = run(); });
    return sub;
  };
  add("list", "All models, newest first", [=]() -> Result<void> {
    ModelStore s = store();
    return List(s, *options);
  })->add_option("NAME", options->tag, "Only this name");
  add("get", "One model: its tag, path and size",
      [=]() -> Result<void> {
        ASSIGN_OR_RETURN(StoredModel model, store().Get(options->tag));
        Print(model, options->json);
        return {};
      })
      ->add_option("TAG", options->tag, "name[:version]")
      ->required();
  CLI::App* import_command =
      add("import", "Bring in a checkpoint (GGUF file, folder) or an exported archive", [=]() -> Result<void> {
        ModelStore s = store();
        ASSIGN_OR_RETURN(StoredModel model, s.Import(options->path, options->tag, SystemClock::Get()));
        Print(model, options->json);
        return {};
      });
  import_command->add_option("PATH", options->path, "File or folder")->required();
  import_command->add_option("--tag", options->tag, "name[:version]; made from the file's name when absent");
  CLI::App* export_command = add("export", "Write a model to an archive", [=]() -> Result<void> {
    ASSIGN_OR_RETURN(std::filesystem::path file, store().Export(options->tag, options->path));
    std::printf("%s\n", file.c_str());
    return {};
  });
  export_command->add_option("TAG", options->tag, "name[:version]")->required();
  export_command->add_option("PATH", options->path, "Folder, or a file ending in .bentomodel, .tar[.gz|.xz|.bz2], .zip")
      ->default_str(".");
  options->path = ".";
  add("delete", "Remove a model from the store",
      [=]() -> Result<void> {
        ModelStore s = store();
        ASSIGN_OR_RETURN(StoredModel model, s.Delete(options->tag));
        std::printf("deleted %s\n", model.tag.Text().c_str());
        return {};
      })
      ->add_option("TAG", options->tag, "name[:version]")
      ->required();
}

}  // namespace ekiben::cli
