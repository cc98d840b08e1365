"""The bits and group sizes that the grid has. Part of the ground floor: known before torch is loaded."""

BITS = (3, 4)
GROUP_SIZES = (32, 64, 128, 256)
