"""What ``resolve`` needs of a hub, and the words it may answer with instead. Implemented once per hub."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.process_limits import files_limited
from shard.hubs.snapshot import HubName, RemoteFile

_OTHER_WAYS: Final = "take the model from the other hub, or copy it into the cache and set EMB_PROVIDER_OFFLINE=true."
#: What names the certificates of those that each client trusts.
_AUTHORITIES: Final[dict[HubName, str]] = {"huggingface": "SSL_CERT_FILE", "modelscope": "REQUESTS_CA_BUNDLE"}
_OWN_AUTHORITY: Final = "Where your company signs what comes, set {} in the environment to a file of all it trusts."
#: OpenSSL's words for what ``X509_V_FLAG_X509_STRICT`` refuses, which Python sets from 3.13 on.
_BY_THE_LETTER: Final = re.compile(
    "Basic Constraints|Key Identifier|Key usage|key usage extension|Path length|Subject Alt|name empty|cert extension"
)
_NOT_BY_THE_LETTER: Final = (
    "From Python 3.13 on, certificates have to keep to RFC 5280: where your company signs what comes, have its "
    "authority issue others, or run this with Python 3.12."
)
#: The schemes of proxies that count for a hub.
_PROXIED: Final = ("http", "https", "all")
_THIS_MACHINE: Final = ("localhost", "127.0.0.1", "::1")
_URL_PASSWORD: Final = re.compile(r"//[^/\s]*@")


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one revision: ``revision`` is the commit where the hub has one, else the branch."""

    revision: str
    files: tuple[RemoteFile, ...]


class HubClient(Protocol):
    """One hub. Methods that use the network raise ``LoadError`` and nothing else."""

    source: HubName
    default_revision: str

    def repository(self, name: str) -> Path:
        """Return the directory of the cache that holds everything of one model."""

    def cached_directories(self, name: str, revision: str | None) -> list[Path]:
        """Return existing directories that may hold the model, whoever put it there, best first."""

    def list_files(self, name: str, revision: str | None) -> Listing:
        """Ask the hub what the model consists of."""

    def download(self, name: str, listing: Listing, on_bytes: Callable[[int], None]) -> Path:
        """Fetch the listed files and return their directory; ``on_bytes`` hears of each piece, from any thread."""


def no_network(source: HubName, endpoint: str, error: object) -> LoadError:
    """Return the error of a hub that cannot be reached."""
    proxy = proxy_of(endpoint)
    way = f" through the proxy {_shown(proxy)}" if proxy else ""
    said = _first_line(_innermost(error))
    return LoadError(
        LoadReason.NO_NETWORK,
        f"{source} ({_shown(endpoint)}) cannot be reached{way}: {said}.{_of_authorities(source, said)} Check "
        f"the network and the proxy, set EMB_PROVIDER_{source.upper()}_ENDPOINT to a mirror, {_OTHER_WAYS}",
    )


def unusable_certificates(source: HubName, error: object) -> LoadError:
    """Return the error of a file of authorities that the hub's client does not even start with."""
    variable = _AUTHORITIES[source]
    return LoadError(
        LoadReason.NO_NETWORK,
        f"the client of {source} cannot read the certificates that {variable} names in the environment "
        f"({os.environ.get(variable, 'not set')}): {_first_line(error)}. Correct it, or unset it.",
    )


def unusable_proxy(source: HubName, error: object) -> LoadError:
    """Return the error of a proxy in the environment that the hub's client cannot speak to, such as one of SOCKS."""
    proxies = sorted({proxy for scheme, proxy in getproxies().items() if scheme in _PROXIED})
    return LoadError(
        LoadReason.NO_NETWORK,
        f"the client of {source} cannot use the proxy that the environment names ({_shown(', '.join(proxies))}): "
        f"{_first_line(error)}. Set HTTP_PROXY and HTTPS_PROXY to its http:// address, which most SOCKS proxies have, "
        "too; or unset ALL_PROXY; or, for socks5://, pip install socksio PySocks.",
    )


def refused_with(source: HubName, endpoint: str, status: int, phrase: str = "") -> LoadError:
    """Return the error of a server that answers with an HTTP status that says nothing of the model itself."""
    answer = f"{status} {phrase}".rstrip()
    if status != HTTPStatus.TOO_MANY_REQUESTS:
        return no_answer_of_a_hub(source, endpoint, answer)
    return LoadError(
        LoadReason.NO_NETWORK,
        f"{source} ({_shown(endpoint)}) answers {_shown(answer)}: it has had too many requests from this network for "
        f"now. Wait, set EMB_PROVIDER_{source.upper()}_TOKEN, with which it takes more, {_OTHER_WAYS}",
    )


def no_answer_of_a_hub(source: HubName, endpoint: str, answer: str) -> LoadError:
    """Return the error of a server that is reached and answers with what no model can be had from."""
    return LoadError(
        LoadReason.NO_NETWORK,
        f"{source} ({_shown(endpoint)}) answers {_shown(answer)}: it is out of order, no such hub or mirror, or a "
        f"proxy answers in its place. Check EMB_PROVIDER_{source.upper()}_ENDPOINT and the proxy, {_OTHER_WAYS}",
    )


def not_as_announced(source: HubName, name: str, error: object) -> LoadError:
    """Return the error of a file that is not the one the hub told of, as a page to sign in at in its place."""
    return LoadError(
        LoadReason.CORRUPT_DOWNLOAD,
        f"{source} sent a file of {name!r} that is not the one it announced: {_first_line(error)}. Nothing of it is "
        "kept; start again to fetch it anew.",
    )


def no_such_model(source: HubName, name: str) -> LoadError:
    """Return the error of a name the hub does not know; ``resolve`` adds names that are near."""
    return LoadError(
        LoadReason.NO_SUCH_MODEL,
        f"{source} has no model {name!r}, or it is private and needs a token that has access: "
        f"EMB_PROVIDER_{source.upper()}_TOKEN.",
    )


def no_such_revision(source: HubName, name: str, revision: str | None) -> LoadError:
    """Return the error of a model without the branch, tag or commit that was asked for; ``resolve`` adds where."""
    return LoadError(LoadReason.NO_SUCH_MODEL, f"the model {name!r} on {source} has no revision {revision!r}.")


def wrong_token(source: HubName, name: str) -> LoadError:
    """Return the error of a token that the hub does not know, with which it does not even give what all may have."""
    return LoadError(
        LoadReason.NO_PERMISSION,
        f"{source} does not let us have {name!r} with the token that is set, which is wrong or has expired: correct "
        f"EMB_PROVIDER_{source.upper()}_TOKEN, or what the hub's own tools have stored; a public model needs none.",
    )


def no_permission(source: HubName, name: str) -> LoadError:
    """Return the error of a model that needs a token, or another one."""
    return LoadError(
        LoadReason.NO_PERMISSION,
        f"{source} does not let us have {name!r}: ask for access on its page if it is gated, and set "
        f"EMB_PROVIDER_{source.upper()}_TOKEN to a token that has it.",
    )


def disk_error(error: OSError, directory: Path) -> LoadError:
    """Return the error of a cache that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LoadError(LoadReason.DISK_FULL, f"the disk of {directory} is full: free some space, or move the cache.")
    if error.errno == errno.EFBIG:
        return files_limited(directory)
    reason = f"{directory} cannot be written: {os.strerror(error.errno) if error.errno else error}"
    return LoadError(LoadReason.NO_PERMISSION, f"{reason}. Set the hub's cache directory to a writable one.")


def proxy_of(endpoint: str) -> str:
    """Return the proxy that the environment names for a hub, "" where there is none."""
    url = urlsplit(endpoint)
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all", "")
    return "" if not proxy or proxy_bypass(url.hostname or "") else proxy


def settle_proxies(endpoint: str) -> None:
    """Take out of the environment's proxies what can only do harm; before a client is made, which reads them.

    No proxy leads to a mirror on this very machine. And where both other variables are set, ALL_PROXY is never used,
    but the client of HuggingFace refuses to start for one of SOCKS, as the usual three lines for a terminal name it.
    """
    host = urlsplit(endpoint).hostname or ""
    if proxy_of(endpoint) and (host in _THIS_MACHINE or host.startswith("127.")):
        # All names: it may send us on to its files under another one.
        kept = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        spared = ",".join(filter(None, (kept, *_THIS_MACHINE, "" if host in _THIS_MACHINE else host)))
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = spared
    proxies = getproxies()
    if proxies.get("http") and proxies.get("https"):
        for name in ("all_proxy", "ALL_PROXY"):
            os.environ.pop(name, None)


def _of_authorities(source: HubName, said: str) -> str:
    """Return what to do about a certificate that is refused, "" where it is not for that."""
    if "CERTIFICATE_VERIFY_FAILED" not in said:
        return ""
    return f" {_NOT_BY_THE_LETTER if _BY_THE_LETTER.search(said) else _OWN_AUTHORITY.format(_AUTHORITIES[source])}"


def _innermost(error: object) -> object:
    """Return what the operating system said; libraries wrap it into pages of their own objects."""
    found = error
    while isinstance(error, BaseException):
        if isinstance(error, OSError) and str(error):
            found = error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def _shown(text: str) -> str:
    """Return a text without the password of an address in it, which the clients' own variables may hold."""
    return _URL_PASSWORD.sub("//***@", text)


def _first_line(error: object) -> str:
    lines = _shown(str(error)).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")
