"""Every file name of a run directory, and every environment variable, in one place."""

from __future__ import annotations

import difflib
import os
import pwd
import re
import stat
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePath

from trainmgr.base.errors import UserError

RUN_DIR_VARIABLE = "TRAINMGR_RUN_DIR"  # given to the child
SEED_VARIABLE = "TRAINMGR_SEED"  # given to the child
RESUME_VARIABLE = "TRAINMGR_RESUME"  # given to the child after a restart
CHECK_VARIABLE = "TRAINMGR_CHECK"  # given to the child of `trainmgr check`
RUNS_DIR_VARIABLE = "TRAINMGR_RUNS_DIR"  # where runs are kept, when --runs-dir is not given
POLICY_VARIABLE = "TRAINMGR_POLICY"  # the policy file, when --policy is not given
API_KEY_VARIABLE = "OPENAI_API_KEY"
BASE_URL_VARIABLE = "OPENAI_BASE_URL"
KEY_NAME_VARIABLE = "TRAINMGR_API_KEY_ENV"  # the name of the variable that holds the key: --api-key-env
SEND_KEY_VARIABLE = "TRAINMGR_SEND_KEY"  # endpoints that may have the key, beside those of key.py: --send-key
AUDIT_KEY_VARIABLE = "TRAINMGR_AUDIT_KEY"  # the key of the audit log
AUDIT_KEY_FILE_VARIABLE = "TRAINMGR_AUDIT_KEY_FILE"  # or the file that it is in
SECRET_VARIABLES = (  # never given to the child
    API_KEY_VARIABLE,
    "OPENAI_ADMIN_KEY",
    "OPENAI_CUSTOM_HEADERS",
    "OPENAI_WEBHOOK_SECRET",
    "AZURE_OPENAI_API_KEY",
    "AZURE_OPENAI_AD_TOKEN",
    AUDIT_KEY_VARIABLE,
)
API_KEY_NAME = re.compile(r"([A-Z][A-Z0-9_]*_)?API_KEY(_[A-Z0-9_]+)?")  # a variable that is a key by its name

LONGEST_SLUG = 200  # characters: with time and digits the name of a folder, which has at most 255 bytes
LONGEST = 4095  # characters of a path, as Linux has it
INLINE = 3  # names in a sentence; more get a line each
ALIKE = 0.8  # of two names: the share that is the same, from which one may be meant by the other

SLUG = slice(len("YYYYMMDD-HHMMSS-"), -len("-0000"))  # of a run's id: its name
RUN_ID = re.compile(r"\d{8}-\d{6}-[A-Za-z0-9_.-]+-[0-9a-f]{4}")


@dataclass(frozen=True)
class RunPaths:
    """The files of one run directory."""

    root: Path
    link: Path | None = field(default=None, compare=False)
    """The symbolic link in a folder of runs by which it was found."""

    @property
    def id(self) -> str:
        return self.root.name

    @property
    def manifest(self) -> Path:
        return self.root / "run.json"

    @property
    def telemetry(self) -> Path:
        return self.root / "telemetry.jsonl"

    @property
    def control(self) -> Path:
        return self.root / "control.json"

    @property
    def audit(self) -> Path:
        return self.root / "audit.jsonl"

    @property
    def stdout(self) -> Path:
        return self.root / "stdout.log"

    @property
    def stderr(self) -> Path:
        return self.root / "stderr.log"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"


def usable(path: str) -> bool:
    """Whether a checkpoint's path, as a script reports it, can be given to it again: relative to the run directory and
    leading nowhere out of it, or absolute where a script saves elsewhere."""
    return 0 < len(path) <= LONGEST and "\0" not in path and ".." not in PurePath(path).parts


def new_run(runs_dir: Path, name: str, now: datetime) -> RunPaths:
    """Make the directory of a new run, readable by its owner only.

    Raises UserError where it cannot be made.
    """
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[:LONGEST_SLUG] or "run"
    root = runs_dir / f"{now:%Y%m%d-%H%M%S}-{slug}-{os.urandom(2).hex()}"
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        root.mkdir(mode=0o700)
    except OSError as error:
        raise UserError(
            f"The run directory {root} cannot be made: {error.strerror}. Choose another --runs-dir."
        ) from None
    return RunPaths(root.resolve())


def list_runs(runs_dir: Path) -> list[RunPaths]:
    """All runs of a folder, oldest first."""
    if not runs_dir.is_dir():
        return []
    roots = [root for root in runs_dir.iterdir() if RUN_ID.fullmatch(root.name) and root.is_dir()]
    return [_resolved(root) for root in sorted(roots, key=lambda root: (root.name[:15], root.stat().st_mtime))]


def _resolved(root: Path) -> RunPaths:
    return RunPaths(root.resolve(), root if root.is_symlink() else None)


def stranger(paths: RunPaths) -> str | None:
    """Who else may have written what a run directory says, in words; None where it is ours alone, or root's.

    In a folder that others may write, too, they can put a run that is the latest one, or a link to one.
    """
    files = (paths.root, paths.manifest, paths.audit, paths.telemetry, paths.control, paths.checkpoints)
    try:
        if paths.link is not None and (owner := _other(paths.link.lstat())):
            return f"the link {paths.link} to it belongs to {owner}"
        for path in files:
            if not path.exists():
                continue
            name = path.name if path is not paths.root else "the folder"
            if owner := _other(path.stat()):
                return f"{name} belongs to {owner}"
            if path.stat().st_mode & stat.S_IWOTH:
                return f"everyone can write to {name}"
    except OSError as error:
        return f"its owner cannot be told ({error.strerror})"
    return None


def _other(status: os.stat_result) -> str | None:
    """The owner of a file, where that is somebody else."""
    if status.st_uid in (os.geteuid(), 0):
        return None
    try:
        return pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        return f"the user {status.st_uid}"


def run_ids(runs_dir: Path) -> list[str]:
    """The ids of all runs of a folder, latest first, for who types one: nothing in them is looked at."""
    try:
        with os.scandir(runs_dir) as entries:
            return sorted((entry.name for entry in entries if RUN_ID.fullmatch(entry.name)), reverse=True)
    except OSError:
        return []


def find_run(runs_dir: Path, reference: str) -> RunPaths:
    """The run that an id, a unique prefix of one, a path or ``latest`` names.

    Raises UserError when there is none, or more than one.
    """
    path = Path(reference)
    if (path / "run.json").is_file() or (path / "telemetry.jsonl").is_file():
        return _resolved(path)
    runs = list_runs(runs_dir)
    if not runs:
        raise UserError(f"There are no runs in {runs_dir}/. Start one with `trainmgr run SCRIPT`, or name --runs-dir.")
    if reference == "latest":
        return runs[-1]
    matching = [run for run in runs if run.id.startswith(reference)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        names = _listed([run.id for run in matching])
        raise UserError(f"{reference!r} is the beginning of {len(matching)} runs{names}Type more of the name.")
    near = _near([run.id for run in runs], Path(reference).name)
    meant = f" Perhaps you mean{_listed(near)}" if near else " "
    raise UserError(f"No run in {runs_dir}/ begins with {reference!r}.{meant}`trainmgr runs` lists what is there.")


def _listed(names: list[str]) -> str:
    """All of them: in the sentence, or on a line each where they are many."""
    if len(names) <= INLINE:
        return f": {', '.join(names)}. "
    return "".join([":\n", *(f"  {name}\n" for name in names)])


def _near(names: list[str], typed: str) -> list[str]:
    """What may have been meant: the latest names that have it in them, else those that are almost like it."""
    if difflib.get_close_matches(typed, ["latest"], cutoff=ALIKE):
        return ["latest"]
    if found := [name for name in names if typed and typed.lower() in name.lower()]:
        return found[-INLINE:]
    parts = {part: name for name in names for part in (name[: len(typed)], name[SLUG])}  # of what is alike, the latest
    return [parts[part] for part in difflib.get_close_matches(typed, parts, n=INLINE, cutoff=ALIKE)]
