// The pages of web/, embedded at build (cmake/EmbedFile.cmake).
#pragma once
#include <string_view>

namespace ekiben::cli {

extern const std::string_view kWebPage;   // index.html, the chat page
extern const std::string_view kDocsPage;  // docs.html, the service's APIs

}  // namespace ekiben::cli
