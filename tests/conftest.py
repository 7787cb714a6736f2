"""Small real things for the tests: a two-layer Gemma 3 with random weights, and the tiny one that ships with the project."""

import io
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach the network
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["GEMMA_COLAB_MODEL"] = "tiny-gemma3"  # where the machine decides, whatever is installed on it

from pathlib import Path

import pytest

from gemma_colab.core.workspace import Workspace, samples
from gemma_colab.data.reading import read_rows

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items):
    """Files with long tests first: where files run side by side, short ones should be the last to start."""
    with_long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in with_long)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Where NO_SKIPS says that nothing is missing, as .ci/run does, a test that is skipped has failed: nobody would see it otherwise."""
    report = yield
    if report.skipped and os.environ.get("NO_SKIPS") and not hasattr(report, "wasxfail"):
        report.outcome, (*_, reason) = "failed", report.longrepr
        report.longrepr = f"{item.nodeid} must not be skipped where NO_SKIPS is set; {reason}"
    return report


def pytest_make_parametrize_id(val):
    """Bytes by their length: some hold the second they were made in, and processes side by side must name a test alike."""
    return f"{len(val)}-bytes" if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def the_process_is_left_as_it_was():
    """Tests run in any order: one counts pyplot's figures, one asks for the bars that a command of a test before has switched off."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")
    if datasets := sys.modules.get("datasets"):
        datasets.enable_progress_bars()
    if logging := sys.modules.get("transformers.utils.logging"):
        logging.enable_progress_bar()


@pytest.fixture(autouse=True)
def the_package_names_its_encodings(the_process_is_left_as_it_was, monkeypatch):  # in this order: what is patched goes first
    """Where a text is read without one, it is read as this machine likes: on Windows not as UTF-8."""
    usual = io.text_encoding

    def text_encoding(encoding, *stack):
        reader = sys._getframe(2).f_globals.get("__name__", "")
        assert encoding is not None or not reader.startswith("gemma_colab."), f"{reader} names no encoding"
        return usual(encoding, *stack)

    monkeypatch.setattr(io, "text_encoding", text_encoding)


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "workspace")


@pytest.fixture(scope="session")
def support_rows():
    return read_rows(samples() / "support_ru.jsonl").rows


@pytest.fixture(scope="session")
def tokenizer():
    from gemma_colab.core.loading import load_tokenizer

    return load_tokenizer("tiny-gemma3")


@pytest.fixture(scope="session")
def random_gemma(tmp_path_factory):
    """The folder of a random two-layer Gemma 3."""
    from checkpoints import save_random_gemma

    return str(save_random_gemma(tmp_path_factory.mktemp("random")))


@pytest.fixture(scope="session")
def hot_gemma(tmp_path_factory):
    """The folder of one whose residual stream passes 65,504."""
    from checkpoints import heat, save_random_gemma

    return str(heat(save_random_gemma(tmp_path_factory.mktemp("hot"))))
