"""Boards without hardware, for tests and for trying things out: see docs/lab.md."""
