"""The pages for people: one file each, its script and style inside, and nothing from another machine."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from importlib.resources import files

from starlette.responses import HTMLResponse


def page(name: str) -> HTMLResponse:
    """The page ``name`` with a policy that lets the browser run its own script and style by their hashes, and no others."""
    html = (files("latewood.serve") / f"{name}.html").read_text("utf-8")
    policy = (
        f"default-src 'none'; script-src {_hashes(html, 'script')}; style-src {_hashes(html, 'style')}; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return HTMLResponse(html, headers={"content-security-policy": policy})


def _hashes(html: str, element: str) -> str:
    contents = re.findall(f"<{element}>(.*?)</{element}>", html, re.DOTALL)
    return " ".join(f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in contents)
