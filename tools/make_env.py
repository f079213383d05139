"""Make a virtual environment from a lock file, or find that it is there and up to date.

    python tools/make_env.py .venv requirements.lock --editable
    python tools/make_env.py .venv-thin requirements-thin.lock

An environment counts as made only when its stamp is there and says the same as today: the stamp
is written last, so whatever was interrupted is done again from the start. Standard library only,
because it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMP = "stamp.json"
Stamp = dict[str, str]


def main(argv: Sequence[str] | None = None) -> int:
    """Make the environment that the arguments name; 0 when it is ready."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("env", type=Path, help="folder of the environment")
    parser.add_argument("lock", type=Path, help="requirements file with exact versions")
    parser.add_argument("--editable", action="store_true", help="install the project as well")
    args = parser.parse_args(argv)
    env = ROOT / args.env
    wanted = wanted_stamp(env, ROOT / args.lock, editable=args.editable)
    found = read_stamp(env)
    if found == wanted:
        return 0
    try:
        same_packages = {**found, "project": ""} == {**wanted, "project": ""}
        if not same_packages:
            create(env)
            install(env, ROOT / args.lock)
        if args.editable:
            install_project(env)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    (env / STAMP).write_text(json.dumps(wanted, indent=2) + "\n")
    say(f"{args.env} is ready\n")
    return 0


def wanted_stamp(env: Path, lock: Path, *, editable: bool) -> Stamp:
    """What decides whether an environment can stay: packages, project, Python and place."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        settings = tomllib.load(file)
    # Only what an installation reads: changing a linter's settings reinstalls nothing.
    project = [settings["build-system"], settings["project"], settings["tool"]["hatch"]]
    return {
        "lock": hashlib.sha256(lock.read_bytes()).hexdigest(),
        "project": hashlib.sha256(json.dumps(project).encode()).hexdigest() if editable else "",
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "place": str(env),  # scripts in an environment hold its absolute path
    }


def read_stamp(env: Path) -> Stamp:
    """The stamp of a finished environment whose interpreter still runs, else an empty one."""
    try:
        stamp = json.loads((env / STAMP).read_text())
        # A Python that was upgraded or removed leaves a link to nothing.
        subprocess.run([env / "bin" / "python", "-c", ""], check=True, capture_output=True)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def create(env: Path) -> None:
    """Make `env` anew with this interpreter."""
    if env.exists():
        # Never delete a folder that is something else.
        if not (env / "pyvenv.cfg").exists() and any(env.iterdir()):
            raise RuntimeError(f"{env} is in the way: it is not a virtual environment. Move it.")
        (env / STAMP).unlink(missing_ok=True)  # first: an interrupted removal is not finished
        shutil.rmtree(env)
    say(f"making {env.name} with Python {sys.version.split()[0]} ({sys.executable})\n")
    done = run([sys.executable, "-m", "venv", str(env)])
    if done.returncode:
        raise RuntimeError(
            f"{sys.executable} cannot make a virtual environment:\n{done.stdout.strip()}\n"
            "Debian and Ubuntu keep that part apart: apt install python3-venv"
        )


def install(env: Path, lock: Path) -> None:
    """Install what `lock` names, showing which package of how many pip is at."""
    pins = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    command = [str(env / "bin" / "python"), "-m", "pip", "install", "--no-input"]
    command += ["--progress-bar", "off", "--requirement", str(lock)]
    seen = 0
    started = time.monotonic()

    def follow(line: str) -> None:
        nonlocal seen
        # "Processing" is what pip says of a wheel that it finds in a folder.
        if line.startswith(("Collecting ", "Processing ")):
            seen += 1
            name = re.split("==|-", line.split()[1].rpartition("/")[2])[0]
            note(f"[{seen}/{max(seen, len(pins))}] fetching {name}")
        elif line.startswith("Installing collected packages"):
            note(f"unpacking {len(pins)} packages")

    say(f"installing {len(pins)} packages from {lock.name}\n")
    done = run(command, follow)
    note("")
    if done.returncode:
        tail = "\n".join(done.stdout.strip().splitlines()[-25:])
        raise RuntimeError(f"pip could not install {lock.name}; its last lines:\n{tail}")
    say(f"installed in {time.monotonic() - started:.0f} s\n")


def install_project(env: Path) -> None:
    """Put the project's source roots on the environment's path, and its commands in bin."""
    command = [str(env / "bin" / "python"), "-m", "pip", "install", "--no-input", "--no-deps"]
    # The build backend is in the lock: nothing is fetched here.
    done = run([*command, "--no-build-isolation", "--editable", str(ROOT)])
    if done.returncode:
        raise RuntimeError(f"pip could not install the project:\n{done.stdout.strip()}")


def run(
    command: Sequence[str], follow: Callable[[str], None] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `command` quietly, passing each line of its output to `follow`."""
    # These would make Python or pip look, or install, elsewhere than in the environment.
    stray = ("PYTHONHOME", "PYTHONPATH", "PIP_USER", "PIP_TARGET", "PIP_PREFIX")
    environ = {name: value for name, value in os.environ.items() if name not in stray}
    lines = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environ,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if follow is not None:
                follow(line)
    return subprocess.CompletedProcess(command, process.returncode, "".join(lines))


def say(text: str) -> None:
    """Write to stderr at once: stdout belongs to what the make target prints."""
    print(text, end="", file=sys.stderr, flush=True)


def note(text: str) -> None:
    """Replace the progress line; on what is not a terminal, such as a CI log, stay silent."""
    if sys.stderr.isatty():
        say(f"\r\x1b[K  {text}" if text else "\r\x1b[K")


if __name__ == "__main__":
    sys.exit(main())
