"""What a Triton kernel costs on a GPU that need not be there: compiled, disassembled, counted."""
