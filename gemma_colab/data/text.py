"""When two texts count as the same, and what they are cut into to see whether they nearly are."""

from __future__ import annotations

import re

import numpy as np

_TAG_NAMES = (
    "a|abbr|b|blockquote|body|br|button|center|code|div|em|font|form|h[1-6]|head|hr|html|i|iframe|img|input|label|li|link"
)
_TAG_NAMES += (
    "|meta|nobr|ol|option|p|pre|s|script|select|small|span|strike|strong|style|sub|sup|svg|table|tbody|td|tfoot|th|thead"
)
_TAG_NAMES += "|title|tr|tt|u|ul"
# Known names, and attributes only with a value: "a<b и c>d" is no tag. One letter right after a word is a tag only where it
# is closed later: List<i> is Java.
TAG = re.compile(
    rf"(?<=\w)<(?P<letter>[abisu])>(?=.{{0,500}}?</(?P=letter)\s*>)|(?<!\w)<(?:[abisu])>|(?!<[abisu]>)</?(?:{_TAG_NAMES})(?:\s+[\w:-]+\s*=[^<>]*)?\s*/?>",
    re.IGNORECASE | re.DOTALL,
)
INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u200c\u200d\u2060\u00ad"))  # for str.translate: these are dropped
# What cleaning takes out: joiners stay where they build an emoji or an Indic or Persian word.
HIDDEN = re.compile(
    "[\ufeff\u200b\u2060\u00ad]+|(?<![^\\sA-Za-zА-яЁё0-9.,:;!?])[\u200c\u200d]+|[\u200c\u200d]+(?![^\\sA-Za-zА-яЁё0-9.,:;!?])"
)
CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)
SHINGLE = 5  # characters
# What counts when texts are the same: everything but the signs of a sentence, and the minus of a number.
SAME = re.compile(r"(?:(?<![\w)])-(?=\d)|[^\s.,!?;:…\"'`«»“”„‘’()\[\]{}—–‐-])+")
_POWERS = np.array([1_000_003**k % 2**32 for k in range(SHINGLE)], dtype=np.uint32)


def normalize(text: str) -> str:
    """Lower case, ё as е, words and digits only, single spaces."""
    return " ".join(re.findall(r"\w+", text.lower().replace("ё", "е")))


def sameness(text: str) -> str:
    """Texts with the same sameness are the same, but for case, ё, white space and the signs of a sentence. Other signs stay:
    2+2 is not 2*2, nor C++ C#, nor one emoji another."""
    return " ".join(SAME.findall(text.lower().replace("ё", "е")))


def shingles(text: str) -> np.ndarray:
    """The set of all runs of 5 characters of the normalized text, every digit as 0: sorted 32-bit hashes without repeats.

    A shorter text is its own single shingle; a text without words has none.
    """
    text = re.sub(r"\d", "0", normalize(text))
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    if not len(codes):
        return codes
    size = min(SHINGLE, len(codes))
    windows = np.lib.stride_tricks.sliding_window_view(codes, size)
    return np.unique((windows * _POWERS[:size]).sum(axis=1, dtype=np.uint32))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Shared shingles over all shingles, 0-1; 0 where a text has none."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared) if shared else 0.0
