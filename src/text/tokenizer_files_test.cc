#include "text/tokenizer_files.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "text/tokenizer.h"
#include "text/tokenizer_alphabet.h"
#include "text/tokenizer_fixture.h"

namespace ekiben::text {
namespace {

namespace fs = std::filesystem;
using Ids = std::vector<int32_t>;

class TokenizerFiles : public testing::Test {
 public:
  ~TokenizerFiles() override { fs::remove_all(folder_); }

 protected:
  TokenizerFiles() {
    std::string name = (fs::temp_directory_path() / "tokenizer_files_XXXXXX").string();
    CHECK(mkdtemp(name.data()) != nullptr);
    folder_ = name;
  }
  fs::path Write(const std::string& name, std::string_view text) {
    std::ofstream(folder_ / name, std::ios::binary) << text;
    return folder_ / name;
  }
  fs::path folder_;
};

std::string Quoted(std::string_view text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

// A tokenizer.json of the 256 bytes, "ab" and "Ġab", with `extra` members first.
std::string ByteLevelJson(std::string_view extra, std::string_view merges = R"(["a b", ["Ġ", "ab"]])") {
  std::string vocab;
  for (int byte = 0; byte < 256; ++byte) {
    char c = static_cast<char>(byte);
    vocab += fmt::format("{}: {}, ", Quoted(AlphabetFromBytes({&c, 1})), byte);
  }
  return fmt::format(R"({{{} "decoder": {{"type": "ByteLevel"}},
      "model": {{"type": "BPE", "vocab": {{{} "ab": 256, "Ġab": 257}}, "merges": {}}}}})",
                     extra, vocab, merges);
}

constexpr std::string_view kByteLevel =
    R"("pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},)";

TEST(Alphabet, RoundTripsEveryByte) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  EXPECT_EQ(BytesFromAlphabet(AlphabetFromBytes(all)), all);
  EXPECT_EQ(AlphabetFromBytes(" a\n"), "ĠaĊ");
  EXPECT_EQ(BytesFromAlphabet("｜"), std::nullopt);
  EXPECT_EQ(BytesOrLiteral("<｜x｜>"), "<｜x｜>");
}

TEST(TokenizerJson, ByteLevel) {
  auto spec = ParseTokenizerJson(ByteLevelJson(kByteLevel), "t");
  ASSERT_TRUE(spec.ok()) << spec.error().message();
  EXPECT_EQ(spec->pre_tokenizer, PreTokenizer::kGpt2);
  auto tokenizer = MakeTokenizer(*std::move(spec));
  EXPECT_EQ(tokenizer->Encode("ab ab", {}), (Ids{256, 257}));
}

TEST(TokenizerJson, AddedTokensAndTemplate) {
  std::string json = ByteLevelJson(std::string(kByteLevel) + R"(
      "added_tokens": [{"id": 300, "content": "<|im_end|>", "special": true},
                       {"id": 301, "content": "<think>", "special": false, "rstrip": true, "normalized": false}],
      "post_processor": {"type": "Sequence", "processors": [{"type": "ByteLevel"}, {"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<|im_end|>": {"id": "<|im_end|>", "ids": [300], "tokens": ["<|im_end|>"]}}}]},)");
  auto spec = ParseTokenizerJson(json, "t");
  ASSERT_TRUE(spec.ok()) << spec.error().message();
  EXPECT_TRUE(spec->add_bos);
  EXPECT_EQ(spec->end_ids, (Ids{300}));
  auto tokenizer = MakeTokenizer(*std::move(spec));
  EXPECT_EQ(tokenizer->vocab_size(), 302);
  EXPECT_EQ(tokenizer->Encode("<think> \nab", {}), (Ids{300, 301, 256}));
}

TEST(TokenizerJson, SentencePieceStyle) {
  std::string json = R"({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}, "pre_tokenizer": null,
      "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
      "added_tokens": [{"id": 0, "content": "<unk>", "special": true, "normalized": false}],
      "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
        "vocab": {"<unk>": 0, "<0xC3>": 1, "<0xA9>": 2, "▁": 3, "a": 4, "▁a": 5}, "merges": ["▁ a"]}})";
  auto spec = ParseTokenizerJson(json, "t");
  ASSERT_TRUE(spec.ok()) << spec.error().message();
  auto tokenizer = MakeTokenizer(*std::move(spec));
  EXPECT_EQ(tokenizer->Encode("a é<unk>a", {}), (Ids{5, 3, 1, 2, 0, 5}));
  EXPECT_EQ(tokenizer->Decode({5, 3, 1, 2}, {}), "a é");
}

TEST(TokenizerJson, WhatWeWouldEncodeDifferentlyIsRefusedByName) {
  struct Case {
    std::string_view extra, name;
  };
  for (const Case& c : {Case{R"("normalizer": {"type": "Lowercase"},)", "Lowercase"},
                        Case{R"("pre_tokenizer": {"type": "BertPreTokenizer"},)", "BertPreTokenizer"},
                        Case{R"("post_processor": {"type": "BertProcessing"},)", "BertProcessing"},
                        Case{R"("pre_tokenizer": {"type": "Metaspace", "replacement": "_"},)", "Metaspace"}}) {
    auto spec = ParseTokenizerJson(ByteLevelJson(c.extra), "t.json");
    ASSERT_FALSE(spec.ok()) << c.extra;
    EXPECT_EQ(spec.error().code(), Code::kUnsupported);
    EXPECT_NE(spec.error().message().find(c.name), std::string::npos) << spec.error().message();
    EXPECT_TRUE(spec.error().message().starts_with("t.json: "));
  }
  auto spec = ParseTokenizerJson(R"({"model": {"type": "Unigram"}})", "t");
  ASSERT_FALSE(spec.ok());
  EXPECT_NE(spec.error().message().find("Unigram"), std::string::npos);
}

TEST(TokenizerJson, HostileFilesAreErrors) {
  for (const std::string& json :
       {std::string("{"), std::string("[]"), std::string("{}"), std::string(R"({"model": {}})"),
        std::string(R"({"model": {"vocab": {"a": -1}, "merges": []}})"),
        std::string(R"({"model": {"vocab": {"a": 4000000}, "merges": []}})"),
        std::string(R"({"model": {"vocab": {"a": 1e99}, "merges": []}})"),
        std::string(R"({"model": {"vocab": {"a": 0}, "merges": ["a b"]}})"),
        std::string(R"({"model": {"vocab": {"a": 0}, "merges": ["ab"]}})"),
        std::string(R"({"model": {"vocab": {"a": 0}, "merges": [["a"]]}})"),
        std::string(
            R"({"added_tokens": [{"id": 4000000, "content": "x"}], "model": {"vocab": {"a": 0}, "merges": []}})"),
        std::string(R"({"added_tokens": [{"id": 1, "content": ""}], "model": {"vocab": {"a": 0}, "merges": []}})"),
        std::string(200, '[')}) {
    EXPECT_FALSE(ParseTokenizerJson(json, "t").ok()) << json;
  }
}

TEST_F(TokenizerFiles, KindsAreToldByContent) {
  auto load = [&](const std::string& name, std::string_view text) { return LoadTokenizerFile(Write(name, text)); };
  EXPECT_TRUE(load("a.json", ByteLevelJson(kByteLevel)).ok());
  // Tiktoken ranks of no known family are refused with the families that are.
  auto few = load("few.model", "IQ== 0\nIg== 1\n");
  ASSERT_FALSE(few.ok());
  EXPECT_NE(few.error().message().find("2 tiktoken ranks"), std::string::npos);
  for (std::string_view bad : {"", "   ", "hello", "IQ== x\n", "IQ= 0\n", "IQ== 1\n", "{\"a\": 0}", "\n\xFF\xFF\xFF"}) {
    EXPECT_FALSE(load("bad", bad).ok()) << bad;
  }
  EXPECT_EQ(LoadTokenizerFile(folder_ / "absent").error().code(), Code::kNotFound);
}

TEST_F(TokenizerFiles, Gpt2PairOfFiles) {
  Write("merges.txt", "#version: 0.2\na b\nĠ ab\n");
  auto spec =
      LoadTokenizerFile(Write("vocab.json", R"({"a": 0, "b": 1, "Ġ": 2, "ab": 3, "Ġab": 4, "<|endoftext|>": 5})"));
  ASSERT_TRUE(spec.ok()) << spec.error().message();
  EXPECT_EQ(spec->eos, 5);
  auto tokenizer = MakeTokenizer(*std::move(spec));
  EXPECT_EQ(tokenizer->Encode("ab ab<|endoftext|>", {}), (Ids{3, 4, 5}));
}

TEST_F(TokenizerFiles, FolderTakesItsSideFiles) {
  Write("tokenizer.json", ByteLevelJson(std::string(kByteLevel) + R"(
      "added_tokens": [{"id": 258, "content": "<s>", "special": true}, {"id": 259, "content": "</s>", "special": true},
                       {"id": 260, "content": "<|eot_id|>", "special": true}],)"));
  Write("tokenizer_config.json", R"({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": true,
      "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]})");
  Write("generation_config.json", R"({"eos_token_id": [259, 97]})");
  auto spec = LoadTokenizerFolder(folder_);
  ASSERT_TRUE(spec.ok()) << spec.error().message();
  EXPECT_EQ(spec->bos, 258);
  EXPECT_EQ(spec->eos, 259);
  EXPECT_TRUE(spec->add_bos);
  EXPECT_EQ(spec->chat_template, "D");
  EXPECT_EQ(spec->end_ids, (Ids{97, 259, 260}));
  Write("chat_template.jinja", "J");
  EXPECT_EQ(LoadTokenizerFolder(folder_)->chat_template, "J");
  Write("tokenizer_config.json", "{");
  EXPECT_FALSE(LoadTokenizerFolder(folder_).ok());
  fs::remove(folder_ / "tokenizer.json");
  EXPECT_EQ(LoadTokenizerFolder(folder_).error().code(), Code::kNotFound);
}

// A ModelProto: pieces (type 1 normal, 2 unknown, 3 control, 4 user-defined, 6 byte), trainer and normaliser.
std::string Field(int number, std::string_view bytes) {
  return std::string(1, static_cast<char>(number << 3 | 2)) + static_cast<char>(bytes.size()) + std::string(bytes);
}
std::string Number(int number, uint8_t value) {
  std::string key =
      number < 16 ? std::string(1, static_cast<char>(number << 3))
                  : std::string{static_cast<char>((number << 3 & 0x7F) | 0x80), static_cast<char>(number << 3 >> 7)};
  return key + static_cast<char>(value);
}
std::string Piece(std::string_view text, float score, uint8_t type) {
  std::string bytes(reinterpret_cast<const char*>(&score), 4);
  return Field(1, Field(1, text) + "\x15" + bytes + Number(3, type));
}
std::string SmallModel() {
  return Piece("<unk>", 0, 2) + Piece("<s>", 0, 3) + Piece("</s>", 0, 3) + Piece("[U]", 0, 4) + Piece("<0xC3>", 0, 6) +
         Piece("<0xA9>", 0, 6) + Piece("▁", -3, 1) + Piece("a", -4, 1) + Piece("▁a", -1, 1) +
         Field(2, Number(3, 2) + Number(35, 1)) + Field(3, Number(3, 1) + Number(4, 0));
}

TEST(SentencePieceModel, ReadsPiecesAndFlags) {
  auto spec = ParseSentencePiece(SmallModel(), "m");
  ASSERT_TRUE(spec.ok()) << spec.error().message();
  EXPECT_EQ(spec->bos, 1);
  EXPECT_EQ(spec->end_ids, (Ids{2}));
  EXPECT_TRUE(spec->add_bos);
  auto tokenizer = MakeTokenizer(*std::move(spec));
  EXPECT_EQ(tokenizer->Encode("a[U]a é</s>", {}), (Ids{1, 8, 3, 7, 6, 4, 5, 2}));
  EXPECT_EQ(tokenizer->Decode({1, 8, 8}, {}), "a a");
}

TEST(SentencePieceModel, EveryTruncationIsAnErrorOrAShorterModel) {
  std::string model = SmallModel();
  for (size_t size = 0; size < model.size(); ++size) {
    auto spec = ParseSentencePiece(std::string_view(model).substr(0, size), "m");
    EXPECT_LE(spec.ok() ? spec->tokens.size() : 0, 9u);
  }
  EXPECT_FALSE(ParseSentencePiece(Piece("a", 0, 1) + "\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01", "m").ok());
}

TEST(SentencePieceModel, RefusesWhatItCannotReproduce) {
  std::string pieces = Piece("a", -1, 1);
  EXPECT_FALSE(ParseSentencePiece(pieces, "m").ok());  // Unigram, the default
  std::string bpe = Field(2, Number(3, 2));
  EXPECT_FALSE(ParseSentencePiece(pieces + bpe, "m").ok());  // removes extra whitespace, the default
  EXPECT_FALSE(ParseSentencePiece(pieces + bpe + Field(3, Field(2, "map") + Number(4, 0)), "m").ok());
  EXPECT_TRUE(ParseSentencePiece(pieces + bpe + Field(3, Number(4, 0)), "m").ok());
}

TEST(Tekken, SpecialTokensComeFirst) {
  std::string vocab;
  for (int byte = 0; byte < 256; ++byte) {
    constexpr std::string_view k64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string base64 = {k64[static_cast<size_t>(byte >> 2)], k64[static_cast<size_t>((byte & 3) << 4)], '=', '='};
    vocab += fmt::format(R"({{"rank": {}, "token_bytes": "{}", "token_str": null}},)", byte, base64);
  }
  vocab += R"({"rank": 256, "token_bytes": "YWI=", "token_str": "ab"}, {"rank": 257, "token_bytes": "eHg="})";
  auto make = [&](int size, int specials) {
    return fmt::format(R"({{"config": {{"pattern": "[a-z]+| ", "default_vocab_size": {},
        "default_num_special_tokens": {}}}, "vocab": [{}]}})",
                       size, specials, vocab);
  };
  auto spec = ParseTekken(make(30 + 257, 30), "t");
  ASSERT_TRUE(spec.ok()) << spec.error().message();
  EXPECT_EQ(spec->bos, 1);
  auto tokenizer = MakeTokenizer(*std::move(spec));
  EXPECT_EQ(tokenizer->Encode("ab xx[INST]<SPECIAL_25>", {}), (Ids{1, 30 + 256, 30 + ' ', 30 + 'x', 30 + 'x', 3, 25}));
  EXPECT_FALSE(ParseTekken(make(10, 30), "t").ok());
  EXPECT_FALSE(ParseTekken(make(3000, 30), "t").ok());
  EXPECT_FALSE(ParseTekken(make(200, 3), "t").ok());
}

TokenizerSpec FullSpec() {
  TokenizerSpec spec = SentencePieceSpec({"▁", "a"});
  spec.patterns.push_back({"x+", SplitPattern::Behavior::kMergedWithNext, true});
  spec.merges.push_back({1, 2, 3});
  spec.nfc = spec.add_bos = spec.prefix_space_if_absent = true;
  spec.added[1].lstrip = spec.added[2].single_word = true;
  spec.end_ids = {2, 5};
  spec.chat_template = "{{ x }}";
  return spec;
}

TEST_F(TokenizerFiles, SpecFileRoundTrips) {
  std::string path = (folder_ / "tokenizer.bin").string();
  TokenizerSpec spec = FullSpec();
  ASSERT_TRUE(WriteTokenizerSpec(spec, path).ok());
  auto read = ReadTokenizerSpec(path);
  ASSERT_TRUE(read.ok()) << read.error().message();
  EXPECT_EQ(read->tokens, spec.tokens);
  EXPECT_EQ(read->scores, spec.scores);
  EXPECT_EQ(read->is_byte_token, spec.is_byte_token);
  EXPECT_EQ(read->patterns[0].regex, "x+");
  EXPECT_EQ(read->patterns[0].behavior, SplitPattern::Behavior::kMergedWithNext);
  EXPECT_TRUE(read->patterns[0].invert);
  EXPECT_EQ(read->merges[0].result, 3);
  EXPECT_EQ(read->added[1].content, "<s>");
  EXPECT_TRUE(read->added[1].lstrip);
  EXPECT_TRUE(read->added[2].single_word);
  EXPECT_TRUE(read->nfc && read->add_bos && read->prefix_space_if_absent && read->strip_left_space);
  EXPECT_FALSE(read->add_eos || read->prefix_space_first_only || read->ignore_merges);
  EXPECT_EQ(read->end_ids, spec.end_ids);
  EXPECT_EQ(read->chat_template, spec.chat_template);
  std::string again = (folder_ / "again.bin").string();
  ASSERT_TRUE(WriteTokenizerSpec(*read, again).ok());
  std::ifstream a(path), b(again);
  EXPECT_TRUE(std::equal(std::istreambuf_iterator<char>(a), {}, std::istreambuf_iterator<char>(b), {}));
}

TEST_F(TokenizerFiles, DamagedSpecFilesAreRefused) {
  std::string path = (folder_ / "tokenizer.bin").string();
  ASSERT_TRUE(WriteTokenizerSpec(FullSpec(), path).ok());
  std::ifstream file(path, std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(file)), {});
  for (size_t size = 0; size < bytes.size(); size += size < 64 ? 1 : 37) {
    EXPECT_FALSE(ReadTokenizerSpec(Write("cut", bytes.substr(0, size)).string()).ok()) << size;
  }
  EXPECT_FALSE(ReadTokenizerSpec(Write("long", bytes + "x").string()).ok());
  for (size_t at = 0; at < 64; ++at) {  // no length, however large, is believed
    std::string damaged = bytes;
    damaged[at] = '\xFF';
    (void)ReadTokenizerSpec(Write("damaged", damaged).string()).ok();
  }
  std::string newer = bytes;
  newer[8] = 99;
  auto read = ReadTokenizerSpec(Write("newer", newer).string());
  ASSERT_FALSE(read.ok());
  EXPECT_NE(read.error().message().find("version 99"), std::string::npos);
}

}  // namespace
}  // namespace ekiben::text
