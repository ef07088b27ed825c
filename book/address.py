"""The addresses of the repository and of the published pages, both set in ``_config.yml``.

They are empty until the project is published. Nothing installs from, or links to, an address that is not set.
"""

from __future__ import annotations

import copy
import pathlib
import re
from typing import Any

import yaml

from kdsec.errors import KdsecError

CONFIG = pathlib.Path(__file__).resolve().parent.parent / "_config.yml"
# No blanks, quotes or braces: an address becomes part of a pip command and of links.
REPOSITORY = re.compile(r"https://[\w.-]+/[\w.-]+/[\w.-]+")
COLAB, COLAB_BRANCH = "https://colab.research.google.com/github", "colab"
PAGES = re.compile(r"https://[\w.-]+/(?:[\w.-]+/)*")


def config() -> dict[str, Any]:
    """The settings of the book, as written."""
    settings: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    return settings


def repository(settings: dict[str, Any] | None = None) -> str:
    """Address of the repository, or an empty text.

    Raises:
        KdsecError: it is not of the form https://HOST/OWNER/NAME.
    """
    url = (config() if settings is None else settings)["repository"]["url"]
    return _checked("repository, url", url, REPOSITORY, "https://HOST/OWNER/NAME")


def pages(settings: dict[str, Any] | None = None) -> str:
    """Address of the published pages, or an empty text.

    Raises:
        KdsecError: it is not of the form https://HOST/ or https://HOST/FOLDER/.
    """
    url = (config() if settings is None else settings)["html"]["baseurl"]
    return _checked("html, baseurl", url, PAGES, "https://HOST/FOLDER/")


def colab(notebook: str, settings: dict[str, Any] | None = None) -> str:
    """Address that opens a chapter's Colab edition, or an empty text.

    Colab opens what is on GitHub. The edition (``book/edition.py``) is built with the pages, in their folder
    ``colab``; its files are published as the branch ``COLAB_BRANCH``.

    Args:
        notebook: name of its file, ``01-opening.ipynb``.
        settings: of the book.
    """
    url = repository(settings)
    if not url.startswith("https://github.com/"):
        return ""
    return f"{url.replace('https://github.com', COLAB, 1)}/blob/{COLAB_BRANCH}/{notebook}"


def _checked(setting: str, url: Any, form: re.Pattern[str], example: str) -> str:
    if url and not (isinstance(url, str) and form.fullmatch(url)):
        raise KdsecError(f"_config.yml, {setting}: {url!r} is not an address of the form {example}")
    return url or ""


def linked(settings: dict[str, Any]) -> dict[str, Any]:
    """A copy of ``settings`` for the build: without the links that would need an address that is not set.

    Raises:
        KdsecError: an address of another form.
    """
    settings = copy.deepcopy(settings)
    html, sphinx = settings["html"], settings["sphinx"]
    if not repository(settings):
        del settings["repository"], settings["launch_buttons"]
        html["use_repository_button"] = html["use_issues_button"] = False
    if site := pages(settings):
        sphinx["config"]["ogp_site_url"] = site
    else:  # the preview of a link names its picture by a full address
        del html["baseurl"]
        sphinx["extra_extensions"].remove("sphinxext.opengraph")
        sphinx["config"] = {key: value for key, value in sphinx["config"].items() if key[:4] != "ogp_"}
    return settings
