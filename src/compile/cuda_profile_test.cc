#include "compile/cuda_profile.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>

namespace ekiben {
namespace {

CudaLinearPlan Plan() {
  CudaLinearPlan plan{.device = "a GPU", .library = "130100", .fp8 = true};
  CudaLinearBucket few{.first = 1, .tokens = 64, .us_a_layer = 150.5, .us_unmeasured = 150.5};
  for (CudaLinearWay& way : few.ways) way = {.own = true, .us = 40, .us_first = 41};
  few.ways[4].us_own = 39;
  CudaLinearBucket many{.first = 65, .tokens = 72, .us_a_layer = 160, .us_unmeasured = 170};
  for (size_t i = 0; i < many.ways.size(); ++i)
    many.ways[i] = {.candidate = static_cast<int32_t>(i), .algorithm = {i + 1, ~uint64_t{0}}, .us = 20, .us_first = 20};
  plan.buckets = {few, many};
  return plan;
}

TEST(CudaProfileTest, SurvivesJson) {
  auto read = ReadCudaProfile(ToJson(Plan()));
  ASSERT_TRUE(read.ok()) << read.error().message();
  ASSERT_TRUE(read->has_value());
  const CudaLinearPlan& plan = **read;
  EXPECT_EQ(json::serialize(ToJson(plan)), json::serialize(ToJson(Plan())));
  EXPECT_EQ(plan.device, "a GPU");
  EXPECT_TRUE(plan.fp8);
  EXPECT_TRUE(plan.Find(CudaLinearKind::kDown, 64)->own);
  const CudaLinearWay* way = plan.Find(CudaLinearKind::kDown, 65);
  ASSERT_NE(way, nullptr);
  EXPECT_EQ(way->candidate, 3);
  EXPECT_EQ(way->algorithm[0], 4u);
  EXPECT_EQ(way->algorithm[1], ~uint64_t{0});
  EXPECT_EQ(plan.Find(CudaLinearKind::kDown, 73), nullptr);
}

TEST(CudaProfileTest, OneChoiceServesEveryCount) {
  CudaLinearPlan plan = Plan();
  plan.for_all = true;
  plan.buckets.erase(plan.buckets.begin());
  plan.buckets[0].first = 1;
  auto read = ReadCudaProfile(ToJson(plan));
  ASSERT_TRUE(read.ok() && read->has_value());
  EXPECT_TRUE((*read)->for_all);
  EXPECT_NE((*read)->Find(CudaLinearKind::kQkv, 1), nullptr);
  EXPECT_NE((*read)->Find(CudaLinearKind::kQkv, 8192), nullptr);
}

TEST(CudaProfileTest, WhatWasNotTimedIsAbsent) {
  auto read = ReadCudaProfile(json::object());
  ASSERT_TRUE(read.ok());
  EXPECT_FALSE(read->has_value());
}

TEST(CudaProfileTest, RefusesWhatCannotBeByName) {
  struct Case {
    const char* field;
    void (*spoil)(json::object&);
  };
  const Case cases[] = {
      {"variant",
       [](json::object& o) {
         o["linears"].as_array()[1].as_object()["choices"].as_array()[1].as_object()["variant"] = "cutlass 1";
       }},
      {"algorithm",
       [](json::object& o) {
         o["linears"].as_array()[1].as_object()["choices"].as_array()[1].as_object()["algorithm"] = "12";
       }},
      {"chains", [](json::object& o) { o["chains"].as_array()[1].as_object()["bucket"] = 64; }},
      {"linears", [](json::object& o) { o["linears"].as_array().pop_back(); }},
      {"linears", [](json::object& o) { o["chains"].as_array().pop_back(); }},
  };
  for (const Case& c : cases) {
    json::object profile = ToJson(Plan());
    c.spoil(profile);
    auto read = ReadCudaProfile(profile);
    ASSERT_FALSE(read.ok()) << c.field;
    EXPECT_EQ(read.error().field(), c.field);
    EXPECT_NE(read.error().message().find("ekiben build"), std::string::npos);
  }
}

}  // namespace
}  // namespace ekiben
