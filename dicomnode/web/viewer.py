"""/viewer/: OHIF's files, with a configuration for this node's own DICOMweb roots."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlencode

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, Response

from dicomnode.config import Config
from dicomnode.web import ohif
from dicomnode.web.dicomweb import REVIEW, VIEW

__all__ = ["Layout", "create_router", "reading_url", "viewer_url"]

_LAYOUT = Path(__file__).parent / "viewer_layout.js"

_MEDIA_TYPES = MappingProxyType({
    ".css": "text/css", ".html": "text/html", ".ico": "image/x-icon", ".js": "text/javascript",
    ".json": "application/json", ".mjs": "text/javascript", ".png": "image/png", ".svg": "image/svg+xml",
    ".txt": "text/plain", ".wasm": "application/wasm", ".webmanifest": "application/manifest+json",
    ".woff": "font/woff", ".woff2": "font/woff2",
})  # fmt: skip
_NAMED_BY_CONTENT = re.compile(r"[.-][0-9a-f]{16}\.|^[0-9a-f]{16}\.")
_INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


@dataclass(frozen=True)
class Layout:
    """Series side by side, with a segmentation on the right one, or none (""), at a slice of it (None: the middle).

    ``left_uid``: "" for none.
    """

    left_uid: str
    right_uid: str
    mask_uid: str = ""
    slice_index: int | None = None


def viewer_url(study_uid: str, series_uid: str = "", *, review: bool = False) -> str:
    """Return the viewer's address for a study and an initial series; ``review``: with held results."""
    query = {"StudyInstanceUIDs": study_uid} | ({"initialSeriesInstanceUID": series_uid} if series_uid else {})
    return f"{ohif.BASE}viewer/{'review' if review else 'node'}?{urlencode(query)}"


def reading_url(study_uid: str, layout: Layout, *, review: bool = False) -> str:
    """Return the viewer's address that opens two series side by side, as ``viewer_layout.js`` reads it.

    Without a left series it opens the right one alone.
    """
    if not layout.left_uid:
        return viewer_url(study_uid, layout.right_uid, review=review)
    at = "" if layout.slice_index is None else str(layout.slice_index)
    fields = ",".join((layout.left_uid, layout.right_uid, layout.mask_uid, at))
    return f"{viewer_url(study_uid, review=review)}&hangingProtocolId=@dicomnode/reading#layout={fields}"


def create_router(config: Config) -> APIRouter:
    """Create the routes of the viewer."""
    routes = APIRouter()
    folder = ohif.viewer_folder(config.web)

    @routes.get("/viewer/{path:path}")
    def inside(path: str) -> Response:
        if ohif.find_installed(folder) is None:
            raise HTTPException(503, f"the viewer is not installed: run 'dicomnode viewer install' ({ohif.PACKAGE})")
        if path == "app-config.js":
            return Response(_app_config(), media_type="text/javascript")
        if path in _list_files(folder):
            return _file_response(folder / path)
        if Path(path).suffix in _MEDIA_TYPES:
            raise HTTPException(404, "the viewer has no such file")
        return _index_response(folder)

    return routes


def _file_response(path: Path) -> Response:
    if path.name == "index.html" and path.parent.name != "customizations":
        return _index_response(path.parent)
    keep = "public, max-age=31536000, immutable" if _NAMED_BY_CONTENT.search(path.name) else "no-cache"
    kind = _MEDIA_TYPES.get(path.suffix, "application/octet-stream")
    headers = {"Cache-Control": keep}
    if path.suffix == ".js":  # a worker has the policy of its own script
        headers["Content-Security-Policy"] = _security_policy(())
    return FileResponse(path, media_type=kind, headers=headers)


def _index_response(folder: Path) -> Response:
    """Return the single page of the application; its scripts read from the address which view to show."""
    text = (folder / "index.html").read_text(encoding="utf-8")
    hashes = [b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in _INLINE_SCRIPT.findall(text)]
    return HTMLResponse(text, headers={"Content-Security-Policy": _security_policy(hashes)})


def _security_policy(hashes: list[str] | tuple[()]) -> str:
    """Return the Content-Security-Policy: own content only; 'unsafe-eval' for the codecs' WebAssembly glue code."""
    inline = " ".join(f"'sha256-{each}'" for each in hashes)
    return "; ".join((
        "default-src 'none'", f"script-src 'self' 'unsafe-eval' {inline}".rstrip(), "worker-src 'self' blob:",
        "style-src 'self' 'unsafe-inline'", "img-src 'self' data: blob:", "font-src 'self' data:",
        "connect-src 'self' data: blob:", "frame-src 'self' blob:", "object-src 'self' blob:", "media-src 'self' blob:",
        "manifest-src 'self'", "base-uri 'none'", "form-action 'self'", "frame-ancestors 'self'",
    ))  # fmt: skip


@lru_cache(maxsize=4)
def _list_files(folder: Path) -> frozenset[str]:
    """List the files that may be served, so that no path leads out of the folder."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return frozenset(found) - {ohif.FACTS_FILE}


@lru_cache(maxsize=1)
def _app_config() -> str:
    """Return the application's configuration (https://docs.ohif.org/configuration/configurationFiles)."""
    sources = [_data_source("node", "studies", VIEW), _data_source("review", "studies with held results", REVIEW)]
    config = {
        "routerBasename": ohif.BASE.rstrip("/"),
        "showStudyList": True,
        "extensions": [],
        "modes": [],
        "customizationService": {},
        "maxNumberOfWebWorkers": 3,
        "showCPUFallbackMessage": True,
        "showLoadingIndicator": True,
        "strictZSpacingForVolumeViewport": True,
        "groupEnabledModesFirst": True,
        "showErrorDetails": "production",
        "investigationalUseDialog": {
            "option": "never"
        },  # every result of the node states it in its pixels and its description
        "maxNumRequests": {"interaction": 100, "thumbnail": 5, "prefetch": 25},
        "defaultDataSourceName": "node",
        "dataSources": sources,
    }
    text = json.dumps(config, indent=2)
    settings = re.sub(r'"@origin([^"]*)"', r"window.location.origin + '\1'", text)
    return f"window.config = {settings};\n{_LAYOUT.read_text(encoding='utf-8')}"


def _data_source(name: str, friendly: str, root: str) -> dict[str, object]:
    return {
        "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
        "sourceName": name,
        "configuration": {
            "friendlyName": friendly,
            "name": name,
            "wadoUriRoot": f"@origin{root}",
            "qidoRoot": f"@origin{root}",
            "wadoRoot": f"@origin{root}",
            "qidoSupportsIncludeField": True,
            "imageRendering": "wadors",
            "thumbnailRendering": "wadors",
            "enableStudyLazyLoad": True,
            "supportsFuzzyMatching": True,
            "supportsWildcard": True,
            "supportsReject": False,
            "dicomUploadEnabled": False,
            "singlepart": "bulkdata,video,pdf",
            "bulkDataURI": {"enabled": True},
            "omitQuotationForMultipartRequest": True,
        },
    }
