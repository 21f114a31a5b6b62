"""Pages as readers see them: `python -m docs.check_rendering [PAGE.md ...] [--screenshots FOLDER]` (`make rendering`).

Every page is made into HTML, styled as GitHub styles it, and opened in a headless chromium, light and dark, at the
widths of a telephone, a tablet and a laptop. One line a fault; the exit code is 1 when there is one:

- the page scrolls sideways, or something in it does that is no block of code; on the telephone, where GitHub gives each
  table a box that scrolls, a table may be up to twice as wide as its box;
- a picture does not load, or has no words for those who do not see it;
- a link leads to no file, or to no heading.

Needs markdown-it-py and playwright (both in the extra `dev`), and a chromium on the PATH.
"""

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
WIDTHS = (400, 800, 1200)
SCHEMES = ("light", "dark")

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --ground: #fff; --soft: #818b981f; --line: #d1d9e0; --link: #0969da }
@media (prefers-color-scheme: dark) {
  :root { --ink: #f0f6fc; --ground: #0d1117; --soft: #656c7633; --line: #3d444d; --link: #4493f8 }
}
body { font: 16px/1.5 -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; box-sizing: border-box;
  max-width: 980px; margin: 0 auto; padding: 45px; overflow-wrap: break-word; color: var(--ink);
  background: var(--ground) }
@media (max-width: 767px) { body { padding: 15px } }
h1, h2, h3, h4 { line-height: 1.25; margin: 24px 0 16px }
h1, h2 { border-bottom: 1px solid var(--line); padding-bottom: .3em }
a { color: var(--link) }
p, ul, ol, table, pre { margin: 0 0 16px }
ul, ol { padding-left: 2em }
code, pre { font: 85%/1.45 ui-monospace, "Liberation Mono", monospace }
code { padding: .2em .4em; white-space: break-spaces; background: var(--soft); border-radius: 6px }
pre { padding: 16px; overflow: auto; background: var(--soft); border-radius: 6px }
pre code { padding: 0; font-size: 100%; white-space: pre; background: none }
table { display: block; width: max-content; max-width: 100%; overflow: auto; border-collapse: collapse }
td, th { padding: 6px 13px; border: 1px solid var(--line) }
img { max-width: 100%; box-sizing: content-box }
"""  # what matters here of github-markdown-css

_SCROLLING = """() => {
  const page = document.scrollingElement;
  const room = e => e.tagName === 'TABLE' && innerWidth <= 400 ? 2 * e.clientWidth : e.clientWidth + 1;
  const wide = [...document.body.querySelectorAll('*')].filter(
    e => e.closest('pre') === null && e.clientWidth > 0 && e.scrollWidth > room(e));
  const said = wide.map(e => `${e.tagName.toLowerCase()} ${e.scrollWidth - e.clientWidth} px too wide: `
    + e.innerText.trim().replace(/\\s+/g, ' ').slice(0, 60));
  return page.scrollWidth > page.clientWidth ? ['the page scrolls sideways', ...said] : said;
}"""
_UNSEEN = "() => [...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).map(i => i.currentSrc || i.src)"
_NAMELESS = "() => [...document.images].filter(i => i.alt.trim() === '').map(i => i.getAttribute('src'))"


def pages() -> list[Path]:
    """Every Markdown page of the repository that people read."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "stores" / "README.md", *_under_docs()]


def _under_docs() -> list[Path]:
    return sorted((ROOT / "docs").rglob("*.md"))


def as_html(page: Path) -> str:
    """A whole document; headings have the names that GitHub gives them."""
    markdown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens, taken = markdown.parse(page.read_text(encoding="utf-8")), dict[str, int]()
    for token, inside in pairwise(tokens):
        if token.type == "heading_open":
            words = "".join(child.content for child in inside.children or () if child.type in ("text", "code_inline"))
            name = re.sub(r"[^\w\- ]", "", words).lower().strip().replace(" ", "-")
            again = taken[name] = taken.get(name, -1) + 1
            token.attrSet("id", f"{name}-{again}" if again else name)
    body = markdown.renderer.render(tokens, markdown.options, {})
    head = f"<meta charset='utf-8'><base href='{page.parent.as_uri()}/'><style>{_STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}<title>{page.name}</title></head><body>{body}</body></html>"


def broken_links(page: Path) -> list[str]:
    """Links to files and headings of this repository that are not there."""
    found = []
    for address in re.findall(r'<a href="([^"]*)"', as_html(page)):
        parts = urlsplit(address)
        if parts.scheme or parts.netloc:
            continue
        target = page.parent / unquote(parts.path) if parts.path else page
        if not target.exists():
            found.append(f"link {address}: no such file")
        elif parts.fragment and unquote(parts.fragment) not in _names(target.resolve()):
            found.append(f"link {address}: no such heading")
    return found


@cache
def _names(page: Path) -> set[str]:
    return set(re.findall(r' (?:id|name)="([^"]*)"', as_html(page))) if page.suffix == ".md" else set()


def browser_path() -> str | None:
    """Where a chromium is."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser.

    Raises:
        FileNotFoundError: There is none on the PATH.
    """
    from playwright.sync_api import sync_playwright

    found = browser_path()
    if found is None:
        raise FileNotFoundError("no chromium on the PATH: install one, such as Debian's package chromium")
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=found, args=["--no-sandbox"]) as browser,
    ):
        yield browser


def faults_of(browser: Any, page: Path, screenshots: Path | None = None) -> list[str]:
    """What is wrong with a page, a line each; with ``screenshots`` it is also photographed there, whole."""
    said = broken_links(page)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        file.write_text(as_html(page), encoding="utf-8")
        tab = browser.new_page()
        for scheme in SCHEMES:
            tab.emulate_media(color_scheme=scheme)
            tab.goto(file.as_uri())
            said += [f"{scheme}: picture {address} does not load" for address in tab.evaluate(_UNSEEN)]
            for width in WIDTHS:
                tab.set_viewport_size({"width": width, "height": 900})
                if scheme == SCHEMES[0]:
                    said += [f"{width} px: {fault}" for fault in tab.evaluate(_SCROLLING)]
                if screenshots is not None:
                    name = "-".join(page.relative_to(ROOT).with_suffix("").parts)
                    tab.screenshot(path=screenshots / f"{name}-{width}-{scheme}.png", full_page=True)
        said += [f"picture {address} has no words" for address in tab.evaluate(_NAMELESS)]
        tab.close()
    return said


def main(arguments: Sequence[str]) -> int:
    """Checks pages and prints what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, help="default: all")
    parser.add_argument("--screenshots", type=Path, help="a folder for pictures of the pages")
    asked = parser.parse_args(arguments)
    if asked.screenshots is not None:
        asked.screenshots.mkdir(parents=True, exist_ok=True)
    chosen, count = [page.resolve() for page in asked.pages] or pages(), 0
    with chromium() as browser:
        for page in chosen:
            for fault in faults_of(browser, page, asked.screenshots):
                print(f"{page.relative_to(ROOT)}: {fault}")
                count += 1
    print(f"{len(chosen)} pages at {', '.join(map(str, WIDTHS))} px: {count} faults")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
