#include "http/form.h"

#include <gtest/gtest.h>

namespace ekiben::http {
namespace {

constexpr const char* kMultipart = "Multipart/Form-Data; charset=x; boundary=\"b 1\"";

TEST(Form, WhichTypesAreForms) {
  EXPECT_TRUE(IsForm("application/x-www-form-urlencoded; charset=utf-8"));
  EXPECT_TRUE(IsForm(kMultipart));
  EXPECT_FALSE(IsForm("application/json"));
  EXPECT_FALSE(IsForm(""));
}

TEST(Form, UrlEncoded) {
  auto form = ParseForm("a=two+words%21&b=&=c&d&a=x%3Dy", "application/x-www-form-urlencoded", 10);
  ASSERT_TRUE(form.ok());
  EXPECT_EQ(*form, (FormFields{{"a", "two words!"}, {"b", ""}, {"", "c"}, {"a", "x=y"}}));
  EXPECT_FALSE(ParseForm("a=1&b=2&c=3", "application/x-www-form-urlencoded", 2).ok());
}

TEST(Form, Multipart) {
  auto form = ParseForm(
      "preamble\r\n--b 1\r\nContent-Disposition: form-data; name=\"prompt\"\r\n\r\nline\r\n--b\r\nline\r\n--b 1\r\n"
      "content-type: text/plain\r\ncontent-disposition: form-data; filename=\"f;x\"; name=file\r\n\r\n\r\n--b 1--\r\n",
      kMultipart, 10);
  ASSERT_TRUE(form.ok()) << form.error().message();
  EXPECT_EQ(*form, (FormFields{{"prompt", "line\r\n--b\r\nline"}, {"file", ""}}));
  auto none = ParseForm("--b 1--", kMultipart, 10);
  ASSERT_TRUE(none.ok());
  EXPECT_TRUE(none->empty());
}

TEST(Form, MultipartThatIsBroken) {
  const std::string part = "--b 1\r\ncontent-disposition: form-data; name=a\r\n\r\n1\r\n";
  for (const std::string& body : {std::string(), std::string("x"), part, part + "--b 1", std::string("--b 1\r\n\r\n1"),
                                  std::string("--b 1\r\n\r\n1\r\n--b 1--"),
                                  std::string("--b 1\r\ncontent-disposition: form-data; name=\"a\r\n\r\n1\r\n--b 1--")})
    EXPECT_FALSE(ParseForm(body, kMultipart, 10).ok()) << body;
  EXPECT_FALSE(ParseForm(part + part + "--b 1--", kMultipart, 1).ok());
  EXPECT_FALSE(ParseForm(part + "--b 1--", "multipart/form-data", 10).ok());
}

}  // namespace
}  // namespace ekiben::http
