// Whether this build is instrumented (cmake --preset asan, tsan). Tests that walk a whole model take fewer of its rows
// and layers then: every path and every pair of threads stays, only repetitions go.
#pragma once

namespace ekiben {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace ekiben
