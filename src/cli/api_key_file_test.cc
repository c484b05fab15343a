#include "cli/api_key_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

namespace ekiben::cli {
namespace {

class ApiKeyFileTest : public ::testing::Test {
 protected:
  void TearDown() override { ::unlink(path.c_str()); }
  Result<std::vector<ApiKey>> Read(const std::string& text) const {
    std::ofstream(path) << text;
    ::chmod(path.c_str(), 0600);
    return ReadApiKeyFile(path);
  }
  // What the refusal says after the file's name. A key never stands in it.
  std::string Refusal(const std::string& text) const {
    auto keys = Read(text);
    if (keys.ok()) return "";
    EXPECT_EQ(keys.error().code(), Code::kInvalid);
    EXPECT_EQ(keys.error().field(), "api_key_file");
    const std::string& message = keys.error().message();
    EXPECT_EQ(message.find("secret"), std::string::npos) << message;
    const std::string head = "api_key_file: " + path + ": ";
    return message.starts_with(head) ? message.substr(head.size()) : message;
  }
  const std::string path = ::testing::TempDir() + "keys." + std::to_string(::getpid()) + ".yaml";
};

TEST_F(ApiKeyFileTest, ReadsKeysWithTheirLimits) {
  auto keys = Read(
      "- {name: alice, key: secret-one, max_concurrency: 4, requests_per_minute: 600.5}\n"
      "- name: operator\n  key: \"secret-two\"\n  admin: true\n");
  ASSERT_TRUE(keys.ok()) << keys.error().message();
  ASSERT_EQ(keys->size(), 2u);
  EXPECT_EQ(keys->at(0).name, "alice");
  EXPECT_EQ(keys->at(0).key, "secret-one");
  EXPECT_EQ(keys->at(0).max_concurrency, 4);
  EXPECT_EQ(keys->at(0).requests_per_minute, 600.5);
  EXPECT_FALSE(keys->at(0).admin);
  EXPECT_EQ(keys->at(1).key, "secret-two");
  EXPECT_EQ(keys->at(1).max_concurrency, 0);
  EXPECT_TRUE(keys->at(1).admin);
}

TEST_F(ApiKeyFileTest, RefusesByEntryAndField) {
  const std::string not_usable = ": not usable; a key has 8 characters or more, a limit is no less than 0";
  EXPECT_EQ(Refusal(""), "a list of keys is wanted, with one at least");
  EXPECT_EQ(Refusal("[]"), "a list of keys is wanted, with one at least");
  EXPECT_EQ(Refusal("{name: a, key: secret-one}"), "a list of keys is wanted, with one at least");
  EXPECT_EQ(Refusal("- secret-one"), "entry 1: a map with 'name' and 'key' is wanted");
  EXPECT_EQ(Refusal("- {name: a}"), "entry 1: 'name' and 'key' are wanted");
  EXPECT_EQ(Refusal("- {key: secret-one}"), "entry 1: 'name' and 'key' are wanted");
  EXPECT_EQ(Refusal("- {name: a, key: secret}"), "entry 1: key" + not_usable);
  EXPECT_EQ(Refusal("- {name: a, key: secret-one, max_concurrency: -1}"), "entry 1: max_concurrency" + not_usable);
  EXPECT_EQ(Refusal("- {name: a, key: secret-one, max_concurrency: 1.5}"), "entry 1: max_concurrency" + not_usable);
  EXPECT_EQ(Refusal("- {name: a, key: secret-one, requests_per_minute: .nan}"),
            "entry 1: requests_per_minute" + not_usable);
  EXPECT_EQ(Refusal("- {name: a, key: secret-one, admin: maybe}"), "entry 1: admin" + not_usable);
  EXPECT_EQ(Refusal("- {name: a, key: secret-one, limit: 3}"),
            "entry 1: 'limit' is not one of name, key, max_concurrency, requests_per_minute, admin");
  EXPECT_EQ(Refusal("- {name: a, key: secret-one}\n- {name: a, key: secret-two}"),
            "entry 2: its name or key is another's");
  EXPECT_EQ(Refusal("- {name: a, key: secret-one}\n- {name: b, key: secret-one}"),
            "entry 2: its name or key is another's");
  EXPECT_EQ(Refusal("- {name: a, key: \"secret-one}\n"), "no YAML at line 2");
}

TEST_F(ApiKeyFileTest, AFileThatIsNotThere) {
  auto keys = ReadApiKeyFile(path + ".none");
  ASSERT_FALSE(keys.ok());
  EXPECT_TRUE(keys.error().message().ends_with("cannot be read")) << keys.error().message();
}

}  // namespace
}  // namespace ekiben::cli
