#include "package/archive.h"

#include <archive.h>
#include <archive_entry.h>

#include <cstring>
#include <fstream>
#include <memory>
#include <vector>

namespace ekiben {
namespace {

namespace fs = std::filesystem;

struct ReadDeleter {
  void operator()(archive* a) const { archive_read_free(a); }
};
struct WriteDeleter {
  void operator()(archive* a) const { archive_write_free(a); }
};
struct EntryDeleter {
  void operator()(archive_entry* e) const { archive_entry_free(e); }
};

Error ArchiveError(const fs::path& path, archive* a) {
  const char* text = archive_error_string(a);
  return Error(Code::kInvalid, fmt::format("{}: {}", path.string(), text != nullptr ? text : "not a readable archive"));
}

bool EndsWith(const std::string& text, std::string_view ending) {
  return text.ends_with(ending);
}

Result<void> SetFormat(archive* a, const fs::path& path) {
  const std::string name = path.filename().string();
  if (EndsWith(name, ".zip")) {
    archive_write_set_format_zip(a);
    return {};
  }
  archive_write_set_format_pax_restricted(a);
  if (EndsWith(name, ".bentomodel") || EndsWith(name, ".tar.xz") || EndsWith(name, ".xz")) {
    archive_write_add_filter_xz(a);
    archive_write_set_filter_option(a, "xz", "compression-level", "1");
  } else if (EndsWith(name, ".gz") || EndsWith(name, ".tgz")) {
    archive_write_add_filter_gzip(a);
  } else if (EndsWith(name, ".bz2")) {
    archive_write_add_filter_bzip2(a);
  } else if (!EndsWith(name, ".tar")) {
    return Error(Code::kInvalid, fmt::format("{}: unknown ending; use .bentomodel, .tar, .tar.gz, .tar.xz, .tar.bz2 or "
                                             ".zip",
                                             name));
  }
  return {};
}

Result<void> WriteOne(archive* a, const fs::path& folder, const fs::path& file, const fs::path& target) {
  std::unique_ptr<archive_entry, EntryDeleter> entry(archive_entry_new());
  archive_entry_set_pathname(entry.get(), fs::relative(file, folder).generic_string().c_str());
  archive_entry_set_size(entry.get(), static_cast<la_int64_t>(fs::file_size(file)));
  archive_entry_set_filetype(entry.get(), AE_IFREG);
  archive_entry_set_perm(entry.get(), 0644);
  if (archive_write_header(a, entry.get()) != ARCHIVE_OK) return ArchiveError(target, a);
  std::ifstream in(file, std::ios::binary);
  std::vector<char> buffer(size_t{1} << 20);
  while (in) {
    in.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
    auto got = static_cast<size_t>(in.gcount());
    if (got > 0 && archive_write_data(a, buffer.data(), got) < 0) return ArchiveError(target, a);
  }
  if (in.bad()) return Error(Code::kInternal, fmt::format("{}: read failed", file.string()));
  return {};
}

// A name inside an archive that may be written below the target folder.
bool IsSafe(const fs::path& name) {
  if (name.empty() || name.is_absolute()) return false;
  for (const fs::path& part : name)
    if (part == "..") return false;
  return true;
}

Result<void> ExtractFile(archive* a, const fs::path& path, const fs::path& archive_path, uint64_t& bytes_left) {
  fs::create_directories(path.parent_path());
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  const void* data;
  size_t size;
  la_int64_t offset;
  for (;;) {
    int code = archive_read_data_block(a, &data, &size, &offset);
    if (code == ARCHIVE_EOF) break;
    if (code != ARCHIVE_OK) return ArchiveError(archive_path, a);
    if (size > bytes_left)
      return Error(Code::kInvalid, fmt::format("{}: unpacks to more than the limit", archive_path.string()));
    bytes_left -= size;
    out.seekp(offset);
    out.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
  }
  out.flush();
  if (!out) return Error(Code::kInternal, fmt::format("{}: write failed: disk full?", path.string()));
  return {};
}

}  // namespace

Result<void> PackFolder(const fs::path& folder, const fs::path& target) {
  std::unique_ptr<archive, WriteDeleter> a(archive_write_new());
  RETURN_IF_ERROR(SetFormat(a.get(), target));
  if (archive_write_open_filename(a.get(), target.c_str()) != ARCHIVE_OK) return ArchiveError(target, a.get());
  for (const auto& item : fs::recursive_directory_iterator(folder))
    if (item.is_regular_file()) RETURN_IF_ERROR(WriteOne(a.get(), folder, item.path(), target));
  if (archive_write_close(a.get()) != ARCHIVE_OK) return ArchiveError(target, a.get());
  return {};
}

Result<void> UnpackArchive(const fs::path& path, const fs::path& target, uint64_t bytes_max) {
  std::unique_ptr<archive, ReadDeleter> a(archive_read_new());
  archive_read_support_format_tar(a.get());
  archive_read_support_format_zip(a.get());
  archive_read_support_filter_all(a.get());
  constexpr size_t kReadBlock = size_t{1} << 20;
  if (archive_read_open_filename(a.get(), path.c_str(), kReadBlock) != ARCHIVE_OK) return ArchiveError(path, a.get());
  uint64_t bytes_left = bytes_max;
  archive_entry* entry;
  for (;;) {
    int code = archive_read_next_header(a.get(), &entry);
    if (code == ARCHIVE_EOF) return {};
    if (code != ARCHIVE_OK) return ArchiveError(path, a.get());
    const char* raw_name = archive_entry_pathname(entry);
    fs::path name = fs::path(raw_name != nullptr ? raw_name : "").lexically_normal();
    auto type = archive_entry_filetype(entry);
    if (type == AE_IFDIR) continue;
    if (type != AE_IFREG || archive_entry_hardlink(entry) != nullptr || !IsSafe(name))
      return Error(Code::kInvalid, fmt::format("{}: entry '{}' is not a plain file below the archive's folder",
                                               path.string(), raw_name != nullptr ? raw_name : ""));
    RETURN_IF_ERROR(ExtractFile(a.get(), target / name, path, bytes_left));
  }
}

}  // namespace ekiben
