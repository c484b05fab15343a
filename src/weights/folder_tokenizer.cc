#include "weights/folder_tokenizer.h"
#if EKIBEN_TOKENIZER_FILES
#include "text/tokenizer_files.h"
#endif
namespace ekiben {
Result<text::TokenizerSpec> FolderTokenizer(const std::filesystem::path& folder) {
#if EKIBEN_TOKENIZER_FILES
  return text::LoadTokenizerFolder(folder);
#else
  return Error(Code::kUnsupported, fmt::format("{}: tokenizer files are not read by this build", folder.string()));
#endif
}
}  // namespace ekiben
