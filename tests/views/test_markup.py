from __future__ import annotations

import pytest

from jointdiff.views.markup import Html, banner, element, page, table


def test_text_is_escaped_and_markup_is_not_escaped_twice() -> None:
    inner = element("b", "<x> & 'y'")
    assert element("p", inner, " < ", 3, None, ["a", ["b"]]) == ("<p><b>&lt;x&gt; &amp; &#x27;y&#x27;</b> &lt; 3ab</p>")


def test_attributes_are_escaped() -> None:
    assert element("a", "x", href='"><i>', class_="k", hidden=True, title=None) == (
        '<a href="&quot;&gt;&lt;i&gt;" class="k" hidden>x</a>'
    )


def test_adding_text_to_markup_gives_text() -> None:
    """Html + str is a plain str, so that a careless sum is escaped and not trusted."""
    joined = Html("<b>") + "<i>"
    assert not isinstance(joined, Html)
    assert element("p", joined) == "<p>&lt;b&gt;&lt;i&gt;</p>"


def test_a_page_runs_and_fetches_nothing() -> None:
    text = page("t", element("p", "x"))
    assert "default-src 'none'" in text.replace("&#x27;", "'")
    assert "<script" not in text and "http://" not in text and "https://" not in text and "@import" not in text
    assert "prefers-color-scheme: dark" in text and "@media print" in text


@pytest.mark.parametrize(("real", "words"), [(False, "Phantoms"), (True, "Real scans"), (None, "Origin not recorded")])
def test_banner_says_what_is_shown_and_what_it_is_not_for(real: bool | None, words: str) -> None:
    text = banner(real=real)
    assert words in text and "no medical device" in text
    others = {"Phantoms", "Real scans", "Origin not recorded"} - {words}
    assert not any(other in text for other in others)


def test_table_has_one_cell_per_value() -> None:
    text = table(["a", "b"], [["x", 1], ["y", 2]], caption="<c>")
    assert text.count("<tr>") == 3 and text.count("<td") == 2 and "&lt;c&gt;" in text
