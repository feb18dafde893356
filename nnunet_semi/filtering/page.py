"""The page on which a person screens unlabeled cases: one HTML file that needs no server and no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

STYLE = """
:root { color-scheme: light dark; scroll-padding-top: 7rem; }
body { font: 16px/1.4 system-ui, sans-serif; margin: 0; background: Canvas; color: CanvasText; }
header { position: sticky; top: 0; z-index: 1; background: Canvas; border-bottom: 1px solid GrayText;
  padding: .5rem 1rem; }
h1 { font-size: 1.1rem; margin: 0 0 .25rem; }
p { margin: .25rem 0; }
section { padding: .5rem 1rem 0; }
button { font: inherit; padding: .4rem .8rem; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .5rem; padding: .5rem; }
label { display: block; border: 3px solid transparent; border-radius: 4px; padding: 2px; content-visibility: auto;
  contain-intrinsic-size: auto 12rem; overflow-wrap: anywhere; font-size: .85rem; }
label:has(:checked) { border-color: #d55e00; background: color-mix(in srgb, #d55e00 20%, Canvas); }
label:has(:focus-visible) { outline: 3px solid #0072b2; }
img { display: block; width: 100%; height: 9.5rem; object-fit: contain; background: black; }
input { width: 1.2rem; height: 1.2rem; vertical-align: middle; }
"""

SCRIPT = """
const boxes = [...document.querySelectorAll('main input')], page = document.body.dataset;
const ticked = () => boxes.filter(box => box.checked).map(box => box.value);
function count() {
  document.getElementById('count').textContent = `${ticked().length} of ${boxes.length} ticked`;
  try { localStorage.setItem(page.key, JSON.stringify(ticked())); } catch (error) { /* not kept on this browser */ }
}
try {
  const before = new Set(JSON.parse(localStorage.getItem(page.key) || '[]'));
  for (const box of boxes) box.checked = before.has(box.value);
} catch (error) { /* nothing was kept */ }
document.querySelector('main').addEventListener('change', count);
document.querySelector('main').addEventListener('keydown', event => {
  const at = boxes.indexOf(document.activeElement);
  const columns = getComputedStyle(document.querySelector('main')).gridTemplateColumns.split(' ').length;
  const step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns}[event.key];
  if (at < 0 || !step || !boxes[at + step]) return;
  event.preventDefault();
  boxes[at + step].focus();
});
document.getElementById('save').addEventListener('click', () => {
  const lines = [`# ${page.title}: ${ticked().length} of ${boxes.length} cases ticked`, ...ticked()];
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([lines.join('\\n') + '\\n'], {type: 'text/plain'}));
  link.download = page.file;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
});
document.getElementById('clear').addEventListener('click', () => {
  if (!confirm('Remove all ticks?')) return;
  for (const box of boxes) box.checked = false;
  count();
});
count();
"""


class Tile(NamedTuple):
    """One case on the page: its name, a line about it, and its picture as base64 of a JPEG."""

    case: str
    note: str
    jpeg: str


def page(title: str, key: str, tiles: Iterable[Tile], notes: Sequence[str]) -> Iterable[str]:
    """The page, in pieces to be written one after another.

    Args:
        title: of the page; also the first line of the saved list.
        key: under which the browser keeps the ticks, so that they survive a reload.
        tiles: the cases in their order.
        notes: paragraphs above them.
    """
    paragraphs = "".join(f"<p>{escape(note)}</p>" for note in notes)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    yield (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{STYLE}</style></head>\n'
        f'<body data-key="{escape(key)}" data-title="{escape(title)}" data-file="screened.txt">\n'
        f"<header><h1>{escape(title)}</h1>\n"
        '<p><button id="save" type="button">Save the list</button> <button id="clear" type="button">Clear</button> '
        f'<span id="count" role="status"></span></p></header>\n<section>{paragraphs}</section>\n<main>\n'
    )
    for tile in tiles:
        case = escape(tile.case)
        yield (
            f'<label><img alt="{case}" loading="lazy" src="data:image/jpeg;base64,{tile.jpeg}">'
            f'<input type="checkbox" value="{case}"> {case}<br>{escape(tile.note)}</label>\n'
        )
    yield f"</main>\n<script>{SCRIPT}</script>\n</body></html>\n"
