"""Everything that can go wrong, drawn as a tree. A domain's own errors live in the domain.

    KtrdrOpsError
    ├── InvalidValue                 what was asked cannot be meant; nothing was started
    ├── OperationNotFound            no such id
    │   └── AmbiguousOperation       more than one
    ├── OperationFailed              it ran, and failed
    ├── OperationCancelledException  it was told to stop
    ├── OperationInterrupted         its process was told to go; another attempt goes on
    ├── OperationFinished            it is over; what was asked needs one that is not
    ├── OwnershipLost                another attempt has taken over
    ├── KeyIsLive                    another operation works on the same thing now
    ├── HostServiceError             a host service did not do what was asked
    │   ├── HostUnavailable          absent: refused, reset, deadline, 503 - later may work
    │   ├── HostAnswerWrong          wrong: 500, HTML, truncated, oversize - tried again, then given up
    │   └── HostRefused              final: asking again would be refused again
    └── JournalError                 the journal cannot do what was asked
        ├── JournalRefused           it must not be opened or written so
        ├── JournalCorrupt           what it holds is not what was written
        ├── JournalFull              no room on the disk
        ├── JournalBusy              another process holds it and does not let go
        └── JournalStopped           its writer is gone; whether the last events are kept is not known

Each has a ``code`` (for scripts), a ``hint`` (what to do) and the ``exit_code`` of the command line. The docstring is
the default message.
"""

from __future__ import annotations

from typing import Any, ClassVar


class KtrdrOpsError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str | None = None, *, hint: str | None = None, **details: Any) -> None:
        self.message = message or (type(self).__doc__ or "").partition("\n")[0].strip()
        self.hint = hint
        self.details = details
        super().__init__(self.message)

    def document(self) -> dict[str, Any]:
        """``{"code", "message", "hint"}``, as ``--json`` prints it and a ``failed`` event stores it."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


class InvalidValue(KtrdrOpsError):
    """The value is not valid."""

    code = "invalid_value"
    exit_code = 2


class OperationNotFound(KtrdrOpsError):
    """There is no such operation."""

    code = "not_found"
    exit_code = 3


class AmbiguousOperation(OperationNotFound):
    """More than one operation has an id that begins so."""

    code = "ambiguous"


class OperationFailed(KtrdrOpsError):
    """The operation failed."""

    code = "failed"


class OperationCancelledException(KtrdrOpsError):
    """The operation was cancelled."""

    code = "cancelled"
    exit_code = 130


class OperationInterrupted(KtrdrOpsError):
    """The operation was interrupted; another attempt can go on.

    An operation function raises it where nobody can say what became of its work; with the detail ``final=True`` no
    later attempt goes on.
    """

    code = "interrupted"
    exit_code = 9


class OperationFinished(KtrdrOpsError):
    """The operation is over."""

    code = "finished"


class OwnershipLost(KtrdrOpsError):
    """Another attempt has taken this operation over."""

    code = "ownership_lost"
    exit_code = 6


class KeyIsLive(KtrdrOpsError):
    """An operation with this key is running already."""

    code = "already_running"
    exit_code = 8


class HostServiceError(KtrdrOpsError):
    """The host service did not do what was asked."""

    code = "host_error"


class HostUnavailable(HostServiceError):
    """The host service does not answer."""

    code = "host_unavailable"
    exit_code = 5


class HostAnswerWrong(HostServiceError):
    """The host service's answer cannot be used."""

    code = "host_answer_wrong"


class HostRefused(HostServiceError):
    """The host service refused, and would refuse again."""

    code = "host_refused"


class JournalError(KtrdrOpsError):
    """The journal cannot do this."""

    code = "journal"
    exit_code = 7


class JournalRefused(JournalError):
    """The journal must not be used like this."""

    code = "journal_refused"


class JournalCorrupt(JournalError):
    """The journal does not hold what was written."""

    code = "journal_corrupt"
    exit_code = 4


class JournalFull(JournalError):
    """There is no room left for the journal."""

    code = "journal_full"


class JournalBusy(JournalError):
    """Another process holds the journal and does not let go."""

    code = "journal_busy"


class JournalStopped(JournalError):
    """The journal's writer has stopped; whether the last events are kept is unknown."""

    code = "journal_stopped"
