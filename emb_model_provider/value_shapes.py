"""The kinds of value with a shape of their own: addresses, devices, CPU sets, keys and prompts.

Like ``value_kinds``, which see; the same tables are written in them.
"""

from __future__ import annotations

import ipaddress
import re
import sys
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from emb_model_provider.modelmap import DEVICE_PATTERN, SOURCES, Source
from emb_model_provider.positioned_json import UNSEEN, Array, JsonValue, Object
from emb_model_provider.value_kinds import CONTROL, Bilingual, Choice, Integer, Kind, Text, WrongValueError

_HOST_LABELS: Final = re.compile(
    r"(?=.{1,253}\Z)([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_-]{1,63}\.?"
)
_CPU_RANGE: Final = re.compile(r"\s*([0-9]{1,4})\s*(?:-\s*([0-9]{1,4})\s*)?")
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?|null", re.IGNORECASE)
#: Never through ``.`` or ``..``: clients resolve these before they ask, and would miss every route.
_URL_PREFIX: Final = re.compile(r"(/(?!\.{1,2}(/|\Z))[A-Za-z0-9._~-]+)+/?|/")
_KEY_CHARS: Final = re.compile(r"[\x21-\x7e]+")
#: How other programs write a list.
_BRACKETED: Final = re.compile(r"\[.*\]")
_QUOTED: Final = re.compile(r"(['\"]).*\1")
#: What a key is of which only a part was meant: a line of another file, or a variable that nobody has resolved, which
#: anybody could guess.
_ASSIGNMENT: Final = re.compile(r"(export )?EMB_PROVIDER_\w+=.*")
_VARIABLE: Final = re.compile(r"\$\{[A-Za-z_]\w*\}")
_MAX_CPU: Final = 4095
#: Where a model comes from. Who serves a directory looks here for a word such as "local".
HUB: Final[Choice[Source]] = Choice(SOURCES, "; a model in a directory of this machine needs none of them")
_TOKEN: Final = Bilingual("token", "令牌")
_WIDE_IN_URL: Final = re.compile(r"[\uff01-\uff5e。]")
_BAD_URL: Final = "it must be a URL such as https://hub.example.com or http://10.0.0.5:8080"


@dataclass(frozen=True, slots=True)
class Endpoint(Kind[str]):
    """The address of a hub, without a slash at the end."""

    @property
    def type_name(self) -> Bilingual:
        return Bilingual("URL", "URL")

    @property
    def allowed(self) -> Bilingual:
        return Bilingual("http://host… or https://host…", "http://主机… 或 https://主机…")

    def parse(self, text: str) -> str:
        if wide := _WIDE_IN_URL.search(text):
            raise WrongValueError(f"{wide[0]} is a full-width character: a URL needs the ASCII one")
        if unseen := UNSEEN.search(text):
            raise WrongValueError(f"it holds the character U+{ord(unseen[0]):04X}, which cannot be seen: delete it")
        if "://" not in text:
            raise WrongValueError(f"it has no scheme; write https://{text} (or http://)" if _plain(text) else _BAD_URL)
        try:
            parts = urlsplit(text)
            usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable or not _plain(text):
            raise WrongValueError(_BAD_URL)
        if parts.username is not None or parts.query or parts.fragment:
            raise WrongValueError(
                "it must not hold a user name, a password, '?' or '#'; a token has a setting of its own"
            )
        return text.rstrip("/")


def _plain(text: str) -> bool:
    return not CONTROL.search(text) and not re.search(r"\s", text)


@dataclass(frozen=True, slots=True)
class Host(Kind[str]):
    """An address or a host name to listen on."""

    @property
    def type_name(self) -> Bilingual:
        return Bilingual("host", "主机")

    @property
    def allowed(self) -> Bilingual:
        return Bilingual("IPv4 or IPv6 address, or host name", "IPv4 / IPv6 地址或主机名")

    def parse(self, text: str) -> str:
        bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        try:
            address = ipaddress.ip_address(bare)
            # An address of IPv4 that is written as one of IPv6 is listened on as what it is: a socket for IPv6 alone
            # has no such.
            return str(getattr(address, "ipv4_mapped", None) or address)
        except ValueError:
            pass
        if text == "*":
            raise WrongValueError("to listen on every address write 0.0.0.0, or :: with IPv6, too")
        last = text.rstrip(".").rpartition(".")[2]
        if not _HOST_LABELS.fullmatch(text) or last.isdigit():
            raise WrongValueError(
                "it must be an address such as 127.0.0.1, 0.0.0.0 or ::1, or a host name, without a port"
            )
        return text


@dataclass(frozen=True, slots=True)
class Device(Kind[str]):
    """Where a model computes."""

    @property
    def type_name(self) -> Bilingual:
        return Bilingual("device", "设备")

    @property
    def allowed(self) -> Bilingual:
        return Bilingual("auto, cpu, cuda, cuda:N", "auto、cpu、cuda、cuda:N")

    def parse(self, text: str) -> str:
        if not DEVICE_PATTERN.fullmatch(text.lower()):
            raise WrongValueError("it must be auto, cpu, cuda or cuda:N, such as cuda:1")
        return text.lower()


@dataclass(frozen=True, slots=True)
class CpuSet(Kind[tuple[int, ...]]):
    """Kernel CPU numbers, sorted, each once."""

    @property
    def type_name(self) -> Bilingual:
        return Bilingual("CPU set", "CPU 集合")

    @property
    def allowed(self) -> Bilingual:
        return Bilingual('"0-3", "0,2,4-6" or [0, 1]', '"0-3"、"0,2,4-6" 或 [0, 1]')

    def parse(self, text: str) -> tuple[int, ...]:
        cpus: set[int] = set()
        for part in text.split(","):
            match = _CPU_RANGE.fullmatch(part)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if first > last or last > _MAX_CPU:
                raise WrongValueError(
                    f"it must be {self.allowed.en}, with numbers up to {_MAX_CPU} and no range backwards"
                )
            cpus.update(range(first, last + 1))
        return tuple(sorted(cpus))

    def check(self, value: JsonValue) -> tuple[int, ...]:
        if isinstance(value, str) and value.strip():
            return self.parse(value)
        if not isinstance(value, Array) or not value.items:
            raise WrongValueError(f"it must be {self.allowed.en}")
        number = Integer(0, _MAX_CPU)
        return tuple(sorted({number.check(item.value) for item in value.items}))


@dataclass(frozen=True, slots=True)
class ApiKeys(Kind[tuple[str, ...]]):
    """Secrets separated by commas, each once, in the order given."""

    @property
    def type_name(self) -> Bilingual:
        return Bilingual("list", "列表")

    @property
    def allowed(self) -> Bilingual:
        return Bilingual("keys separated by commas", "以英文逗号分隔的密钥")

    def parse(self, text: str) -> tuple[str, ...]:
        keys = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        if not keys:
            # Reading this as "no keys" would open a server that was meant to be closed.
            raise WrongValueError("it holds no key; leave it out to serve without keys")
        if _BRACKETED.fullmatch(text) or any(_QUOTED.fullmatch(one) for one in (text, *keys)):
            raise WrongValueError(
                "write the keys as they are, separated by commas: the brackets or quotes would be part of them"
            )
        if any(map(_ASSIGNMENT.fullmatch, keys)):
            raise WrongValueError("write the keys alone: the name before them would be a part of the first")
        if any(map(_VARIABLE.fullmatch, keys)):
            raise WrongValueError("it holds ${NAME} as it stands: nobody has put that variable's value in its place")
        if not all(_KEY_CHARS.fullmatch(key) for key in keys):
            raise WrongValueError("a key may hold only visible ASCII characters, for it travels in an HTTP header")
        return keys


@dataclass(frozen=True, slots=True)
class FileName(Text):
    """What names a file or a directory, or may do so, on this machine."""

    def parse(self, text: str) -> str:
        name, encoding = Text.parse(self, text), sys.getfilesystemencoding()
        try:
            name.encode(encoding)
        except UnicodeEncodeError as error:
            lacking = name[error.start : error.end]
            raise WrongValueError(
                f"it holds {lacking!r}, which {encoding} lacks, in which Python names files here: set PYTHONUTF8=1"
            ) from None
        return name


@dataclass(frozen=True, slots=True)
class AccessToken(Text):
    """What a hub is shown as a bearer token."""

    shape: Bilingual = _TOKEN

    def parse(self, text: str) -> str:
        # The hubs' clients stumble over any other, and it would look as if the hub answered nonsense.
        if not _KEY_CHARS.fullmatch(text):
            raise WrongValueError("a token may hold only visible ASCII characters, for it travels in an HTTP header")
        return text


@dataclass(frozen=True, slots=True)
class Origins(Kind[tuple[str, ...]]):
    """Origins of web pages (RFC 6454), or ``*``, separated by commas."""

    @property
    def type_name(self) -> Bilingual:
        return Bilingual("list", "列表")

    @property
    def allowed(self) -> Bilingual:
        return Bilingual("origins separated by commas, or *", "以英文逗号分隔的来源，或 *")

    def parse(self, text: str) -> tuple[str, ...]:
        origins = tuple(dict.fromkeys(part.strip().rstrip("/") for part in text.split(",") if part.strip()))
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise WrongValueError(
                    f"{origin[:100]!r} is no origin: write https://app.example.com, with a port if it has one and"
                    " without a path, or * for any"
                )
        return origins


@dataclass(frozen=True, slots=True)
class UrlPrefix(Kind[str]):
    """A path such as ``/embeddings``, kept without a slash at its end."""

    @property
    def type_name(self) -> Bilingual:
        return Bilingual("path", "路径")

    @property
    def allowed(self) -> Bilingual:
        return Bilingual("a path that begins with /", "以 / 开头的路径")

    def parse(self, text: str) -> str:
        if not _URL_PREFIX.fullmatch(text):
            raise WrongValueError(
                "it must be a path such as /embeddings: letters, digits and - . _ ~ between slashes, and no part that"
                " is . or .. alone"
            )
        return text.rstrip("/")


@dataclass(frozen=True, slots=True)
class Prompts(Kind[tuple[tuple[str, str], ...]]):
    """Names and the texts put before an input; only JSON can write it."""

    @property
    def type_name(self) -> Bilingual:
        return Bilingual("object", "对象")

    @property
    def allowed(self) -> Bilingual:
        return Bilingual('{"query": "query: "}', '{"query": "query: "}')

    def parse(self, text: str) -> tuple[tuple[str, str], ...]:
        raise WrongValueError(f"it must be an object of names and texts, such as {self.allowed.en}, not {text!r}")

    def check(self, value: JsonValue) -> tuple[tuple[str, str], ...]:
        members = value.members if isinstance(value, Object) else ()
        pairs = [(member.key, member.node.value) for member in members]
        texts = [(name, text) for name, text in pairs if name.strip() and isinstance(text, str)]
        if not texts or len(texts) < len(pairs):
            raise WrongValueError(f"it must be an object of names and texts, such as {self.allowed.en}")
        return tuple(texts)
