#include "serve/loaded_models.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "serve/testing/scripted_model.h"

namespace ekiben::serve {
namespace {

using namespace std::chrono_literals;
using testing::ScriptedModel;
using testing::ScriptedModelOptions;

// Scripted models that can be added, changed, removed and made to fail, and that count those which live.
class Source final : public ModelSource {
 public:
  struct Shared {
    std::mutex mutex;
    std::vector<std::string> names;
    std::map<std::string, std::string> stamps;
    std::string fails;
    std::atomic<int> live{0};
  };
  explicit Source(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}

  std::vector<std::string> Names() const override {
    std::lock_guard lock(shared_->mutex);
    return shared_->names;
  }
  Result<std::unique_ptr<ServedModel>> Open(const std::string& name) override {
    if (name == shared_->fails) return Error(Code::kInvalid, "rank0.engine: truncated");
    ScriptedModelOptions options{.name = name, .aliases = {name + "-alias", "shared-alias"}};
    options.executor.turn_time = 1ms;
    ASSIGN_OR_RETURN(auto inner, ScriptedModel::Create(options));
    return std::unique_ptr<ServedModel>(std::make_unique<Counted>(std::move(inner), shared_));
  }
  std::string Stamp(const std::string& name) const override {
    std::lock_guard lock(shared_->mutex);
    return name + shared_->stamps[name];
  }

 private:
  class Counted final : public ServedModel {
   public:
    Counted(std::unique_ptr<ScriptedModel> inner, std::shared_ptr<Shared> shared)
        : inner_(std::move(inner)), shared_(std::move(shared)) {
      ++shared_->live;
    }
    ~Counted() override {
      inner_.reset();
      --shared_->live;
    }
    const std::string& name() const override { return inner_->name(); }
    const std::vector<std::string>& aliases() const override { return inner_->aliases(); }
    Service& service() override { return inner_->service(); }
    const EngineFacts& facts() const override { return inner_->facts(); }
    Nanos loaded_at() const override { return inner_->loaded_at(); }

   private:
    std::unique_ptr<ScriptedModel> inner_;
    const std::shared_ptr<Shared> shared_;
  };
  const std::shared_ptr<Shared> shared_;
};

bool Eventually(const std::function<bool()>& predicate) {
  auto end = std::chrono::steady_clock::now() + 20s;
  while (!predicate()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(1ms);
  }
  return true;
}

// Holds the model as a call does, until its last event.
class HoldingSink final : public TextSink {
 public:
  HoldingSink(std::shared_ptr<ServedModel> model, std::atomic<int>& ended) : model_(std::move(model)), ended_(ended) {}
  void OnPrompt(const PromptInfo&) override {}
  void OnText(const TextEvent& event) override {
    if (event.reason != FinishReason::kNone) ++ended_;
  }
  void OnError(const Error&) override { ++ended_; }

 private:
  const std::shared_ptr<ServedModel> model_;
  std::atomic<int>& ended_;
};

class LoadedModelsTest : public ::testing::Test {
 protected:
  void Start(std::vector<std::string> names, bool may_change = true) {
    shared->names = std::move(names);
    models = std::make_unique<LoadedModels>(std::make_unique<Source>(shared), may_change);
    for (const std::string& name : shared->names) {
      auto opened = models->Open(name);
      ASSERT_TRUE(opened.ok()) << opened.error().message();
    }
  }
  std::string Default() {
    auto model = models->Find("");
    return model == nullptr ? "" : model->name();
  }
  ModelState StateOf(const std::string& name) {
    for (ModelState& state : models->Index())
      if (state.name == name) return state;
    return {};
  }
  void Submit(const std::string& name, int32_t max_tokens) {
    auto model = models->Find(name);
    ASSERT_NE(model, nullptr);
    TextRequest request;
    request.input = std::string("abc");
    request.max_tokens = max_tokens;
    Service& service = model->service();
    ASSERT_TRUE(service.Submit(std::move(request), std::make_shared<HoldingSink>(std::move(model), ended)).ok());
  }

  std::shared_ptr<Source::Shared> shared = std::make_shared<Source::Shared>();
  std::atomic<int> ended{0};
  std::unique_ptr<LoadedModels> models;
};

TEST_F(LoadedModelsTest, FindsByNameAliasAndDefault) {
  Start({"one", "two"});
  EXPECT_EQ(Default(), "one");
  EXPECT_EQ(models->Find("two")->name(), "two");
  EXPECT_EQ(models->Find("two-alias")->name(), "two");
  EXPECT_EQ(models->Find("shared-alias")->name(), "one");  // the first that was loaded
  EXPECT_EQ(models->Find("three"), nullptr);
  EXPECT_EQ(models->Models().size(), 2u);
  EXPECT_EQ(StateOf("two").kind, ModelState::Kind::kReady);
  ASSERT_TRUE(models->Unload("one").ok());
  EXPECT_EQ(Default(), "two");
  ASSERT_TRUE(models->Load("one").ok());
  EXPECT_EQ(Default(), "two");  // the one that has been there longest
}

TEST_F(LoadedModelsTest, UnloadedModelEndsWhatItRunsAndThenFreesItsMemory) {
  Start({"one", "two"});
  Submit("one", 300);
  ASSERT_TRUE(models->Unload("one").ok());
  EXPECT_EQ(models->Find("one"), nullptr);
  EXPECT_EQ(StateOf("one").kind, ModelState::Kind::kUnloading);
  EXPECT_EQ(shared->live, 2);
  EXPECT_EQ(ended, 0);
  // The last lease comes back on a thread of the model itself; who destroys it is another.
  EXPECT_TRUE(Eventually([&] { return shared->live == 1; }));
  EXPECT_EQ(ended, 1);
  EXPECT_TRUE(Eventually([&] { return StateOf("one").reason == "unloaded"; }));
  EXPECT_EQ(StateOf("one").kind, ModelState::Kind::kUnavailable);
  ASSERT_TRUE(models->Unload("one").ok());  // again: nothing to do
}

TEST_F(LoadedModelsTest, AnAliasIsUnloadedAsItsModel) {
  Start({"one", "two"});
  ASSERT_TRUE(models->Unload("two-alias").ok());
  EXPECT_EQ(models->Find("two"), nullptr);
  EXPECT_EQ(models->Index().size(), 2u);
}

TEST_F(LoadedModelsTest, LoadedAgainWhileTheOldOneStillRuns) {
  Start({"one"});
  Submit("one", 200);
  auto old = models->Find("one").get();
  ASSERT_TRUE(models->Load("one").ok());
  EXPECT_EQ(models->Find("one").get(), old);  // the same files
  ASSERT_TRUE(models->Load("one-alias").ok());
  EXPECT_EQ(models->Find("one").get(), old);
  shared->stamps["one"] = "new";
  ASSERT_TRUE(models->Load("one").ok());
  EXPECT_NE(models->Find("one").get(), old);
  EXPECT_EQ(StateOf("one").kind, ModelState::Kind::kReady);
  EXPECT_TRUE(Eventually([&] { return ended == 1 && shared->live == 1; }));
  EXPECT_EQ(StateOf("one").kind, ModelState::Kind::kReady);
}

TEST_F(LoadedModelsTest, AFailedLoadKeepsWhatRunsAndSaysWhy) {
  Start({"one"});
  shared->names.push_back("bad");
  shared->fails = "bad";
  auto loaded = models->Load("bad");
  ASSERT_FALSE(loaded.ok());
  EXPECT_EQ(loaded.error().message(), "model bad: rank0.engine: truncated");
  EXPECT_EQ(StateOf("bad").kind, ModelState::Kind::kUnavailable);
  EXPECT_EQ(StateOf("bad").reason, "rank0.engine: truncated");
  shared->fails = "one";
  shared->stamps["one"] = "new";
  EXPECT_FALSE(models->Load("one").ok());
  EXPECT_EQ(Default(), "one");
  EXPECT_EQ(models->Load("none").error().code(), Code::kNotFound);
  EXPECT_EQ(models->Unload("none").error().code(), Code::kNotFound);
}

TEST_F(LoadedModelsTest, ClientsChangeNothingUnlessTheyMay) {
  Start({"one"}, /*may_change=*/false);
  EXPECT_EQ(models->Load("one").error().code(), Code::kUnsupported);
  EXPECT_EQ(models->Unload("one").error().code(), Code::kUnsupported);
  EXPECT_EQ(Default(), "one");
}

TEST_F(LoadedModelsTest, PollFollowsTheFiles) {
  Start({"one", "two"}, false);
  auto two = models->Find("two").get();
  shared->names = {"two", "three"};
  models->Poll();
  EXPECT_EQ(models->Find("one"), nullptr);
  EXPECT_EQ(models->Find("two").get(), two);
  EXPECT_NE(models->Find("three"), nullptr);
  shared->stamps["two"] = " changed";
  shared->fails = "two";
  models->Poll();
  EXPECT_EQ(models->Find("two").get(), two);
  shared->fails.clear();
  models->Poll();  // the files are those that failed: not tried again
  EXPECT_EQ(models->Find("two").get(), two);
  shared->stamps["two"] = " changed again";
  models->Poll();
  EXPECT_NE(models->Find("two").get(), two);
}

TEST_F(LoadedModelsTest, TheEndWaitsForNoClient) {
  Start({"one"});
  Submit("one", 4000);  // 4 seconds
  models.reset();
  EXPECT_EQ(ended, 1);
  EXPECT_EQ(shared->live, 0);
}

}  // namespace
}  // namespace ekiben::serve
