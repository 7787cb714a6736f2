"""The errors a beginner may meet. Each message names the thing, its value, the limit, and the remedy.

What a message repeats may be a key that was put in the wrong place, or come from somebody else's file: see `plain`.
"""

import re
import sys

# Keys of OpenAI and others, GitHub, Hugging Face, AWS, Google, Slack; GitLab, Stripe, npm, PyPI, SendGrid, VK, Yandex, Telegram; JWT.
KEYS = r"(?:(?<![A-Za-z0-9])|(?<=bot)|(?<=\\[nrt])|(?<=%3[Dd]))(?:sk-[\w-]{20,}|(?:gh[pousr]|github_pat)_\w{30,}|hf_[A-Za-z0-9]{30,}|A[KS]IA[0-9A-Z]{16}|AIza[\w-]{35}|xox[abeprs]-[\w-]{10,}"
KEYS += r"|(?:gl(?:pat|cbt)-|gsk_|xai-|pplx-|r8_|tgp_v1_|dop_v1_|shpat_|ntn_|lin_api_|dckr_pat_|hvs\.|xapp-|whsec_|hf_oauth_|NRAK-)[\w-]{20,}"
KEYS += r"|(?:nvapi-|dapi(?=[0-9a-f]{32})|ATATT3|figd_|sbp_|sntrys_|PMAK-|sq0[a-z]{3}-|xkeysib-|pcsk_|lsv2_|tvly-|glsa_|dp\.pt\.|pat-[a-z]{2}\d-|shp[ps][sa]_)[\w.=-]{20,}"
KEYS += r"|EAACEd\w{30,}|t1\.[A-Z0-9a-z_-]+=*\.[\w-]{60,}|AGE-SECRET-KEY-1[A-Z0-9]{30,}|[ps]k\.eyJ[\w-]{20,}"
KEYS += r"|ya29\.[\w-]{30,}|GOCSPX-[\w-]{20,}|[rs]k_(?:live|test)_\w{16,}|npm_\w{36}|pypi-[\w-]{50,}"
KEYS += r"|hooks\.slack\.com/services/[\w/]{20,}|SG\.[\w-]{16,}\.[\w-]{16,}|vk1\.a\.[\w-]{40,}|AQVN[\w-]{35,}|y[0-3]_[\w-]{50,}|\d{8,10}:AA[\w-]{32,}"
KEYS += r"|(?<![\w-])eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})"
PRIVATE_KEY = r"-{4,5} ?BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-{4,5}"
# And a key as it is sent, or is in an address (which `Path` gives one slash): before the host, or behind the question mark.
SECRET = re.compile(
    rf"{KEYS}|Bearer [^'\" ]+|(?:(?<=://)|(?<=\w:/)(?!/))[^\s/@'\"]+(?=@)"
    r"|(?i:(?P<kept>[?&][\w-]*(?:key|token|secret|sig|signature|password)=|\bapi_?key=['\"]?)(?:\\[^\"]|[^\s&'\"\\])+)"
)
# What a terminal obeys, or what turns the order of letters round.
CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Raised where a file of ours was spoilt.
SPOILT = (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError)


def plain(text: object) -> str:
    """The text as it may be shown anywhere: *** for what may be a secret, and control characters written out, as \\u001b."""
    text = SECRET.sub(lambda found: f"{found['kept'] or ''}***", str(text))
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def first_line(error: Exception) -> str:
    """The first line of what a library says, or, where it says nothing, the name of its error."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def say(text: object, **how) -> None:
    """Print, as `plain` writes it: all that this package prints goes through here. how: as for `print`."""
    print(plain(text), **how)


class GemmaColabError(Exception):
    """Base of all errors of this package. A notebook shows its one sentence instead of a traceback, the command line exits with `status`."""

    status = 4
    say = staticmethod(say)

    def __init__(self, message: str = "", page=None):
        super().__init__(plain(message))
        self.page, self.unseen = page, [page] * (page is not None)  # what a notebook shows above the sentence

    def _render_traceback_(self):  # IPython's hook for exceptions that explain themselves
        while self.unseen:  # once: a kernel asks twice
            sys.modules["IPython.display"].display(self.unseen.pop())
        return [f"{type(self).__name__}: {self}"]


class DatasetError(GemmaColabError):
    """A file or a row of a dataset can't be used."""

    status = 3


class BlockedError(DatasetError):
    """A dataset was read, but its report says that training on it makes no sense. `report` says why."""

    report = property(lambda self: self.page)


class SettingsError(GemmaColabError):
    """A setting has an impossible value."""


class WorkspaceError(GemmaColabError):
    """The workspace lacks an earlier step, or can't be written."""


class ModelError(GemmaColabError):
    """A model can't be named, found, downloaded or loaded."""


class TrainingError(GemmaColabError):
    """A training run can't go on: its loss is no number, or the GPU's memory does not suffice. `log_history`: what it logged."""

    status = 2

    def __init__(self, message: str, log_history: list[dict] = ()):
        super().__init__(message)
        self.log_history = list(log_history)
