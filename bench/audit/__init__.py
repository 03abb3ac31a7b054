"""The cost of a Triton kernel on a GPU that need not be there: compiled, disassembled, counted."""
