"""A read-only page of what the journal holds: fleets, boards, trade-offs, history; live by server-sent events."""
