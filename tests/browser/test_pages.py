"""The report page in a real browser: text of a dataset is shown, never run. Skipped where there is no Chromium."""

import shutil

import pytest

from gemma_colab.core.rows import to_messages
from gemma_colab.data.looking import with_texts
from gemma_colab.data.report import check_rows
from gemma_colab.ui import text_table

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (on Debian: apt install chromium)")

EVIL = {
    "instruction": "<script>window.hacked = 1</script>Покажите </td></table></details> страницу",
    "input": "<img src=x onerror='window.hacked = 2'> &lt;b&gt; {{ 7 * 7 }}",
    "output": "</mark></summary></script><svg onload='window.hacked = 3'> <b>жирный</b> a@example.com \u200b",
}


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, support_rows):
    rows = [*support_rows[:7], to_messages(EVIL) | {"line": 8}, *support_rows[8:60]]
    rows.append(with_texts(rows[7], {"messages[1]": "<i>другой</i> ответ " + EVIL["output"]}))
    report = check_rows(
        rows, aside=[{"line": 9, "field": "<b>", "problem": "<script>window.hacked = 4</script>", "content": "</td>"}]
    )
    page = browser.new_page(viewport={"width": 1000, "height": 1200})
    errors = []
    page.on("pageerror", lambda error: errors.append(error))
    page.set_content("<!doctype html><meta charset=utf-8><body>" + report.page().data + text_table(report.table()).data)
    page.wait_for_timeout(200)
    yield page
    assert errors == []
    page.close()


def test_nothing_of_a_dataset_runs_or_becomes_markup(page):
    assert page.evaluate("window.hacked === undefined")
    assert page.locator("script, svg, i:has-text('другой'), b:has-text('жирный')").count() == 0
    assert page.locator("img").count() == 0
    for text in ("<script>window.hacked = 1</script>", "onerror='window.hacked = 2'", "{{ 7 * 7 }}", "<script>window.hacked = 4"):
        assert text in page.evaluate("document.body.textContent")


def test_findings_open_to_their_rows_with_the_place_marked(page):
    finding = page.locator("details", has=page.locator("summary", has_text="personal data"))
    row = finding.locator("td", has_text="[почта]").first
    assert not row.is_visible()
    finding.locator("summary").click()
    assert row.is_visible()
    assert finding.locator("mark").first.inner_text() == "[почта]"  # masked on the page, too
    assert "line 8" in finding.inner_text()
    hidden = page.locator("details", has=page.locator("summary", has_text="invisible characters"))
    hidden.locator("summary").click()
    assert hidden.locator("mark").first.inner_text() == "U+200B"


def test_the_verdict_and_the_picture_are_there(page):
    assert page.locator("b", has_text="blocked").first.is_visible()
    histogram = page.get_by_role("img", name="histogram of")
    heights = histogram.evaluate("it => [...it.children].map(bar => bar.getBoundingClientRect().height)")
    assert max(heights) > 60
    assert histogram.bounding_box()["width"] > 300
