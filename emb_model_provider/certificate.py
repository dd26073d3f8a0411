"""A certificate with its private key, held in memory: files may be broken when the next router is started.

Read by ``supervisor.tls``, handed down with ``RouterConfig``, loaded here by both.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from emb_model_provider.codec import Wire

if TYPE_CHECKING:  # ten milliseconds and a megabyte that most servers do without
    import ssl

#: Python names it from 3.13 on.
_MFD_NOEXEC_SEAL: Final = 8


class Certificate(Wire, frozen=True):
    """What stood in two PEM files: the certificate with those of its issuers, and the private key."""

    chain: bytes
    key: bytes

    def __repr__(self) -> str:
        return "Certificate(***)"

    def load(self, context: ssl.SSLContext, password: Callable[[], str] | None = None) -> None:
        """Have ``context`` show this certificate; raise ``ssl.SSLError`` where it cannot be used."""
        with _file_in_memory(self.chain) as chain, _file_in_memory(self.key) as key:
            context.load_cert_chain(chain, key, password)


@contextlib.contextmanager
def _file_in_memory(content: bytes) -> Iterator[str]:
    """Return a path for OpenSSL, which takes nothing else; what is there is on no disk and nobody else's to open."""
    descriptor = _open_in_memory()
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _open_in_memory() -> int:
    with contextlib.suppress(OSError):  # unknown before Linux 6.3; asked for by a hardened one (vm.memfd_noexec=2)
        return os.memfd_create("pem", os.MFD_CLOEXEC | _MFD_NOEXEC_SEAL)
    return os.memfd_create("pem")
