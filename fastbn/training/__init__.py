"""Training: the loop, the step, what changes in it, the checkpoint."""

# "module:function" of what keeps a training in a folder, filled from above: see saving.kept
KEEPER: list[str] = []
