// The chat page, web/index.html, embedded at build (cmake/EmbedFile.cmake).
#pragma once
#include <string_view>

namespace ekiben::cli {

extern const std::string_view kWebPage;

}  // namespace ekiben::cli
