"""The one error tree; every package raises from it and the router turns it into HTTP.

::

    ProviderError
    ├── ConfigurationError        the operator's settings are wrong; exit code 78, never retried
    ├── ProtocolError             a peer sent bytes that are not our frames or messages
    ├── LoadError                 a model cannot be loaded; ``reason`` says which of a few ways
    └── RequestError              an answer to a client, with status, code and param
        ├── InvalidRequestError       400
        ├── AuthenticationError       401
        ├── ModelNotFoundError        404 model_not_found
        ├── NotFoundError             404, no such route
        ├── MethodNotAllowedError     405
        ├── RequestTimeoutError       408
        ├── PayloadTooLargeError      413
        ├── UnsupportedMediaError     415
        ├── ExpectationError          417
        ├── QuarantinedError          422 input_quarantined
        ├── OverloadedError           429 with Retry-After
        ├── InternalError             500
        ├── DeadlineError             504
        ├── EncodeError               500, one text's own failure
        └── UnavailableError          503 with Retry-After

Messages of a ``RequestError`` reach clients: they say what to do and hold no path, secret or input text.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

#: ``sysexits.h`` EX_CONFIG: starting again cannot help before a person changes something.
EXIT_CONFIGURATION = 78
#: EX_TEMPFAIL: something outside is lacking (network, memory, disk) that may be there a while later.
EXIT_TEMPORARY = 75
#: EX_SOFTWARE: a thread or the device broke, or nobody knows.
EXIT_BROKEN = 70
#: EX_OSERR, "cannot fork": the process could start no thread and has told nobody that it is ready.
EXIT_NO_THREAD = 71
#: ``sysexits.h`` EX_TEMPFAIL: another server holds the run directory; it may be gone the next time.
EXIT_ALREADY_RUNNING = 75


class ProviderError(Exception):
    """Base of everything this project raises on purpose."""


class ConfigurationError(ProviderError):
    """Settings that cannot be used. ``problems`` holds one complete sentence per mistake."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ProtocolError(ProviderError):
    """Bytes on a socket that are not what the other side of our own protocol may send."""


class LoadReason(StrEnum):
    """Why a model cannot be loaded; each is something a person can act on."""

    NO_SUCH_MODEL = "no_such_model"
    NO_NETWORK = "no_network"
    NO_PERMISSION = "no_permission"
    INCOMPLETE_DOWNLOAD = "incomplete_download"
    CORRUPT_DOWNLOAD = "corrupt_download"
    WRONG_WEIGHTS = "wrong_weights"
    CODE_NOT_TRUSTED = "code_not_trusted"
    PACKAGE_MISSING = "package_missing"
    UNSUPPORTED_MODEL = "unsupported_model"
    NO_DEVICE = "no_device"
    OUT_OF_MEMORY = "out_of_memory"
    BAD_VECTORS = "bad_vectors"
    DISK_FULL = "disk_full"
    INTERNAL = "internal"

    @property
    def exit_code(self) -> int:
        """What a process that fails for this reason exits with, which says whether and when to start it again."""
        if self in _MAY_PASS:
            return EXIT_TEMPORARY
        return EXIT_BROKEN if self is LoadReason.INTERNAL else EXIT_CONFIGURATION


_MAY_PASS: Final = frozenset(
    {LoadReason.NO_NETWORK, LoadReason.CORRUPT_DOWNLOAD, LoadReason.OUT_OF_MEMORY, LoadReason.DISK_FULL}
)


class LoadError(ProviderError):
    """A model that cannot be served. ``str(error)`` is the sentence shown to the operator."""

    def __init__(self, reason: LoadReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def unsupported(reason: str, role: str = "") -> LoadError:
    """Return the error of a model that is of no kind we serve; ``role`` is what it was to be, such as "a reranker"."""
    as_what = f" as {role}" if role else ""
    return LoadError(LoadReason.UNSUPPORTED_MODEL, f"this model cannot be served{as_what}: {reason}")


class RequestError(ProviderError):
    """An answer in OpenAI's error shape.

    ``status`` is the HTTP status, ``kind`` OpenAI's ``type`` field, ``code`` and ``param`` may be ``None``.
    ``retry_after_s`` becomes a ``Retry-After`` header.
    """

    status = 400
    kind = "invalid_request_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else type(self).code
        self.retry_after_s = retry_after_s


class InvalidRequestError(RequestError):
    """The request itself is wrong; sending it again unchanged cannot succeed."""


class AuthenticationError(RequestError):
    """No API key, or one that is not on the list."""

    status = 401
    code = "invalid_api_key"


class ModelNotFoundError(RequestError):
    """No model is served under the name asked for."""

    status = 404
    code = "model_not_found"


class NotFoundError(RequestError):
    """No such route."""

    status = 404
    code = "not_found"


class MethodNotAllowedError(RequestError):
    """The route exists, the method does not."""

    status = 405
    code = "method_not_allowed"


class RequestTimeoutError(RequestError):
    """The body did not arrive in time."""

    status = 408
    code = "request_timeout"


class PayloadTooLargeError(RequestError):
    """The body is larger than the server takes."""

    status = 413
    code = "payload_too_large"


class UnsupportedMediaError(RequestError):
    """A content type or encoding that is not JSON as it stands."""

    status = 415
    code = "unsupported_media_type"


class ExpectationError(RequestError):
    """An ``Expect`` header that asks for more than a word before the body is sent."""

    status = 417
    code = "expectation_failed"


class QuarantinedError(RequestError):
    """An input that has killed the model's process and is not tried again for a while."""

    status = 422
    code = "input_quarantined"


class OverloadedError(RequestError):
    """There is more to do than can be done in time; ``retry_after_s`` says when there will be room."""

    status = 429
    kind = "rate_limit_error"
    code = "rate_limit_exceeded"


class DeadlineError(RequestError):
    """The vectors were not there within the time that the operator gives a request."""

    status = 504
    kind = "server_error"
    code = "deadline_exceeded"


class EncodeError(RequestError):
    """The model failed on this input; the service and every other input are fine."""

    status = 500
    kind = "server_error"
    code = "encode_failed"


class InternalError(RequestError):
    """A mistake of ours; the log has the details under the request's id."""

    status = 500
    kind = "server_error"
    code = "internal"


class UnavailableError(RequestError):
    """The model is not ready now; ``retry_after_s`` says when to try again."""

    status = 503
    kind = "server_error"
    code = "model_not_ready"
