"""The start of the command: what is imported takes a moment, in which Ctrl-C ends it without a word."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from trainmgr.cli import main

if __name__ == "__main__":
    main()
