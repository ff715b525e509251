"""Runs a life cycle with a fault at one call after another, and counts what came of it."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.faults.injector.fork_server import Fault, ForkServer, Ran

PAST_THE_END = 40
"""How far behind the calls of an undisturbed run a fault is still tried: a run may make a few more."""


@dataclass
class Figures:
    """What became of the runs. ``bad`` names each one after which something was wrong."""

    runs: int = 0
    fired: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    bad: list[str] = field(default_factory=list)

    def add(self, other: Figures) -> None:
        """Take another's runs in."""
        self.runs += other.runs
        self.fired += other.fired
        self.ends += other.ends
        self.refusals += other.refusals
        self.acknowledged += other.acknowledged
        self.bad += other.bad

    def summary(self) -> str:
        """One line for each kind of finding: how often, and where first."""
        kinds: dict[str, list[str]] = {}
        for wrong in self.bad:
            kinds.setdefault(wrong.partition("]: ")[2][:60], []).append(wrong)
        return "\n".join(f"{len(found)} x {found[0]}" for found in kinds.values())

    def line(self, row: str, seeded: int) -> str:
        """The line that is printed."""
        return (
            f"FAULTS {row}: {self.fired} of {self.runs} faults fired, {len(self.bad)} bad, "
            f"{self.acknowledged} events acknowledged, ends {dict(sorted(self.ends.items()))}, "
            f"refusals {dict(sorted(self.refusals.items()))}, seed {seeded}, commit {_commit()}"
        )


def _commit() -> str:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
    )  # fmt: skip
    return found.stdout.strip() or "unknown"


def at_every_call(
    server: ForkServer, cycle: str, fault: Fault, *, every: int = 1, first: int = 1, mutant: str = ""
) -> Figures:
    """Run the cycle with the fault at call ``first``, ``first + every``, … to its last one."""
    calls = server.run(cycle, server.prepared(cycle), replace(fault, at=0), mutant=mutant).calls
    figures = Figures()
    for at in range(first, calls + PAST_THE_END, every):
        folder = server.prepared(cycle)
        ran = server.run(cycle, folder, replace(fault, at=at), mutant=mutant)
        if not ran.fired and at > calls - PAST_THE_END:
            break
        figures.runs += 1
        figures.fired += bool(ran.fired)
        figures.ends[_end(ran)] += 1
        figures.refusals += Counter(str(line["code"]) for line in ran.told if "refused" in line)
        figures.acknowledged += sum(len(line.get("acked", ())) for line in ran.told)
        found = [*_wrong(ran, fault), *server.check(cycle, folder, ran)]
        figures.bad += [f"{cycle} {replace(fault, at=at)} {ran.fired[:1]}: {wrong}" for wrong in found]
    return figures


def _end(ran: Ran) -> str:
    raised = [line["raised"] for line in ran.told if "raised" in line]
    return f"raised {raised[0]}" if raised else ran.ended


def _wrong(ran: Ran, fault: Fault) -> Iterable[str]:
    if ran.ended == "SIGALRM":
        yield "it hung"
    if ran.ended not in ("ok", "raised", "SIGKILL", "SIGALRM"):
        yield f"it ended with {ran.ended}: {ran.errors}"
    for line in ran.told:
        if line.get("clear") is False:
            yield f"an error that names itself to nobody: {line['raised']}: {line['text']}"
        if line.get("raised") == "journal_corrupt" and not fault.reads:
            yield f"a failing disk is called a damaged journal: {line['text']}"
