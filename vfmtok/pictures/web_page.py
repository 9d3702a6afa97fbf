"""Pieces of HTML pages that need nothing but the file they are in: text, tables, pictures, figures."""

import base64
import html
import io
import os
import platform
from pathlib import Path

import torch

from vfmtok import __version__
from vfmtok.errors import ConfigError


def page(title: str, body: str, tab: str) -> str:
    """A whole page: ``title`` above its body, which is HTML; ``tab`` is what the browser shows of it elsewhere."""
    return _PAGE.format(
        style=_STYLE, title=html.escape(title), tab=html.escape(tab), body=body, machine=html.escape(machine())
    )


def section(title: str, content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>\n{content}\n</section>"


def machine() -> str:
    """What this was made with and on."""
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores, no GPU"
    return f"vfmtok {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}, {where}"


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>" if text else ""


def table(head: list[str], rows: list[list[str]], escaped: bool = False, wide: bool = False) -> str:
    """Cells are text, or HTML if ``escaped``. A ``wide`` one, of many numbers, is scrolled: no cell is broken in lines,
    and the first column stays in sight."""
    mark = (lambda cell: cell) if escaped else html.escape
    lines = ["".join(f"<td>{mark(cell)}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    kind = " class='wide'" if wide else ""
    return f"<table{kind}><tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>{body}</table>"


def picture(path: Path) -> str:
    return embedded(path.read_bytes(), path.stem.replace("_", " "))


def embedded(content: bytes, text: str, kind: str = "whole") -> str:
    """A PNG: its content, and what it shows; ``kind`` is its class in the style."""
    data = base64.b64encode(content).decode()
    return f"<img class='{kind}' alt='{html.escape(text)}' src='data:image/png;base64,{data}'>"


def figure(ylabel: str, xlabel: str):
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("the report needs matplotlib: pip install 'vfmtok[train]'") from None
    drawing = Figure(figsize=(6.4, 3.2), layout="constrained")
    axis = drawing.subplots()
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.grid(alpha=0.25)
    return drawing, axis


def png(drawing) -> bytes:
    file = io.BytesIO()
    drawing.savefig(file, dpi=110, format="png")
    return file.getvalue()


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2328; background: #f6f8fa; margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 28px; margin: 8px 0; } h2 { font-size: 21px; margin: 0 0 8px; }
h3 { font-size: 16px; margin: 20px 0 4px; }
section { background: #fff; border: 1px solid #d0d7de; border-radius: 8px; padding: 20px; margin: 20px 0; }
section { overflow-x: auto; }
p { margin: 4px 0 12px; } .note, .missing, .machine, summary { color: #6e7781; } .note { font-size: 14px; }
img.whole { max-width: 100%; display: block; } img.half { max-width: 640px; width: 100%; display: block; }
table { border-collapse: collapse; margin: 12px 0; font-size: 14px; }
th, td { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid #eaeef2; vertical-align: top; }
td code { overflow-wrap: anywhere; } .wide td { white-space: nowrap; } .wide th { min-width: 3em; }
.wide td:first-child, .wide th:first-child { position: sticky; left: 0; background: #fff; }
code, pre { font-size: 12.5px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 12px; }
.tile { border: 1px solid #d0d7de; border-radius: 8px; padding: 12px; }
.tile b { font-size: 24px; display: block; } .tile span { display: block; } .tile small { color: #6e7781; }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{tab}</title><style>{style}</style></head>
<body><main><h1>{title}</h1>
<p class="machine">{machine}</p>
{body}
</main></body></html>
"""
