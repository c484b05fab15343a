#pragma once
#include <filesystem>
#include "text/tokenizer_spec.h"
namespace ekiben {
Result<text::TokenizerSpec> FolderTokenizer(const std::filesystem::path& folder);
}
