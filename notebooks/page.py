"""Makes a page of an executed notebook that needs nothing beside itself: no scripts, no fonts, formulas as MathML.

    python3 html.py EXECUTED.ipynb PAGE.html

It needs nbconvert (which running the notebook needed too) and latex2mathml 3.81.1.
"""

import hashlib
import html
import re
import sys

from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbformat import read
from pygments.formatters import HtmlFormatter

STYLE = """
body { margin: 0 auto; padding: 1.5em 1em 4em; max-width: 1060px; color: #1c1c1c; background: #fff;
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7em; } h2 { font-size: 1.25em; margin-top: 1.8em; }
pre, code { font: 13.5px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
p code, li code, td code { background: #f2f3f5; padding: 0.1em 0.3em; border-radius: 3px; }
.jp-InputArea pre, .highlight pre { background: #f6f7f9; border-left: 3px solid #c3cfe2; padding: 0.7em 0.9em; overflow-x: auto; margin: 0.4em 0; tab-size: 4; }
.jp-OutputArea pre, .output pre { background: none; padding: 0.2em 0.9em; margin: 0.2em 0; overflow-x: auto; }
img { max-width: 100%; height: auto; display: block; margin: 0.5em 0; }
table { border-collapse: collapse; } td, th { padding: 0.2em 0.8em; border-bottom: 1px solid #ddd; text-align: left; }
math[display="block"] { margin: 0.8em 0; font-size: 1.1em; }
nav { font-size: 0.9em; color: #666; } nav a { color: #36c; }
.highlight .err { color: inherit; border: none; }
"""

MATH = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$([^\s$](?:[^$\n]*?[^\s$\\])?)\$(?!\w)", re.S)


def page(source):
    with open(source, encoding="utf-8") as f:
        notebook = read(f, as_version=4)
    formulas = []
    sources = "\0".join(c.source for c in notebook.cells)  # a test compares this with the notebook
    digest = hashlib.sha256(sources.encode()).hexdigest()

    def keep(m):
        block = m.group(1) is not None
        formulas.append(convert((m.group(1) or m.group(2)).strip(), display="block" if block else "inline").replace(' xmlns="http://www.w3.org/1998/Math/MathML"', ""))
        return "FORMULA%dX" % (len(formulas) - 1)

    notebook.metadata["language_info"] = {"name": "go", "pygments_lexer": "go"}  # the kernel names none
    title = "drift"
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        head = re.match(r"# (.+)", cell.source)
        if head and title == "drift":
            title = head.group(1)
        parts = re.split(r"(```.*?```|`[^`\n]*`)", cell.source, flags=re.S)  # no formulas in code
        cell.source = "".join(p if p.startswith("`") else MATH.sub(keep, p) for p in parts)
    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True, exclude_anchor_links=True)
    body, _ = exporter.from_notebook_node(notebook)
    body = re.sub(r"FORMULA(\d+)X", lambda m: formulas[int(m.group(1))], body)
    body = body.replace('href="../docs/', 'href="../')  # the page lies in docs/notebooks
    body = re.sub(r"<style.*?</style>|<script.*?</script>", "", body, flags=re.S)
    name = source.rsplit("/", 1)[-1]
    nav = '<nav><a href="README.md">drift notebooks</a> · <a href="../../notebooks/%s">%s</a>, as it ran</nav>' % (name, name)
    return (
        '<!DOCTYPE html>\n<!-- cells: %s -->\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n'
        "<title>%s</title>\n<style>%s%s</style>\n</head>\n<body>\n%s\n%s\n</body>\n</html>\n"
        % (digest, html.escape(title), HtmlFormatter(style="default").get_style_defs(".highlight"), STYLE, nav, body)
    )


if __name__ == "__main__":
    text = page(sys.argv[1])
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    with open(sys.argv[2], "w", encoding="utf-8") as f:
        f.write(text)
