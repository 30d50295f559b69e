"""What a key with a forced command runs: start the agent, and refuse everything else.

    restrict,command="python3 -I -S gate.py ROOT [SHA256 ...]" ssh-ed25519 AAAA...

sshd puts what the host asked for into SSH_ORIGINAL_COMMAND. Only the shape of edgepipe's own start is accepted, and of
it only the hash of the agent is used: the code that then runs is start.py beside this file, and the folder is ROOT.
With hashes given, only agents of these are started.
"""

from __future__ import annotations

import os
import re
import shlex
import sys


def asked() -> str:
    """Return the hash of the agent the host wants to start; empty if it asks for anything else."""
    try:
        words = shlex.split(os.environ.get("SSH_ORIGINAL_COMMAND", ""))
    except ValueError:
        return ""
    start = words[1:4] == ["-I", "-S", "-c"] and len(words) == 7  # noqa: PLR2004 - python -I -S -c CODE ROOT SHA256
    return words[6] if start and re.match(r"[0-9a-f]{64}\Z", words[6]) else ""


def main() -> None:
    """Become the agent, or end with a word on stderr and status 1."""
    root, agents = sys.argv[1], sys.argv[2:]
    sha = asked()
    if not sha:
        sys.exit("edgepipe: this key starts edgepipe's agent, and nothing else")
    if agents and sha not in agents:
        # The host reads this line in place of the agent's first one.
        print('{"error": "this board does not accept that version of the agent (edgepipe_agents)"}', flush=True)
        sys.exit(1)
    start = os.path.join(os.path.dirname(os.path.abspath(__file__)), "start.py")  # noqa: PTH100, PTH118, PTH120
    os.execv(sys.executable, [sys.executable, "-I", "-S", start, root, sha])  # noqa: S606


if __name__ == "__main__":
    main()
