"""What models cost on the emulated array, from their dimensions alone: the tables and the picture of docs/aie.md."""
