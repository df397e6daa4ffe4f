"""Pages of the documentation that are made from other files: home page, configuration reference, notebooks."""

import html
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
REPOSITORY_FILES = ("CONTRIBUTING.md", "CHANGELOG.md")


def on_files(files, config):
    """Adds the configuration reference, made from the comments of `pfgm_jax.config.default`, and the notebooks."""
    from mkdocs.structure.files import File  # here: the tests read `configuration` without the extra `docs`
    from nbconvert import HTMLExporter

    files.append(File.generated(config, "configuration.md", content=configuration()))
    for notebook in sorted((ROOT / "notebooks/rendered").glob("*.ipynb")):
        page, _ = HTMLExporter(template_name="lab").from_filename(notebook)
        files.append(File.generated(config, f"notebooks/{notebook.stem}.html", content=page))
    return files


def on_page_markdown(markdown, page, **_):
    """README.md is the home page; links of files at the top of the repository are to pages."""
    if page.file.src_uri in ("index.md", "contributing.md", "changelog.md"):
        markdown = re.sub(r"\]\((?:docs/)?([\w/.-]+\.(?:md|png|gif|webp|svg)(?:#[\w-]+)?)\)", _to_page, markdown)
        markdown = re.sub(r"\]\(notebooks/rendered/(\w+)\.ipynb\)", r"](notebooks/\1.html)", markdown)
        markdown = markdown.replace("](pfgm_jax/config.py)", "](configuration.md)")
        markdown = re.sub(r"\]\((?:LICENSE|SECURITY\.md|CITATION\.cff)\)", "](contributing.md)", markdown)
    # The site has no files of benchmarks/.
    markdown = re.sub(r"\[([^\]]+)\]\((?:\.\./)?benchmarks/[\w./-]+\)", r"`\1`", markdown)
    return re.sub(r"\]\(\.\./README\.md(#[\w-]+)?\)", "](index.md)", markdown)


def _to_page(link):
    path = link[1]
    return f"]({path.lower() if path.partition('#')[0] in REPOSITORY_FILES else path})"


def configuration():
    """Markdown: a table of fields, defaults and meanings for each section of the default config."""
    source = (ROOT / "pfgm_jax/config.py").read_text()
    body = source.partition("def default():")[2].partition("\n    return config")[0]
    lines = [
        "# Configuration",
        "",
        "Every field, its default and its meaning. On the command line `--config.SECTION.FIELD=VALUE` changes one; in",
        "a config file `config.SECTION.FIELD = VALUE`. `None` is derived from the data or the process.",
    ]
    heading = ["", "| field | default | |", "|---|---|---|"]
    for line in body.partition("config = ConfigDict()")[2].splitlines():
        if section := re.fullmatch(r"    config\.(\w+) = ConfigDict\(\)(?:  # (.*))?", line):
            lines += ["", f"## {section[1]}", "", section[2] or "", *heading]
        elif field := re.fullmatch(r"    config\.([\w.]+) = (.*?)(?:  # (.*))?", line):
            lines += heading if "." not in field[1] else []  # the first field, which is in no section
            default = "None" if field[2].startswith("placeholder") else field[2]
            lines.append(f"| `{field[1].rpartition('.')[2]}` | `{default}` | {_cell(field[3] or '')} |")
        elif more := re.fullmatch(r"    # (.*)", line):
            lines[-1] = re.sub(r" \|$", f" {_cell(more[1])} |", lines[-1])
        elif line.strip():
            raise ValueError(f"a line of config.default() that the reference cannot show: {line}")
    return "\n".join(lines) + "\n"


def _cell(text):
    return html.escape(text, quote=False).replace("|", "\\|")
