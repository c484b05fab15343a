#include "package/model_repository.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "package/protobuf_text.h"

namespace ekiben {
namespace {

namespace fs = std::filesystem;

std::string Refusal(std::string_view text) {
  auto parsed = ParseProtobufText(text);
  return parsed.ok() ? "" : parsed.error().message();
}

TEST(ProtobufText, ReadsWhatConfigsHold) {
  auto fields = ParseProtobufText(R"(# a model
name: "tensorrt_llm"  # its name
max_batch_size: 64
dynamic_batching < preferred_batch_size: [ 1, 2 ]; >
instance_group [ { count: 1 kind: KIND_CPU }, { count: 2 } ]
parameters: { key: "gpt_model_path" value: { string_value: "/engines/" 'a\\b' } }
rate: -1.5e3 # the end)");
  ASSERT_TRUE(fields.ok()) << fields.error().message();
  EXPECT_EQ(TextValue(*fields, "name"), "tensorrt_llm");
  EXPECT_EQ(TextValue(*fields, "rate"), "-1.5e3");
  EXPECT_EQ(TextValue(fields->at(2).fields, "preferred_batch_size"), "2");
  EXPECT_EQ(fields->at(4).name, "instance_group");
  EXPECT_EQ(TextValue(fields->at(4).fields, "count"), "2");
  EXPECT_EQ(TextValue(fields->at(5).fields.at(1).fields, "string_value"), "/engines/a\\b");
  EXPECT_TRUE(ParseProtobufText("")->empty());
}

TEST(ProtobufText, RefusesWithTheLine) {
  EXPECT_EQ(Refusal("name: \"a\"\nname \"b\""), "line 2: name: ':' or a message is wanted");
  EXPECT_EQ(Refusal("a {\n b: 1"), "line 2: '}' is missing");
  EXPECT_EQ(Refusal("}"), "line 1: a field's name is wanted, not '}'");
  EXPECT_EQ(Refusal("a: \"x"), "line 1: a string does not end on its line");
  EXPECT_EQ(Refusal("a: \"\\"), "line 1: a string does not end on its line");
  EXPECT_EQ(Refusal("a: [1, 2"), "line 1: ']' is missing");
  EXPECT_EQ(Refusal("a:"), "line 1: a: a value is wanted");
  std::string deep;
  for (int i = 0; i < 100'000; ++i) deep += "a{";
  EXPECT_EQ(Refusal(deep), "line 1: messages nest deeper than 32");
}

TEST(ModelRepository, APartsNameMeansTheEngineUnlessItIsAModel) {
  std::vector<RepositoryModel> models = {{"tensorrt_llm", "/e", "", ""}, {"ensemble", "/f", "", ""}};
  EXPECT_EQ(ModelForName(models, "preprocessing"), "tensorrt_llm");
  EXPECT_EQ(ModelForName(models, "ensemble"), "ensemble");
  EXPECT_EQ(ModelForName(models, "other"), "other");
}

class ModelRepositoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root = fs::temp_directory_path() / fmt::format("ekiben_repository_{}", ::getpid());
    fs::remove_all(root);
    fs::create_directories(root);
  }
  void TearDown() override { fs::remove_all(root); }
  void Write(const std::string& path, const std::string& text) const {
    fs::create_directories((root / path).parent_path());
    std::ofstream(root / path) << text;
  }
  std::vector<RepositoryModel> Scan() const {
    auto models = ScanModelRepository(root);
    EXPECT_TRUE(models.ok());
    return models.ok() ? *std::move(models) : std::vector<RepositoryModel>();
  }
  fs::path root;
};

TEST_F(ModelRepositoryTest, FindsModelsWhereTritonHasThem) {
  Write("engine/1/rank0.engine", "");
  Write("file/1/a.gguf", "");
  Write("file/1/notes.txt", "");
  Write("inner/1/model/config.json", "{}");
  Write("newest/2/a.gguf", "");
  Write("newest/10/a.gguf", "");
  Write("README.md", "no folder");
  auto models = Scan();
  ASSERT_EQ(models.size(), 4u);
  const char* paths[] = {"engine/1", "file/1/a.gguf", "inner/1/model", "newest/10/a.gguf"};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(models[i].path, root / paths[i]);
    EXPECT_EQ(models[i].reason, "");
  }
  EXPECT_EQ(ScanModelRepository(root / "none").error().code(), Code::kNotFound);
}

TEST_F(ModelRepositoryTest, APipelineIsOneEngine) {
  for (const char* name : {"preprocessing", "postprocessing", "tensorrt_llm_bls"})
    Write(std::string(name) + "/config.pbtxt", fmt::format("name: \"{}\" backend: \"python\"", name));
  Write("ensemble/config.pbtxt", "name: \"ensemble\" platform: \"ensemble\"");
  for (const RepositoryModel& model : Scan()) {
    EXPECT_TRUE(model.path.empty());
    EXPECT_EQ(model.reason, "a part of tensorrt_llm's pipeline, and this repository has no tensorrt_llm");
  }
  EXPECT_EQ(Scan().size(), 4u);
  Write("another/1/a.gguf", "");
  Write("engines/rank0.engine", "");
  Write("tensorrt_llm/config.pbtxt",
        "backend: \"tensorrtllm\" parameters: { key: \"gpt_model_path\" value: { string_value: \"../engines\" } }");
  fs::create_directories(root / "tensorrt_llm" / "1");
  auto models = Scan();
  ASSERT_EQ(models.size(), 3u);
  EXPECT_EQ(models[0].name, "tensorrt_llm");
  EXPECT_TRUE(fs::equivalent(models[0].path, root / "engines"));
  EXPECT_EQ(models[1].name, "another");
}

TEST_F(ModelRepositoryTest, AMistakeIsOfOneModel) {
  Write("a/config.pbtxt", "backend: \"onnxruntime\"");
  Write("b/config.pbtxt", "name: \"other\"");
  Write("c/config.pbtxt", "name");
  Write("d/config.pbtxt", "parameters { key: \"engine_dir\" value { string_value: \"${engine_dir}\" } }");
  Write("e/config.pbtxt", "parameters { key: \"engine_dir\" value { string_value: \"/none\" } }");
  Write("f/config.pbtxt", "");
  Write("g/1/a.gguf", "");
  Write("g/1/b.gguf", "");
  Write("h/1/a.gguf", "");
  auto models = Scan();
  ASSERT_EQ(models.size(), 8u);
  const std::string reasons[] = {
      "config.pbtxt: backend: 'onnxruntime' is not offered; ekiben and tensorrtllm are",
      "config.pbtxt: name: 'other' is not the folder's name 'b'",
      "config.pbtxt: line 1: name: ':' or a message is wanted",
      "config.pbtxt: engine_dir: '${engine_dir}' is a place that nobody filled in",
      "config.pbtxt: engine_dir: /none is no engine of ekiben's and no checkpoint",
      "no version folder (1/) and no parameter engine_dir or gpt_model_path",
      (root / "g" / "1").string() + ": 2 models are in it; an engine, a checkpoint or one *.gguf is wanted",
      ""};
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(models[i].reason, reasons[i]);
}

TEST_F(ModelRepositoryTest, AVersionPolicyPicksOneVersion) {
  const std::pair<const char*, const char*> policies[] = {
      {"version_policy { latest { num_versions: 1 } }", "3"},
      {"version_policy: { latest { } }", "3"},
      {"version_policy: { specific: { versions: [ 2 ] } }", "2"},
      {"version_policy { specific { versions: 1 } }", "1"},
  };
  for (const char* version : {"1", "2", "3"}) Write(fmt::format("a/{}/model.gguf", version), "");
  for (const auto& [policy, version] : policies) {
    Write("a/config.pbtxt", policy);
    auto models = Scan();
    ASSERT_EQ(models.size(), 1u);
    EXPECT_EQ(models[0].reason, "");
    EXPECT_EQ(models[0].path, root / "a" / version / "model.gguf");
  }
  const std::string offered = "' is not offered; latest { num_versions: 1 } and specific { versions: [one] } are";
  const std::pair<const char*, std::string> refused[] = {
      {"version_policy { latest { num_versions: 2 } }", "latest: num_versions: '2" + offered},
      {"version_policy { all { } }", "all: '{}" + offered},
      {"version_policy { specific { versions: [1, 3] } }", "specific: versions: '1, 3" + offered},
      {"version_policy { specific { } }", "specific: versions: '" + offered},
      {"version_policy { specific { versions: \"01\" } }", "specific: versions: '01" + offered},
      {"version_policy { specific { newest: 1 } }", "specific: 'newest" + offered},
      {"version_policy { latest: 1 }", "latest: '1" + offered},
      {"version_policy: 3", "version_policy: '3" + offered},
      {"version_policy { latest { } specific { versions: 1 } }", "specific: 'a second policy" + offered},
      {"version_policy { specific { versions: 9 } }", "specific: no folder '9'"},
  };
  for (const auto& [policy, reason] : refused) {
    Write("a/config.pbtxt", policy);
    EXPECT_EQ(Scan()[0].reason, "config.pbtxt: version_policy: " + reason);
  }
}

TEST_F(ModelRepositoryTest, AStampFollowsTheVersionThatIsServed) {
  Write("a/1/model.gguf", "");
  Write("a/config.pbtxt", "version_policy { specific { versions: 1 } }");
  Write("b/1/model.gguf", "");
  Write("c/config.pbtxt", "version_policy { specific { versions: 2 } }");
  auto before = Scan();
  Write("a/2/model.gguf", "");
  Write("b/2/model.gguf", "");
  Write("c/2/model.gguf", "");
  auto after = Scan();
  EXPECT_EQ(after[0].stamp, before[0].stamp);
  EXPECT_NE(after[1].stamp, before[1].stamp);
  EXPECT_NE(after[2].stamp, before[2].stamp);
}

TEST_F(ModelRepositoryTest, AStampFollowsTheFiles) {
  Write("a/1/rank0.engine", "one");
  Write("b/config.pbtxt", "backend: \"none\"");
  auto before = Scan();
  EXPECT_EQ(Scan()[0].stamp, before[0].stamp);
  EXPECT_EQ(Scan()[1].stamp, before[1].stamp);
  Write("a/1/rank0.engine", "another");
  Write("b/config.pbtxt", "backend: \"ekiben\"");
  EXPECT_NE(Scan()[0].stamp, before[0].stamp);
  EXPECT_NE(Scan()[1].stamp, before[1].stamp);
}

}  // namespace
}  // namespace ekiben
