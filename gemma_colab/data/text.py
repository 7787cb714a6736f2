"""When two texts count as the same, or nearly."""

from __future__ import annotations

import re

_NAMES = "a|abbr|b|blockquote|body|br|button|center|code|div|em|font|form|h[1-6]|head|hr|html|i|iframe|img|input|label|li|link"
_NAMES += "|meta|nobr|ol|option|p|pre|s|script|select|small|span|strike|strong|style|sub|sup|svg|table|tbody|td|tfoot|th|thead"
_NAMES += "|title|tr|tt|u|ul"
# Known names, and attributes only with a value: "a<b и c>d" is no tag.
TAG = re.compile(rf"</?(?:{_NAMES})(?:\s+[\w:-]+\s*=[^<>]*)?\s*/?>", re.IGNORECASE)
INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u200c\u200d\u2060"))  # for str.translate: these are dropped


def normalise(text: str) -> str:
    """Lower case, ё as е, words and digits only, single spaces."""
    return " ".join(re.findall(r"\w+", text.lower().replace("ё", "е")))


def shingles(text: str, size: int = 5) -> frozenset[str]:
    """All runs of `size` characters of the normalised text, every digit as 0; a shorter text is its own single shingle."""
    text = re.sub(r"\d", "0", normalise(text))
    return frozenset(text[i : i + size] for i in range(max(1, len(text) - size + 1)))


def jaccard(a: frozenset, b: frozenset) -> float:
    """Shared shingles over all shingles, 0-1. Pairs whose sizes alone rule out 0.5 are not compared."""
    if 2 * min(len(a), len(b)) < max(len(a), len(b)):
        return 0.0
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)
