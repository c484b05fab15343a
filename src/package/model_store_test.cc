#include "package/model_store.h"

#include <archive.h>
#include <archive_entry.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "base/mapped_file.h"
#include "package/archive.h"

namespace ekiben {
namespace {

namespace fs = std::filesystem;

class ModelStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / fmt::format("ekiben_store_{}", ::getpid());
    fs::remove_all(root_);
    fs::create_directories(root_ / "in");
    std::ofstream(root_ / "in" / "Tiny Model.gguf") << "GGUF bytes";
  }
  void TearDown() override { fs::remove_all(root_); }
  fs::path root_;
  FakeClock clock_;
};

TEST(Tag, FollowsTheRules) {
  EXPECT_EQ(ParseTag("SmolLM2:V1")->Text(), "smollm2:v1");
  EXPECT_EQ(ParseTag("smollm2")->version, "");
  for (const char* bad : {"", ":v", "a:", "a/b", "../x", "-a", "a-", "a:b:c"}) EXPECT_FALSE(ParseTag(bad).ok()) << bad;
  EXPECT_FALSE(ParseTag(std::string(64, 'a')).ok());
}

TEST_F(ModelStoreTest, ImportGetListDelete) {
  ModelStore store(root_ / "store");
  auto first = store.Import(root_ / "in" / "Tiny Model.gguf", "", clock_);
  ASSERT_TRUE(first.ok()) << first.error().message();
  EXPECT_EQ(first->tag.name, "tiny-model");
  EXPECT_EQ(first->tag.version.size(), 16u);
  EXPECT_EQ(store.CheckpointOf(*first)->filename(), "Tiny Model.gguf");
  clock_.Advance(std::chrono::seconds(5));
  auto second = store.Import(root_ / "in" / "Tiny Model.gguf", "tiny-model:v2", clock_);
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(store.Get("tiny-model")->tag.version, "v2");
  EXPECT_EQ(store.Get("tiny-model:latest")->tag.version, "v2");
  EXPECT_EQ(store.Get("tiny-model:" + first->tag.version.substr(0, 6))->tag.version, first->tag.version);
  EXPECT_EQ(store.List("")->size(), 2u);
  EXPECT_EQ(store.List("")->front().tag.version, "v2");
  EXPECT_FALSE(store.Import(root_ / "in" / "Tiny Model.gguf", "tiny-model:v2", clock_).ok());
  ASSERT_TRUE(store.Delete("tiny-model:v2").ok());
  EXPECT_EQ(store.Get("tiny-model")->tag.version, first->tag.version);
  ASSERT_TRUE(store.Delete("tiny-model").ok());
  auto gone = store.Get("tiny-model");
  ASSERT_FALSE(gone.ok());
  EXPECT_EQ(gone.error().code(), Code::kNotFound);
}

TEST_F(ModelStoreTest, ExportAndImportRoundTrip) {
  ModelStore store(root_ / "store"), other(root_ / "other");
  auto model = store.Import(root_ / "in" / "Tiny Model.gguf", "m:v1", clock_);
  ASSERT_TRUE(model.ok());
  auto file = store.Export("m:v1", root_ / "in");
  ASSERT_TRUE(file.ok()) << file.error().message();
  EXPECT_EQ(file->filename(), "m-v1.bentomodel");
  auto back = other.Import(*file, "", clock_);
  ASSERT_TRUE(back.ok()) << back.error().message();
  EXPECT_EQ(back->tag.Text(), "m:v1");
  EXPECT_EQ(*ReadFile(*other.CheckpointOf(*back), 100), "GGUF bytes");
  EXPECT_FALSE(store.Export("m:v1", root_ / "in" / "m.rar").ok());
}

TEST_F(ModelStoreTest, RefusesArchivesThatEscape) {
  for (const char* name : {"../evil", "/tmp/evil", "a/../../evil"}) {
    fs::path path = root_ / "bad.tar";
    archive* a = archive_write_new();
    archive_write_set_format_pax_restricted(a);
    archive_write_open_filename(a, path.c_str());
    archive_entry* entry = archive_entry_new();
    archive_entry_set_pathname(entry, name);
    archive_entry_set_size(entry, 1);
    archive_entry_set_filetype(entry, AE_IFREG);
    archive_entry_set_perm(entry, 0644);
    archive_write_header(a, entry);
    archive_write_data(a, "x", 1);
    archive_entry_free(entry);
    archive_write_free(a);
    fs::create_directories(root_ / "out");
    EXPECT_FALSE(UnpackArchive(path, root_ / "out", 100).ok()) << name;
    EXPECT_TRUE(fs::is_empty(root_ / "out"));
  }
}

TEST_F(ModelStoreTest, BoundsWhatAnArchiveUnpacksTo) {
  fs::create_directories(root_ / "big");
  std::ofstream(root_ / "big" / "zeros") << std::string(1000, '0');
  ASSERT_TRUE(PackFolder(root_ / "big", root_ / "big.tar.gz").ok());
  fs::create_directories(root_ / "out");
  EXPECT_FALSE(UnpackArchive(root_ / "big.tar.gz", root_ / "out", 999).ok());
  fs::remove_all(root_ / "out");
  fs::create_directories(root_ / "out");
  EXPECT_TRUE(UnpackArchive(root_ / "big.tar.gz", root_ / "out", 1000).ok());
}

}  // namespace
}  // namespace ekiben
