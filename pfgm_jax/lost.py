"""What JAX's libraries say of a lost process, as one line: run as a program, a filter beside each process of several.

When a process of several dies, the C++ side of JAX ends the others by itself, with a stack trace and from whatever they
are doing: nothing in them can say a word any more. What it writes therefore goes through this filter.
"""

import os
import re
import subprocess
import sys

CHATTER = re.compile(rb"^\[Gloo\] Rank \d+ is connected|experimental recoverable task")
LOSS = re.compile(rb"coordination.service|CoordinationService|JAX distributed service", re.IGNORECASE)
TASK = re.compile(rb"task:(\d+)|/task:(\d+)")


def watch():
    """From now on what is written past Python to stdout and stderr goes through the filter, which outlives us."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as end:
        subprocess.Popen([sys.executable, "-S", __file__], stdin=end, start_new_session=True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        stream.flush()
        # Python's own streams keep the place they wrote to.
        own = open(os.dup(number), "w", encoding=stream.encoding, errors=stream.errors, buffering=1)
        os.dup2(writer, number)
        setattr(sys, name, own)
    os.close(writer)


def main():
    """Copies stdin to stderr but for chatter; what ends the process at the loss of another one becomes one line."""
    ending = []
    for line in sys.stdin.buffer:
        if CHATTER.search(line):
            continue
        if ending or LOSS.search(line):
            ending.append(line)
            continue
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
    if ending:
        numbers = sorted({next(filter(None, found)).decode() for found in TASK.findall(b"".join(ending))})
        which = f"process {numbers[0]} was lost" if len(numbers) == 1 else "another process was lost"
        # Below the progress bar, whose line has no end.
        print(f"\npfgm_jax: {which}, so all stop: the same command continues", file=sys.stderr)


if __name__ == "__main__":
    main()
