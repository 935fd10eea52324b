"""What `pytest --pte` asks of `verifier.plugin.child`, and what became of it: each question once per session, whichever process asks first."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from verifier.core.python import child_command, child_environment
from verifier.core.records import JsonObject

Question = JsonObject
_TAIL = 2000


class Refused(Exception):  # noqa: N818
    """Nothing can be verified; the text says why."""


class Child:
    """A process that answers questions, one after the other. It starts with the first one."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def ask(self, question: Question) -> JsonObject:
        """Its answer. Raises `Refused` if there is none."""
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        except BaseException:
            self.close()  # an interrupt leaves no process behind
            raise
        if not line:
            self.close()
            said = self._log.read_text(errors="replace")[-_TAIL:].strip()
            raise Refused(f"the process that verifies ended with status {process.returncode}\n{said}".strip())
        answer: JsonObject = json.loads(line)
        if "refused" in answer:
            raise Refused(answer["refused"])
        return answer

    def _start(self) -> subprocess.Popen[str]:
        pipes: JsonObject = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "ascii"}
        words = child_command("verifier.plugin.child")
        with self._log.open("w") as log:
            return subprocess.Popen(words, env=os.environ | child_environment(), stderr=log, **pipes)

    def close(self) -> None:
        """End the process, whatever it does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


class Judge:
    """The answers for all pairs of file and target of a session, in one folder for all its processes.

    A pair is verified by the first process to ask; others wait for it. A failed attempt is an answer too: nobody tries again.
    """

    def __init__(self, folder: Path, requests: Sequence[Question], name: str = "main") -> None:
        self.folder, self.requests, self.name = folder, list(requests), name
        self._child = Child(folder / f"{name}.log")
        self._known: dict[int, JsonObject] = {}

    def plan(self) -> list[list[tuple[str, str]]]:
        """The (check, case) of every request. Raises `Refused`."""
        planned = self._child.ask({"do": "plan", "requests": self.requests})["planned"]
        return [[(check, case) for check, case in cases] for cases in planned]

    def settle(self, wanted: Mapping[int, Sequence[str] | None]) -> None:
        """Have an answer to each wanted request, for the checks that are named, for all if they are None. Those that nobody works on come first."""
        open_ones = list(wanted)
        for waiting in (False, True):
            for number in tuple(open_ones):
                with self._alone_with(number, waiting=waiting) as alone:
                    if alone:
                        self._known[number] = self._settled(number, wanted[number])
                        open_ones.remove(number)

    def result(self, number: int, check: str, case: str) -> JsonObject | None:
        """The result of a check on a case; None if it gave none. Raises `Refused` as the attempt did."""
        known = self._known[number]
        if "refused" in known:
            raise Refused(known["refused"])
        return known["results"].get((check, case))  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the process."""
        self._child.close()

    def _settled(self, number: int, checks: Sequence[str] | None) -> JsonObject:
        """What the one attempt gave, made now if nobody has made it."""
        begun, done = self.folder / f"{number}.begun", self.folder / f"{number}.json"
        if not done.exists():
            try:
                if begun.exists():
                    raise Refused(f"the process that verified it did not finish: {begun.read_text()}")
                begun.write_text(self.name)
                answer = self._child.ask({"do": "verify", "request": self.requests[number], "checks": checks})
            except Refused as error:
                answer = {"refused": str(error)}
            written = done.with_suffix(".part")
            written.write_text(json.dumps(answer))
            written.replace(done)
        found: JsonObject = json.loads(done.read_text())
        if "results" in found:
            found["results"] = {(check["id"], check["case"]): check for check in found["results"]}
        return found

    @contextmanager
    def _alone_with(self, number: int, *, waiting: bool) -> Iterator[bool]:
        """Whether this process alone works on a request; `waiting` until it does."""
        with (self.folder / f"{number}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if waiting else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True
