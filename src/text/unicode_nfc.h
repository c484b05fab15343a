// Unicode normalisation form C, by ICU, for texts of any size and shape: ICU alone takes quadratic time on a megabyte
// of combining marks in falling order.
// Thread: pure functions.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace ekiben::text {

// Both REQUIRE valid UTF-8.
// False also where it would cost too much to know: then AppendNfc gives an equal text.
bool IsNfc(std::string_view text);

// Appends the NFC of `text` to `out`. `cuts`: offsets into `text`, ascending, the last its size. For each, `out_cuts`
// gets the offset into what was appended up to which the normalised text depends only on bytes before that cut, or on
// both sides of it where characters join across it: then the cut moves to the end of the joined characters.
void AppendNfc(std::string_view text, const std::vector<size_t>& cuts, std::string& out, std::vector<size_t>& out_cuts);

}  // namespace ekiben::text
