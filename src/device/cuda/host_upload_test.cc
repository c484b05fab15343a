#include "device/cuda/host_upload.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace ekiben {
namespace {

TEST(HostUpload, BringsEveryByteInOrderOverManySlices) {
  auto device = OpenCudaDevice();
  if (!device.ok()) GTEST_SKIP() << device.error().message();
  CudaStream stream = *CudaStream::Create();
  auto upload = *HostUpload::Create(stream, 1000);
  std::vector<uint8_t> from(12'345), back(from.size() + 1, 7);
  std::iota(from.begin(), from.end(), uint8_t{1});
  DeviceBuffer to = *DeviceBuffer::Create(back.size());
  ASSERT_TRUE(stream.Copy(to.data(), back.data(), back.size()).ok());
  ASSERT_TRUE(upload->Copy(to.data(), from.data(), from.size()).ok());
  ASSERT_TRUE(stream.Copy(back.data(), to.data(), back.size()).ok());
  ASSERT_TRUE(stream.Wait().ok());
  EXPECT_TRUE(std::equal(from.begin(), from.end(), back.begin()));
  EXPECT_EQ(back.back(), 7) << "nothing past the end";
}

TEST(HostUpload, MakesUnitsWhole) {
  auto device = OpenCudaDevice();
  if (!device.ok()) GTEST_SKIP() << device.error().message();
  CudaStream stream = *CudaStream::Create();
  auto upload = *HostUpload::Create(stream, 1000);
  constexpr size_t kUnit = 48, kBytes = 48 * 333;
  std::vector<uint8_t> back(kBytes);
  DeviceBuffer to = *DeviceBuffer::Create(kBytes);
  ASSERT_TRUE(upload
                  ->Make(to.data(), kBytes, kUnit,
                         [](size_t begin, size_t end, std::byte* out) {
                           EXPECT_TRUE(begin % kUnit == 0 && end % kUnit == 0 && begin < end);
                           for (size_t i = begin; i < end; ++i) out[i - begin] = static_cast<std::byte>(i / kUnit);
                         })
                  .ok());
  ASSERT_TRUE(stream.Copy(back.data(), to.data(), kBytes).ok());
  ASSERT_TRUE(stream.Wait().ok());
  for (size_t i = 0; i < kBytes; ++i) ASSERT_EQ(back[i], static_cast<uint8_t>(i / kUnit)) << i;
}

}  // namespace
}  // namespace ekiben
