"""A key in our environment, and who may look at it. Imported before anything else is done, so it imports little."""

from __future__ import annotations

import contextlib
import os
import re
import sys

from trainmgr.base.paths import API_KEY_NAME, KEY_NAME_VARIABLE, SECRET_VARIABLES

LEAST_KEY = 8  # characters; a shorter one stands in other texts by chance, and is no key
SECRET = re.compile(r"\b(?:sk|pk|key|gsk|hf|xai|AIza)[-_][A-Za-z0-9_*.-]{6,}|Bearer\s+\S+", re.IGNORECASE)
"""What looks like a key wherever it stands."""
PR_SET_DUMPABLE = 4  # of prctl(2)


def conceal() -> None:
    """Where our environment holds a key, let no other process of this user look into it, nor into our memory.

    Linux only. Who has CAP_SYS_PTRACE (on newer kernels CAP_SYS_ADMIN or CAP_PERFMON, too) looks all the same, and so
    does root, mostly; nor does this change what those show that we were started by. We dump no core any more, and no
    debugger gets in. Our files in /proc/self belong to root from then on, and we need none of them; processes that we
    start are as open as ever.
    """
    own = {*SECRET_VARIABLES, os.environ.get(KEY_NAME_VARIABLE, "").strip()}
    held = [name for name in os.environ if name in own or API_KEY_NAME.fullmatch(name)]
    if sys.platform == "linux" and any(len(os.environ[name].strip()) >= LEAST_KEY for name in held):
        with contextlib.suppress(ImportError, OSError, AttributeError):  # a Python or a C library without it
            import ctypes  # only who has a key needs it

            ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
