"""A report as one HTML page over its pictures, with the model card under them."""

import html
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Page:
    """What a report holds: PNG bytes by file name, with the sentence under each, and the card's markdown.

    title, lead : what was judged, and by which rows.
    """

    pictures: dict[str, tuple[bytes, str]]
    card: str
    title: str = "narrows report"
    lead: str = ""

    def files(self) -> dict[str, bytes]:
        """As `write_bundle` takes them: card.md and report/..."""
        made = {f"report/{name}": png for name, (png, _) in self.pictures.items()}
        return {**made, "report/index.html": _to_html(self).encode(), "card.md": self.card.encode()}

    def write(self, folder: Path) -> None:
        """The same files under `folder`, the page at its top."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            (folder / name.removeprefix("report/")).write_bytes(content)


def _to_html(page: Page) -> str:
    figures = "\n".join(
        f'<figure><img src="{name}" alt="{html.escape(text)}"><figcaption>{html.escape(text)}</figcaption></figure>'
        for name, (_, text) in page.pictures.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(page.title)}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
img {{ max-width: 100% }} figure {{ margin: 2rem 0 }} figcaption {{ color: #555 }} section {{ overflow-wrap: anywhere }}
table {{ border-collapse: collapse }} th, td {{ text-align: left; padding: .1rem 1.5rem .1rem 0 }}
</style></head><body>
<h1>{html.escape(page.title)}</h1>
<p>{html.escape(page.lead)} <a href="#card">Model card</a></p>
{figures}
<section id="card">
{markdown_to_html(page.card)}
</section>
</body></html>
"""


def markdown_to_html(text: str) -> str:
    """The markdown that a card is written in: headings, lists, tables, paragraphs, `code` and **strong**.

    >>> markdown_to_html("# A `b`\\n\\n- c: **d**\\n")
    '<h2>A <code>b</code></h2>\\n<ul>\\n<li>c: <strong>d</strong></li>\\n</ul>'
    """
    made: list[str] = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.splitlines()
        if block.startswith("#"):
            depth = len(block) - len(block.lstrip("#")) + 1          # the page's title is the first heading
            made.append(f"<h{depth}>{_inline(block.lstrip('# '))}</h{depth}>")
        elif block.startswith("- "):
            made += ["<ul>", *(f"<li>{_inline(line.removeprefix('- '))}</li>" for line in lines), "</ul>"]
        elif block.startswith("|"):
            cells = [[_inline(cell.strip()) for cell in line.strip("|").split("|")] for line in lines]
            made += ["<table>", "".join(["<tr>", *(f"<th>{cell}</th>" for cell in cells[0]), "</tr>"])]
            made += ["".join(["<tr>", *(f"<td>{cell}</td>" for cell in row), "</tr>"]) for row in cells[2:]]
            made.append("</table>")
        else:
            made.append(f"<p>{_inline(' '.join(lines))}</p>")
    return "\n".join(made)


def _inline(text: str) -> str:
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
