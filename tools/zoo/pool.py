"""Worker processes in which a crash, a hang or lack of memory of one task is its result."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

__all__ = ["Pool", "Task"]

ROOT = Path(__file__).resolve().parents[2]

Task = Mapping[str, Any]
"""The arguments of one call, by name; must survive JSON."""

START_S = 300.0
"""Until a worker has answered its first task, importing PyTorch counts too."""
TASKS_PER_WORKER = 60
"""Then it is replaced: tracing leaves memory behind, some MB a task."""


class Pool:
    """Runs tasks in `workers` processes of one thread each."""

    def __init__(
        self, function: str, *, workers: int, limit_s: float, log_folder: Path, root: Path = ROOT
    ) -> None:
        """Prepare; processes start with the first task.

        Args:
            function: "package.module:function", called in the worker with a task's arguments.
            workers: How many processes.
            limit_s: Wall-clock time one task may take.
            log_folder: Where their stderr goes.
            root: Folder they run in.
        """
        self._function = function
        self._workers = workers
        self._limit_s = limit_s
        self._folder = log_folder
        self._root = root
        self._stopping = threading.Event()

    def run(
        self,
        tasks: Sequence[Task],
        done: Callable[[Task, dict[str, Any]], None],
        *,
        together: Callable[[Task], object] = id,
    ) -> None:
        """Run every task and call `done` with each result, from this thread, as they come.

        Neighbours among `tasks` for which `together` gives the same go to one process, one after
        the other: what one of them leaves there may serve the next.
        """
        waiting: queue.SimpleQueue[list[Task]] = queue.SimpleQueue()
        groups = [list(group) for _, group in itertools.groupby(tasks, together)]
        for group in groups:
            waiting.put(group)
        finished: queue.SimpleQueue[tuple[Task, dict[str, Any]] | None] = queue.SimpleQueue()
        count = min(self._workers, len(groups))
        threads = [
            threading.Thread(target=self._serve, args=(index, waiting, finished), daemon=True)
            for index in range(count)
        ]
        for thread in threads:
            thread.start()
        try:
            while count:
                item = finished.get()
                if item is None:
                    count -= 1
                else:
                    done(*item)
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join(timeout=10)

    def _serve(
        self,
        index: int,
        waiting: queue.SimpleQueue[list[Task]],
        finished: queue.SimpleQueue[tuple[Task, dict[str, Any]] | None],
    ) -> None:
        worker: _Worker | None = None
        group: list[Task] = []
        try:
            while not self._stopping.is_set():
                try:
                    group = group or waiting.get_nowait()
                except queue.Empty:
                    return
                task = group.pop(0)
                if worker is None:
                    log = self._folder / f"worker-{index}.log"
                    worker = _Worker(self._function, log, self._root)
                result = worker.ask(task, self._limit_s, self._stopping)
                if result is None:
                    return
                finished.put((task, result))
                is_old = worker.answered >= TASKS_PER_WORKER and not group
                if not worker.is_alive or is_old:
                    worker.close()
                    worker = None
        finally:
            if worker is not None:
                worker.close()
            finished.put(None)


class _Worker:
    """The driver's end of one process."""

    def __init__(self, function: str, log: Path, root: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        self.answered = 0
        self.is_alive = True
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tools.zoo.worker", function],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=root,
                env=_environment(root),
                start_new_session=True,  # so that what it starts ends with it
            )

    def ask(self, task: Task, limit_s: float, stopping: threading.Event) -> dict[str, Any] | None:
        """The result of one task, be it a crash or a hang; None: told to stop meanwhile."""
        pipe_in, pipe_out = self._process.stdin, self._process.stdout
        assert pipe_in is not None
        assert pipe_out is not None
        before = self._log.stat().st_size
        started = time.monotonic()
        allowed = limit_s if self.answered else limit_s + START_S
        try:
            pipe_in.write(json.dumps(dict(task)).encode() + b"\n")
            pipe_in.flush()
            line = _line(pipe_out, started + allowed, stopping)
        except BrokenPipeError:
            line = b""
        if stopping.is_set():
            return None
        if line is None:
            where = self._stack(before)
            self._kill()
            return {"status": "hang", "reason": f"no answer after {limit_s:g} s{where}"}
        if not line.endswith(b"\n"):
            return self._died(before)
        self.answered += 1
        answer: dict[str, Any] = json.loads(line)
        answer["seconds"] = round(time.monotonic() - started, 2)
        return answer

    def _died(self, before: int) -> dict[str, Any]:
        self.is_alive = False
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._kill()
            return {"status": "crash", "reason": "closed its pipe and went on"}
        if code >= 0:
            return {"status": "crash", "reason": f"exit status {code}{self._frames(before)}"}
        name = signal.Signals(-code).name
        if name == "SIGKILL":  # nobody else sends it: the kernel, short of memory
            return {"status": "memory", "reason": "killed by the kernel (SIGKILL)"}
        return {"status": "crash", "reason": f"{name}{self._frames(before)}"}

    def _stack(self, before: int) -> str:
        """Have a hanging process write its Python stack, and read it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline and not self._frames(before):
            time.sleep(0.05)
        return self._frames(before)

    def _frames(self, before: int) -> str:
        """The innermost frames that faulthandler wrote to the log since, or nothing."""
        with self._log.open("rb") as stream:
            stream.seek(before)
            text = stream.read().decode(errors="replace")
        dumped = text.rpartition("most recent call first")[2]
        frames = re.findall(r'File "([^"]+)", line (\d+) in (\S+)', dumped)
        short = [f"{Path(name).name}:{line} {function}" for name, line, function in frames[:3]]
        return f" (in {' < '.join(short)})" if short else ""

    def _kill(self) -> None:
        self.is_alive = False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End the process, if it has not ended by itself."""
        if self._process.poll() is None:
            self._kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _line(pipe: IO[bytes], deadline: float, stopping: threading.Event) -> bytes | None:
    """One line; less than a line if the process ended; None at the deadline or when stopping."""
    got = b""
    while not stopping.is_set():
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        ready, _, _ = select.select([pipe], [], [], min(left, 0.5))
        if not ready:
            continue
        piece = os.read(pipe.fileno(), 1 << 20)
        got += piece
        if not piece or got.endswith(b"\n"):
            return got
    return None


def _environment(root: Path) -> dict[str, str]:
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONHASHSEED": "0",  # names in error messages come from sets now and then
        "PYTHONPATH": os.pathsep.join(paths),
    }
