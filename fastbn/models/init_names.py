"""The names of the initialisations, the default first. Imports no torch; the draws themselves are in
init.py."""

GAMMA_INITS = ("uniform", "ones", "uniform_symmetric", "normal", "he_normal")
BETA_INITS = ("zeros", "ones")
WEIGHT_INITS = (
    "kaiming_normal",
    "kaiming_uniform",
    "orthogonal",
    "binary",
    "torch_uniform",
    "glorot_uniform",
)

# Drawn again from the seed to the same bits on any machine; what is not here (LAPACK's QR differs) a
# checkpoint stores.
REGENERABLE = frozenset(WEIGHT_INITS) - {"orthogonal"}
