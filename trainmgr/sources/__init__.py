"""A script that reports nothing, read: its output, a CSV file or JSON lines as telemetry. Imports workload.

Standard library only. ``python -m trainmgr.sources`` is what the supervisor starts in place of the script: a process
that starts the script, passes on what it prints, follows that or a file line by line, reports what it finds through the
ordinary `Workload`, and carries out a stop with signals. So the rest of trainmgr need not know of it.
"""
