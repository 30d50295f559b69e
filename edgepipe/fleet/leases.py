"""Who may be worked on now: one job on a board, so many boards at a time, so many transfers on an uplink. Pure."""

from __future__ import annotations


class Leases:
    """``parallel`` boards at a time; ``transfers`` at a time on each site."""

    def __init__(self, parallel: int, transfers: int) -> None:
        self._parallel, self._transfers = parallel, transfers
        self._held: set[str] = set()
        self._sending: dict[str, int] = {}

    @property
    def free(self) -> int:
        """How many more boards may be leased."""
        return self._parallel - len(self._held)

    def take(self, board: str) -> bool:
        """Lease a board; false where it is leased already or there is no room."""
        if board in self._held or self.free <= 0:
            return False
        self._held.add(board)
        return True

    def give_back(self, board: str) -> None:
        """End a lease."""
        self._held.discard(board)

    def send(self, site: str) -> bool:
        """Take a transfer on a site's uplink; false where all of them are taken."""
        if self._sending.get(site, 0) >= self._transfers:
            return False
        self._sending[site] = self._sending.get(site, 0) + 1
        return True

    def sent(self, site: str) -> None:
        """End a transfer."""
        self._sending[site] -= 1
