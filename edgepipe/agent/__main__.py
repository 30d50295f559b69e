"""``agent.pyz serve [--root FOLDER] [--sysfs-root FOLDER]``; it starts ``child FD``, ``watch``, ``tune``."""

from __future__ import annotations

import sys
from typing import List

_USAGE = "usage: agent serve [--root FOLDER] [--sysfs-root FOLDER]"


def main(arguments: List[str]) -> int:
    """Run the agent; returns its exit code."""
    if len(arguments) == 2 and arguments[0] == "child" and arguments[1].isdigit():  # noqa: PLR2004
        from edgepipe.agent import child

        child.main(int(arguments[1]))
        return 0
    if arguments == ["watch"]:
        from edgepipe.agent import power

        power.main()
        return 0
    if arguments == ["tune"]:
        from edgepipe.agent import tuning

        tuning.main()
        return 0
    names = dict(zip(arguments[1::2], arguments[2::2]))
    if arguments[:1] != ["serve"] or len(arguments) % 2 == 0 or not set(names) <= {"--root", "--sysfs-root"}:
        print(_USAGE, file=sys.stderr)
        return 2
    from edgepipe.agent import serve

    return serve.main(names.get("--root", "~/.edgepipe"), names.get("--sysfs-root", "/"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
