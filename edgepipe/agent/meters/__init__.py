"""Power meters read on the board, a file each: ``open_meter(sysfs_root)`` and ``reason(board_model)``."""
