"""A short search of the tiny network on this machine, through real runtimes; a script of its own, to be killed."""

import sys
from pathlib import Path

from edgepipe import budget, deploy, recipe, search
from edgepipe.progress import Silent
from edgepipe.schema import Plan
from edgepipe.search import work

SHORT = Plan("short", processes=1, min_seconds=0.1, min_samples=64, warmup_seconds=0.05, warmup_cap_seconds=0.5)


def run(model, folder: Path, limits: str = "", trials: int = 3, progress=None) -> search.Outcome:
    """Search among the steps on the file: what changes the network has tests of its own, and trains."""
    work.SHORT = SHORT
    recipe.network_steps.cache_clear()
    steps, recipe.network_steps = recipe.network_steps, dict
    try:
        how = deploy.Request(model=str(model), target="local", plan=SHORT)
        request = search.Request(how, budget.parse(limits), folder, trials)
        return search.run(request, progress or Silent())
    finally:
        recipe.network_steps = steps


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), trials=int(sys.argv[3]))
