"""What can go wrong with a training.

OperationFailed
└── TrainingServiceError           a training failed; says which, and why
    ├── SessionFailed              the host says that the session failed (also a HostServiceError)
    ├── SessionStopped             somebody else stopped the session
    └── TrainingHostUnavailable    the host is absent or busy for too long (also a HostUnavailable)

HostServiceError
├── HostBusy                       the host has as many sessions as it takes: later works
└── SessionUnknown                 the host answers and knows no such session

The last two never leave the engine: a busy host is waited for, an unknown session ends the attempt as interrupted.
"""

from __future__ import annotations

from ktrdr_ops.core.errors import HostServiceError, HostUnavailable, OperationFailed


class TrainingServiceError(OperationFailed):
    """The training failed."""

    code = "training_failed"


class SessionFailed(TrainingServiceError, HostServiceError):
    """The training session failed on the host."""

    code = "session_failed"


class SessionStopped(TrainingServiceError):
    """The training session was stopped, and not by this operation."""

    code = "session_stopped"


class TrainingHostUnavailable(TrainingServiceError, HostUnavailable):
    """The training host service does not answer, or is busy."""

    code = "host_unavailable"
    exit_code = 5


class HostBusy(HostServiceError):
    """The host has as many sessions as it takes."""


class SessionUnknown(HostServiceError):
    """The host does not know this session."""
