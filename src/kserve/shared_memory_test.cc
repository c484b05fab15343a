#include "kserve/shared_memory.h"

#include <gtest/gtest.h>

#include "kserve/testing/shared_object.h"

namespace ekiben::kserve {
namespace {

using testing::SharedObject;

std::string MessageOf(const Result<void>& result) {
  return result.ok() ? "(ok)" : result.error().message();
}

Tensor At(const std::string& region, uint64_t offset, uint64_t bytes) {
  return {"x", DataType::kUint8, {static_cast<int64_t>(bytes)}, {}, RegionSpan{region, offset, bytes}};
}

TEST(SharedMemory, TensorsAreReadAndWrittenInPlace) {
  SharedObject object("inout", 8192);
  object.Put(100, "abcdef");
  SharedMemory memory(SharedObject::Prefix());
  ASSERT_EQ(MessageOf(memory.Register({"io", object.key(), 96, 4096})), "(ok)");

  std::vector<Tensor> inputs = {At("io", 4, 3), Tensor{"y", DataType::kUint8, {1}, "z"}, At("io", 7, 3),
                                At("io", 0, 0)};
  ASSERT_EQ(MessageOf(memory.Fill(inputs)), "(ok)");
  EXPECT_EQ(inputs[0].data, "abc");
  EXPECT_FALSE(inputs[0].region);
  EXPECT_EQ(inputs[1].data, "z");
  EXPECT_EQ(inputs[2].data, "def");
  EXPECT_EQ(inputs[3].data, "");

  Tensor out{"out", DataType::kUint8, {5}, "hello"};
  ASSERT_EQ(MessageOf(memory.Store({"io", 1000, 64}, out)), "(ok)");
  EXPECT_EQ(object.Take(96 + 1000, 6), std::string("hello\0", 6));
  EXPECT_EQ(out.data, "");
  ASSERT_TRUE(out.region);
  EXPECT_EQ(out.region->offset, 1000u);
  EXPECT_EQ(out.region->byte_size, 5u);  // what was written

  Tensor large{"out", DataType::kUint8, {5}, "hello"};
  EXPECT_EQ(MessageOf(memory.Store({"io", 0, 4}, large)),
            "shared memory size specified with the request for output 'out' (4 bytes) should be at least 5 bytes to "
            "hold the results");
  EXPECT_EQ(object.Take(96, 4), std::string(4, '\0'));

  auto status = memory.Status("io");
  ASSERT_TRUE(status.ok());
  EXPECT_EQ(status->at(0).key, object.key());
  EXPECT_EQ(status->at(0).offset, 96u);
  EXPECT_EQ(status->at(0).byte_size, 4096u);
  memory.Unregister("nothing");
  memory.Unregister("io");
  EXPECT_TRUE(memory.Status("")->empty());
  EXPECT_EQ(memory.Status("io").error().code(), Code::kNotFound);
}

TEST(SharedMemory, ASpanOutsideItsRegionIsRefused) {
  SharedObject object("span", 64);
  SharedMemory memory(SharedObject::Prefix());
  ASSERT_EQ(MessageOf(memory.Register({"r", object.key(), 16, 32})), "(ok)");
  EXPECT_EQ(MessageOf(memory.Check({"r", 0, 32})), "(ok)");
  constexpr uint64_t kMost = UINT64_MAX;
  for (auto [offset, bytes] : {std::pair<uint64_t, uint64_t>{0, 33}, {33, 0}, {1, 32}, {kMost, 1}, {1, kMost}})
    EXPECT_EQ(MessageOf(memory.Check({"r", offset, bytes})).find("Invalid offset + byte size for shared memory region"),
              0u)
        << offset << " " << bytes;
  auto unknown = memory.Check({"other", 0, 1});
  EXPECT_EQ(unknown.error().code(), Code::kNotFound);
  EXPECT_EQ(unknown.error().message(), "Unable to find shared memory region: 'other'");  // and no word of 'r'
}

TEST(SharedMemory, RegistrationIsBounded) {
  SharedObject object("reg", 64);
  SharedMemory memory(SharedObject::Prefix());
  const std::string& key = object.key();
  constexpr uint64_t kMost = UINT64_MAX;
  for (auto [offset, bytes] : {std::pair<uint64_t, uint64_t>{0, 65}, {64, 1}, {65, 1}, {kMost, 2}, {2, kMost}})
    EXPECT_NE(MessageOf(memory.Register({"r", key, offset, bytes})).find("beyond the end"), std::string::npos)
        << offset << " " << bytes;
  EXPECT_NE(MessageOf(memory.Register({"r", key, 0, 0})).find("must be over 0"), std::string::npos);
  EXPECT_NE(MessageOf(memory.Register({"", key, 0, 1})).find("name"), std::string::npos);
  EXPECT_NE(MessageOf(memory.Register({"r", "/another", 0, 1})).find("only keys that start with"), std::string::npos);
  EXPECT_EQ(MessageOf(memory.Register({"r", SharedObject::Prefix() + "absent", 0, 1})),
            "Unable to open shared memory region: '" + SharedObject::Prefix() + "absent'");
  SharedMemory any("/");
  for (const char* bad : {"", "/", "reg", "/../etc/passwd", "/.", "/..", "/a/b", "//a"})
    EXPECT_NE(MessageOf(any.Register({"r", bad, 0, 1})).find("a name of 1 to"), std::string::npos) << bad;
  EXPECT_NE(MessageOf(any.Register({"r", std::string("/a\0b", 4), 0, 1})).find("a name of 1 to"), std::string::npos);
  ASSERT_EQ(MessageOf(any.Register({"r", key, 0, 64})), "(ok)");
  EXPECT_EQ(MessageOf(any.Register({"r", key, 0, 64})), "shared memory region 'r' already in manager");
  for (size_t i = 1; i < SharedMemory::kRegionsMax; ++i)
    ASSERT_EQ(MessageOf(any.Register({std::to_string(i), key, 0, 1})), "(ok)");
  EXPECT_EQ(any.Register({"more", key, 0, 1}).error().code(), Code::kOverloaded);
  any.Unregister("");
  EXPECT_EQ(MessageOf(any.Register({"more", key, 0, 1})), "(ok)");
  SharedMemory off("");
  EXPECT_EQ(off.Register({"r", key, 0, 1}).error().code(), Code::kUnsupported);
  EXPECT_EQ(off.Check({"r", 0, 1}).error().code(), Code::kUnsupported);
}

// The owner may shrink an object at any moment.
TEST(SharedMemory, AnObjectThatWasCutShortIsAnError) {
  SharedObject object("cut", 8192);
  SharedMemory memory(SharedObject::Prefix());
  ASSERT_EQ(MessageOf(memory.Register({"r", object.key(), 0, 8192})), "(ok)");
  object.Resize(10);
  std::vector<Tensor> inputs = {At("r", 8, 100)};
  EXPECT_NE(MessageOf(memory.Fill(inputs)).find("has become shorter"), std::string::npos);
  Tensor out{"out", DataType::kUint8, {5}, "hello"};
  EXPECT_NE(MessageOf(memory.Store({"r", 8, 100}, out)).find("has become shorter"), std::string::npos);
}

TEST(SharedMemory, ARequestReadsNoMoreThanItsLimit) {
  SharedObject object("much", (size_t{40} << 20));
  SharedMemory memory(SharedObject::Prefix());
  ASSERT_EQ(MessageOf(memory.Register({"r", object.key(), 0, uint64_t{40} << 20})), "(ok)");
  std::vector<Tensor> inputs = {At("r", 0, uint64_t{40} << 20), At("r", 0, uint64_t{40} << 20)};
  EXPECT_EQ(MessageOf(memory.Fill(inputs)), "input 'x': over 67108864 bytes of shared memory in one request");
}

}  // namespace
}  // namespace ekiben::kserve
