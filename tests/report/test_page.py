from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import report_synthetic as synthetic

from hydrometer.core.errors import FolderError, InputError
from hydrometer.report import build_report
from hydrometer.report.data.samples import visible

MAX_PAGE = 5_000_000


def test_figures_in_three_formats_and_linked(demo: Path) -> None:
    page = demo.read_text()
    names = {f"{c}-{f}" for c in ("mixture", "smollm2") for f in ("plane", "by-setting", "by-entropy")}
    for stem in names | {"mixture-contours"}:
        for kind, magic in (("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")):
            assert (demo.parent / "figures" / f"{stem}.{kind}").read_bytes().startswith(magic)
            assert f'href="figures/{stem}.{kind}"' in page
    assert not list(demo.parent.rglob("*.tmp"))


def test_the_verdict_is_before_the_figures(demo: Path) -> None:
    page = demo.read_text()
    assert page.index("The teacher gate holds") < page.index("<figure")
    assert "As released, beside the corrected figures" in page
    assert "Where the mass goes" in page
    assert "−3.490 ± 0.094" in page[page.index("As released") :]
    assert "Samples side by side" in page
    assert demo.stat().st_size < MAX_PAGE


def test_nothing_on_the_page_is_loaded(demo: Path) -> None:
    page = demo.read_text()
    assert page.count("<script") == 2  # the explorer's data, and what moves it
    assert "fetch(" not in page
    assert "url(http" not in page
    assert "src=" not in page
    assert "@import" not in page


def test_hostile_text_is_inert_and_visible(hostile: Path) -> None:
    page = hostile.read_text()
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    assert "{{ 7*7 }}" in page
    assert "run &lt;b&gt;bold&lt;/b&gt;" in page
    for code in ("U+202E", "U+200B", "U+0007", "U+001B", "U+D800", "U+2066", "U+200F", "U+0301"):
        assert f"⟨{code}⟩" in page
    for raw in "\u202e\u200b\x07\x1b\u2066\u200f":
        assert raw not in page
    assert "e" + "\u0301" * 5 not in page


def test_the_same_results_give_the_same_bytes(hostile: Path, hostile_run: Path, tmp_path: Path) -> None:
    again = build_report([hostile_run], out=tmp_path / "again")
    assert again.read_bytes() == hostile.read_bytes()
    figures = sorted(p.name for p in (hostile.parent / "figures").iterdir())
    assert figures == sorted(p.name for p in (again.parent / "figures").iterdir())
    for name in figures:
        assert (hostile.parent / "figures" / name).read_bytes() == (again.parent / "figures" / name).read_bytes()


def test_a_bare_run_and_several_runs(tmp_path: Path) -> None:
    bare: dict[str, Any] = {"schema": 1, "name": "bare", "summary": {"chains": {"c": {}, "../up": {}}, "groups": {}}}
    folders = [synthetic.write(tmp_path / n, {**bare, "name": n}, {}) for n in ("one", "two")]
    assert build_report(folders) == tmp_path / "one" / "report.html"
    page = build_report(folders, out=tmp_path / "elsewhere" / "both.html").read_text()
    assert page.count("No control was run") == 4
    assert 'id="1-one-c"' in page
    assert 'id="2-two-up"' in page


def test_exhibits_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    run = synthetic.results(seeds=1, mixture=False)
    run["summary"]["groups"] = {k: v for k, v in run["summary"]["groups"].items() if v["role"] == "truth"}
    run["cells"] = [{**run["cells"][0], "id": "../../secret"}]
    folder = synthetic.write(tmp_path / "deep" / "run", run, {})
    rows = [{"prompt": "p", "answer": "the secret"}]
    (tmp_path / "deep" / "secret.json").write_text(json.dumps({"kind": "texts", "version": 1, "rows": rows}))
    assert "the secret" not in build_report([folder]).read_text()


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run"):
        build_report([])
    with pytest.raises(FolderError, match="no results"):
        build_report([tmp_path])
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(FolderError, match="cannot be read"):
        build_report([tmp_path])
    folder = synthetic.write(tmp_path / "run", {"schema": 1}, {})
    (tmp_path / "file").write_text("x")
    with pytest.raises(FolderError, match="cannot be written"):
        build_report([folder], out=tmp_path / "file" / "report.html")


def test_visible_cuts_and_counts() -> None:
    assert "… 5 more characters" in visible("x" * 15, 10)
    assert visible("a\n\tb") == "a\n\tb"
    assert "⟨U+00AD⟩" in visible("soft\u00adhyphen")
    assert visible("naïve café — ok 日本語 العربية") == "naïve café — ok 日本語 العربية"


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (320, "light")])
def test_page_in_a_browser(browser: Any, demo: Path, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    requests: list[str] = []
    problems: list[str] = []
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.on("console", lambda m: problems.append(m.text))
    page.on("request", lambda r: requests.append(r.url))
    page.route("**/*", lambda r: r.continue_() if r.request.url.startswith(("file:", "data:")) else r.abort())
    page.goto(demo.as_uri())
    for details in page.query_selector_all("details"):
        details.evaluate("d => d.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("figure svg").first.is_visible()
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    dangling = page.evaluate(
        "[...document.querySelectorAll('a[href^=\"#\"], use')].map(e => e.getAttribute('href')).filter(h => "
        "h && h[0] === '#' && !document.getElementById(h.slice(1)))"
    )
    assert dangling == []
    assert problems == []
    assert [r for r in requests if not r.startswith(("file:", "data:"))] == []
    page.close()


@pytest.mark.browser
def test_hostile_page_in_a_browser(browser: Any, hostile: Path, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    requests: list[str] = []
    page.on("request", lambda r: requests.append(r.url))
    page.goto(shutil.copy(hostile, tmp_path / "page.html").as_uri())
    assert "hydrometer" in page.title()
    assert page.locator("script, img, .answer b").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert "⟨U+202E⟩" in page.locator(".answer p").first.inner_text()
    assert all(r.startswith(("file:", "data:")) for r in requests)
    page.close()


@pytest.mark.browser
def test_a_live_page_renews_itself(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The browser reloads it, whatever its security policy forbids, and keeps the last one."""
    from hydrometer.report import page as page_module

    monkeypatch.setattr(page_module, "LIVE", 1)
    bare: dict[str, Any] = {"schema": 1, "name": "bare", "summary": {"chains": {"c": {}}, "groups": {}}}
    folder = synthetic.write(tmp_path / "run", bare, {})
    tab = browser.new_page()
    tab.goto(build_report([folder], live=True).as_uri())
    assert "The run goes on: this page renews itself every 1 seconds." in tab.inner_text("header")
    synthetic.write(folder, {**bare, "name": "ended"}, {})
    build_report([folder])
    tab.get_by_role("heading", level=1).get_by_text("ended").wait_for(timeout=30_000)
    assert "renews itself" not in tab.inner_text("header")
    tab.close()
