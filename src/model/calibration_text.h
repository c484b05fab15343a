// The text that Fp8Rounding looks at a model with: prose, a dialogue, code, a letter, numbers, other languages, about
// 500 tokens. Ours; never tests/golden/perplexity.txt, which measures the result.
#pragma once
#include <string_view>

namespace ekiben {

inline constexpr std::string_view kCalibrationText =
    R"(A tree grows from the outside. Under the bark lies a thin layer of cells that divide in spring and summer; in winter they rest, and the pause leaves a ring. Whoever counts the rings of a stump knows how old the tree was when it fell, and whoever measures them knows which years were dry. The oldest living trees are pines in California that were seedlings almost five thousand years ago.

User: How do I split a string by commas in Python and add up the numbers?
Assistant: Use `split` and `sum`:

```python
def total(line):
    values = [float(part) for part in line.split(",") if part.strip()]
    return sum(values)

print(total("3, 4.5, 10"))  # 17.5
```

Empty fields are skipped. If a field is not a number, `float` raises a ValueError.

Dear Ms. Okafor, thank you for your letter of 14 March 2021. We have checked invoice no. 20-4471 ($1,386.50) and found that the discount of 12% was missing; the difference will be paid back within ten days. I am sorry for the trouble. Sincerely, J. Lindqvist

The theorem says that in a right triangle a^2 + b^2 = c^2. If a = 5 and b = 12, then c = 13, because 25 + 144 = 169. 1. Draw the square on each side. 2. Cut the two small ones into pieces. 3. Lay the pieces on the large one: they cover it exactly.

"Who is there?" she whispered. Nobody answered. The wind had blown out the lamp, and somewhere above her a door was moving. She thought of the captain's story, laughed at herself, and went up the stairs, one hand on the cold wall.

Paris, Tokyo and Cairo are capitals; Sydney, Istanbul and New York are not. En France on parle français, in Deutschland Deutsch, en España español. {"name": "Ada", "born": 1815, "fields": ["mathematics", "computing"], "alive": false})";

}  // namespace ekiben
