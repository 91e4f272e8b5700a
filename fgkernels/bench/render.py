# SPDX-License-Identifier: Apache-2.0
"""``python -m fgkernels.bench.render results.json``: tables and pictures from a result file, never typed by hand."""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import chart, page, report, results

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def pick(document: dict[str, Any], globs: Sequence[str]) -> dict[str, Any]:
    """The document with only the cases whose names match one of the globs, in the globs' order."""
    records = [record for glob in globs for record in document["cases"] if fnmatch.fnmatchcase(record["name"], glob)]
    unique = list({record["name"]: record for record in records}.values())
    return {**document, "cases": unique}


def replace_between(text: str, table: str) -> str:
    """``text`` with what stands between the two marker comments replaced by ``table``."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"expected one {BEGIN} followed by one {END}")
    return f"{text[: text.index(BEGIN)]}{BEGIN}\n{table}\n{text[text.index(END) :]}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fgkernels.bench.render", description="Render a result file.")
    parser.add_argument("results", type=Path, help="a results.json of fgkernels bench")
    parser.add_argument("--case", action="append", default=[], metavar="GLOB", help="only these cases (repeatable)")
    parser.add_argument("--columns", help=f"comma-separated columns of the table, of: {', '.join(report.COLUMNS)}")
    parser.add_argument(
        "--into", type=Path, metavar="FILE", help=f"write the table into FILE, between {BEGIN} and {END}"
    )
    parser.add_argument("--html", type=Path, help="write the page here")
    parser.add_argument("--png", type=Path, help="write the picture here")
    options = parser.parse_args(argv)
    try:
        document = results.load(options.results)
        if options.case:
            document = pick(document, options.case)
        table = report.markdown(document, options.columns.split(",") if options.columns else None)
        if options.into:
            text = options.into.read_text(encoding="utf-8")
            options.into.write_text(replace_between(text, table), encoding="utf-8")
        if options.html:
            options.html.write_text(page.html(document), encoding="utf-8")
        if options.png:
            chart.png(document, options.png)
    except (ValueError, OSError, chart.MatplotlibMissing) as error:
        parser.error(str(error))
    if not (options.into or options.html or options.png):
        print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
