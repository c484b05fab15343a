# cmake -DINPUT=page.html -DNAME=kWebPage -DOUTPUT=page.cc -P EmbedFile.cmake
# Writes a source file that defines ekiben::cli::NAME, declared in cli/web_page.h, with INPUT's bytes.
file(READ "${INPUT}" hex HEX)
string(LENGTH "${hex}" digits)
math(EXPR bytes "${digits} / 2")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "'\\\\x\\1'," body "${hex}")
file(WRITE "${OUTPUT}" "#include \"cli/web_page.h\"

namespace ekiben::cli {
namespace {
constexpr char kBytes[] = {${body}};
}
const std::string_view ${NAME}(kBytes, ${bytes});
}  // namespace ekiben::cli
")
