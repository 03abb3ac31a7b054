"""The reference engine: plain tensor code, the oracle for the others."""
