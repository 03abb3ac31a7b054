"""A look inside trained networks: γ and β (affine), ReLUs (firing), what features see (features), curves,
pruning, the report.

    from fastbn.analysis import affine, axes, firing
    affine.small_overall(affine.affine(model))                  # the share of |γ| < 0.01
    firing.firing(model, test)                                  # how often each ReLU fires
    axes.histogram({"BN only": model, "all": other}, "gamma")   # a matplotlib Axes

Every figure of the report is a function that returns arrays, and one in `axes` that draws them.
"""
